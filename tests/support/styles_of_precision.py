"""Styles: mixed precision, and gradients of other types than float32."""

import math

import torch
import torch.nn.functional as F
from styles_shared import batches, loss_of, net, sgd, style, with_
from torch import nn

# Mixed precision


def scaler(scale=2.0**10):
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)


for name, explicit in (("scaler", False), ("scaler_with_unscale_", True)):
    for kind, optimizer in {
        "sgd": torch.optim.SGD,
        "fused_adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr, fused=True),
    }.items():

        @style(with_(optimizer), f"{name}-{kind}")
        def scaled(notes, model, optimizer, explicit=explicit):
            scales = scaler()
            for _ in range(2):
                with notes.epoch():
                    for number, batch in enumerate(batches()):
                        optimizer.zero_grad()
                        loss = loss_of(model, batch) * (math.inf if number == 1 else 1)
                        scales.scale(loss).backward()
                        if number == 1:
                            notes.skipped()
                        else:
                            notes.step(model.parameters(), scales.get_scale())
                        if explicit:
                            scales.unscale_(optimizer)
                            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                        scales.step(optimizer)
                        scales.update()


@style(sgd)
def scaler_and_accumulation_divided_after_scaling(notes, model, optimizer):
    scales = scaler()
    with notes.epoch():
        for _ in range(2):
            optimizer.zero_grad()
            for batch in batches(2):
                (scales.scale(loss_of(model, batch)) / 2).backward()
            notes.step(model.parameters(), scales.get_scale())
            scales.step(optimizer)
            scales.update()


def two_nets():
    first, second = net(), net()
    return (
        first,
        second,
        torch.optim.SGD(first.parameters(), lr=0.1),
        torch.optim.Adam(second.parameters(), lr=0.1),
    )


@style(two_nets)
def losses_scaled_before_either_backward(notes, first, second, of_first, of_second):
    scales = scaler()
    with notes.epoch():
        for batch in batches():
            losses = [scales.scale(loss_of(model, batch)) for model in (first, second)]
            for loss, model, optimizer in zip(losses, (first, second), (of_first, of_second), strict=True):
                optimizer.zero_grad()
                loss.backward()
                notes.step(model.parameters(), scales.get_scale())
                scales.step(optimizer)
            scales.update()


@style(two_nets)
def one_model_scaled_and_the_other_not(notes, first, second, of_first, of_second):
    scales = scaler()
    with notes.epoch():
        for batch in batches():
            scales.scale(loss_of(first, batch)).backward()
            notes.step(first.parameters(), scales.get_scale())
            scales.step(of_first)
            scales.update()
            of_first.zero_grad()
            loss_of(second, batch).backward()
            notes.step(second.parameters())
            of_second.step()
            of_second.zero_grad()


@style(two_nets)
def losses_scaled_as_a_list(notes, first, second, of_first, of_second):
    scales = scaler()
    with notes.epoch():
        for batch in batches():
            sum(scales.scale([loss_of(first, batch), loss_of(second, batch)])).backward()
            notes.step([*first.parameters(), *second.parameters()], scales.get_scale())
            for optimizer in (of_first, of_second):
                scales.step(optimizer)
                optimizer.zero_grad()
            scales.update()


for order in ((0, 1), (1, 0)):

    @style(two_nets, f"one_of_two_optimizers_skipped-{'first' if order[0] else 'last'}")
    def one_skipped(notes, first, second, of_first, of_second, order=order):
        """The step is what the optimizer that wasn't skipped applies."""
        scales = scaler()
        with notes.epoch():
            for batch in batches(2):
                loss = loss_of(first, batch) + loss_of(second, batch)
                scales.scale(loss).backward()
                second[0].weight.grad[0, 0] = math.inf
                notes.step(first.parameters(), scales.get_scale())
                for index in order:
                    scales.step((of_first, of_second)[index])
                scales.update()
                of_first.zero_grad()
                of_second.zero_grad()


@style(sgd)
def a_scaler_that_is_disabled(notes, model, optimizer):
    off = torch.amp.GradScaler("cpu", enabled=False)
    with notes.epoch():
        for batch in batches():
            optimizer.zero_grad()
            off.scale(loss_of(model, batch)).backward()
            notes.step(model.parameters())
            off.step(optimizer)
            off.update()


@style(sgd)
def gradient_penalty_under_a_scaler(notes, model, optimizer):
    scales = scaler()
    with notes.epoch():
        for batch in batches():
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            found = torch.autograd.grad(scales.scale(loss), model.parameters(), create_graph=True)
            penalty = sum((gradient / scales.get_scale()).pow(2).sum() for gradient in found)
            scales.scale(loss + penalty).backward()
            notes.step(model.parameters(), scales.get_scale())
            scales.step(optimizer)
            scales.update()


@style(sgd)
def a_scaled_probe_before_an_unscaled_backward(notes, model, optimizer):
    """The factor belongs to what was scaled: a backward that doesn't go through it has gradients as they are."""
    scales = scaler()
    with notes.epoch():
        for batch in batches():
            optimizer.zero_grad()
            torch.autograd.grad(scales.scale(loss_of(model, batch)), model[0].weight)
            loss_of(model, batch).backward()
            notes.step(model.parameters())
            optimizer.step()


# Types of gradients


def in_type(dtype, factor):
    def build():
        model = nn.Linear(64, 64, bias=False).to(dtype)
        return model, torch.optim.SGD(model.parameters(), lr=1e-30), factor

    return build


for dtype, factor in (
    (torch.float16, 2003.0),  # a square overflows float16, and the norm does
    (torch.bfloat16, 1e22),  # a square overflows bfloat16, and float32 too
    (torch.float64, 1e-12),
    (torch.complex64, 1.0),
):

    @style(in_type(dtype, factor), f"gradients_in_{str(dtype).removeprefix('torch.')}")
    def in_a_type(notes, model, optimizer, factor):
        inputs = torch.ones(1, 64).to(model.weight.dtype)
        with notes.epoch():
            for _ in range(2):
                optimizer.zero_grad()
                model(inputs).sum().abs().mul(factor).backward()
                notes.norm(math.sqrt(sum(abs(complex(value)) ** 2 for value in model.weight.grad.flatten().tolist())))
                optimizer.step()


def mixed_types():
    model = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3).double())
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


@style(mixed_types)
def gradients_of_several_types_in_one_step(notes, model, optimizer):
    with notes.epoch():
        for inputs, targets in batches():
            optimizer.zero_grad()
            F.cross_entropy(model[1](model[0](inputs).double()), targets).backward()
            notes.step(model.parameters())
            optimizer.step()


def large():
    model = nn.Linear(1000, 1000, bias=False)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


@style(large)
def a_million_elements(notes, model, optimizer):
    """The sum over a large gradient keeps its digits."""
    generator = torch.Generator().manual_seed(3)
    with notes.epoch():
        for constant in (False, True):
            optimizer.zero_grad()
            inputs = torch.full((4, 1000), 0.37) if constant else torch.randn(4, 1000, generator=generator)
            model(inputs).pow(1 if constant else 3).mean().backward()
            notes.step(model.parameters())
            optimizer.step()


def sparse():
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Flatten(), nn.Linear(12, 3))
    return (
        model,
        torch.optim.SparseAdam(model[0].parameters(), lr=0.1),
        torch.optim.SGD(model[2].parameters(), lr=0.1),
    )


@style(sparse)
def sparse_gradients_with_repeated_indices(notes, model, of_embedding, of_rest):
    with notes.epoch():
        for tokens in torch.tensor([[[1, 1, 2], [1, 3, 3]], [[4, 4, 4], [4, 4, 4]]]):
            F.cross_entropy(model(tokens), torch.tensor([0, 2])).backward()
            notes.step(model.parameters())
            for optimizer in (of_embedding, of_rest):
                optimizer.step()
                optimizer.zero_grad()
