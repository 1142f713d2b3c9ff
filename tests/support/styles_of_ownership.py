"""Styles: several optimizers, part of the parameters, parameters that come and go."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from styles_shared import batches, loss_of, net, plain, sgd, style
from torch import nn

# Several optimizers, or part of the parameters


def two_optimizers():
    model = net()
    return (
        model,
        torch.optim.SGD(model[0].parameters(), lr=0.1),
        torch.optim.Adam([*model[1].parameters(), *model[4].parameters()], lr=0.1),
    )


@style(two_optimizers)
def two_optimizers_on_one_model(notes, model, first, second):
    with notes.epoch():
        for batch in batches():
            first.zero_grad()
            second.zero_grad()
            loss_of(model, batch).backward()
            notes.step(model.parameters())
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            first.step()
            second.step()


def two_heads():
    model = nn.ModuleDict({"body": nn.Linear(5, 8), "left": nn.Linear(8, 3), "right": nn.Linear(8, 3)})
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


@style(two_heads)
def heads_with_a_backward_each(notes, model, optimizer):
    """What only the first of a step's backwards reached counts as it was, before the clipping."""
    with notes.epoch():
        for inputs, targets in batches():
            optimizer.zero_grad()
            hidden = model["body"](inputs)
            F.cross_entropy(model["left"](hidden), targets).backward(retain_graph=True)
            F.cross_entropy(model["right"](hidden), targets).backward()
            notes.step(model.parameters())
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()


def overlapping_optimizers():
    model = net()
    return model, torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(model[4].parameters(), lr=0.1)


style(overlapping_optimizers, "two_optimizers_that_share_parameters")(two_optimizers_on_one_model)


def gan():
    generator = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 5))
    critic = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    return (
        generator,
        critic,
        torch.optim.Adam(generator.parameters(), lr=0.1),
        torch.optim.Adam(critic.parameters(), lr=0.1),
    )


for detached in (True, False):

    @style(gan, f"gan-{'detached' if detached else 'not_detached'}")
    def adversarial(notes, generator, critic, of_generator, of_critic, detached=detached):
        """Each model's update is a step, over its own parameters; gradients that it leaves in the other are not."""
        judge = F.binary_cross_entropy_with_logits
        for _ in range(2):
            with notes.epoch():
                for real, _ in batches():
                    of_critic.zero_grad()
                    fake = generator(torch.randn(3, 2))
                    judge(critic(real), torch.ones(3, 1)).backward()
                    judge(critic(fake.detach() if detached else fake), torch.zeros(3, 1)).backward()
                    notes.step(critic.parameters())
                    of_critic.step()
                    of_generator.zero_grad()
                    judge(critic(generator(torch.randn(3, 2))), torch.ones(3, 1)).backward()
                    notes.step(generator.parameters())
                    of_generator.step()


@style(gan)
def gan_with_a_gradient_penalty_and_a_frozen_critic(notes, generator, critic, of_generator, of_critic):
    """Two updates of the critic for one of the generator, through which the critic takes no gradients."""
    with notes.epoch():
        for real, _ in batches():
            critic.requires_grad_(True)
            for _ in range(2):
                of_critic.zero_grad()
                fake = generator(torch.randn(3, 2)).detach().requires_grad_()
                scores = critic(fake)
                (slope,) = torch.autograd.grad(scores.sum(), fake, create_graph=True)
                (scores.mean() - critic(real).mean() + 10 * (slope.norm(dim=1) - 1).pow(2).mean()).backward()
                notes.step(critic.parameters())
                of_critic.step()
            critic.requires_grad_(False)
            of_generator.zero_grad()
            (-critic(generator(torch.randn(3, 2))).mean()).backward()
            notes.step(generator.parameters())
            of_generator.step()


@style(two_optimizers)
def two_optimizers_each_after_its_own_backward(notes, model, first, second):
    """Losses of one forward, each applied by the optimizer of its own part before the next one's backward."""
    with notes.epoch():
        for inputs, targets in batches():
            body = model[:2](inputs)
            first.zero_grad()
            body.pow(2).mean().backward(inputs=list(model[0].parameters()), retain_graph=True)
            notes.step(model[0].parameters())
            first.step()
            second.zero_grad()
            F.cross_entropy(model[2:](body.detach()), targets).backward()
            notes.step(model[4].parameters())
            second.step()


def head_only():
    model = net()
    return model, torch.optim.SGD(model[4].parameters(), lr=0.1)


@style(head_only)
def optimizer_over_part_of_the_parameters(notes, model, optimizer):
    """What no optimizer owns is no part of the norm, though its gradients grow."""
    with notes.epoch():
        for batch in batches():
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            notes.step(model[4].parameters())
            optimizer.step()


@style(sgd)
def frozen_and_unfrozen(notes, model, optimizer):
    """A parameter counts while it gets gradients, and while the optimizer still applies the last one."""
    for number in range(6):
        with notes.epoch():
            model[0].requires_grad_(number in (1, 4, 5))
            for batch in batches():
                optimizer.zero_grad(set_to_none=number != 2)
                loss_of(model, batch).backward()
                notes.step(model.parameters())
                optimizer.step()


@style(head_only)
def parameters_added_while_training(notes, model, optimizer):
    for number in range(3):
        with notes.epoch():
            if number == 1:
                optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.01})
            for batch in batches():
                model.zero_grad()
                loss_of(model, batch).backward()
                notes.step([parameter for group in optimizer.param_groups for parameter in group["params"]])
                optimizer.step()


def tied():
    model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Tanh(), nn.Linear(5, 5, bias=False))
    model[2].weight = model[0].weight
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


style(tied, "tied_weights")(plain)


def tied_by_hand():
    model = tied()[0]
    with pytest.warns(UserWarning, match="duplicate parameters"):
        return model, torch.optim.SGD([model[0].weight, model[2].weight], lr=0.1)


style(tied_by_hand, "tied_weights_listed_twice")(plain)


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.LazyLinear(3), nn.LazyLinear(3)

    def forward(self, inputs):
        return self.used(inputs)


def lazy():
    model = Lazy()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


@style(lazy)
def lazy_parameters_and_some_never_used(notes, model, optimizer):
    with notes.epoch():
        for batch in batches():
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            notes.step(model.used.parameters())
            optimizer.step()
    model.unused(batches()[0][0])


@style(sgd)
def optimizer_replaced_while_training(notes, model, optimizer):
    for number in range(2):
        with notes.epoch():
            if number:
                optimizer = torch.optim.SGD(model[4].parameters(), lr=0.1)
            for batch in batches():
                model.zero_grad()
                loss_of(model, batch).backward()
                notes.step(model[4].parameters() if number else model.parameters())
                optimizer.step()


@style(sgd)
def model_and_optimizer_copied_while_training(notes, model, optimizer):
    """A copied optimizer was never constructed: it is known from its first step on."""
    for _ in range(2):
        with notes.epoch():
            for batch in batches():
                optimizer.zero_grad()
                loss_of(model, batch).backward()
                notes.step(model.parameters())
                optimizer.step()
        model, optimizer = copy.deepcopy((model, optimizer))


# An optimizer that was copied or unpickled ran no constructor; both ways go through `Optimizer.__setstate__`.
for name, again in {
    "copied": copy.deepcopy,
    "unpickled": lambda parts: pickle.loads(pickle.dumps(parts)),
}.items():

    @style(sgd, f"model_and_optimizer_{name}_before_a_clipped_step")
    def renewed(notes, model, optimizer, again=again):
        """A checkpoint gone back to, or a copy that trains on: known from its first backward on."""
        kept = []
        with notes.epoch():
            for number, batch in enumerate(batches()):
                if number:
                    kept.append((model, optimizer))
                    model, optimizer = again((model, optimizer))
                optimizer.zero_grad()
                loss_of(model, batch).backward()
                notes.step(model.parameters())
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                optimizer.step()


@style(lambda: (nn.ModuleList(),))
def a_model_a_fold(notes, models):
    """Models and optimizers that come and go within a run, as folds and restarts do."""
    for _ in range(3):
        model, optimizer = sgd()
        models.append(model)
        with notes.epoch():
            for batch in batches():
                optimizer.zero_grad()
                loss_of(model, batch).backward()
                notes.step(model.parameters())
                optimizer.step()
        del optimizer


@style(sgd)
def frozen_from_step_to_step(notes, model, optimizer):
    """`requires_grad` turned on and off between steps, gradients kept as zeros or not."""
    with notes.epoch():
        for number, batch in enumerate(batches(8)):
            model[0].requires_grad_(number % 2 == 0)
            model[4].bias.requires_grad_(number % 3 == 0)
            optimizer.zero_grad(set_to_none=number < 4)
            loss_of(model, batch).backward()
            notes.step(model.parameters())
            optimizer.step()


@style(sgd)
def a_layer_added_while_training(notes, model, optimizer):
    """A layer that wasn't there when the run began, given to the optimizer it has."""
    for number in range(3):
        with notes.epoch():
            if number == 1:
                model.insert(4, nn.Linear(8, 8))
                optimizer.add_param_group({"params": list(model[4].parameters())})
            for batch in batches():
                optimizer.zero_grad()
                loss_of(model, batch).backward()
                notes.step(model.parameters())
                optimizer.step()
