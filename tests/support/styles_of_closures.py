"""Styles: closures, and optimizers around optimizers."""

import pytest
import torch
from styles_shared import batches, loss_of, net, plain, sgd, style, with_
from torch import nn

# Closures


def lbfgs():
    model = nn.Linear(5, 3)
    return model, torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")


for name, build, keyword in (
    ("lbfgs", lbfgs, False),
    ("sgd_with_closure", sgd, False),
    ("sgd_with_closure_by_keyword", sgd, True),
):

    @style(build, name)
    def with_closure(notes, model, optimizer, keyword=keyword):
        """The closure's first evaluation is the step's gradient."""
        for _ in range(2):
            with notes.epoch():
                for batch in batches():
                    evaluations = []

                    def closure(batch=batch, evaluations=evaluations):
                        optimizer.zero_grad()
                        loss = loss_of(model, batch)
                        loss.backward()
                        evaluations.append(loss)
                        if len(evaluations) == 1:
                            notes.step(model.parameters())
                        return loss

                    optimizer.step(closure=closure) if keyword else optimizer.step(closure)


@style(lbfgs)
def closure_with_two_backwards(notes, model, optimizer):
    """One evaluation of a closure may have several backwards: all of the first one count."""
    with notes.epoch():
        for first, second in zip(batches(), reversed(batches())):
            evaluations = []

            def closure(first=first, second=second, evaluations=evaluations):
                optimizer.zero_grad()
                loss = loss_of(model, first)
                loss.backward()
                other = loss_of(model, second)
                other.backward()
                evaluations.append(loss)
                if len(evaluations) == 1:
                    notes.step(model.parameters())
                return loss + other

            optimizer.step(closure)


@style(sgd)
def closure_without_a_backward(notes, model, optimizer):
    with notes.epoch():
        for batch in batches():
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            notes.step(model.parameters())
            optimizer.step(lambda loss=loss: loss)


@style(sgd)
def closure_that_ends_an_accumulation(notes, model, optimizer):
    with notes.epoch():
        for _ in range(2):
            optimizer.zero_grad()
            for batch in batches(2):
                loss_of(model, batch).backward()

            def closure():
                loss = loss_of(model, batches()[3])
                loss.backward()
                notes.step(model.parameters())
                return loss

            optimizer.step(closure)


@style(sgd)
def closure_that_raises_and_is_caught(notes, model, optimizer):
    def fails():
        raise ArithmeticError

    with notes.epoch():
        for number, batch in enumerate(batches()):
            if number == 1:
                with pytest.raises(ArithmeticError):
                    optimizer.step(fails)
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            notes.step(model.parameters())
            optimizer.step()


@style(sgd)
def closure_that_sets_gradients_by_hand(notes, model, optimizer):
    with notes.epoch():
        for batch in batches():

            def closure(batch=batch):
                loss = loss_of(model, batch)
                for parameter, gradient in zip(model.parameters(), torch.autograd.grad(loss, model.parameters())):
                    parameter.grad = gradient
                notes.step(model.parameters())
                return loss.detach()

            optimizer.step(closure)


class Wrapped(torch.optim.Optimizer):
    """An optimizer around another one, in the way of Lookahead: its step takes the inner step, and then its own."""

    def __init__(self, inner):
        self.inner = inner
        super().__init__(inner.param_groups, {})

    def step(self, closure=None):
        loss = self.inner.step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(0.9)
        return loss


def wrapped():
    model = net()
    return model, Wrapped(torch.optim.SGD(model.parameters(), lr=0.1))


style(wrapped, "an_optimizer_around_another")(plain)


@style(wrapped)
def an_optimizer_around_another_with_closure(notes, model, optimizer):
    with notes.epoch():
        for batch in batches():

            def closure(batch=batch):
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                notes.step(model.parameters())
                return loss

            optimizer.step(closure)


class TwicePerStep(torch.optim.SGD):
    """Sharpness-aware: climbs by a first gradient, and applies that of a closure evaluated up there."""

    def step(self, closure):
        climbed = [parameter.grad * 0.05 for group in self.param_groups for parameter in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        with torch.no_grad():
            torch._foreach_add_(parameters, climbed)
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            torch._foreach_sub_(parameters, climbed)
        super().step()


@style(with_(TwicePerStep))
def sharpness_aware(notes, model, optimizer):
    with notes.epoch():
        for batch in batches():

            def closure(batch=batch):
                optimizer.zero_grad()
                loss_of(model, batch).backward()
                notes.step(model.parameters())

            loss_of(model, batch).backward()
            optimizer.step(closure)
            optimizer.zero_grad()


class InTwoCalls(torch.optim.Optimizer):
    """Sharpness-aware in the way of the reference code: two calls, each after a forward and backward of its own."""

    def __init__(self, parameters, lr, rho=0.05):
        super().__init__(parameters, {"rho": rho})
        self.inner = torch.optim.SGD(self.param_groups, lr=lr, momentum=0.9)
        self.climbed = []

    @torch.no_grad()
    def climb(self):
        self.climbed = [
            (parameter, parameter.detach().clone()) for group in self.param_groups for parameter in group["params"]
        ]
        for parameter, _ in self.climbed:
            parameter.add_(parameter.grad, alpha=0.05)
        self.zero_grad()

    @torch.no_grad()
    def descend(self):
        for parameter, before in self.climbed:
            parameter.copy_(before)
        self.inner.step()
        self.zero_grad()


@style(with_(InTwoCalls))
def sharpness_aware_in_two_calls(notes, model, optimizer):
    """What the step applies is the gradient found up there, that of the last backward before it."""
    for _ in range(2):
        with notes.epoch():
            for batch in batches():
                loss_of(model, batch).backward()
                optimizer.climb()
                loss_of(model, batch).backward()
                notes.step(model.parameters())
                optimizer.descend()


@style(lbfgs)
def closure_that_clips(notes, model, optimizer):
    with notes.epoch():
        for batch in batches():
            evaluations = []

            def closure(batch=batch, evaluations=evaluations):
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                evaluations.append(loss)
                if len(evaluations) == 1:
                    notes.step(model.parameters())
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                return loss

            optimizer.step(closure)
