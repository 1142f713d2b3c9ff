"""A training's loss and accuracy by hand: sums over Python floats, one target after the other."""

import math

import pytest
import torch
from oracle import NORM_TOLERANCE, run_tracked, run_untracked
from torch import nn

CLASSES = 3
WEIGHTS = (0.5, 2.0, 1.25)


def assert_metrics(tracked, notes):
    """Each epoch's loss is that in `notes` to a relative 1e-6, and its accuracy exactly."""
    assert len(tracked.epochs) == len(notes.epochs)
    for epoch, expected in zip(tracked.epochs, notes.epochs, strict=True):
        assert epoch.train_loss == pytest.approx(expected.loss, rel=NORM_TOLERANCE, nan_ok=True)
        assert epoch.train_accuracy == expected.accuracy


def assert_style(style):
    """A style's tracked run says what its untracked run noted; give the tracked run."""
    notes, _ = run_untracked(style)
    tracked = run_tracked(style)
    assert_metrics(tracked, notes)
    return tracked


def batches(*sizes, features=4, seed=1):
    """Inputs of the given batch sizes; by default two full batches and a short last one."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, features, generator=generator) for size in sizes or (4, 4, 2)]


def linear(outputs=CLASSES, features=4):
    """What builds a linear model and its optimizer."""

    def build():
        model = nn.Linear(features, outputs)
        return model, torch.optim.SGD(model.parameters(), lr=0.5)

    return build


def training(step, build=None):
    """A style of one epoch: `step(notes, output, inputs)` makes the loss of a batch of a linear model's output."""

    def train(notes, model, optimizer):
        with notes.epoch():
            for inputs in batches():
                optimizer.zero_grad()
                step(notes, model(inputs), inputs).backward()
                optimizer.step()

    return build or linear(), train


def classes_for(inputs, seed=2):
    """A class for each input."""
    return torch.randint(CLASSES, (len(inputs),), generator=torch.Generator().manual_seed(seed + len(inputs)))


def in_rows(values):
    """`[N, C]` or `[N, C, ...]` as rows of `C` floats, the classes last."""
    return values.detach().double().movedim(1, -1).reshape(-1, values.shape[1]).tolist()


def log_softmax_by_hand(row):
    total = math.fsum(math.exp(value) for value in row)
    return [value - math.log(total) for value in row]


def classes_by_hand(scores, target, weights=None, ignored=-100, smoothing=0.0, log_probs=False):
    """The sum of the targets' losses, what a mean divides it by, how many targets, how many predicted right.

    `scores` are `[N, C]` or `[N, C, ...]`, or `log_probs` already; targets are indices without the `C`, or
    probabilities with it, which have a loss and are neither right nor wrong.
    """
    total = divisor = targets = right = 0
    weights = weights or (1.0,) * scores.shape[1]
    soft = target.is_floating_point()
    wanted_of_all = in_rows(target) if soft else target.flatten().tolist()
    for row, wanted in zip(in_rows(scores), wanted_of_all, strict=True):
        if not soft and wanted == ignored:
            continue
        shares = wanted if soft else [float(index == wanted) for index in range(len(row))]
        shares = [(1 - smoothing) * share + smoothing / len(row) for share in shares]
        values = row if log_probs else log_softmax_by_hand(row)
        total -= math.fsum(share * weight * value for share, weight, value in zip(shares, weights, values))
        divisor += 1 if soft else weights[wanted]
        targets += 1
        right += 0 if soft else row.index(max(row)) == wanted
    return total, divisor, targets, right


def note_classes(notes, scores, target, **settings):
    """Note a step's loss and predictions by hand: a mean over the targets."""
    total, divisor, targets, right = classes_by_hand(scores, target, **settings)
    notes.loss(total / divisor if divisor else 0.0, targets)
    if not target.is_floating_point():
        notes.predicted(right, targets)
