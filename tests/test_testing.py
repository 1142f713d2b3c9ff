"""What users test their own tracked functions with: runs in memory, and a clock that is told to go on."""

import asyncio
import json
import os
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toy
from strict_json import strict_loads
from trainers import EPOCHS, by_lightning

from trackmetrics import Tracker, load_run, tracked_training, tracker
from trackmetrics.errors import ArgumentError, OutputError, PathInUseError, ResumeError, RunStateError
from trackmetrics.surroundings import Surroundings, surroundings, within
from trackmetrics.testing import FakeClock, runs_in_memory

GOOD = {"train_loss": 0.5, "train_accuracy": 1.0, "dev_accuracy": 1.0, "gradient_norm": 0.1}
QUIET = {"train": [], "dev": []}


def in_epochs(number, then=lambda: None, run=tracker):
    for _ in range(number):
        with run.epoch() as epoch:
            epoch.log(**GOOD)
            then()


@tracked_training("demo", **QUIET)
def train(number, then=lambda: None):
    in_epochs(number, then)


@tracked_training("letters", keep_previous=True)
def train_a_net(train, dev, num_epochs=2):
    torch.manual_seed(0)
    net = toy.model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(num_epochs):
        with tracker.epoch():
            for features, classes in train:
                optimizer.zero_grad()
                F.cross_entropy(net(features), classes).backward()
                optimizer.step()
    return net


@pytest.fixture
def runs():
    with runs_in_memory() as runs:
        yield runs


class Sink:
    def __init__(self):
        self.told = []

    def run_began(self, record, path):
        self.told.append("began")

    def epoch_ended(self, record, path):
        self.told.append("epoch")

    def run_ended(self, record, path):
        self.told.append("ended")


# What a run in memory gives


def without_what_differs(text):
    """A file's plain data without what no two runs have alike."""
    plain = strict_loads(text)
    for key in ("seconds", "status"):
        del plain["extensions"][key]
    return plain


def test_the_text_is_that_of_the_file(clock):
    """A real training's file, of this run and of one that writes it: the same to the last key and number."""
    data = toy.loader(16), toy.loader(8, seed=1)
    with runs_in_memory(clock) as runs:
        train_a_net(*data)
    train_a_net(*data)
    [run] = runs
    assert run.path == Path("output/letters_training_metrics.json").absolute()
    assert without_what_differs(run.text.encode()) == without_what_differs(run.path.read_bytes())
    assert run.record.metadata == load_run(run.path).metadata
    assert np.array_equal(run.record.final_inference.log_probs, load_run(run.path).final_inference.log_probs)


def test_nothing_is_on_the_disk_or_shown(runs, capfd):
    """Not a folder, not a lock, not a byte on a stream, not a word to a sink, whatever the options ask for."""
    sink = Sink()
    with Tracker("demo", **QUIET, output_dir="made/anew", progress=True, sinks=[sink], max_inline_mb=0) as run:
        in_epochs(2, run=run)
        assert os.listdir() == []
    assert os.listdir() == []
    assert capfd.readouterr() == ("", "")
    assert sink.told == []
    assert runs[0].written


def test_sinks_are_told_where_that_is_asked_for():
    """All that they hear of a run that writes."""
    sink = Sink()
    with runs_in_memory(sinks=True), Tracker("demo", **QUIET, sinks=[sink]) as run:
        in_epochs(2, run=run)
    assert sink.told == ["began", "epoch", "epoch", "ended"]


def test_the_record_is_the_trackers(runs):
    """At full precision, while the run goes on and after it."""
    with Tracker("demo", **QUIET) as run:
        with run.epoch() as epoch:
            epoch.log(**{**GOOD, "train_loss": 1 / 3})
        assert runs[0].record == run.record
        assert runs[0].record.extensions["status"]["state"] == "running"
    assert runs[0].record == run.record
    assert runs[0].record.epochs[0].train_loss == 1 / 3
    assert json.loads(runs[0].text)["epochs"][0]["train_loss"] == 0.3333
    assert str(runs[0].path) == run.path


@pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")
def test_warnings_are_those_of_the_file(runs):
    """In the order in which they came."""
    train(0)
    assert runs[0].warnings[0].startswith("no epoch was tracked: ")
    assert runs[0].record.extensions["warnings"] == runs[0].warnings
    train_a_net(toy.loader(16), toy.loader(8))
    assert runs[1].warnings == []


def test_warnings_that_the_file_leaves_out(runs):
    """Say so: an empty list would be taken for a run without any."""
    with Tracker("demo", **QUIET, extensions=False) as run:
        in_epochs(1, run=run)
    with pytest.raises(RunStateError, match="extensions=False"):
        runs[0].warnings  # noqa: B018


def test_an_exception_is_the_users_and_in_the_record(runs):
    """As in a file: failed, with the epochs that are whole."""
    error = ZeroDivisionError("of the user")

    def fail_in_the_second():
        if len(tracker.record.epochs) == 1:
            raise error

    with pytest.raises(ZeroDivisionError) as caught:
        train(3, fail_in_the_second)
    assert caught.value is error
    status = runs[0].record.extensions["status"]
    assert (status["state"], status["error"]["message"]) == ("failed", "of the user")
    assert len(runs[0].record.epochs) == 1


def test_a_run_that_wrote_nothing_says_so(runs):
    """One that ends by an exception in its first epoch leaves no file."""
    with pytest.raises(KeyError):
        train(1, {}.popitem)
    assert not runs[0].written
    assert repr(runs) == "<runs in memory: [<the run in memory of demo_training_metrics.json, nothing written>]>"
    for name in ("record", "text", "warnings"):
        with pytest.raises(RunStateError, match="has written nothing: a run does after its first epoch"):
            getattr(runs[0], name)


# Several runs


def test_runs_come_in_the_order_of_their_beginning(runs):
    """Nested ones too; each has its own record."""
    with Tracker("outer", **QUIET) as outer:
        in_epochs(1, run=outer)
        train(2)
        in_epochs(2, run=outer)
    train(1)
    assert [(run.path.name.partition("_")[0], len(run.record.epochs)) for run in runs] == [
        ("outer", 3),
        ("demo", 2),
        ("demo", 1),
    ]
    assert runs[-2:] == [runs[1], runs[2]]


def test_a_run_goes_on_from_one_in_memory(runs):
    """What is read by resume= is what the last run of this very path wrote."""
    train(2, lambda: runs.clock.advance(10))
    with Tracker("demo", **QUIET, output_dir="elsewhere") as other:
        in_epochs(7, run=other)
    with Tracker("demo", **QUIET, resume=True) as run:
        in_epochs(1, lambda: runs.clock.advance(5), run)
    assert [epoch.elapsed_seconds for epoch in runs[2].record.epochs] == [10, 20, 25]
    assert len(runs[0].record.epochs) == 2
    with Tracker("demo", **QUIET, resume=1) as run:
        in_epochs(1, run=run)
    assert len(runs[3].record.epochs) == 2
    assert runs[3].record.extensions["resumed"][-1]["dropped_epochs"] == 2


def test_a_file_on_the_disk_is_not_gone_on_from():
    """A test doesn't depend on what an earlier training left."""
    train(2)
    before = Path("output/demo_training_metrics.json").read_bytes()
    with runs_in_memory() as runs:
        with Tracker("demo", **QUIET, resume=True) as run:
            in_epochs(1, run=run)
        assert len(runs[0].record.epochs) == 1
    with (
        runs_in_memory(),
        pytest.raises(ResumeError, match=r"resume=2, but .* can't be read: No such file in memory"),
        Tracker("demo", **QUIET, resume=2),
    ):
        pass
    assert Path("output/demo_training_metrics.json").read_bytes() == before


def test_one_live_run_a_path(runs):
    """The mistake that a disk would refuse is refused; the first run goes on, and the path is free after it."""
    with Tracker("demo", **QUIET) as run:
        with pytest.raises(PathInUseError, match="another live run writes"):
            train(1)
        with pytest.raises(PathInUseError):
            train(1)
        in_epochs(1, run=run)
    train(3)
    assert [len(run.record.epochs) for run in runs] == [1, 3]


def test_what_cannot_be_a_path_is_refused(runs):
    """As before a training that writes."""
    with pytest.raises(ArgumentError, match="part"):
        Tracker("demo", part="a/b")
    with Tracker("demo", **QUIET, part="b") as run:
        in_epochs(1, run=run)
    assert runs[0].path.name == "b_training_metrics.json"


def test_runs_of_other_threads_and_of_tasks(runs):
    """A thread that begins in the block, and coroutines, are in it."""

    @tracked_training("awaited", part="awaited{number}", **QUIET)
    async def train_later(number):
        await asyncio.sleep(0)
        in_epochs(number)

    async def both():
        await asyncio.gather(train_later(1), train_later(2))

    thread = threading.Thread(target=train, args=(3,))
    thread.start()
    thread.join()
    asyncio.run(both())
    assert sorted(len(run.record.epochs) for run in runs) == [1, 2, 3]
    assert os.listdir() == []


def test_the_run_of_a_trainers_callback(runs):
    """Training is Lightning's, and so is the run's beginning and end."""
    library = pytest.importorskip("lightning.pytorch", reason="lightning isn't installed")
    from trackmetrics.integrations.lightning import MetricsFileCallback

    by_lightning(library, MetricsFileCallback(task="trained"))
    assert [run.path.name for run in runs] == ["trained_training_metrics.json"]
    assert len(runs[0].record.epochs) == EPOCHS
    assert runs[0].record.final_results.dev_accuracy is not None
    assert os.listdir() == []


# The clock


def test_time_passes_only_when_told(runs):
    """Seconds and dates are exact; what the machine takes isn't in them."""
    train(2, lambda: runs.clock.advance(1.5))
    train(1)
    first, second = runs
    assert [epoch.elapsed_seconds for epoch in first.record.epochs] == [1.5, 3.0]
    assert first.record.final_results.total_time_seconds == 3.0
    assert set(first.record.extensions["seconds"].values()) == {0.0}
    assert first.record.metadata.timestamp == "2026-01-01T00:00:00Z"
    assert second.record.metadata.timestamp == "2026-01-01T00:00:03Z"


def test_a_clock_of_ones_own():
    """It may begin at any date, in any time zone, and go through several blocks."""
    clock = FakeClock(datetime(2030, 6, 1, 12, tzinfo=timezone(timedelta(hours=2))))
    for _ in range(2):
        with runs_in_memory(clock) as runs:
            train(1, lambda: clock.advance(60))
    assert runs.clock is clock
    assert runs[0].record.metadata.timestamp == "2030-06-01T10:01:00Z"


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "1", None, True])
def test_a_clock_doesnt_go_back(seconds):
    """Nor anywhere that isn't a number of seconds."""
    clock = FakeClock()
    with pytest.raises(ArgumentError, match=r"seconds is .*; give a number, 0 or more"):
        clock.advance(seconds)
    assert (clock.seconds, clock.date.day) == (0.0, 1)


# The block's end


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_after_the_block_files_are_written(error):
    """Whichever way it was left; what the runs gave stays."""
    before = surroundings()
    try:
        with runs_in_memory() as runs:
            train(1)
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    assert surroundings() is before
    train(2)
    assert len(load_run("output/demo_training_metrics.json").epochs) == 2
    assert len(runs) == 1
    assert len(runs[0].record.epochs) == 1


def test_a_run_keeps_what_it_was_entered_with():
    """One that is left after the block stays in memory and by its clock; one entered before it is written."""
    written = Tracker("written", **QUIET)
    with written:
        in_epochs(1, run=written)
        with runs_in_memory() as runs:
            in_memory = Tracker("demo", **QUIET).__enter__()
            in_epochs(1, run=written)
        runs.clock.advance(7)
        in_epochs(1, run=in_memory)
        in_memory.__exit__(None, None, None)
    assert runs[0].record.epochs[0].elapsed_seconds == 7
    assert os.listdir("output") == ["written_training_metrics.json"]
    assert len(load_run(written.path).epochs) == 2


def test_blocks_in_blocks_and_across():
    """The inner one has the runs; two threads' blocks may end in any order."""
    with runs_in_memory() as outer:
        with runs_in_memory() as inner:
            train(1)
        train(2)
    assert [len(run.record.epochs) for run in (*inner, *outer)] == [1, 2]
    first, second = runs_in_memory(), runs_in_memory()
    first.__enter__()
    left = second.__enter__()
    first.__exit__(None, None, None)
    train(1)
    second.__exit__(None, None, None)
    assert len(left) == 1


def test_disabled_tracking_is_an_error(monkeypatch):
    """Else each test of the runs would fail for want of one."""
    monkeypatch.setenv("TRACKMETRICS_DISABLED", "1")
    with pytest.raises(RunStateError, match="TRACKMETRICS_DISABLED is set"), runs_in_memory():
        pass


def test_a_folder_that_cannot_be_is_no_matter(runs):
    """What only a disk can refuse isn't refused."""
    Path("file").touch()
    with Tracker("demo", **QUIET, output_dir="file") as run:
        in_epochs(1, run=run)
    assert runs[0].written
    with within(Surroundings()), pytest.raises(OutputError, match="is a file"):
        Tracker("demo", **QUIET, output_dir="file").__enter__()
