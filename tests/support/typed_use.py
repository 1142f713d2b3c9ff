"""A user's program as a type checker sees it: `assert_type` says what it finds, an ignored line what it refuses.

`tests/test_typing.py` has checkers read it that complain of an ignored line without an error. It is never run.
"""

from pathlib import Path

import torch
from typing_extensions import assert_type

import trackmetrics
from trackmetrics import FinalInference, RunRecord, Tracker, load_run, tracked_training, tracker
from trackmetrics.run import Epoch, StepEpochs
from trackmetrics.testing import FakeClock, RunInMemory, runs_in_memory

assert_type(trackmetrics.__version__, str)
trackmetrics.trackd_training  # type: ignore[attr-defined]  # noqa: B018

# A decorated function is of its own type


@tracked_training("task")
def train(model: torch.nn.Module, *, num_epochs: int = 2) -> torch.nn.Module:
    """Parameters with and without defaults, and what it returns."""
    return model


net = torch.nn.Linear(2, 2)
assert_type(train(net), torch.nn.Module)
assert_type(train(net, num_epochs=3), torch.nn.Module)
train()  # type: ignore[call-arg]
train(net, 3)  # type: ignore[call-arg]
train(net, num_epochs="3")  # type: ignore[arg-type]
train(net, num_epochs=3, by=1)  # type: ignore[call-arg]


@tracked_training("task", part="fold{fold}", resume="last", sinks=["tensorboard"], progress=False)
async def train_later(fold: int, last: int | None = None) -> float:
    """A coroutine stays one."""
    return 0.5


async def by_awaiting() -> None:
    """What it returns comes of awaiting it."""
    assert_type(await train_later(1), float)
    await train_later("1")  # type: ignore[arg-type]


class Trainer:
    """Methods of each kind."""

    @tracked_training("task")
    def fit(self, num_epochs: int) -> "Trainer":
        """Bound to its object."""
        return self

    @classmethod
    @tracked_training("task")
    def of_class(cls, num_epochs: int) -> str:
        """Bound to its class."""
        return cls.__name__

    @staticmethod
    @tracked_training("task")
    def of_nothing(num_epochs: int) -> int:
        """Bound to nothing."""
        return num_epochs


assert_type(Trainer().fit(2), Trainer)
assert_type(Trainer.of_class(2), str)
assert_type(Trainer.of_nothing(2), int)
Trainer().fit()  # type: ignore[call-arg]
Trainer.of_class("2")  # type: ignore[arg-type]
Trainer.of_nothing("2")  # type: ignore[arg-type]


@tracked_training("task")
def train_with(num_epochs: int, tracker: Tracker = tracker) -> None:
    """One that is handed its run: the default says that the caller may leave it out."""
    assert_type(tracker.record, RunRecord)


train_with(2)
train_with(2, Tracker("task"))
train_with(2, tracker=None)  # type: ignore[arg-type]

# What can't be decorated, and options that can't be right


@tracked_training  # type: ignore[arg-type]
def without_task() -> None:
    """The task is missing."""


tracked_training("task", part=1)  # type: ignore[arg-type]
tracked_training("task", outputdir="output")  # type: ignore[call-arg]
Tracker("task", attention="all")  # type: ignore[arg-type]
Tracker("task", progress="never")  # type: ignore[arg-type]

# The run and its epochs

with Tracker("task", output_dir=Path("output")) as run:
    assert_type(run, Tracker)
    with run.epoch() as epoch:
        assert_type(epoch, Epoch)
        epoch.log(dev_accuracy=0.5, note="warm-up")
        epoch.update(loss=0.5)
        epoch.update(accuracy=0.5)  # type: ignore[call-arg]
    with tracker.epochs(every=100) as epochs:
        assert_type(epochs, StepEpochs)
    tracker.epochs()  # type: ignore[call-arg]
    for batch in tracker.progress([(1, "a")]):
        assert_type(batch, tuple[int, str])
    tracker.watch(net)
    tracker.watch("net")  # type: ignore[arg-type]
    assert_type(tracker.path, str)

# What comes of it

record = load_run("output/task_training_metrics.json")
assert_type(record, RunRecord)
assert_type(record.epochs[0].train_loss, float | None)
assert_type(record.final_inference, FinalInference | None)
load_run(1)  # type: ignore[arg-type]

with runs_in_memory(FakeClock()) as runs:
    assert_type(runs.clock, FakeClock)
assert_type(runs[0], RunInMemory)
assert_type(runs[0].record, RunRecord)
assert_type(runs[0].text, str)
runs_in_memory("clock")  # type: ignore[arg-type]
