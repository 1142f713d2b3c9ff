"""Styles: no optimizer at all, and backwards of other kinds."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from oracle import global_norm
from styles_of_closures import lbfgs
from styles_shared import batches, loss_of, net, plain, sgd, style
from torch import nn
from torch.utils.checkpoint import checkpoint

# No optimizer at all


def only_net():
    return (net(),)


def steps_by_hand(notes, model, update=lambda parameter: parameter.sub_(0.1 * parameter.grad)):
    """An epoch's steps without an optimizer, each as it is taken."""
    for batch in batches():
        model.zero_grad()
        loss_of(model, batch).backward()
        notes.step(model.parameters())
        with torch.no_grad():
            for parameter in model.parameters():
                update(parameter)
        yield


for name, update in {
    "no_optimizer": lambda parameter: parameter.sub_(0.1 * parameter.grad),
    "no_optimizer_by_data": lambda parameter: parameter.data.add_(parameter.grad.data, alpha=-0.1),
}.items():

    @style(only_net, name)
    def by_hand(notes, model, update=update):
        for _ in range(2):
            with notes.epoch():
                for _ in steps_by_hand(notes, model, update):
                    pass


@style(only_net)
def an_optimizer_first_and_none_later(notes, model):
    with notes.epoch():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss_of(model, batches()[0]).backward()
        notes.step(model.parameters())
        optimizer.step()
        del optimizer
    with notes.epoch():
        for _ in steps_by_hand(notes, model):
            pass


# Backwards of other kinds


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.inner, self.outer, self.reentrant = nn.Linear(5, 5), nn.Linear(5, 3), reentrant

    def forward(self, inputs):
        hidden = checkpoint(self.inner, inputs.clone().requires_grad_(), use_reentrant=self.reentrant)
        return self.outer(checkpoint(self.inner, hidden, use_reentrant=self.reentrant))


def checkpointed(reentrant, optimizer=True):
    def build():
        model = Checkpointed(reentrant)
        return (model, torch.optim.SGD(model.parameters(), lr=0.1)) if optimizer else (model,)

    return build


style(checkpointed(True), "checkpointing-reentrant")(plain)
style(checkpointed(False), "checkpointing-non_reentrant")(plain)
style(checkpointed(True, optimizer=False), "checkpointing-reentrant-no_optimizer")(by_hand)


@style(checkpointed(True), "checkpointing-reentrant-scaler_and_accumulation")
def checkpointed_and_scaled(notes, model, optimizer):
    scales = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with notes.epoch():
        for start in (0, 3, 6):
            for batch in batches(7)[start : start + 3]:
                scales.scale(loss_of(model, batch) / 3).backward()
            notes.step(model.parameters(), scales.get_scale())
            scales.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            scales.step(optimizer)
            scales.update()
            optimizer.zero_grad()


@style(sgd)
def two_backwards_through_one_graph(notes, model, optimizer):
    with notes.epoch():
        for batch in batches():
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward(retain_graph=True)
            (2 * loss).backward()
            notes.step(model.parameters())
            optimizer.step()


@style(sgd)
def gradient_penalty(notes, model, optimizer):
    with notes.epoch():
        for inputs, targets in batches():
            optimizer.zero_grad()
            inputs = inputs.clone().requires_grad_()
            loss = F.cross_entropy(model(inputs), targets)
            (gradient,) = torch.autograd.grad(loss, inputs, create_graph=True)
            (loss + gradient.pow(2).sum()).backward()
            notes.step(model.parameters())
            optimizer.step()


@style(sgd)
def backward_of_a_backward(notes, model, optimizer):
    """A backward that builds a graph of its own, and a second one through it: what is applied is their sum."""
    with notes.epoch():
        for batch in batches():
            optimizer.zero_grad()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of the reference cycle, which zero_grad breaks
                loss_of(model, batch).backward(create_graph=True)
            sum(parameter.grad.pow(2).sum() for parameter in model.parameters()).backward()
            notes.step(model.parameters())
            optimizer.step()


@style(sgd)
def backward_from_cached_gradients(notes, model, optimizer):
    """A forward in two pieces: the first backward reaches only what lies between them, the second the parameters."""
    with notes.epoch():
        for inputs, targets in batches():
            optimizer.zero_grad()
            hidden = model[:3](inputs)
            between = hidden.detach().requires_grad_()
            F.cross_entropy(model[3:](between), targets).backward()
            hidden.backward(between.grad)
            notes.step(model.parameters())
            optimizer.step()


@style(sgd)
def backward_into_some_of_the_parameters(notes, model, optimizer):
    with notes.epoch():
        for batch in batches():
            optimizer.zero_grad()
            loss_of(model, batch).backward(inputs=list(model[4].parameters()))
            notes.step(model[4].parameters())
            optimizer.step()


@style(sgd)
def gradients_set_from_a_functional_transform(notes, model, optimizer):
    def loss_at(values, inputs, targets):
        return F.cross_entropy(torch.func.functional_call(model, values, (inputs,)), targets)

    model.eval()  # batch norm's own statistics can't be changed inside the transform
    with notes.epoch():
        for inputs, targets in batches():
            values = {name: value.detach() for name, value in model.named_parameters()}
            gradients = torch.func.grad(loss_at)(values, inputs, targets)
            for name, parameter in model.named_parameters():
                parameter.grad = gradients[name]
            notes.step(model.parameters())
            optimizer.step()


@style(sgd)
def gradients_set_by_hand(notes, model, optimizer):
    for _ in range(2):
        with notes.epoch():
            for batch in batches():
                gradients = torch.autograd.grad(loss_of(model, batch), list(model.parameters()))
                for parameter, gradient in zip(model.parameters(), gradients):
                    parameter.grad = gradient
                notes.step(model.parameters())
                optimizer.step()


@style(sgd)
def adversarial_examples_made_by_backward(notes, model, optimizer):
    """Gradients of a backward that were zeroed again before the step's own are no part of it."""
    with notes.epoch():
        for inputs, targets in batches():
            inputs = inputs.clone().requires_grad_()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.zero_grad()
            F.cross_entropy(model(inputs.detach() + 0.1 * inputs.grad.sign()), targets).backward()
            notes.step(model.parameters())
            optimizer.step()


@style(sgd)
def adversarial_examples_whose_backward_reaches_inputs_alone(notes, model, optimizer):
    with notes.epoch():
        for inputs, targets in batches():
            attacked = inputs.clone()
            for _ in range(3):
                attacked = attacked.detach().requires_grad_()
                F.cross_entropy(model(attacked), targets).backward(inputs=[attacked])
                attacked = attacked + 0.1 * attacked.grad.sign()
            optimizer.zero_grad()
            F.cross_entropy(model(attacked.detach()), targets).backward()
            notes.step(model.parameters())
            optimizer.step()


def attacked_by_hand(model, inputs, targets):
    """Inputs, moved up the loss by a backward that reaches nothing else."""
    inputs = inputs.clone().requires_grad_()
    F.cross_entropy(model(inputs), targets).backward(inputs=[inputs])
    return (inputs + 0.1 * inputs.grad.sign()).detach()


@style(lbfgs)
def adversarial_examples_and_a_closure(notes, model, optimizer):
    """The attack on the first batch comes before anything tells that there is an optimizer."""
    with notes.epoch():
        for inputs, targets in batches():
            attacked, evaluations = attacked_by_hand(model, inputs, targets), []

            def closure(batch=(attacked, targets), evaluations=evaluations):
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                if not evaluations:
                    notes.step(model.parameters())
                evaluations.append(loss)
                return loss

            optimizer.step(closure)


@style(sgd)
def adversarial_examples_and_a_step_that_is_skipped(notes, model, optimizer):
    """A skipped step before the first that is taken stays one."""
    scales = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with notes.epoch():
        for number, (inputs, targets) in enumerate(batches()):
            batch = attacked_by_hand(model, inputs, targets), targets
            optimizer.zero_grad()
            scales.scale(loss_of(model, batch) * (math.inf if number == 0 else 1)).backward()
            notes.step(model.parameters(), scales.get_scale()) if number else notes.skipped()
            scales.step(optimizer)
            scales.update()


def beside_an_idle_optimizer():
    return net(), torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


for often in (True, False):

    @style(beside_an_idle_optimizer, f"no_optimizer_but_an_idle_one-{'always' if often else 'at_end'}")
    def beside_an_idle_one(notes, model, idle, often=often):
        """One that is stepped for its scheduler's sake, say: it says nothing of what is trained by hand."""
        for _ in range(2):
            with notes.epoch():
                for _ in steps_by_hand(notes, model):
                    if often:
                        idle.step()
                idle.step()


@style(sgd)
def adversarial_examples_through_a_frozen_model(notes, model, optimizer):
    for _ in range(2):
        with notes.epoch():
            for inputs, targets in batches():
                attacked = inputs.clone().requires_grad_()
                model.requires_grad_(False)
                F.cross_entropy(model(attacked), targets).backward()
                model.requires_grad_(True)
                optimizer.zero_grad()
                F.cross_entropy(model(attacked.detach() + 0.1 * attacked.grad.sign()), targets).backward()
                notes.step(model.parameters())
                optimizer.step()


@style(sgd)
def several_roots(notes, model, optimizer):
    with notes.epoch():
        for first, second in zip(batches(), reversed(batches())):
            optimizer.zero_grad()
            torch.autograd.backward(iter([loss_of(model, first), loss_of(model, second)]))
            notes.step(model.parameters())
            optimizer.step()


def inside_backward(zeroes):
    def build():
        model = net()
        optimizers = {parameter: torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters()}
        return model, *optimizers.values(), zeroes

    return build


for zeroes in (True, False):

    @style(inside_backward(zeroes), f"optimizers_stepped_inside_the_backward{'' if zeroes else '-zeroed_later'}")
    def inside(notes, model, *rest):
        *optimizers, zeroes = rest
        squares = []

        def step_in(parameter, optimizer):
            def hook(_):
                squares.append(global_norm([parameter]) ** 2)
                optimizer.step()
                if zeroes:
                    optimizer.zero_grad()

            return parameter.register_post_accumulate_grad_hook(hook)

        handles = [step_in(*pair) for pair in zip(model.parameters(), optimizers, strict=True)]
        for _ in range(2):
            with notes.epoch():
                for batch in batches():
                    loss_of(model, batch).backward()
                    notes.norm(math.sqrt(sum(squares)))
                    squares.clear()
                    model.zero_grad()
        for handle in handles:
            handle.remove()


def partly_inside():
    model = net()
    return model, torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.SGD(model[4].parameters(), lr=0.1)


@style(partly_inside)
def one_optimizer_stepped_inside_the_backward_and_one_after_it(notes, model, inside, after):
    """Both apply the gradients of one backward, so they are one step, before the other one's clipping."""
    squares = []

    def hook(parameter):
        squares.append(global_norm([parameter]) ** 2)
        if len(squares) == 2:
            inside.step()
            inside.zero_grad()

    handles = [parameter.register_post_accumulate_grad_hook(hook) for parameter in model[0].parameters()]
    with notes.epoch():
        for batch in batches():
            after.zero_grad()
            loss_of(model, batch).backward()
            notes.norm(math.sqrt(sum(squares) + global_norm(model[4].parameters()) ** 2))
            squares.clear()
            nn.utils.clip_grad_norm_(model[4].parameters(), 0.01)
            after.step()
    for handle in handles:
        handle.remove()


class FailsOnce(torch.autograd.Function):
    @staticmethod
    def forward(context, value, fails):
        context.fails = fails
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        if context.fails:
            raise ArithmeticError
        return gradient, None


@style(sgd)
def a_backward_that_raises_and_is_caught(notes, model, optimizer):
    with notes.epoch():
        for number, batch in enumerate(batches()):
            optimizer.zero_grad()
            loss = FailsOnce.apply(loss_of(model, batch), number == 2)
            if number == 2:
                with pytest.raises(ArithmeticError):
                    loss.backward()
                continue
            loss.backward()
            notes.step(model.parameters())
            optimizer.step()


@style(sgd)
def steps_that_are_not_finite(notes, model, optimizer):
    """A NaN or infinite norm is counted, and left out of the mean."""
    for bad in ({1: math.nan, 2: math.inf}, {0: math.nan, 1: math.nan, 2: math.inf, 3: -math.inf}):
        with notes.epoch():
            for number, batch in enumerate(batches()):
                before = copy.deepcopy(model.state_dict())
                optimizer.zero_grad()
                loss_of(model, batch).backward()
                if number in bad:
                    model[0].weight.grad.fill_(bad[number])
                    sum((parameter * 0).sum() for parameter in model.parameters()).backward()
                notes.step(model.parameters())
                optimizer.step()
                if number in bad:
                    model.load_state_dict(before)
                    optimizer.state.clear()
