"""Styles: optimizers and their ways, accumulation, clipping."""

import torch
from styles_shared import batches, loss_of, plain, sgd, style, with_
from torch import nn

# Plain loops, and the optimizers' ways


style(sgd, "plain")(plain)
for settings in ({"foreach": True}, {"foreach": False}, {"fused": True}, {"fused": False, "amsgrad": True}):
    style(with_(torch.optim.Adam, **settings), f"adam-{'-'.join(settings)}-{settings.popitem()[1]}")(plain)
style(with_(torch.optim.Adagrad), "adagrad")(plain)


@style(sgd)
def gradients_kept_as_zeros(notes, model, optimizer):
    with notes.epoch():
        for batch in batches():
            loss_of(model, batch).backward()
            notes.step(model.parameters())
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)


@style(sgd)
def gradients_never_zeroed(notes, model, optimizer):
    with notes.epoch():
        for batch in batches():
            loss_of(model, batch).backward()
            notes.step(model.parameters())
            optimizer.step()


@style(sgd)
def accumulation_with_a_short_last_group(notes, model, optimizer):
    for _ in range(2):
        with notes.epoch():
            waiting = batches(7)
            while waiting:
                group, waiting = waiting[:3], waiting[3:]
                optimizer.zero_grad()
                for batch in group:
                    (loss_of(model, batch) / 3).backward()
                notes.step(model.parameters())
                optimizer.step()


@style(sgd)
def accumulation_over_the_epochs_end(notes, model, optimizer):
    """The step that an epoch's last backwards only begin belongs to the epoch that takes it."""
    done = 0
    for _ in range(3):
        with notes.epoch():
            for batch in batches(3):
                loss_of(model, batch).backward()
                done += 1
                if done % 2 == 0:
                    notes.step(model.parameters())
                    optimizer.step()
                    optimizer.zero_grad()


@style(sgd)
def a_last_group_that_is_never_applied(notes, model, optimizer):
    """Gradients that are zeroed before any step applies them are in no step."""
    for _ in range(2):
        optimizer.zero_grad()
        with notes.epoch():
            for number, batch in enumerate(batches(5)):
                loss_of(model, batch).backward()
                if number % 2:
                    notes.step(model.parameters())
                    optimizer.step()
                    optimizer.zero_grad()


class Stepper:
    """What steps an optimizer, and is none itself: the way of many libraries' wrappers."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self):
        self.inner.step()
        self.inner.zero_grad()


@style(sgd)
def an_optimizer_in_a_class_that_is_none(notes, model, optimizer):
    advance = Stepper(optimizer)
    with notes.epoch():
        for batch in batches():
            loss_of(model, batch).backward()
            notes.step(model.parameters())
            advance()


@style(sgd)
def one_gradient_stepped_twice(notes, model, optimizer):
    """Optimizer steps with no backward between them are one step."""
    with notes.epoch():
        for batch in batches():
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            notes.step(model.parameters())
            optimizer.step()
            optimizer.step()


@style(sgd)
def epochs_without_a_step(notes, model, optimizer):
    for number in range(3):
        with notes.epoch():
            if number == 1:
                optimizer.zero_grad()
                loss_of(model, batches()[0]).backward()
                notes.step(model.parameters())
                optimizer.step()


@style(sgd)
def a_step_before_any_gradient(notes, model, optimizer):
    """`optimizer.step()` with nothing to apply, as schedulers' warm-ups call it, is no step."""
    with notes.epoch():
        optimizer.step()
        loss_of(model, batches()[0]).backward()
        notes.step(model.parameters())
        optimizer.step()


# Clipping: the figure is the one before it


def by_own_code(parameters):
    norm = sum(parameter.grad.pow(2).sum() for parameter in parameters) ** 0.5
    for parameter in parameters:
        parameter.grad.mul_(0.01 / norm)


def by_new_gradients(parameters):
    for parameter in parameters:
        parameter.grad = parameter.grad * 0.01


for name, clip in {
    "clip_grad_norm_": lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.01),
    "clip_grad_value_": lambda parameters: nn.utils.clip_grad_value_(parameters, 0.01),
    "clipping_by_own_code": by_own_code,
    "clipping_by_new_gradients": by_new_gradients,
}.items():

    @style(sgd, name)
    def clipped(notes, model, optimizer, clip=clip):
        with notes.epoch():
            for batch in batches():
                optimizer.zero_grad()
                loss_of(model, batch).backward()
                notes.step(model.parameters())
                clip(list(model.parameters()))
                optimizer.step()


@style(sgd)
def clipping_by_hooks(notes, model, optimizer):
    """A hook that clips each gradient as it comes clips before the gradient is there: its figure is what is applied."""
    handles = [
        parameter.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01)) for parameter in model.parameters()
    ]
    plain(notes, model, optimizer)
    for handle in handles:
        handle.remove()


@style(sgd)
def gradients_cancelled_before_the_step(notes, model, optimizer):
    """What has no gradient any more when the optimizer steps is no part of what the step applies."""
    with notes.epoch():
        for number, batch in enumerate(batches()):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            if number < 2:
                for parameter in model[4].parameters():
                    parameter.grad = None
            notes.step(model.parameters())
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
