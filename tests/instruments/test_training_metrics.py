"""Training loss and accuracy from what is observed, against sums worked out by hand over the same batches."""

import gc
import json
import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toy
from metrics_by_hand import (
    CLASSES,
    WEIGHTS,
    assert_metrics,
    assert_style,
    batches,
    classes_by_hand,
    classes_for,
    linear,
    note_classes,
    training,
)
from oracle import (  # noqa: F401  one_thread is a fixture
    Notes,
    assert_close,
    assert_norms,
    one_thread,
    run_tracked,
    run_untracked,
    state_of,
    tracking,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from trackmetrics.instruments.criteria import Call
from trackmetrics.instruments.epoch_means import DeviceMean

pytestmark = [
    pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning"),
    pytest.mark.filterwarnings("ignore:reduction. .mean. divides the total loss:UserWarning"),
]


@pytest.mark.parametrize(
    "change",
    [lambda loss: loss.div_(4), lambda loss: loss.add_(1.5), lambda loss: loss.mul_(torch.tensor(3.0))],
    ids=["divided", "a penalty added", "scaled"],
)
def test_a_loss_changed_in_place_keeps_its_value(change):
    """`loss /= k` and `loss += penalty` write into the criterion's own result: its value is the one it returned."""

    def step(notes, scores, inputs):
        target = classes_for(inputs)
        note_classes(notes, scores, target)
        return change(F.cross_entropy(scores, target))

    assert_style(training(step))


# Losses of the user's own making


def hinge(scores, target):
    return (1 - scores.gather(1, target[:, None]).squeeze(1)).clamp(min=0)


@pytest.mark.parametrize("group", [1, 2], ids=["", "accumulated"])
@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
def test_a_hand_written_loss_is_the_scalar_of_the_backward(scaled, group):
    """No criterion is called: the backwards' own values, less the gradient scaler's factor; no accuracy, and said."""

    def train(notes, model, optimizer):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=1, enabled=scaled)
        with notes.epoch():
            waiting = batches(4, 4, 2, 3)
            while waiting:
                optimizer.zero_grad()
                losses = [hinge(model(inputs), classes_for(inputs)).mean() / group for inputs in waiting[:group]]
                notes.loss(math.fsum(loss.item() for loss in losses))
                for loss in losses:
                    scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                del waiting[:group]

    tracked = assert_style((linear(), train))
    assert not tracked.warned_of("train_loss")
    assert tracked.warned_of("train_accuracy") == [
        "train_accuracy is null: the loss is no criterion of torch.nn.functional that has class targets; "
        "say it with `epoch.update(output=output, target=target)`"
    ]


def test_a_hand_written_loss_in_half_precision_keeps_its_digits():
    """The sum over a step's backwards is not made in the loss's own type, in which 2048 + 1 is 2048."""

    def build():
        parameter = nn.Parameter(torch.ones((), dtype=torch.float16))
        return parameter, torch.optim.SGD([parameter], lr=0.0)

    def train(notes, parameter, optimizer):
        with notes.epoch():
            for _ in range(3):
                (parameter * 2048).backward()
                (parameter * 1).backward()
                notes.loss(2049)
                optimizer.step()

    assert_style((build, train))


# Several criteria


def auxiliary(scores, target, inputs):
    return F.cross_entropy(scores, target) + 0.4 * F.cross_entropy(scores * inputs[:, :1], target)


def mixture(scores, target, inputs):
    return 0.3 * F.cross_entropy(scores, target) + 0.7 * F.cross_entropy(scores, classes_for(inputs, seed=9))


def contrast(scores, target, inputs):
    similar, own = scores @ inputs[:, :CLASSES].t(), torch.arange(len(inputs))
    return (F.cross_entropy(similar, own) + F.cross_entropy(similar.t(), own)) / 2


@pytest.mark.parametrize("loss_of", [auxiliary, mixture, contrast])
def test_several_judgements_make_the_scalar_the_loss(loss_of):
    """Heads on one target, targets for one output, rows and columns: the scalar; whose accuracy, isn't clear."""

    def step(notes, scores, inputs):
        loss = loss_of(scores, classes_for(inputs), inputs)
        notes.loss(loss, len(inputs))
        return loss

    assert assert_style(training(step)).warned_of("train_accuracy")


def regression(scores, inputs):
    return F.mse_loss(scores, inputs[:, :CLASSES])


def distillation(scores, inputs):
    return 4 * F.kl_div((scores / 2).log_softmax(1), inputs[:, :CLASSES].softmax(1), reduction="batchmean")


def penalty(scores, inputs):
    """A number of elements that is the same for each batch, however small."""
    return 0.1 * F.mse_loss(scores.sum(0), torch.zeros(CLASSES)) + 0.1 * F.l1_loss(scores.mean(), torch.zeros(()))


@pytest.mark.parametrize("order", [1, -1], ids=["class loss first", "class loss last"])
@pytest.mark.parametrize("beside", [regression, distillation, penalty])
def test_a_class_loss_beside_another_keeps_its_accuracy_and_its_weight(beside, order):
    """Criteria of different kinds: the scalar is the loss, by the class targets; they give the accuracy too."""

    def step(notes, scores, inputs):
        target = classes_for(inputs)
        of_classes = [lambda: F.cross_entropy(scores, target), lambda: beside(scores, inputs)]
        loss = sum(make() for make in of_classes[::order])
        _, _, targets, right = classes_by_hand(scores, target)
        notes.loss(loss, targets)
        notes.predicted(right, targets)
        return loss

    assert_style(training(step))


# Several forwards, several backwards


JOINED = {
    "summed": sum,
    "averaged": lambda losses: sum(losses) / len(losses),
    "stacked": lambda losses: torch.stack(losses).sum(),
    "several roots": lambda losses: SimpleNamespace(backward=lambda: torch.autograd.backward(losses)),
}


@pytest.mark.parametrize("join", JOINED.values(), ids=JOINED)
def test_forwards_joined_into_one_backward_are_their_mean_by_targets(join):
    """Micro-batches of unequal sizes whose losses are added up before one backward: each by its targets."""

    def train(notes, model, optimizer):
        with notes.epoch():
            optimizer.zero_grad()
            losses = []
            for inputs in batches():
                target = classes_for(inputs)
                scores = model(inputs)
                note_classes(notes, scores, target)
                losses.append(F.cross_entropy(scores, target))
            join(losses).backward()
            optimizer.step()

    assert_style((linear(), train))


def test_a_loss_for_each_time_step_is_their_mean():
    """A recurrent loop judges each column of the targets by itself, in batches of other lengths each time."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for length, inputs in zip((3, 5, 2), batches()):
                optimizer.zero_grad()
                targets = torch.stack([classes_for(inputs, seed) for seed in range(length)], 1)
                state, loss = inputs, 0
                for at in range(length):
                    scores = model(state)
                    state = torch.tanh(state + scores.sum(1, keepdim=True))
                    note_classes(notes, scores, targets[:, at])
                    loss = loss + F.cross_entropy(scores, targets[:, at])
                loss.backward()
                optimizer.step()

    assert_style((linear(), train))


def test_batches_of_other_lengths():
    """Sequences padded to the longest of their batch: each token that counts weighs the same in the epoch."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for length in (2, 7, 1, 5, 5, 3):
                optimizer.zero_grad()
                inputs = torch.randn(3, length, 4)
                target = classes_for(inputs.view(-1, 4)).view(3, length)
                target[1:, (length + 1) // 2 :] = -100
                scores = model(inputs).transpose(1, 2)
                note_classes(notes, scores, target)
                F.cross_entropy(scores, target).backward()
                optimizer.step()

    assert_style((linear(), train))


@pytest.mark.parametrize("criterion", ["cross_entropy", "by hand"])
@pytest.mark.parametrize("in_place", [False, True])
def test_accumulation_changes_nothing(criterion, in_place):
    """A criterion's own value counts, however the loss is divided; of a hand-written one, the micro-batches' sum."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for start in range(2):
                optimizer.zero_grad()
                step = 0.0
                for inputs in batches(4, 4, 2, seed=start):
                    target = classes_for(inputs)
                    scores = model(inputs)
                    if criterion == "by hand":
                        loss = hinge(scores, target).mean()
                        step += loss.item() / 3
                    else:
                        loss = F.cross_entropy(scores, target)
                        note_classes(notes, scores, target)
                    if in_place:
                        loss /= 3
                    else:
                        loss = loss / 3
                    loss.backward()
                if criterion == "by hand":
                    notes.loss(step)
                optimizer.step()

    assert_style((linear(), train))


def test_an_auxiliary_loss_under_accumulation_weighs_by_all_its_targets():
    """Several calls in each of several backwards: the step's scalars add up, weighted by the targets of all of them."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for sizes in ((4, 2), (3, 1)):
                optimizer.zero_grad()
                step = 0.0
                for inputs in batches(*sizes):
                    loss = auxiliary(model(inputs), classes_for(inputs), inputs) / 2
                    step += loss.item()
                    loss.backward()
                notes.loss(step, sum(sizes))
                optimizer.step()

    assert_style((linear(), train))


def test_two_backwards_through_one_call_count_it_once():
    """`retain_graph` and a second backward of the same loss in a step: one batch of targets, not two."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for number, inputs in enumerate(batches()):
                target = classes_for(inputs)
                optimizer.zero_grad()
                scores = model(inputs)
                note_classes(notes, scores, target)
                loss = F.cross_entropy(scores, target)
                loss.backward(retain_graph=number == 0)
                if number == 0:
                    loss.backward()
                optimizer.step()

    assert_style((linear(), train))


def test_one_call_in_two_steps_counts_in_each():
    """A loss whose graph is kept and used by the next step's backward is that step's loss too."""

    def train(notes, model, optimizer):
        other = torch.optim.SGD([model.bias], lr=0.5)
        with notes.epoch():
            for inputs in batches():
                target = classes_for(inputs)
                scores = model(inputs)
                before = scores.detach().clone()
                loss = F.cross_entropy(scores, target)
                for keep, stepping in ((True, other), (False, optimizer)):
                    note_classes(notes, before, target)
                    loss.backward(retain_graph=keep, inputs=[model.bias])
                    stepping.step()

    assert_style((linear(), train))


def test_two_forwards_in_a_step_both_count():
    """A step that looks twice, as sharpness-aware ones do: a backward reached both batches of predictions."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                target = classes_for(inputs)
                for factor in (1.0, 1.5):
                    optimizer.zero_grad()
                    scores = model(inputs * factor)
                    note_classes(notes, scores, target)
                    F.cross_entropy(scores, target).backward()
                optimizer.step()

    assert_style((linear(), train))


def test_a_forward_in_two_pieces_counts_the_one_call_there_is():
    """Gradients cached between two pieces of a model and handed on by a backward of their own add nothing."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                optimizer.zero_grad()
                hidden = inputs * model.weight.sum(0)
                between = hidden.detach().requires_grad_()
                scores, target = model(between), classes_for(inputs)
                note_classes(notes, scores, target)
                F.cross_entropy(scores, target).backward()
                hidden.backward(between.grad)
                optimizer.step()

    assert_style((linear(), train))


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("what", ["model", "criterion", "criterion in chunks"])
def test_checkpointing_counts_each_call_once(what, reentrant):
    """What is computed again in the backward is the same call, whether the model or the criterion lies inside."""

    def train(notes, model, optimizer):
        def judged(inputs, target):
            return F.cross_entropy(model(inputs), target, reduction="sum" if "chunks" in what else "mean")

        with notes.epoch():
            for inputs in batches(4, 4, 3):
                inputs, target = inputs.requires_grad_(), classes_for(inputs)
                optimizer.zero_grad()
                note_classes(notes, model(inputs), target)
                if what == "model":
                    loss = F.cross_entropy(checkpoint(model, inputs, use_reentrant=reentrant), target)
                else:
                    size = 2 if "chunks" in what else 4
                    chunks = zip(inputs.split(size), target.split(size))
                    loss = sum(checkpoint(judged, *chunk, use_reentrant=reentrant) for chunk in chunks)
                loss.backward()
                optimizer.step()

    assert_style((linear(), train))


def test_a_closure_counts_its_first_evaluation():
    """LBFGS evaluates its closure several times: the loss is the one at the step's beginning."""

    def build():
        model = nn.Linear(4, CLASSES)
        return model, torch.optim.LBFGS(model.parameters(), max_iter=4)

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                target, evaluations = classes_for(inputs), []

                def closure(inputs=inputs, target=target, evaluations=evaluations):
                    optimizer.zero_grad()
                    scores = model(inputs)
                    if not evaluations:
                        note_classes(notes, scores, target)
                    evaluations.append(1)
                    loss = F.cross_entropy(scores, target)
                    loss.backward()
                    return loss

                optimizer.step(closure)

    assert_style((build, train))


# Gradients from torch.autograd.grad


def by_autograd_grad(stepped_by):
    """A training without a single backward: gradients are asked for, and applied by an optimizer or by hand."""

    def train(notes, model, optimizer):
        for _ in range(2):
            with notes.epoch():
                for inputs in batches():
                    target = classes_for(inputs)
                    scores = model(inputs)
                    note_classes(notes, scores, target)
                    loss = F.cross_entropy(scores, target)
                    gradients = torch.autograd.grad(loss, list(model.parameters()))
                    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                        if stepped_by == "hand":
                            parameter.data.sub_(gradient)
                        else:
                            parameter.grad = gradient
                    if stepped_by == "optimizer":
                        optimizer.step()

    return linear(), train


@pytest.mark.parametrize("stepped_by", ["optimizer", "hand"])
def test_gradients_from_autograd_grad_have_their_criterion_observed(stepped_by):
    """Where gradients are set by hand from `torch.autograd.grad`, the criterion that it reached is the training's."""
    assert_style(by_autograd_grad(stepped_by))


def test_gradients_that_only_the_loop_ever_sees_have_no_norm_and_that_is_said():
    """Neither a backward nor an optimizer touches them: null, no step counted, and the reason names the way out."""
    tracked = run_tracked(by_autograd_grad("hand"))
    assert [epoch.gradient_norm for epoch in tracked.epochs] == [None, None]
    assert tracked.norms["steps"] == 0
    (message,) = tracked.warned_of("gradient_norm")
    assert "torch.autograd.grad" in message
    assert "epoch.log(gradient_norm=norm)" in message


def test_a_gradient_penalty_beside_the_backward_is_no_call_of_its_own():
    """`torch.autograd.grad` of the loss, before the step's own backward, doesn't count the batch again."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                inputs = inputs.clone().requires_grad_()
                target = classes_for(inputs)
                optimizer.zero_grad()
                scores = model(inputs)
                note_classes(notes, scores, target)
                loss = F.cross_entropy(scores, target)
                (gradient,) = torch.autograd.grad(loss, inputs, create_graph=True)
                (loss + gradient.pow(2).sum()).backward()
                optimizer.step()
                torch.autograd.grad(F.cross_entropy(model(inputs), target), inputs)  # a saliency map for a log

    assert_style((linear(), train))


@pytest.mark.parametrize("both_first", [False, True])
def test_what_autograd_grad_alone_reached_is_not_counted(both_first):
    """A loss that only shows where to push the inputs is none of the step's, wherever its call stands."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                pushed = inputs.clone().requires_grad_()
                target = classes_for(inputs)
                direction = torch.ones(())
                probe = F.cross_entropy(model(pushed), target)
                if not both_first:
                    (direction,) = torch.autograd.grad(probe, pushed)
                optimizer.zero_grad()
                scores = model(inputs + 0.5 * direction.sign())
                note_classes(notes, scores, target)
                loss = F.cross_entropy(scores, target)
                if both_first:
                    torch.autograd.grad(probe, pushed)
                loss.backward()
                optimizer.step()

    assert_style((linear(), train))


def test_an_inner_loop_is_none_of_the_steps():
    """Learning to learn: what the inner loop differentiated with `torch.autograd.grad` leads to the outer loss."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for support, query in zip(batches(4, 4, 2), batches(3, 5, 1, seed=7)):
                weight, bias = model.weight, model.bias
                for _ in range(2):
                    inner = F.cross_entropy(F.linear(support, weight, bias), classes_for(support))
                    slopes = torch.autograd.grad(inner, (weight, bias), create_graph=True)
                    weight, bias = weight - 0.3 * slopes[0], bias - 0.3 * slopes[1]
                optimizer.zero_grad()
                scores, target = F.linear(query, weight, bias), classes_for(query)
                note_classes(notes, scores, target)
                F.cross_entropy(scores, target).backward()
                notes.step(model.parameters())
                optimizer.step()

    tracked = assert_style((linear(), train))
    assert_norms(tracked, run_untracked((linear(), train))[0])


# Models that compute their loss inside


class CausalModel(nn.Module):
    """A language model in the way of the Hugging Face library: it shifts its labels itself, and pads them at the end.

    Told how many targets its step has in all micro-batches, its loss is a sum over that number.
    """

    def __init__(self, words=5):
        super().__init__()
        self.embed, self.head = nn.Embedding(words, 4), nn.Linear(4, words)

    def forward(self, input_ids, attention_mask=None, labels=None, num_items_in_batch=None):
        logits = self.head(self.embed(input_ids).cumsum(1))
        loss = None
        if labels is not None:
            shifted = F.pad(labels, (0, 1), value=-100)[..., 1:].contiguous()
            reduction = "mean" if num_items_in_batch is None else "sum"
            loss = F.cross_entropy(logits.float().view(-1, logits.shape[-1]), shifted.view(-1), reduction=reduction)
            loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        return {"loss": loss, "logits": logits}


def causal():
    model = CausalModel()
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def texts(number):
    """Sequences of other lengths each time, padded with targets that don't count."""
    length = 3 + number % 4
    words = torch.randint(5, (2 + number % 2, length), generator=torch.Generator().manual_seed(number))
    labels = words.clone()
    labels[0, length - 1 :] = -100
    return {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": labels}


@pytest.mark.parametrize("counted", [False, True], ids=["mean", "num_items_in_batch"])
@pytest.mark.parametrize("group", [1, 3])
def test_a_causal_models_shift_is_its_own(group, counted):
    """Each token is judged by the next one, as the model itself does it, a micro-batch at a time."""

    def train(notes, model, optimizer):
        for _ in range(2):
            with notes.epoch():
                for start in range(0, 7, group):
                    waiting = [texts(number) for number in range(start, min(start + group, 7))]
                    items = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in waiting)
                    for batch in waiting:
                        output = model(**batch, num_items_in_batch=items if counted else None)
                        logits, labels = output["logits"][:, :-1].transpose(1, 2), batch["labels"][:, 1:]
                        note_classes(notes, logits, labels)
                        (output["loss"] if counted else output["loss"] / len(waiting)).backward()
                    optimizer.step()
                    optimizer.zero_grad()

    assert_style((causal, train))


# What is no training


def evaluated(model, mode):
    """An evaluation on data of its own, as real code does it; its targets are all wrong."""
    inputs = batches(8)[0]
    if mode == "eval mode under no_grad":
        model.eval()
        with torch.no_grad():
            loss = F.cross_entropy(model(inputs), model(inputs).argmin(1))
        model.train()
    elif mode == "train mode under no_grad":
        with torch.no_grad():
            loss = F.cross_entropy(model(inputs), model(inputs).argmin(1))
    elif mode == "inference mode":
        with torch.inference_mode():
            loss = F.cross_entropy(model(inputs), model(inputs).argmin(1))
    elif mode == "gradients on":
        loss = F.cross_entropy(model(inputs), model(inputs).argmin(1))
    else:
        loss = F.cross_entropy(model(inputs).detach(), model(inputs).argmin(1))
    return loss


@pytest.mark.parametrize(
    "mode",
    ["eval mode under no_grad", "train mode under no_grad", "inference mode", "gradients on", "detached"],
)
@pytest.mark.parametrize("group", [1, 2], ids=["", "accumulated"])
def test_an_evaluation_is_never_counted(mode, group):
    """A criterion call that no backward reached is no training: before, between, in and after the steps and epochs."""

    def train(notes, model, optimizer):
        kept = [evaluated(model, mode)]
        for _ in range(2):
            with notes.epoch():
                kept.append(evaluated(model, mode))
                for number, inputs in enumerate(batches(4, 4, 2, 3)):
                    target = classes_for(inputs)
                    scores = model(inputs)
                    kept.append(evaluated(model, mode))
                    note_classes(notes, scores, target)
                    F.cross_entropy(scores, target).backward()
                    kept.append(evaluated(model, mode))
                    if number % group == group - 1:
                        optimizer.step()
                        optimizer.zero_grad()
                    kept.append(evaluated(model, mode))
            kept.append(evaluated(model, mode))

    assert_style((linear(), train))


def test_a_backward_that_raised_is_not_counted():
    """The batch whose backward failed was not trained on."""

    def train(notes, model, optimizer):
        def fails(_):
            raise ArithmeticError

        with notes.epoch():
            for number, inputs in enumerate(batches()):
                target = classes_for(inputs)
                optimizer.zero_grad()
                scores = model(inputs)
                if number == 1:
                    scores.register_hook(fails)
                    with pytest.raises(ArithmeticError):
                        F.cross_entropy(scores, target).backward()
                    continue
                note_classes(notes, scores, target)
                F.cross_entropy(scores, target).backward()
                optimizer.step()

    assert_style((linear(), train))


def test_an_epoch_without_a_backward_has_neither():
    """Nothing trained: both null, and said once."""

    def train(notes, model, optimizer):
        for _ in range(2):
            with notes.epoch():
                F.cross_entropy(model(batches()[0]), classes_for(batches()[0]))

    tracked = run_tracked((linear(), train))
    assert [(epoch.train_loss, epoch.train_accuracy) for epoch in tracked.epochs] == [(None, None)] * 2
    assert len(tracked.warned_of("train_loss")) == 1
    assert "no backward was seen in the epoch" in tracked.warned_of("train_loss")[0]


def test_a_fault_in_one_epoch_says_nothing_of_the_next():
    """An epoch with a hand-written loss has no accuracy; the next one, with a criterion, has its own."""

    def train(notes, model, optimizer):
        with notes.epoch():
            hinge(model(batches()[0]), classes_for(batches()[0])).mean().backward()
            optimizer.step()
        with notes.epoch():
            F.cross_entropy(model(batches()[0]), classes_for(batches()[0])).backward()
            optimizer.step()

    first, second = run_tracked((linear(), train)).epochs
    assert first.train_accuracy is None
    assert second.train_accuracy is not None


def test_functional_transforms_do_no_harm():
    """`torch.func.grad` is no backward: nothing observed from it, nothing broken, and the next epoch is right."""

    def train(notes, model, optimizer):
        parameters = {name: value.detach().clone() for name, value in model.named_parameters()}

        def loss_of(values, inputs, target):
            return F.cross_entropy(torch.func.functional_call(model, values, (inputs,)), target)

        with notes.epoch():
            torch.func.grad(loss_of)(parameters, batches()[0], classes_for(batches()[0]))
            per_sample = torch.func.vmap(torch.func.grad(loss_of), (None, 0, 0))
            per_sample(parameters, batches()[0][:, None], classes_for(batches()[0])[:, None])
            inputs = batches()[0]
            note_classes(notes, model(inputs), classes_for(inputs))
            F.cross_entropy(model(inputs), classes_for(inputs)).backward()
            optimizer.step()

    assert_style((linear(), train))


# Memory that the loop uses again


SPOILED = {
    "nothing": lambda batch: None,
    "outputs": lambda batch: batch.scores.detach().zero_(),
    "outputs, unseen by their version": lambda batch: batch.scores.data.zero_(),
    "outputs given back": lambda batch: batch.scores.untyped_storage().resize_(0),
    "targets": lambda batch: batch.target.zero_(),
    "targets, unseen by their version": lambda batch: batch.target.numpy().fill(0),
    "targets given back": lambda batch: batch.target.untyped_storage().resize_(0),
    "the loss": lambda batch: batch.loss.data.fill_(math.nan),
    "class weights": lambda batch: batch.weights.data.fill_(math.nan),
}


@pytest.mark.parametrize("stepped_by", ["optimizer", "hand"])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_what_is_overwritten_after_the_backward_counts_as_it_was(spoil, group, stepped_by):
    """Once a backward is over its batch is the loop's own again, before the step as well as after many steps."""

    def epoch(notes, model, optimizer, reduction):
        for number, inputs in enumerate(batches(*(4, 2, 3) * 5)):
            target, weights = classes_for(inputs, seed=number), torch.tensor(WEIGHTS)
            scores = model(inputs)
            note_classes(notes, scores, target, weights=WEIGHTS)
            loss = F.cross_entropy(scores, target, weights, reduction=reduction)
            loss.sum().backward()
            spoil(SimpleNamespace(scores=scores, target=target, loss=loss, weights=weights))
            if number % group == group - 1:
                if stepped_by == "optimizer":
                    optimizer.step()
                else:
                    for parameter in model.parameters():
                        parameter.data.sub_(0.1 * parameter.grad)
                model.zero_grad()

    def train(notes, model, optimizer):
        for reduction in ("mean", "sum", "none"):
            with notes.epoch():
                epoch(notes, model, optimizer, reduction)

    build = linear() if stepped_by == "optimizer" else lambda: (linear()()[0], None)
    tracked = assert_style((build, train))
    assert not tracked.warned_of("train_loss")
    assert not tracked.warned_of("train_accuracy")


@pytest.mark.parametrize("factor", [1, 2])
def test_outputs_overwritten_before_the_backward_have_no_accuracy(factor):
    """What was predicted is gone by then; the loss isn't."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                target = classes_for(inputs)
                optimizer.zero_grad()
                scores = model(inputs)
                loss = F.cross_entropy(scores, target)
                note_classes(notes, scores, target)
                with torch.no_grad():
                    scores[torch.arange(len(target)), target] = -1e9
                (loss if factor == 1 else loss * factor).backward()
                optimizer.step()

    notes, parts = run_untracked((linear(), train))
    tracked = run_tracked((linear(), train))
    assert state_of(tracked.parts) == state_of(parts)
    assert tracked.epochs[0].train_accuracy is None
    assert_close(tracked.epochs[0].train_loss, notes.epochs[0].loss)


@pytest.mark.parametrize("version_seen", [True, False])
@pytest.mark.parametrize("group", [1, 3])
def test_buffers_that_the_loop_fills_again(group, version_seen):
    """Inputs, targets and outputs live in the same three tensors for each batch: every batch counts as it was."""

    def train(notes, model, optimizer):
        inputs, outputs, numbers = torch.zeros(4, 4), torch.zeros(4, CLASSES), np.zeros(4, dtype=np.int64)
        target = torch.from_numpy(numbers)
        with notes.epoch():
            for number, batch in enumerate(batches(*(4, 2, 3) * 10)):
                size = len(batch)
                wanted = classes_for(batch, seed=number)
                if version_seen:
                    inputs[:size].copy_(batch)
                    target[:size].copy_(wanted)
                else:
                    inputs.numpy()[:size] = batch.numpy()
                    numbers[:size] = wanted.numpy()
                scores = outputs.detach()[:size].copy_(model(inputs[:size]))
                note_classes(notes, scores, target[:size])
                F.cross_entropy(scores, target[:size]).backward()
                if number % group == group - 1:
                    optimizer.step()
                    optimizer.zero_grad()

    tracked = assert_style((linear(), train))
    assert tracked.warned_of("train_accuracy") == []


@pytest.mark.parametrize("stepped_by", ["optimizer", "hand"])
def test_outputs_that_are_the_parameters_themselves(stepped_by):
    """A table of scores that is trained directly: the step overwrites the very outputs that were judged."""

    def build():
        tables = nn.ParameterList([nn.Parameter(torch.randn(6, CLASSES))])
        return (tables, torch.optim.SGD(tables.parameters(), lr=5.0)) if stepped_by == "optimizer" else (tables, None)

    def train(notes, tables, optimizer):
        target = torch.tensor([0, 1, 2, 0, 1, 2])
        with notes.epoch():
            for _ in range(5):
                tables.zero_grad()
                scores = tables[0].view(6, CLASSES)
                note_classes(notes, scores, target)
                F.cross_entropy(scores, target).backward()
                if stepped_by == "optimizer":
                    optimizer.step()
                else:
                    tables[0].data.sub_(5 * tables[0].grad)

    assert_style((build, train))


@pytest.mark.parametrize("stepped_by", ["optimizer", "hand"])
def test_buffers_filled_again_after_autograd_grad(stepped_by):
    """An optimizer's step settles what was seen; with none, the targets are gone: null, and said, never wrong."""

    def train(notes, model, optimizer):
        target = torch.zeros(4, dtype=torch.int64)
        with notes.epoch():
            for number, inputs in enumerate(batches(4, 4, 4)):
                target.copy_(classes_for(inputs, seed=number))
                scores = model(inputs)
                note_classes(notes, scores, target)
                gradients = torch.autograd.grad(F.cross_entropy(scores, target), list(model.parameters()))
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    if stepped_by == "hand":
                        parameter.data.sub_(gradient)
                    parameter.grad = gradient
                if stepped_by == "optimizer":
                    optimizer.step()

    notes, _ = run_untracked((linear(), train))
    if stepped_by == "hand":
        notes.epochs[0].judged = 0
    tracked = run_tracked((linear(), train))
    assert_metrics(tracked, notes)
    assert [("overwritten" in message) for message in tracked.warned_of("train_accuracy")] == [True] * (
        stepped_by == "hand"
    )


def test_a_criterion_that_is_called_twice_is_named_as_the_reason():
    """Examples that are mixed have two targets each: which of them is the one to predict isn't known."""
    net, train = toy.model(), toy.loader()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with tracking(train=train, dev=train) as tracked, tracked.run.epoch():
        for x, y in train:
            optimizer.zero_grad()
            scores = net(0.7 * x + 0.3 * x.roll(1, 0))
            (0.7 * F.cross_entropy(scores, y) + 0.3 * F.cross_entropy(scores, y.roll(1))).backward()
            optimizer.step()
    for key in ("train_accuracy", "dev_accuracy"):
        (message,) = tracked.warned_of(key)
        assert "several criterion calls with class targets fed one backward" in message


# NaN


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_never_masked(value):
    """One NaN or infinite step makes the epoch's loss so: null in the file, with its place and name."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for number, inputs in enumerate(batches()):
                optimizer.zero_grad()
                output = model(inputs)
                F.mse_loss(output, output.detach() + (value if number == 1 else 1.0)).backward()
                for parameter in model.parameters():
                    parameter.grad.nan_to_num_(0, 0, 0)
                optimizer.step()

    tracked = run_tracked((linear(1), train))
    loss = tracked.epochs[0].train_loss
    assert math.isnan(loss) if math.isnan(value) else loss == value
    with open(tracked.run.path, encoding="utf-8") as file:
        written = json.load(file)
    assert written["epochs"][0]["train_loss"] is None
    name = "NaN" if math.isnan(value) else "Infinity"
    assert name in json.dumps(written["extensions"]["non_finite"])
    assert "/epochs/0/train_loss" in json.dumps(written["extensions"]["non_finite"])
    assert not tracked.warned_of("train_loss")


# What the user says


def test_what_is_said_wins_over_what_is_observed():
    """Logged by name before updated batch by batch before observed."""
    model, optimizer = linear()()

    def step(inputs):
        F.cross_entropy(model(inputs), classes_for(inputs)).backward()
        optimizer.step()

    with tracking() as tracked:
        with tracked.run.epoch() as epoch:
            step(batches()[0])
            epoch.update(loss=3.0)
            epoch.update(loss=torch.tensor(5.0, requires_grad=True))
        with tracked.run.epoch() as epoch:
            step(batches()[0])
            epoch.update(loss=3.0, output=torch.eye(3), target=torch.tensor([0, 1, 1]))
            epoch.log(train_loss=0.1, gradient_norm=7)
    first, second = tracked.epochs
    assert first.train_loss == 4.0
    assert first.train_accuracy is not None
    assert second.train_loss == 0.1
    assert second.train_accuracy == 2 / 3
    assert second.gradient_norm == 7.0


# Memory


def test_no_graph_is_kept():
    """When a step is over and the loop has let go of its tensors, so have we, within the epoch."""
    model, optimizer = linear()()
    gone = []
    with tracking() as tracked, tracked.run.epoch():
        for inputs in batches(4, 4, 4, 4, 4, 4):
            hidden = model(inputs)
            scores = hidden * 1
            gone.append(weakref.ref(scores))
            gone.append(weakref.ref(hidden))
            loss = F.cross_entropy(scores, classes_for(inputs))
            loss.backward()
            optimizer.step()
            del hidden, scores, loss
        gc.collect()
        assert [reference() for reference in gone] == [None] * len(gone)


def test_losses_that_the_loop_keeps_hold_nothing_of_the_batch():
    """A list of losses kept for later holds no outputs or targets on our account, nor our hooks after the run."""
    model, optimizer = linear()()
    kept = []

    def storages():
        gc.collect()
        return sum(type(item) is torch.Tensor and item.numel() == 4096 * CLASSES for item in gc.get_objects())

    def calls_alive():
        gc.collect()
        return any(isinstance(item, Call) for item in gc.get_objects())

    before = storages()
    with tracking() as tracked:
        with tracked.run.epoch():
            for inputs in batches(4096, 4096, 4096):
                loss = F.cross_entropy(model(inputs), classes_for(inputs))
                loss.backward()
                optimizer.step()
                kept.append(loss)
            kept.append(F.cross_entropy(model(inputs), classes_for(inputs)))
            assert calls_alive()
        kept.pop()
        assert storages() == before
        kept.append(F.cross_entropy(model(batches()[0]), classes_for(batches()[0])))
    assert not calls_alive()  # they hang from the hooks on the losses


def test_many_steps_are_folded_without_loss():
    """More steps than are kept one by one give the same sums."""

    def train(notes):
        parameter = nn.Parameter(torch.zeros(1, 2))
        with notes.epoch():
            for number in range(1500):
                parameter.grad = None
                target = torch.full((number % 3 + 1,), number % 2)
                scores = parameter.expand(len(target), 2) + torch.tensor([0.0, number % 5 - 2.5])
                note_classes(notes, scores, target)
                F.cross_entropy(scores, target).backward()

    assert_style((tuple, train))


def test_device_mean_is_exact_over_many_parts():
    """Parts are folded into float64 sums: a million counts lose nothing."""
    mean = DeviceMean()
    for number in range(3000):
        mean.add_sum(torch.tensor(number), torch.tensor(2**20 + number % 2))
    assert mean.take().mean == (2999 * 3000 // 2) / (3000 * 2**20 + 1500)
    assert mean.take().mean is None


# The helper can fail


@pytest.mark.parametrize(
    "damage",
    [
        lambda notes: notes.loss(1.0, 1),
        lambda notes: notes.predicted(0, 1),
        lambda notes: notes.epochs.pop(),
    ],
)
def test_the_comparison_can_fail(damage):
    """A target too many, a loss that is off, an epoch too few: each is seen."""

    def step(notes, scores, inputs):
        note_classes(notes, scores, classes_for(inputs))
        return F.cross_entropy(scores, classes_for(inputs))

    style = training(step)
    notes, _ = run_untracked(style)
    damage(notes)
    tracked = run_tracked(style)
    with pytest.raises(AssertionError):
        assert_metrics(tracked, notes)
    assert isinstance(notes, Notes)
