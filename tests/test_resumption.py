"""Going on in an earlier run's file: numbered on, time added, nothing of it changed, and what can't be is refused."""

import dataclasses
import json
import math
import os
import shutil
from datetime import datetime, timezone
from pathlib import Path

import pytest
from a_run import a_record

from trackmetrics import Tracker, load_run, tracked_training, tracker
from trackmetrics.errors import ArgumentError, ResumeError
from trackmetrics.metrics_file import encode_record
from trackmetrics.record import Hyperparameters, Metadata, RunRecord
from trackmetrics.resumption import Earlier
from trackmetrics.whole_file import put_aside

FILE = Path("output/t_training_metrics.json")
QUIET = {"train": [], "dev": [], "progress": False}

pytestmark = pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")


def train(epochs, clock=None, task="t", part="t", fail=None, **options):
    """A run of some epochs of ten seconds each."""
    with Tracker(task, part=part, **QUIET, **options) as run:
        for _ in range(epochs):
            with run.epoch() as epoch:
                if clock:
                    clock.advance(10)
                epoch.log(train_loss=1 / 3, train_accuracy=0.5, dev_accuracy=0.5, gradient_norm=1.0, own=math.nan)
        if fail:
            raise fail
    return run.record


def on_disk():
    return json.loads(FILE.read_bytes())


def test_epochs_are_numbered_on_and_time_is_added(clock):
    """The earlier epochs are the same text, the new ones follow; the clock begins at the earlier run's last figure."""
    train(2, clock)
    before = on_disk()
    clock.seconds = 5.0  # another process's clock
    clock.date = datetime(2026, 2, 1, tzinfo=timezone.utc)
    train(3, clock, resume=True)
    after = on_disk()
    assert after["epochs"][:2] == before["epochs"]
    assert [epoch["epoch"] for epoch in after["epochs"]] == [1, 2, 3, 4, 5]
    assert [epoch["elapsed_seconds"] for epoch in after["epochs"]] == [10, 20, 30, 40, 50]
    assert after["final_results"]["total_time_seconds"] == 50
    assert after["metadata"]["timestamp"] == "2026-01-30T22:08:22Z"
    assert after["extensions"]["resumed"] == [
        {
            "timestamp": "2026-02-01T00:00:00Z",
            "after_epoch": 2,
            "dropped_epochs": 0,
            "hyperparameters": {"/training/num_epochs": {"before": 2, "now": 5}},
        }
    ]


def test_a_clock_set_back_changes_nothing(clock):
    """The date may fall in mid-run: seconds come from a clock that doesn't."""
    with Tracker("t", **QUIET) as run:
        for _ in range(3):
            with run.epoch():
                clock.advance(1)
                clock.date = clock.date.replace(year=clock.date.year - 1)
    assert [epoch["elapsed_seconds"] for epoch in on_disk()["epochs"]] == [1, 2, 3]
    assert on_disk()["metadata"]["timestamp"] == "2026-01-30T22:08:22Z"


def test_what_the_extensions_say_of_the_whole_run_goes_on():
    """Steps are summed, each epoch's norms stay, seconds and warnings are added, foreign extensions kept."""
    import torch
    from torch import nn

    def steps(count, **options):
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Tracker("t", **QUIET, **options) as run, run.epoch():
            for _ in range(count):
                nn.functional.cross_entropy(model(torch.ones(1, 2)), torch.tensor([1])).backward()
                optimizer.step()

    steps(3)
    plain = on_disk()
    summary = plain["extensions"]["gradient_norm"]["epochs"][0]
    plain["extensions"] |= {"x-mine": {"a": [1, 2]}, "warnings": ["an earlier one"], "seconds": {"saving": 1000.0}}
    FILE.write_text(json.dumps(plain))
    steps(4, resume=True)
    said = on_disk()["extensions"]
    assert said["gradient_norm"]["steps"] == 7
    assert said["gradient_norm"]["epochs"][0] == summary
    assert [item["steps"] for item in said["gradient_norm"]["epochs"]] == [3, 4]
    assert said["x-mine"] == {"a": [1, 2]}
    assert said["warnings"][0] == "an earlier one"
    assert 1000 < said["seconds"]["saving"] < 1100
    assert said["format_version"] == 1


def test_a_file_without_extensions_is_gone_on_in():
    """What it doesn't say of the earlier epochs isn't known of the whole."""
    train(2, extensions=False)
    train(1, resume=True)
    norms = on_disk()["extensions"]["gradient_norm"]
    assert norms["steps"] is None
    assert [item["epoch"] for item in norms["epochs"]] == [1, 2, 3]


def test_non_finite_values_of_earlier_epochs_stay_what_they_were():
    """NaN in an earlier epoch is NaN after the file was resumed and saved anew."""
    train(1)
    train(1, resume=True)
    assert all(math.isnan(epoch.metrics["own"]) for epoch in load_run(FILE).epochs)


def test_the_first_resumed_run_is_a_new_one():
    """Where there is no file `resume=True` begins one, and says nothing of a resumption."""
    train(2, resume=True)
    assert len(on_disk()["epochs"]) == 2
    assert "resumed" not in on_disk()["extensions"]


def test_a_run_is_resumed_again_and_again():
    """Each resumption has its entry."""
    for _ in range(3):
        train(2, resume=True)
    assert len(on_disk()["epochs"]) == 6
    assert [entry["after_epoch"] for entry in on_disk()["extensions"]["resumed"]] == [2, 4]


def test_epochs_past_the_checkpoint_are_dropped(clock):
    """`resume=EPOCH` keeps so many, and their time; what was dropped is said."""
    train(5, clock)
    record = train(1, clock, resume=2)
    assert [epoch.epoch for epoch in record.epochs] == [1, 2, 3]
    assert [epoch["elapsed_seconds"] for epoch in on_disk()["epochs"]] == [10, 20, 30]
    assert on_disk()["extensions"]["resumed"][0]["dropped_epochs"] == 3
    assert [item["epoch"] for item in on_disk()["extensions"]["gradient_norm"]["epochs"]] == [1, 2, 3]


def test_resuming_after_epoch_0_is_a_new_run(clock):
    """Nothing of the earlier file stays: not its start either."""
    train(2, clock)
    clock.date = datetime(2026, 3, 1, tzinfo=timezone.utc)
    train(1, clock, resume=0)
    assert len(on_disk()["epochs"]) == 1
    assert on_disk()["metadata"]["timestamp"] == "2026-03-01T00:00:00Z"
    assert "resumed" not in on_disk()["extensions"]


def test_without_resume_an_earlier_file_is_replaced_from_the_first_save_on():
    """Overwriting is the rule; a run that dies before its first epoch has destroyed nothing."""
    train(3)
    before = FILE.read_bytes()
    with pytest.raises(KeyError):
        train(0, fail=KeyError())
    assert FILE.read_bytes() == before
    train(1)
    assert len(on_disk()["epochs"]) == 1


def test_a_resumed_run_that_dies_before_its_first_epoch_changes_nothing():
    """The earlier file stays as it was, its results included."""
    train(3)
    before = FILE.read_bytes()
    with pytest.raises(KeyError):
        train(0, fail=KeyError(), resume=True)
    assert FILE.read_bytes() == before


def test_a_resumed_run_with_nothing_left_to_train_changes_nothing():
    """A finished training that is resumed and trains no epoch keeps its file, its results included."""
    train(3)
    before = FILE.read_bytes()
    train(0, resume=True)
    assert FILE.read_bytes() == before


def test_a_resumed_run_that_fails_says_so():
    """Earlier and new epochs, `failed`, and the earlier results are gone: they were other weights'."""
    train(2)
    with pytest.raises(KeyError):
        train(1, fail=KeyError("bad"), resume=True)
    assert len(on_disk()["epochs"]) == 3
    assert on_disk()["extensions"]["status"]["state"] == "failed"
    assert on_disk()["final_results"] is None


# What can't be gone on in

MEND = "or leave out resume= to replace the file"


def refused(**options):
    """The message with which resuming is refused; the file stays as it was, and nobody holds it."""
    before = FILE.read_bytes() if FILE.exists() else None
    with pytest.raises(ResumeError) as caught:
        train(1, **{"resume": True, **options})
    assert (FILE.read_bytes() if FILE.exists() else None) == before
    assert not FILE.with_name(f".{FILE.name}.lock").exists()
    return str(caught.value)


def test_another_tasks_file_is_refused(tmp_path):
    """The message names both tasks."""
    train(1, task="other")
    assert refused() == (
        f"resume=True, but {tmp_path / FILE} is of the task 'other' and this run of 't'; "
        f"give it another part= or output_dir=, {MEND}"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "is not a metrics file: not valid JSON: "),
        (b"{", "is not a metrics file: not valid JSON: "),
        (b"{}", "is not a metrics file: /metadata is missing"),
        (b"\xff", "is not a metrics file: not valid JSON: "),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, text, reason):
    """The message says what is wrong with it."""
    FILE.parent.mkdir()
    FILE.write_bytes(text)
    message = refused()
    assert message.startswith(f"resume=True, but {tmp_path / FILE} {reason}")
    assert message.endswith(f"; give the run its file, {MEND}")


def test_a_file_whose_epochs_are_not_numbered_on_is_refused(tmp_path):
    """Epochs that somebody has renumbered leave nothing to number on from."""
    train(3)
    plain = on_disk()
    plain["epochs"][1]["epoch"] = 7
    FILE.write_text(json.dumps(plain))
    assert refused() == (f"resume=True, but the epochs of {tmp_path / FILE} aren't numbered from 1 on; mend it, {MEND}")


def test_an_epoch_that_the_file_does_not_have_is_refused(tmp_path):
    """A checkpoint of a later epoch than the file's last isn't this file's; nor is one of a file that isn't there."""
    message = refused(resume=4)
    assert message.startswith(f"resume=4, but {tmp_path / FILE} can't be read: No such file or directory")
    train(3)
    assert refused(resume=4) == (f"resume=4, but {tmp_path / FILE} has 3 epochs; give one of them, {MEND}")
    train(1, resume=3)
    assert len(on_disk()["epochs"]) == 4


def test_a_file_whose_arrays_are_lost_is_refused():
    """A file that names an array which isn't there any more is damaged."""
    record = a_record(metadata=dataclasses.replace(a_record().metadata, task="t"))
    from trackmetrics.metrics_file import MetricsFile

    with MetricsFile("output", "t", max_inline_mb=0) as file:
        file.write(record)
    for name in os.listdir("output"):
        if name.endswith(".npy"):
            os.remove(Path("output", name))
    assert "that file can't be read: No such file or directory" in refused()


# How it is asked for


@pytest.mark.parametrize("value", [-1, 1.5, "3", [], object()])
def test_a_wrong_epoch_is_refused(value):
    """Neither a bool nor a number of epochs; for a Tracker, no parameter's name."""
    with pytest.raises(ArgumentError, match="resume"), Tracker("t", resume=value):
        pass


@pytest.mark.parametrize("resume", ["start", lambda start, *rest: start])
@pytest.mark.parametrize(("start", "epochs"), [(None, 1), (False, 1), (0, 1), (2, 3), (True, 4)])
def test_a_decorated_function_takes_it_from_its_arguments(resume, start, epochs):
    """By the name of a parameter, or by a function of the call's arguments; None is no resumption."""
    train(3)

    @tracked_training("t", resume=resume, **QUIET)
    def go_on(start, note=None):
        with tracker.epoch():
            pass

    go_on(start)
    assert len(on_disk()["epochs"]) == epochs


def test_a_parameter_that_is_none_is_refused_when_decorating():
    """The name must be one of the function's."""
    with pytest.raises(
        ArgumentError, match=r"resume='begin' names no parameter of go_on\(start\); give one of its names"
    ):

        @tracked_training("t", resume="begin")
        def go_on(start):
            pass


def test_a_wrong_argument_is_refused_when_called():
    """What the parameter holds is checked before training."""

    @tracked_training("t", resume="start", **QUIET)
    def go_on(start):
        raise AssertionError("trained")

    with pytest.raises(ArgumentError, match="resume is 'last', of type str; give True, False, or the number"):
        go_on("last")


# Hyperparameters


def test_each_hyperparameter_that_differs_is_noted():
    """By JSON pointer: what was there before and is there now; what only one has stands alone; NaN is equal to NaN."""
    before = {"lr": 0.1, "a/b": {"x": 1, "gone": [1]}, "same": [1, 2], "nan": [math.nan], "kind": {"a": 1}}
    now = {"lr": 0.2, "a/b": {"x": 1, "new": None}, "same": [1, 2], "nan": [math.nan], "kind": 5}
    metadata = Metadata("t", "2026-01-30T22:08:22Z", None, Hyperparameters({"width": 3}, before))
    described = Earlier(RunRecord(metadata)).resumption("now", Hyperparameters({"width": 4}, now))
    assert described["hyperparameters"] == {
        "/model/width": {"before": 3, "now": 4},
        "/training/lr": {"before": 0.1, "now": 0.2},
        "/training/a~1b/gone": {"before": [1]},
        "/training/a~1b/new": {"now": None},
        "/training/kind": {"before": {"a": 1}, "now": 5},
    }


# The earlier file


def test_the_previous_file_is_put_aside():
    """`keep_previous`: its text as it was, under a name with the date of its last save; the newest is the path."""
    train(1)
    before = FILE.read_bytes()
    os.utime(FILE, (1_777_636_800, 1_777_636_800))
    train(2, keep_previous=True)
    aside = FILE.with_name("t_training_metrics.20260501T120000Z.json")
    assert sorted(os.listdir("output")) == [aside.name, FILE.name]
    assert aside.read_bytes() == before
    assert len(on_disk()["epochs"]) == 2
    os.utime(FILE, (1_777_636_800, 1_777_636_800))
    train(3, keep_previous=True)
    assert len(load_run(aside.with_name("t_training_metrics.20260501T120000Z-2.json")).epochs) == 2
    assert aside.read_bytes() == before


def test_a_file_is_put_aside_once_however_often_the_next_one_fails(monkeypatch):
    """On a disk that is full in the midst of it, and has no links, copies would fill it up further."""

    def unlinked(*_args):
        raise OSError(1, "Operation not permitted")

    def full(source, target):
        if Path(target).name == FILE.name:
            raise OSError(28, "No space left on device")
        replace(source, target)

    train(1)
    replace = os.replace
    monkeypatch.setattr(os, "link", unlinked)
    monkeypatch.setattr(os, "replace", full)
    train(4, keep_previous=True)
    assert len(os.listdir("output")) == 2


def test_a_date_that_no_calendar_has_keeps_nothing_from_being_saved(monkeypatch):
    """The file is put aside under today's then."""
    train(1)
    found = os.stat(FILE)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", lambda path, **_: os.stat_result([*found[:8], 2**45, *found[9:]]))
        put_aside(FILE.absolute(), Path("temporary"))
    assert len([name for name in os.listdir(FILE.parent) if name.startswith("t_training_metrics.2")]) == 1


def test_without_extensions_a_resumed_file_has_none():
    """Those of the earlier run aren't this one's."""
    train(1)
    train(1, resume=True, extensions=False)
    assert "extensions" not in on_disk()
    assert len(on_disk()["epochs"]) == 2


def test_nothing_is_put_aside_before_the_first_save():
    """A run that dies before its first epoch leaves the folder as it was; one that has no earlier file puts none."""
    train(1, keep_previous=True)
    assert os.listdir("output") == [FILE.name]
    with pytest.raises(KeyError):
        train(0, fail=KeyError(), keep_previous=True)
    assert os.listdir("output") == [FILE.name]


def test_a_file_that_was_put_aside_keeps_its_arrays():
    """The arrays beside it are its own, and are taken away neither by the next run nor by the one after."""
    record = a_record(metadata=dataclasses.replace(a_record().metadata, task="t"))
    from trackmetrics.metrics_file import MetricsFile

    with MetricsFile("output", "t", max_inline_mb=0) as file:
        file.write(record)
    arrays = {name for name in os.listdir("output") if name.endswith(".npy")}
    assert len(arrays) == 2
    train(1, keep_previous=True)
    (aside,) = {name for name in os.listdir("output") if name.endswith(".json")} - {FILE.name}
    assert load_run(Path("output", aside)).final_inference == record.final_inference
    train(1)
    assert arrays <= set(os.listdir("output"))
    os.remove(Path("output", aside))
    train(1)
    assert os.listdir("output") == [FILE.name]


def test_a_filesystem_without_links_takes_a_copy(monkeypatch):
    """Where a second name can't be given the file is copied, whole or not at all."""

    def refuse(*_args, **_kwargs):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    train(1)
    before = FILE.read_bytes()
    train(1, keep_previous=True)
    (aside,) = set(os.listdir("output")) - {FILE.name}
    assert Path("output", aside).read_bytes() == before
    assert encode_record(load_run(FILE)) == FILE.read_bytes()
    shutil.rmtree("output")
