"""The oracle: a plain training loop that works out, by hand and beside itself, what a metrics file should say of it.

A *style* of training is a pair: `build()` makes models and optimizers, `train(notes, *parts)` trains them and notes
the figures of semantics.md as it goes. The same style runs twice, once with no tracker in reach and once tracked:
the first run's notes are what the second run's record must say, and both must end with the very same numbers.
"""

import contextlib
import dataclasses
import math
import statistics
import tempfile
import warnings

import pytest
import torch

from trackmetrics import Tracker, TrackmetricsWarning

NORM_TOLERANCE = 1e-6


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small tensors gain nothing from threads, and lose much where cores are shared; import it to have it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def global_norm(parameters):
    """The L2 norm over the gradients of `parameters`, each once, summed element by element in float64."""
    total = 0.0
    for parameter in {id(parameter): parameter for parameter in parameters}.values():
        if parameter.grad is not None:
            gradient = parameter.grad.detach()
            values = gradient.coalesce().values() if gradient.is_sparse else gradient
            total += values.double().pow(2).sum().item()
    return math.sqrt(total)


@dataclasses.dataclass
class EpochNotes:
    norms: list = dataclasses.field(default_factory=list)
    skipped: int = 0
    losses: list = dataclasses.field(default_factory=list)
    right: int = 0
    judged: int = 0

    @property
    def norm(self):
        finite = [norm for norm in self.norms if math.isfinite(norm)]
        return math.fsum(finite) / len(finite) if finite else None

    @property
    def loss(self):
        weight = math.fsum(weight for _, weight in self.losses)
        return math.fsum(value * weight for value, weight in self.losses if weight) / weight if weight else None

    @property
    def accuracy(self):
        return self.right / self.judged if self.judged else None


class Notes:
    """What a training loop says of itself."""

    def __init__(self, run=None):
        self.run = run
        self.epochs = []

    @contextlib.contextmanager
    def epoch(self):
        self.epochs.append(EpochNotes())
        with contextlib.nullcontext() if self.run is None else self.run.epoch():
            yield

    def step(self, parameters, scale=1.0):
        """A training step applies the gradients that `parameters` have at this moment."""
        self.epochs[-1].norms.append(global_norm(parameters) / scale)

    def norm(self, value):
        self.epochs[-1].norms.append(value)

    def skipped(self):
        self.epochs[-1].skipped += 1

    def loss(self, value, targets=1):
        """A step's loss is `value`, a mean over `targets` targets."""
        self.epochs[-1].losses.append((float(torch.as_tensor(value).detach()), int(targets)))

    def predicted(self, right, of):
        self.epochs[-1].right += int(right)
        self.epochs[-1].judged += int(of)


@dataclasses.dataclass
class Tracked:
    """A tracked run, and what was warned of."""

    run: Tracker
    messages: list
    notes: Notes = None
    parts: tuple = ()

    @property
    def epochs(self):
        return self.run.record.epochs

    @property
    def norms(self):
        return self.run.record.extensions["gradient_norm"]

    def warned_of(self, key):
        return [message for message in self.messages if message.startswith(f"{key} is null")]


@contextlib.contextmanager
def tracking(**options):
    """A run in a folder of its own, inside the test's; its warnings are kept, not raised."""
    options = {"output_dir": tempfile.mkdtemp(dir="."), "final_train_accuracy": False, **options}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tracked = Tracked(Tracker(options.pop("task", "style"), **options), [])
        with tracked.run:
            yield tracked
        tracked.messages += [str(item.message) for item in caught if item.category is TrackmetricsWarning]


def run_untracked(style):
    """Train a style with no tracker; give its notes and its parts as they are afterwards."""
    build, train = style
    torch.manual_seed(0)
    parts = build()
    notes = Notes()
    train(notes, *parts)
    return notes, parts


def run_tracked(style, built="inside", **options):
    """Train a style under a tracker, its parts built `before` the run or `inside` it."""
    build, train = style
    torch.manual_seed(0)
    parts = build() if built == "before" else None
    with tracking(**options) as tracked:
        tracked.parts = build() if parts is None else parts
        tracked.notes = Notes(tracked.run)
        train(tracked.notes, *tracked.parts)
    return tracked


def assert_norms(tracked, notes):
    """The run's gradient norms are those in `notes`: to a relative 1e-6, and the counts exactly."""
    assert len(tracked.epochs) == len(tracked.norms["epochs"]) == len(notes.epochs)
    for epoch, summary, expected in zip(tracked.epochs, tracked.norms["epochs"], notes.epochs, strict=True):
        finite = sorted(norm for norm in expected.norms if math.isfinite(norm))
        counts = (summary["steps"], summary["skipped_steps"], summary["non_finite_steps"])
        assert counts == (len(expected.norms), expected.skipped, len(expected.norms) - len(finite))
        assert_close(epoch.gradient_norm, expected.norm)
        assert_close(summary["min"], finite[0] if finite else None)
        assert_close(summary["median"], statistics.median(finite) if finite else None)
        assert_close(summary["max"], finite[-1] if finite else None)


def assert_close(value, expected):
    """Equal to a relative 1e-6; `None` only where `None` is expected, NaN where NaN is."""
    if expected is None or value is None:
        assert value is expected
    else:
        assert value == pytest.approx(expected, rel=NORM_TOLERANCE, abs=1e-30, nan_ok=True)


def state_of(parts):
    """Every number in models and optimizers, as bytes and plain values, in order."""
    found = []
    for part in parts:
        if isinstance(part, torch.nn.Module):
            found += [(part.training, *tensors_of(part.state_dict()), *tensors_of([p.grad for p in part.parameters()]))]
        elif isinstance(part, torch.optim.Optimizer):
            found += [tensors_of(part.state_dict())]
    return found


def tensors_of(tree):
    if isinstance(tree, torch.Tensor):
        dense = tree.detach().to_dense() if tree.is_sparse else tree.detach()
        return [(str(tree.dtype), tuple(tree.shape), dense.contiguous().view(-1).view(torch.uint8).tolist())]
    if isinstance(tree, dict):
        return [item for key, value in tree.items() for item in (str(key), *tensors_of(value))]
    if isinstance(tree, (list, tuple)):
        return [item for value in tree for item in tensors_of(value)]
    return [tree if isinstance(tree, (int, float, str, bool, type(None))) else repr(type(tree))]
