"""Styles: mixed precision, and gradients of other types than float32."""

import math

import torch
import torch.nn.functional as F
from styles_shared import batches, loss_of, net, plain, sgd, style, with_
from torch import nn

# Mixed precision


def scaler(scale=2.0**10):
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)


def fused_adam(parameters, lr):
    return torch.optim.Adam(parameters, lr=lr, fused=True)


for name, explicit in (("scaler", False), ("scaler_with_unscale_", True)):
    for kind, optimizer in {
        "sgd": torch.optim.SGD,
        "fused_adam": fused_adam,
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


for kind, optimizer in {"sgd": torch.optim.SGD, "fused_adam": fused_adam}.items():
    for explicit in (False, True):

        @style(with_(optimizer), f"scaler_accumulation_and_clipping-{kind}{'-unscale_' if explicit else ''}")
        def accumulated(notes, model, optimizer, explicit=explicit):
            """Groups of three batches, the last one short, one of them skipped for what its second batch brings."""
            scales = scaler()
            for bad in (1, None):
                with notes.epoch():
                    for start in (0, 3, 6):
                        group = batches(7)[start : start + 3]
                        for number, batch in enumerate(group):
                            loss = loss_of(model, batch) / len(group)
                            scales.scale(loss * (math.inf if start == 3 and number == bad else 1)).backward()
                        if start == 3 and bad:
                            notes.skipped()
                        else:
                            notes.step(model.parameters(), scales.get_scale())
                        if explicit:
                            scales.unscale_(optimizer)
                            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                        scales.step(optimizer)
                        scales.update()
                        optimizer.zero_grad()

        @style(with_(optimizer), f"scaled_gradients_set_by_hand-{kind}{'-unscale_' if explicit else ''}")
        def set_by_hand(notes, model, optimizer, explicit=explicit):
            """The scaler's factor is out of them when the optimizer applies them, and out of the norm."""
            scales = scaler()
            with notes.epoch():
                for number, batch in enumerate(batches()):
                    loss = loss_of(model, batch) * (math.inf if number == 1 else 1)
                    gradients = torch.autograd.grad(scales.scale(loss), list(model.parameters()))
                    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                        parameter.grad = gradient
                    if number == 1:
                        notes.skipped()
                    else:
                        notes.step(model.parameters(), scales.get_scale())
                    if explicit:
                        scales.unscale_(optimizer)
                    scales.step(optimizer)
                    scales.update()


for dtype in (torch.bfloat16, torch.float16):

    @style(sgd, f"autocast_to_{str(dtype).removeprefix('torch.')}")
    def in_autocast(notes, model, optimizer, dtype=dtype):
        scales = scaler()
        with notes.epoch():
            for batch in batches():
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=dtype):
                    loss = loss_of(model, batch)
                scales.scale(loss).backward()
                notes.step(model.parameters(), scales.get_scale())
                scales.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
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


def in_type(dtype, factor, size):
    def build():
        model = nn.Linear(size, size, bias=False).to(dtype)
        return model, torch.optim.SGD(model.parameters(), lr=1e-30), factor

    return build


# Float32 gradients beyond 1e19 or below 1e-19 leave the range of their squares, and are none of these.
for dtype, factor, size in (
    (torch.float16, 20011.0, 8),  # a square overflows float16, and the norm does
    (torch.float16, 2003.0, 64),
    (torch.float16, 203.0, 160),
    (torch.bfloat16, 1e22, 8),  # a square overflows bfloat16, and float32 too
    (torch.bfloat16, 1e22, 64),
    (torch.bfloat16, 1e22, 160),
    (torch.float32, 1e15, 8),
    (torch.float32, 1e15, 160),
    (torch.float32, 1e-15, 8),
    (torch.float32, 1e-15, 160),
    (torch.float64, 1e-12, 64),
    (torch.complex64, 1.0, 8),
    (torch.complex64, 1.0, 64),
    (torch.complex64, 1.0, 160),
    (torch.complex128, 1.0, 160),
):

    @style(in_type(dtype, factor, size), f"gradients_in_{str(dtype).removeprefix('torch.')}-{factor:g}-{size}")
    def in_a_type(notes, model, optimizer, factor):
        inputs = torch.ones(1, model.in_features).to(model.weight.dtype)
        with notes.epoch():
            for _ in range(2):
                optimizer.zero_grad()
                model(inputs).sum().abs().mul(factor).backward()
                notes.norm(math.sqrt(sum(abs(complex(value)) ** 2 for value in model.weight.grad.flatten().tolist())))
                optimizer.step()


@style(in_type(torch.float32, 1.0, 8))
def a_model_of_another_type_from_step_to_step(notes, model, optimizer, factor):
    with notes.epoch():
        for dtype in (torch.bfloat16, torch.float32, torch.float64, torch.float16):
            optimizer.zero_grad()
            model.to(dtype)
            (model(torch.ones(1, 8, dtype=dtype)).sum() / 3).backward()
            notes.step(model.parameters())
            optimizer.step()


def resized():
    model = nn.ParameterList([torch.ones(1), torch.ones(4)])
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


@style(resized)
def a_parameter_of_another_size_from_step_to_step(notes, model, optimizer):
    with notes.epoch():
        for size in (7, 1, 5):
            optimizer.zero_grad()
            model[0].data = torch.ones(size)
            (model[0].sum() * 3 + model[1].sum()).backward()
            notes.step(model.parameters())
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


class Strided(nn.Module):
    """Parameters whose memory, and so whose gradients', is in another order than their dimensions."""

    def __init__(self):
        super().__init__()
        self.small, self.large = (nn.Parameter(torch.randn(size, 7).t() / 10) for size in (5, 5000))

    def forward(self, inputs):
        return (inputs @ self.small.t()).sum(1, keepdim=True) * (self.large[:3] @ self.large[4:7].t()).sum(0)


def strided():
    model = Strided()
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


style(strided, "gradients_that_are_not_contiguous")(plain)


def channels_last():
    model = nn.Sequential(nn.Unflatten(1, (5, 1, 1)), nn.Conv2d(5, 64, 3, padding=1), nn.Flatten(), nn.Linear(64, 3))
    model = model.to(memory_format=torch.channels_last)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


style(channels_last, "gradients_in_channels_last")(plain)


@style(sgd)
def gradients_that_are_one_number_expanded(notes, model, optimizer):
    with notes.epoch():
        for factor in (1.0, 2.0):
            for parameter in model.parameters():
                parameter.grad = torch.full((1,), factor).expand(parameter.shape)
            notes.step(model.parameters())
            optimizer.step()


class ManySmall(nn.Module):
    """Hundreds of small parameters beside a few large ones, in two types."""

    def __init__(self):
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(5) + n / 100) for n in range(300)])
        self.shifts = nn.ParameterList([nn.Parameter(torch.ones(2, 5, dtype=torch.float64) * n) for n in range(40)])
        self.large = nn.ModuleList([nn.Linear(5, 5000), nn.Linear(5000, 3)])

    def forward(self, inputs):
        shift = sum(shift.sum(0) for shift in self.shifts).float() / 100
        return self.large[1](self.large[0](inputs * torch.stack(list(self.scales)).mean(0) + shift))


def many_small():
    model = ManySmall()
    return model, torch.optim.SGD(model.parameters(), lr=1e-3)


style(many_small, "many_small_parameters_and_few_large_ones")(plain)


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


for scaled, group in ((False, 1), (False, 3), (True, 2)):

    @style(sparse, f"sparse_gradients_with_repeated_indices-{group}{'-scaler' if scaled else ''}")
    def with_repeated_indices(notes, model, of_embedding, of_rest, scaled=scaled, group=group):
        """The same rows come again within a batch, and in each of the micro-batches that a step adds up."""
        scales = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        with notes.epoch():
            for _ in range(2):
                for tokens in torch.tensor([[[1, 1, 2], [1, 3, 3]], [[4, 4, 4], [4, 4, 1]], [[1, 2, 3]] * 2])[:group]:
                    scales.scale(F.cross_entropy(model(tokens), torch.tensor([0, 2]))).backward()
                notes.step(model.parameters(), scales.get_scale())
                for optimizer in (of_embedding, of_rest):
                    scales.step(optimizer)
                    optimizer.zero_grad()
                scales.update()
