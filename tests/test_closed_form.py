"""Trainings whose every number is known by hand, found in the file and in the record."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trackmetrics import tracked_training, tracker

pytestmark = pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")

FILE = "output/closed_form_training_metrics.json"


def read():
    with open(FILE, encoding="utf-8") as file:
        return json.load(file)


def in_file(value):
    """A metric as the file has it: 4 decimals."""
    return round(value, 4)


def test_regression_with_one_weight():
    """The model `w x` on the pair (x, y) = (1, 0): squared error, plain gradient descent.

    The loss is w², its gradient 2w, so a step at learning rate 1/4 gives w ← w - 2w/4 = w/2. From w = 8:
    step k (from 0) has w = 8 / 2^k, loss 64 / 4^k and gradient norm 16 / 2^k. Two epochs of two steps:
    losses (64 + 16) / 2 = 40 and (4 + 1) / 2 = 2.5; norms (16 + 8) / 2 = 12 and (4 + 2) / 2 = 3; w ends at 1/2.
    """

    @tracked_training(task="closed_form")
    def train(train, dev):
        model = nn.Linear(1, 1, bias=False)
        model.weight.data.fill_(8.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
        for _ in range(2):
            with tracker.epoch():
                for x, y in train:
                    optimizer.zero_grad()
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
            records.append(tracker.record.epochs[-1])
        return model

    records = []
    pair = torch.tensor([1.0]), torch.tensor([0.0])
    model = train([pair, pair], [pair])
    assert model.weight.item() == 0.5
    epochs = read()["epochs"]
    assert [epoch["train_loss"] for epoch in epochs] == [40.0, 2.5]
    assert [epoch["gradient_norm"] for epoch in epochs] == [12.0, 3.0]
    assert [epoch["train_accuracy"] for epoch in epochs] == [None, None]
    assert [epoch["dev_accuracy"] for epoch in epochs] == [None, None]
    assert [(record.train_loss, record.gradient_norm) for record in records] == [(40.0, 12.0), (2.5, 3.0)]


def test_two_class_softmax():
    """The scores `x (w, -w)` for two classes: cross-entropy, one weight trained by hand-set steps.

    With z = 2 x w the difference of the scores, class 0 has probability s = 1 / (1 + e^-z). Every example is of
    class 0: its loss is -log s = log(1 + e^-z), its gradient with respect to the scores (s - 1, 1 - s), and so with
    respect to the two rows of weights (-(1 - s) x, (1 - s) x), of norm √2 (1 - s) |x|. A step at learning rate η
    moves the rows apart by η (1 - s) x each: w ← w + η (1 - s) x.

    From w = 0 and η = ln 3, with x = 1 in each step:
      step 1: z = 0, s = 1/2: loss log 2, norm √2 / 2; then w = ln 3 / 2, and z = ln 3
      step 2: z = ln 3, s = 3/4: loss log(4/3), norm √2 / 4
    Predicted right in step 1: a tie, which goes to the first class: right. In step 2: right as well.

    The dev set holds x = 1 of class 0 (right) and x = -1 of class 0 (wrong from step 1 on): accuracy 1/2.
    """

    @tracked_training(task="closed_form")
    def train(train, dev):
        model = nn.Linear(1, 2, bias=False)
        model.weight.data.zero_()
        optimizer = torch.optim.SGD(model.parameters(), lr=math.log(3))
        for example in train:
            with tracker.epoch():
                optimizer.zero_grad()
                F.cross_entropy(model(example[0]), example[1]).backward()
                optimizer.step()
            records.append(tracker.record.epochs[-1])
        return model

    records = []
    one, other = (torch.tensor([1.0]), torch.tensor(0)), (torch.tensor([-1.0]), torch.tensor(0))
    train([one, one], [one, other])
    losses = [math.log(2), math.log(4 / 3)]
    norms = [math.sqrt(2) / 2, math.sqrt(2) / 4]
    assert [record.train_loss for record in records] == [pytest.approx(loss, rel=1e-6) for loss in losses]
    assert [record.gradient_norm for record in records] == [pytest.approx(norm, rel=1e-6) for norm in norms]
    written = read()
    for epoch, loss, norm in zip(written["epochs"], losses, norms, strict=True):
        assert epoch["train_loss"] == in_file(loss)
        assert epoch["gradient_norm"] == in_file(norm)
        assert epoch["train_accuracy"] == 1.0
        assert epoch["dev_accuracy"] == 0.5
    assert written["final_results"]["train_accuracy"] == 1.0
    assert written["final_results"]["dev_accuracy"] == 0.5


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_short_last_batch_weighs_by_its_targets(reduction):
    """A weight that a zero learning rate leaves alone: batches of 3 and 1 examples, two classes, scores (w x, 0).

    With w = 1 the loss of class 0 at score z = x is log(1 + e^-z). The first batch is x = (ln 3, ln 3, ln 3), each
    of loss log(4/3) and right; the second x = -ln 3 of class 0: loss log 4, wrong. Over the 4 targets:
    loss (3 log(4/3) + log 4) / 4, accuracy 3/4.

    Gradient with respect to w: -(1 - s) x an example, s = 1 / (1 + e^-z): -(1/4) ln 3 three times; -(3/4)(-ln 3) once.
    The first batch's mean is -(1/4) ln 3, its sum -(3/4) ln 3; the second batch's (3/4) ln 3 either way.
    Mean norm: by mean (1/4 + 3/4) ln 3 / 2 = ln 3 / 2; by sum (3/4 + 3/4) ln 3 / 2 = (3/4) ln 3.
    """

    @tracked_training(task="closed_form", finalize=None, final_train_accuracy=False)
    def train(batches):
        weight = nn.Parameter(torch.tensor(1.0))
        optimizer = torch.optim.SGD([weight], lr=0.0)
        with tracker.epoch():
            for inputs in batches:
                optimizer.zero_grad()
                scores = torch.stack((weight * inputs, torch.zeros_like(inputs)), 1)
                target = torch.zeros(len(inputs), dtype=torch.int64)
                F.cross_entropy(scores, target, reduction=reduction).backward()
                optimizer.step()
        return tracker.record

    ln3 = math.log(3)
    record = train([torch.full((3,), ln3), torch.tensor([-ln3])])
    loss = (3 * math.log(4 / 3) + math.log(4)) / 4
    norm = {"mean": ln3 / 2, "sum": 3 * ln3 / 4}[reduction]
    (epoch,) = record.epochs
    assert epoch.train_loss == pytest.approx(loss, rel=1e-6)
    assert epoch.train_accuracy == 0.75
    assert epoch.gradient_norm == pytest.approx(norm, rel=1e-6)
    (written,) = read()["epochs"]
    assert written["train_loss"] == in_file(loss)
    assert written["train_accuracy"] == 0.75
    assert written["gradient_norm"] == in_file(norm)


def test_clipping_accumulation_and_scaling_at_once():
    """Two micro-batches a step under a gradient scaler, unscaled and clipped: the norm is the one before clipping.

    The model `w · x` in two dimensions and the error `(w · x)`, summed: its gradient is x. Micro-batches x = (3, 0)
    and x = (0, 4) accumulate, halved, to (1.5, 2): norm 2.5, whatever the clipping to 1 leaves. The step with
    learning rate 1 moves w by the clipped gradient, (0.6, 0.8): from (1, 1) to (0.4, 0.2).

    The loss is hand-written, so it is the scalar of the step's backwards: (3 + 4) / 2 = 3.5.
    """

    @tracked_training(task="closed_form", final_train_accuracy=False)
    def train(batches):
        weight = nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        with tracker.epoch():
            for inputs in batches:
                scaler.scale((weight * inputs).sum() / 2).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_([weight], 1.0)
            scaler.step(optimizer)
            scaler.update()
        return weight

    weight = train([torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])])
    assert weight.tolist() == pytest.approx([0.4, 0.2], rel=1e-5)
    (epoch,) = read()["epochs"]
    assert epoch["gradient_norm"] == 2.5
    assert epoch["train_loss"] == 3.5
