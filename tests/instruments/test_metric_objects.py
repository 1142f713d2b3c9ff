"""Metric objects without any library: what they are fed is what the run's own figures come from, in every style."""

import json
import warnings

import pytest
import torch
import torch.nn.functional as F
import toy
from oracle import one_thread, run_tracked, tracking  # noqa: F401  a fixture
from torch import nn
from training_styles import STYLES

from trackmetrics import Tracker, TrackmetricsWarning
from trackmetrics.instruments import metric_objects
from trackmetrics.instruments.metric_objects import MetricObjects
from trackmetrics.instruments.outcomes import Outcome


class Accuracy:
    """The share predicted right, from what a metric is fed."""

    def reset(self):
        self.right = self.targets = 0

    def update(self, outputs, targets):
        assert not outputs.requires_grad
        assert not torch.is_grad_enabled()
        predicted = outputs.argmax(1) if outputs.ndim == targets.ndim + 1 else outputs > 0.5
        self.right += int((predicted == targets).sum())
        self.targets += targets.numel()

    def compute(self):
        return self.right / self.targets


@pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")
@pytest.mark.parametrize("name", STYLES)
def test_a_metric_has_the_runs_own_accuracy(name):
    """In every style of training: the same calls, the same targets left out; where there is none, neither has it."""
    observed = run_tracked(STYLES[name], metrics={"share": Accuracy()}, evaluate_every=10**9)
    plain = run_tracked(STYLES[name], evaluate_every=10**9)
    for epoch, other in zip(observed.epochs, plain.epochs, strict=True):
        assert repr(epoch.train_loss) == repr(other.train_loss)  # NaN, too
        assert epoch.train_accuracy == other.train_accuracy
        if epoch.train_accuracy is not None:
            assert epoch.metrics["train_share"] == pytest.approx(epoch.train_accuracy, abs=1e-12)
        elif any("train_accuracy is null" in message for message in plain.messages):  # it is no regression
            assert epoch.metrics["train_share"] is None


def test_most_styles_have_an_accuracy():
    """The test above compares numbers."""
    counts = [run_tracked(STYLES[name], evaluate_every=10**9).epochs[0].train_accuracy for name in [*STYLES][::5]]
    assert sum(count is not None for count in counts) > len(counts) / 2


def epoch_of(body, metrics, build=toy.model, **options):
    """The record of an epoch of SGD whose losses `body(model, features, classes)` gives, and what was said."""
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TrackmetricsWarning)
        with Tracker("t", train=[], dev=[], metrics=metrics, **options) as run, run.epoch():
            for features, classes in toy.loader():
                optimizer.zero_grad()
                body(model, features, classes)
                optimizer.step()
    said = {str(item.message).partition(" ")[0]: str(item.message) for item in caught}
    return run.record.epochs[0], said


def plain(model, features, classes):
    F.cross_entropy(model(features), classes).backward()


def wide():
    torch.manual_seed(0)
    return nn.Linear(4, 5000)


def by_hand(model, features, classes):
    loss = F.cross_entropy(model(features), classes)
    for parameter, gradient in zip(model.parameters(), torch.autograd.grad(loss, tuple(model.parameters()))):
        parameter.grad = gradient


@pytest.mark.parametrize("build", [toy.model, wide], ids=["small", "large"])
def test_gradients_set_by_hand(build):
    """A call is fed if it turns out to count; one that had to be let go of before that makes the value null."""
    epoch, said = epoch_of(by_hand, {"share": Accuracy()}, build)
    if build is toy.model:
        assert epoch.metrics["train_share"] == epoch.train_accuracy
    else:
        assert epoch.metrics["train_share"] is None
        assert "had to be let go of" in said["train_share"]


def probing(model, features, classes):
    features.requires_grad_()
    loss = F.cross_entropy(model(features), 1 - classes)
    (gradient,) = torch.autograd.grad(loss, features)
    F.cross_entropy(model(features + 0.1 * gradient.sign()).detach() * 0 + model(features), classes).backward()


@pytest.mark.parametrize("build", [toy.model, wide], ids=["small", "large"])
def test_a_probe_is_not_fed(build):
    """What `torch.autograd.grad` reached before the step's own backward is no training."""
    epoch, _ = epoch_of(probing, {"share": Accuracy()}, build)
    assert epoch.metrics["train_share"] == epoch.train_accuracy


def in_parts(model, features, classes):
    losses = F.cross_entropy(model(features), classes, reduction="none")
    losses[:4].sum().backward(retain_graph=True)
    losses[4:7].sum().backward()


@pytest.mark.parametrize("build", [toy.model, wide], ids=["small", "large"])
def test_a_loss_differentiated_in_parts(build):
    """All its parts count where the call could wait for them; else the value is null."""
    epoch, said = epoch_of(in_parts, {"share": Accuracy(), "targets": Targets()}, build)
    assert epoch.metrics["train_share"] == epoch.train_accuracy
    assert epoch.metrics["train_targets"] == (21 if build is toy.model else None)
    assert ("train_targets" in said) == (build is wide)


class Targets(Accuracy):
    """How many targets there were."""

    def compute(self):
        return self.targets


def test_without_metrics_nothing_is_done(monkeypatch):
    """No metric, no cost: nothing of what would feed one is called."""

    def fail(*args, **kwargs):
        raise AssertionError("called without a metric")

    for name in ("begin", "restart", "feed", "feed_call", "take", "spoil"):
        monkeypatch.setattr(MetricObjects, name, fail)
    epoch, said = epoch_of(plain, None)
    assert epoch.train_accuracy is not None
    assert not any("called without a metric" in text for text in said.values())
    _, said = epoch_of(plain, {"share": Accuracy()})
    assert any("called without a metric" in text for text in said.values())


def test_a_fault_of_ours_costs_the_metrics_alone(monkeypatch):
    """Whatever fails in feeding, loss and accuracy stay."""

    def fail(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(metric_objects, "of_call", fail)
    epoch, said = epoch_of(plain, {"share": Accuracy()})
    assert epoch.train_accuracy is not None
    assert epoch.metrics["train_share"] is None
    assert "ZeroDivisionError" in said["train_share"]


class Late:
    """A number that isn't there before it is asked for."""

    there = False

    def __init__(self, number):
        self.get = lambda: int(number)


def test_what_waits_is_bounded_and_comes_in_order(monkeypatch):
    """Batches whose counts are late wait, as many as there is room for; each is fed once, in its order."""

    class Order(Accuracy):
        def reset(self):
            self.fed = []

        def update(self, outputs, targets):
            self.fed.append(targets.tolist())

        def compute(self):
            return self.fed

    monkeypatch.setattr(metric_objects, "Coming", Late)
    metrics = MetricObjects()
    metrics.begin({"order": Order()})
    targets = [torch.tensor([number, 1, number]) for number in range(9)]
    size = Outcome(torch.rand(3, 9), targets[0], targets[0] != 1).nbytes
    monkeypatch.setattr(metric_objects, "_LATE_BYTES", 4 * size)
    monkeypatch.setattr(metric_objects, "_BATCHES", 2)
    for one in targets:
        metrics.feed(Outcome(torch.rand(3, 9), one, one != 1))
    assert metrics._copies["order"].fed == [[0, 0], [2, 2], [3, 3], [4, 4]]  # of the second, none counts
    values, faults = metrics.take("train", "nothing")
    assert values == {"train_order": [[number, number] for number in range(9) if number != 1]}
    assert not faults
    metrics.feed(Outcome(torch.rand(3, 9), targets[0], targets[0] != 1))
    metrics.restart()
    assert metrics.take("dev", "nothing") == ({"dev_order": None}, {"dev_order": "nothing"})


def test_copies_are_made_once():
    """The same object under the same name is copied once; another object under that name anew."""
    copies = []

    class Copied(Accuracy):
        def __deepcopy__(self, memo):
            copies.append(self)
            return type(self)()

    metrics, one, other = MetricObjects(), Copied(), Copied()
    for given in ({"a": one}, {"a": one}, {"a": other}, {"a": other, "b": one}):
        metrics.begin(given)
    assert copies == [one, other, one]


def test_a_metric_is_moved_to_where_the_outputs_are():
    """Once; `to` may give another object, or move the same."""
    moved = []

    class Moving(Accuracy):
        def __init__(self, returns):
            self.returns = returns

        def to(self, device):
            moved.append(str(device))
            return self if self.returns else None

        def update(self, outputs, targets):
            self.devices = {outputs.device.type}

        def compute(self):
            return sorted(self.devices)

    metrics = MetricObjects()
    metrics.begin({"a": Moving(True), "b": Moving(False), "c": Accuracy()})
    for _ in range(3):
        metrics.feed(Outcome(torch.rand(2, 3), torch.tensor([0, 1])))
    assert metrics.take("train", "")[0].keys() == {"train_a", "train_b", "train_c"}
    assert moved == ["cpu", "cpu"]
    metrics.begin({"a": Moving(True)})
    metrics.feed(Outcome(torch.rand(2, 3, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")))
    assert metrics.take("dev", "") == ({"dev_a": ["meta"]}, {})
    assert moved[-1] == "meta"


def test_metrics_draw_from_streams_of_their_own(monkeypatch):
    """Two updates in a row draw different numbers, and the training's next number is what it would have been."""

    class Drawn(Accuracy):
        def update(self, outputs, targets):
            self.values = [*getattr(self, "values", []), torch.rand(()).item()]

        def compute(self):
            return self.values

    monkeypatch.setattr(metric_objects, "_BATCHES", 1)
    torch.manual_seed(5)
    expected = torch.rand(3).tolist()
    metrics = MetricObjects()
    metrics.begin({"drawn": Drawn()})
    torch.manual_seed(5)
    drawn = []
    for _ in range(3):
        metrics.feed(Outcome(torch.zeros(2, 3), torch.zeros(2)))
        drawn.append(torch.rand(()).item())
    assert drawn == pytest.approx(expected)
    values = metrics.take("train", "")[0]["train_drawn"]
    assert len(set(values)) == 3


class Gathers(Accuracy):
    """A metric that knows of several processes as torchmetrics' do, with a state of so many numbers."""

    dist_sync_fn = None
    distributed_available_fn = None

    def __init__(self, size):
        self.size = size

    def compute(self):
        state = torch.tensor([self.right, self.targets] + [0] * (self.size - 2))
        right, targets = sum(self.dist_sync_fn(state, group=None)).tolist()[:2]
        return right / targets


def fed(right, targets, size=2):
    """Metrics that were fed with so many targets."""
    metrics = MetricObjects()
    metrics.begin({"share": Gathers(size)})
    if targets:
        outputs = torch.eye(2)[[0] * right + [1] * (targets - right)]
        metrics.feed(Outcome(outputs, torch.zeros(targets, dtype=torch.long)))
    return metrics


def test_ranks_are_joined():
    """By what each was fed: 3 of 4 and 1 of 6 are 4 of 10; one that was fed nothing adds nothing."""
    first = fed(3, 4)
    first.join(1, json.loads(json.dumps(fed(1, 6).bring())))
    first.join(2, json.loads(json.dumps(fed(0, 0).bring())))
    assert first.take("train", "nothing") == ({"train_share": 0.4}, {})
    first.feed(Outcome(torch.eye(2), torch.tensor([0, 0])))
    assert first.take("dev", "nothing") == ({"dev_share": 0.5}, {})  # begun anew, alone


def test_a_rank_that_alone_was_fed():
    """The first one computes of what the other brings."""
    first = fed(0, 0)
    first.join(1, fed(1, 4).bring())
    assert first.take("dev", "nothing") == ({"dev_share": 0.25}, {})


def test_a_state_that_is_too_large_to_be_brought():
    """Null, with its size and what would be smaller."""
    first = fed(1, 2)
    first.join(1, fed(1, 2, size=2**21 + 2).bring())
    values, faults = first.take("train", "nothing")
    assert values == {"train_share": None}
    assert faults["train_share"].startswith(
        "on rank 1 its state takes 17 MB on a rank, of which 17 go to the first one"
    )


def test_what_a_rank_could_not_be_fed_with():
    """It has no value on the first one either."""
    first, other = fed(1, 2), fed(1, 2)
    other.spoil("the outputs were lost")
    first.join(1, other.bring())
    assert first.take("train", "")[1] == {"train_share": "on rank 1 the outputs were lost"}
