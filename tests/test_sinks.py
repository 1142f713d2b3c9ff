"""Sinks: what arrives in a tracker is the record, whoever wrote the sink; and no sink disturbs anything.

What arrived is read back from a real event file, a real MLflow store, a real W&B run's file.
"""

import contextlib
import json
import math
import os
import random
import signal
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from fingerprint import differences, fingerprint
from processes import ended, running, wait_for
from trackers import KINDS, OwnEvents, OwnMlflowRun, OwnWandbRun

from trackmetrics import Tracker, extras, load_run, tracked_training, tracker
from trackmetrics.errors import ArgumentError, MissingExtraError, TrackmetricsWarning
from trackmetrics.record import EpochRecord, FinalInference, Metadata, RunRecord
from trackmetrics.sinks import MLflow, TensorBoard, Wandb
from trackmetrics.sinks.attention_images import attention_images
from trackmetrics.sinks.copies import Copies
from trackmetrics.sinks.tracker_sink import epoch_numbers

INF = math.inf
ATTENTION = [[[1.0, 0.0], [0.25, 0.75]], [[0.5, 0.5], [0.0, 1.0]]]
LOGGED = [
    {"f1": 0.25, "val/loss": 1e-9, "recall@5": 1, "odd": math.nan, "note": "warm-up", "no": None, "yes": True},
    {"f1": 0.1 + 0.2, "odd": INF, "only_later": -3.5, "many": [1, 2]},
    {"f1": 0.75, "odd": -INF, "recall@5": 2**40},
]
GIVEN = {"training": {"name": "größer", "none": None, "nested": {"a.b": [1, 2.5], "on": True}, "rate": 1e-5}}
FINAL = {"example_input": "ab", "log_probs": [[-0.1, -2.4], [-0.7, -0.7]], "attention_weights": ATTENTION}


SAID = {"train_loss": 1, "train_accuracy": 1, "dev_accuracy": 1, "gradient_norm": 1}
GIVEN_ALL = {
    "train": toy.loader(),
    "dev": toy.loader(),
    "evaluate": lambda model, data: 0.5,
    "finalize": lambda model, example: FINAL,
}


@pytest.fixture(autouse=True)
def no_calls_home(monkeypatch):
    """No library tells its makers that it was used."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    """Each tracker, and each way to attach it."""
    with entered(request.param) as kind:
        yield kind


@contextlib.contextmanager
def entered(kind):
    if kind.library:
        pytest.importorskip(kind.library, reason=f"{kind.library} isn't installed: what arrives in it is read back")
    with kind.entered() as attached:
        yield attached


def train(sinks, epochs=3, task="contract", at_epoch=lambda number: None, **options):
    """Train the toy in a run with sinks; give the run."""
    options = {"finalize": lambda model, example: FINAL, "hyperparameters": GIVEN, "train": toy.loader(), **options}
    net = toy.model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with Tracker(task, sinks=sinks, dev=toy.loader(seed=1), **options) as run:
        run.watch(net)
        for _ in range(epochs):
            with run.epoch() as epoch:
                toy.train_epoch(net, optimizer, toy.loader())
                number = len(run.record.epochs)
                epoch.log(**LOGGED[number])
            at_epoch(number + 1)
    return run


def flat(values, name):
    """Hyperparameters by dotted name, without those that are None."""
    for key, value in values.items():
        own = f'{name}."{key}"' if "." in key else f"{name}.{key}"
        if isinstance(value, dict):
            yield from flat(value, own)
        elif value is not None:
            yield own, value


def expected_metrics(kind, record, first=1):
    """Each number of each epoch, by hand from the record."""
    found = {}
    for epoch in record.epochs:
        own = {name: getattr(epoch, name) for name in ("train_loss", "train_accuracy", "dev_accuracy", "gradient_norm")}
        for name, value in {**own, **epoch.metrics}.items():
            if type(value) in (int, float) and epoch.epoch >= first:
                found.setdefault(kind.names(name), []).append((epoch.epoch, kind.number(value)))
    if kind.library == "":  # what the example of the docs writes
        found = {name: value for name, value in found.items() if name not in {*own} - {"train_loss"}}
    return found


def same(found, expected):
    """Equal, NaN being the same as NaN."""
    return repr(sorted(found.items())) == repr(sorted(expected.items()))


# The contract


def test_what_arrives_is_the_record(kind):
    """Every number by its epoch, hyperparameters, final results, the file to the byte, attention, how it ended."""
    run = train([kind.sink])
    record, arrived = run.record, kind.read()
    assert record.extensions.get("warnings") is None
    assert record.epochs[0].train_loss is not None
    assert same(arrived.metrics, expected_metrics(kind, record))
    if "hyperparameters" in kind.holds:
        given = record.metadata.hyperparameters
        expected = {**dict(flat(given.model, "model")), **dict(flat(given.training, "training"))}
        assert arrived.hyperparameters == {kind.names(name): kind.text(value) for name, value in expected.items()}
        assert arrived.hyperparameters["training.num_epochs"] == kind.text(3)
    if "results" in kind.holds:
        assert arrived.results == {name: kind.number(value) for name, value in vars(record.final_results).items()}
    if "images" in kind.holds:
        assert sorted(arrived.images) == ["attention/layer_1", "attention/layer_2"]
        assert [image.shape for image in arrived.images.values()] == [(256, 256, 3)] * 2
        assert arrived.images["attention/layer_2"][200, 60].tolist() == [247, 251, 255]  # the second attends not at all
        assert arrived.images["attention/layer_2"][200, 200].tolist() == [8, 48, 107]  # to the first, but to itself
    if "files" in kind.holds:
        assert arrived.files == {Path(run.path).name: Path(run.path).read_bytes()}
    if "state" in kind.holds:
        assert arrived.state == ("completed" if kind.own else arrived_open(kind))


def arrived_open(kind):
    """A W&B run ends as its user ends it; what is MLflow's is open."""
    return "completed" if kind.library == "wandb" else "open"


@pytest.mark.parametrize(("error", "state"), [(RuntimeError("mine"), "failed"), (KeyboardInterrupt(), "interrupted")])
def test_a_run_that_ends_badly_ends_so(kind, error, state):
    """An exception's state is the tracker's run's where the sink began it; whole epochs and the file are there."""

    def fail(number):
        if number == 2:
            raise error

    with pytest.raises(type(error)):
        train([kind.sink], at_epoch=fail)
    record, arrived = load_run("output/contract_training_metrics.json"), kind.read()
    assert [epoch for epoch, _ in arrived.metrics["f1"]] == [1, 2]
    assert arrived.results == {}
    if "state" in kind.holds:
        assert arrived.state == (state if kind.own else arrived_open(kind))
    if "files" in kind.holds:
        (data,) = arrived.files.values()
        assert json.loads(data)["extensions"]["status"]["state"] == state == record.extensions["status"]["state"]
    if "hyperparameters" in kind.holds:
        assert arrived.hyperparameters["training.num_epochs"] == kind.text(2)


def test_a_resumed_run_has_no_epoch_twice(kind):
    """The user's run goes on with the new epochs; one that the sink begins has all of them, once each.

    The second epoch was dropped, and done again: TensorBoard shows the later one.
    """
    train([kind.sink] if kind.library in ("", "tensorboard") else [], epochs=2)
    train([kind.sink], epochs=2, resume=1)
    arrived, record = kind.read(), load_run("output/contract_training_metrics.json")
    epochs = [epoch for epoch, _ in arrived.metrics["f1"]]
    assert record.epochs[-1].epoch == 3
    if kind.library in ("tensorboard", ""):
        assert epochs == ([1, 2, 3] if kind.own and kind.library else [1, 2, 2, 3])
    else:
        assert epochs == ([1, 2, 3] if kind.own else [2, 3])
    assert same(
        {name: value[-2:] for name, value in arrived.metrics.items() if name == "train_loss"},
        {"train_loss": [(epoch.epoch, kind.number(round(epoch.train_loss, 4))) for epoch in record.epochs[-2:]]},
    ) or [round(value, 4) for _, value in arrived.metrics["train_loss"]][-2:] == pytest.approx(
        [epoch.train_loss for epoch in record.epochs[-2:]], abs=5e-5
    )


def test_a_run_that_has_nothing_left_to_train_sends_nothing(kind):
    """A file that stays as it was is copied no second time; no run is begun for it in the tracker."""
    train([], epochs=2)
    train([kind.sink], epochs=0, resume=True)
    train([kind.sink], epochs=2, resume=0)  # so that there is something to read
    arrived = kind.read()
    assert [epoch for epoch, _ in arrived.metrics["f1"]] == [1, 2]
    if kind.library == "mlflow" and kind.own:
        assert len(kind.client.search_runs([kind.run().info.experiment_id])) == 1
    if kind.library == "wandb" and kind.own:
        assert len(list(Path("wandb").glob("offline-run-*"))) == 1


def test_the_training_is_bit_identical(kind):
    """Parameters, optimizer, random streams, and what of Python can be patched, are those without the sink."""

    def states(sinks):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        net, found = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2)), []
        optimizer = torch.optim.Adam(net.parameters())
        found.append(fingerprint(model=net, optimizer=optimizer))
        with Tracker("contract", sinks=sinks, train=toy.loader(), dev=toy.loader(seed=1)) as run:
            found.append(fingerprint(model=net, optimizer=optimizer))
            for _ in range(2):
                with run.epoch() as epoch:
                    toy.train_epoch(net, optimizer, toy.loader(shuffle=True))
                    epoch.log(f1=random.random() + np.random.random())
                found.append(fingerprint(model=net, optimizer=optimizer))
        return [*found, fingerprint(model=net, optimizer=optimizer)]

    patched = sys.exit, sys.excepthook, sys.stdout, sys.stderr, print, [signal.getsignal(number) for number in (2, 15)]
    with_sink = states([kind.sink, Drawing()])
    assert patched == (
        sys.exit,
        sys.excepthook,
        sys.stdout,
        sys.stderr,
        print,
        [signal.getsignal(number) for number in (2, 15)],
    )
    assert [differences(*pair) for pair in zip(with_sink, states([]), strict=True)] == [[]] * 5
    assert kind.read().metrics["f1"]


class Drawing:
    """A sink that draws from every stream whenever it is told of something."""

    def run_began(self, record, path):
        random.random(), np.random.random(), torch.rand(1)

    epoch_ended = run_ended = run_began


def test_one_sink_serves_two_runs_at_once(kind):
    """A run within another's epoch, with the same sink: each has its own."""
    if not kind.own:
        pytest.skip("a run of the user's is one run")
    train([kind.sink], at_epoch=lambda number: train([kind.sink], epochs=1, task="inner") if number == 2 else None)
    assert [epoch for epoch, _ in kind.read().metrics["f1"]] == [1, 2, 3] or kind.library in ("mlflow", "wandb")
    if kind.library == "mlflow":
        runs = kind.client.search_runs([kind.run().info.experiment_id])
        found = {run.info.run_name: len(kind.client.get_metric_history(run.info.run_id, "f1")) for run in runs}
        assert found == {"contract": 3, "inner": 1}
        assert {run.info.status for run in runs} == {"FINISHED"}
    if kind.library == "wandb":
        assert len(list(Path("wandb").glob("offline-run-*"))) == 2


# A sink that fails


class Faulty:
    """Fails at one moment, and counts how often it is called."""

    def __init__(self, moment):
        self.moment, self.calls = moment, []

    def _called(self, moment):
        self.calls.append(moment)
        if moment == self.moment:
            raise ConnectionError("no such host")

    def run_began(self, record, path):
        self._called("run_began")

    def epoch_ended(self, record, path):
        self._called("epoch_ended")

    def run_ended(self, record, path):
        self._called("run_ended")


@pytest.mark.parametrize(
    ("moment", "calls"),
    [
        ("run_began", ["run_began"]),
        ("epoch_ended", ["run_began", "epoch_ended"]),
        ("run_ended", ["run_began", "epoch_ended", "epoch_ended", "run_ended"]),
        (None, ["run_began", "epoch_ended", "epoch_ended", "run_ended"]),
    ],
)
def test_a_sink_that_fails_is_named_once_and_dropped(moment, calls):
    """In one warning; the file, the training and the other sinks, before and behind it, have everything."""
    before, faulty, behind = Faulty(None), Faulty(moment), Faulty(None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = train([before, faulty, behind], epochs=2)
    ours = [str(item.message) for item in caught if item.category is TrackmetricsWarning]
    assert ours == [
        "the sink Faulty failed with ConnectionError('no such host') and gets nothing more; the metrics file has it all"
    ] * (moment is not None)
    assert faulty.calls == calls
    assert before.calls == behind.calls == ["run_began", "epoch_ended", "epoch_ended", "run_ended"]
    record = load_run(run.path)
    assert len(record.epochs) == 2
    assert record.extensions["status"]["state"] == "completed"
    assert record.extensions.get("warnings", []) == ours
    assert run.record.extensions.get("warnings", []) == ours


def test_a_failure_at_the_end_changes_nothing_else_in_the_file():
    """It is saved once more, with the warning alone; what sinks got as an artifact was whole already."""
    before = []

    class AtTheEnd(Faulty):
        def run_ended(self, record, path):
            before.append(Path(path).read_bytes())
            super().run_ended(record, path)

    with pytest.warns(TrackmetricsWarning, match="the sink AtTheEnd failed"):
        run = train([AtTheEnd("run_ended")], max_inline_mb=0)
    saved, now = json.loads(before[0]), json.loads(Path(run.path).read_text(encoding="utf-8"))
    assert len(now["extensions"].pop("warnings")) == 1
    assert now == saved
    assert np.array_equal(load_run(run.path).final_inference.attention_weights, ATTENTION)


def test_a_failure_at_the_end_writes_no_file_of_its_own():
    """Of a run without an epoch there is none; one with nothing left to train leaves the earlier one as it is."""
    path = Path("output/contract_training_metrics.json")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ZeroDivisionError), Tracker("contract", sinks=[Faulty("run_ended")]):
            raise ZeroDivisionError
        assert not path.exists()
        before = Path(train([], epochs=1).path).read_bytes()
        train([Faulty("run_ended")], epochs=0, resume=True)
        assert path.read_bytes() == before
        train([Faulty("run_ended")], epochs=1, extensions=False)
        assert "extensions" not in json.loads(path.read_text(encoding="utf-8"))
    ours = [str(item.message) for item in caught if item.category is TrackmetricsWarning]
    assert [message[:22] for message in ours] == ["the sink Faulty failed"] * 3


class UnprintableError(Exception):
    """One whose text can't be had."""

    def __repr__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize("moment", ["run_began", "epoch_ended", "run_ended"])
@pytest.mark.parametrize(
    "error", [SystemExit(3), GeneratorExit(), StopIteration(), BaseException("odd"), UnprintableError()]
)
def test_whatever_a_sink_raises_costs_the_sink_alone(moment, error):
    """`sys.exit()` in it ends no training."""

    class Leaving(Faulty):
        def _called(self, called):
            if called == moment:
                raise error

    behind = Faulty(None)
    with pytest.warns(TrackmetricsWarning, match="the sink Leaving failed with") as caught:
        run = train([Leaving(None), behind], epochs=2)
    assert len(caught) == 1
    assert behind.calls == ["run_began", "epoch_ended", "epoch_ended", "run_ended"]
    assert load_run(run.path).extensions["status"]["state"] == "completed"


@pytest.mark.parametrize("moment", ["run_began", "epoch_ended", "run_ended"])
def test_ctrl_c_while_a_sink_is_told_is_the_users(moment):
    """It ends the training, as anywhere else in it."""

    class Slow(Faulty):
        def _called(self, called):
            if called == moment:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train([Slow(None)], epochs=2)


@pytest.mark.skipif(os.name != "posix", reason="signals come so on POSIX")
def test_what_a_signals_handler_of_the_users_raises_is_theirs():
    """A handler that calls `sys.exit()`, as on a cluster, ends the training, wherever the signal comes."""

    class Told(Faulty):
        def epoch_ended(self, record, path):
            signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: sys.exit(5))
    try:
        with pytest.raises(SystemExit):
            train([Told(None)])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert load_run("output/contract_training_metrics.json").extensions["status"]["state"] == "interrupted"


class Changing:
    """A sink that changes all it is given, in place, and keeps what it was told."""

    def __init__(self):
        self.told = []

    def run_began(self, record, path):
        if record.extensions is not None:
            self.told.append(json.dumps(record.extensions["gradient_norm"], default=str))
        for epoch in record.epochs:
            self.told.append(dict(epoch.metrics))
        self.change(record)

    epoch_ended = run_ended = run_began

    def change(self, record):
        for values in (record.metadata.hyperparameters.model, record.metadata.hyperparameters.training):
            spoil(values)
        for epoch in record.epochs:
            spoil(epoch.metrics)
        if record.extensions is not None:
            spoil(record.extensions)
        if record.final_inference is not None:
            record.final_inference.attention_weights[:] = record.final_inference.log_probs[:] = 7


def spoil(values):
    """Change each item of dicts and lists, at every depth."""
    for key, value in list(values.items() if isinstance(values, dict) else enumerate(values)):
        if isinstance(value, (dict, list, tuple)):
            spoil(value)
        elif not isinstance(values, tuple):
            values[key] = "spoilt"
    if isinstance(values, dict):
        values["more"] = "spoilt"
    elif isinstance(values, list):
        values.append("spoilt")


def test_what_a_sink_changes_is_its_own_copy():
    """The file, the run's record and other sinks are as without it: metrics, hyperparameters, extensions, arrays."""

    class Looking(Changing):
        def change(self, record):
            if record.final_inference is not None:
                self.told.append(record.final_inference.attention_weights.tolist())

    nested = {"training": {"nested": {"list": [1, {"deep": 2}]}}, "model": {"sizes": [1, 2]}}
    logged = {"table": {"rows": [[1, 2], [3, 4]]}, "f1": 0.5}

    def run_with(sinks):
        net = toy.model()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        given = {"finalize": lambda model, example: FINAL, "hyperparameters": nested, "train": toy.loader()}
        with Tracker("contract", sinks=sinks, dev=toy.loader(seed=1), **given) as run:
            run.watch(net)
            for number in range(3):
                with run.epoch() as epoch:
                    toy.train_epoch(net, optimizer, toy.loader())
                    epoch.log(**logged, number=number)
        return run, Path(run.path).read_text(encoding="utf-8")

    looking = Looking()
    (quiet, _), (run, text) = run_with([]), run_with([Changing(), looking, Changing()])
    assert "spoilt" not in text
    assert "spoilt" not in repr(run.record)
    assert "spoilt" not in repr(looking.told)
    assert looking.told[-1] == ATTENTION
    assert load_run(run.path).final_inference == quiet.record.final_inference == run.record.final_inference
    assert [epoch.metrics for epoch in run.record.epochs] == [epoch.metrics for epoch in quiet.record.epochs]
    assert run.record.metadata.hyperparameters == quiet.record.metadata.hyperparameters


def test_an_epoch_is_copied_once_for_each_sink():
    """However many follow: what it costs to tell of one doesn't grow with those before it."""
    copies, epochs, found = Copies(), (), []
    for number in range(1, 4):
        epochs = (*epochs, EpochRecord(number, metrics={"f1": 0.5}))
        found.append(copies.of(RunRecord(Metadata("t", ""), epochs, extensions={"norms": {"epochs": epochs}})))
    assert found[2].epochs == epochs == found[2].extensions["norms"]["epochs"]
    assert found[0].epochs[0] is found[2].epochs[0] is not epochs[0]
    again = copies.of(RunRecord(Metadata("t", ""), epochs[1:]))  # as none of the package's does
    assert again.epochs == epochs[1:]


class LeavingModes(Faulty):
    """A sink that leaves torch in other modes than it was told in."""

    def _called(self, moment):
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize("grad", [True, False])
def test_a_sink_leaves_no_mode_behind(grad):
    """Grad mode and default dtype are put back, to whatever they were."""

    def modes():
        return torch.is_grad_enabled(), torch.get_default_dtype()

    found = []
    with torch.enable_grad():
        with Tracker("contract", sinks=[LeavingModes(None)], **GIVEN_ALL) as run:
            run.watch(toy.model())
            found.append(modes())
            torch.set_grad_enabled(grad)
            with run.epoch() as epoch:
                epoch.log(**SAID)
            found.append(modes())
        found.append(modes())
    assert found == [(True, torch.float32), *[(grad, torch.float32)] * 2]


def test_two_sinks_that_fail_are_both_named():
    """Each of them, though they are of one class."""
    with pytest.warns(TrackmetricsWarning) as caught:
        train([Faulty("epoch_ended"), Faulty("run_ended")], epochs=1)
    assert len(caught) == 2


def test_a_warning_that_is_an_error_stops_nothing():
    """`-W error` makes of a sink's fault no fault of the training."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train([Faulty("epoch_ended")], epochs=2).record.final_results is not None


@pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")
def test_the_users_exception_comes_through_a_failing_sink():
    """What the training raised, not what the sink did."""

    def fail(number):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train([Faulty("run_ended")], at_epoch=fail)


def test_the_file_is_written_first():
    """When a sink is told of an epoch or an end, it stands in the file."""
    found = []

    class Reading(Faulty):
        def _called(self, moment):
            if moment != "run_began":
                plain = json.loads(Path("output/contract_training_metrics.json").read_text(encoding="utf-8"))
                found.append((len(plain["epochs"]), plain["extensions"]["status"]["state"]))

    train([Reading(None)], epochs=2)
    assert found == [(1, "running"), (2, "running"), (2, "completed")]


def test_a_server_that_cant_be_reached_costs_the_sink(monkeypatch):
    """MLflow's server is away: one warning; TensorBoard has all epochs."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow isn't installed: it asks a server that isn't there")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    client = mlflow.MlflowClient(tracking_uri="http://127.0.0.1:9")
    with entered(OwnEvents) as other:
        with pytest.warns(TrackmetricsWarning, match="the sink MLflow failed with MlflowException") as caught:
            run = train([MLflow(client=client), other.sink])
        assert len(caught) == 1
        assert same(other.read().metrics, expected_metrics(other, run.record))


@pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")
def test_a_sink_that_is_dropped_closes_what_it_opened():
    """The event file is whole, and its writer's thread has ended, though the sink failed at the second epoch."""
    with entered(OwnEvents) as kind:
        sink = kind.sink

        def break_it(number):
            (open_run,) = sink._open.values()
            open_run.log_hyperparameters = 1 / 2

        train([sink], at_epoch=lambda number: break_it(number) if number == 1 else None)
        assert [epoch for epoch, _ in kind.read().metrics["f1"]] == [1, 2]
        assert not sink._open
        assert not sink._earlier


def test_a_run_of_wandbs_that_its_user_finished_early_is_said():
    """What comes after its end has no place; the file has it."""
    with entered(KINDS["W&B, a run that is given"]) as kind:
        with pytest.warns(TrackmetricsWarning, match="the sink Wandb failed with UsageError"):
            train([kind.sink], at_epoch=lambda number: kind.finish() if number == 2 else None)
        assert [epoch for epoch, _ in kind.read().metrics["f1"]] == [1, 2]


def test_a_writer_that_its_user_closed_is_closed_again():
    """Results land in another event file beside the first; no thread is left."""
    with entered(KINDS["TensorBoard, a writer of the user's"]) as kind:
        writer = kind.sink._writer
        run = train([kind.sink], at_epoch=lambda number: writer.close() if number == 3 else None)
        assert writer.file_writer is None
        assert kind.read().results["dev_accuracy"] == kind.number(run.record.final_results.dev_accuracy)
        writer.add_scalar("mine", 1, 1)  # which opens it, as the user may


# From the start


@pytest.mark.parametrize(
    ("name", "library"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow"), ("wandb", "wandb"), ("wandb", "PIL")]
)
def test_a_missing_library_is_said_before_training(monkeypatch, name, library):
    """With the line that installs it, and no file is written; the sinks before it are told that the run is over."""
    for other in ("tensorboard", "wandb", "PIL"):
        if other != library:
            pytest.importorskip(other, reason=f"{other} isn't installed, and one library at a time is to be missing")
    monkeypatch.setattr(extras, "installed", lambda module: module != library)
    other = Faulty(None)
    with pytest.raises(MissingExtraError) as caught:
        train([other, name, Faulty(None)])
    assert str(caught.value) == f"{library} isn't installed; pip install 'trackmetrics[{name}]'"
    assert not Path("output/contract_training_metrics.json").exists()
    assert other.calls == ["run_began", "run_ended"]
    train([], epochs=1)  # the path is free again


async def coroutine(record, path):
    """Awaited by nobody."""


def generator(record, path):
    """Gone through by nobody."""
    yield


async def async_generator(record, path):
    """Nor this one."""
    yield


def an_odd_sink(moment, odd):
    methods = {name: staticmethod(print) for name in ("run_began", "epoch_ended", "run_ended")}
    return type("Odd", (), {**methods, moment: staticmethod(odd), "__repr__": lambda self: "Odd()"})()


KEPT = type("Kept", (Faulty,), {"__repr__": lambda self: "Kept()"})(None)


@pytest.mark.parametrize(
    ("sinks", "message"),
    [
        ("tensorboard", "sinks is 'tensorboard', of type str; give a list of names and sinks, such as ['tensorboard']"),
        (None, "sinks is None, of type NoneType; give a list of names and sinks, such as ['tensorboard']"),
        (["tensorbord"], "sinks holds 'tensorbord'; the names are 'tensorboard', 'mlflow', 'wandb'"),
        ([TensorBoard], "sinks holds the class TensorBoard; give an object of it, TensorBoard()"),
        (["mlflow", "wandb", "mlflow"], "sinks holds 'mlflow' twice; give each sink once"),
        ([KEPT, KEPT], "sinks holds Kept() twice; give each sink once"),
        *(
            (
                [an_odd_sink(moment, odd)],
                f"sinks holds Odd(), whose {moment} is a coroutine or a generator: calling it runs nothing; "
                "give a plain method",
            )
            for moment, odd in [("run_began", coroutine), ("epoch_ended", generator), ("run_ended", async_generator)]
        ),
        (
            [7],
            "sinks holds 7, which has no method run_began or epoch_ended or run_ended; a sink has run_began, "
            "epoch_ended and run_ended, each called with the record and the file's path",
        ),
        (
            [type("Half", (), {"run_began": print, "epoch_ended": 3, "__repr__": lambda self: "Half()"})()],
            "sinks holds Half(), which has no method epoch_ended or run_ended; a sink has run_began, "
            "epoch_ended and run_ended, each called with the record and the file's path",
        ),
    ],
)
def test_what_is_no_sink_is_refused(sinks, message):
    """With the value and what to give, when decorating and when a Tracker is made."""
    for refuse in (lambda: Tracker("t", sinks=sinks), lambda: tracked_training("t", sinks=sinks)):
        with pytest.raises(ArgumentError) as caught:
            refuse()
        assert str(caught.value) == message


def test_what_is_no_client_is_refused():
    """Where the sink is made."""
    with pytest.raises(ArgumentError, match=r"writer is 'runs'; give a torch\.utils\.tensorboard\.SummaryWriter"):
        TensorBoard("runs")
    with pytest.raises(ArgumentError, match=r"run is 'counting'; give what wandb\.init returned"):
        Wandb("counting")


def test_names_make_a_sink_for_each_run():
    """A decorated function's runs, one after the other, each with an event file of its own."""
    with entered(OwnEvents):

        @tracked_training("contract", part="fold{fold}", sinks=["tensorboard"], dev=toy.loader())
        def train_fold(fold, train):
            net = toy.model()
            with tracker.epoch():
                toy.train_epoch(net, torch.optim.SGD(net.parameters(), 0.1), train)
            return net

        for fold in range(2):
            train_fold(fold, toy.loader())
        assert sorted(path.name for path in Path("output/tensorboard").iterdir()) == ["fold0", "fold1"]


def test_no_sinks_cost_nothing():
    """Without the option nothing is loaded, and the file says nothing of sinks."""
    assert "sinks" not in train([]).record.extensions["seconds"]
    assert train([Faulty(None)]).record.extensions["seconds"]["sinks"] > 0


# The process ends


@pytest.mark.skipif(os.name != "posix", reason="signals end a process so on POSIX")
def test_a_signal_ends_the_trackers_run_too():
    """SIGTERM: MLflow's run is KILLED, with the whole epochs and the file that says so; the process ends by it."""
    with entered(OwnMlflowRun) as kind:
        uri = f"sqlite:///{Path('mlflow.db').absolute()}"
        script = (
            "from trackmetrics.sinks import MLflow\n"
            f"os.environ['MLFLOW_TRACKING_URI'] = {uri!r}\n"
            "train(task='contract', sinks=[MLflow(experiment='tried')])"
        )
        with running(script) as process:
            wait_for(process, "epoch 2")
            process.send_signal(signal.SIGTERM)
            assert ended(process)[0] == -signal.SIGTERM
        arrived, record = kind.read(), load_run("output/contract_training_metrics.json")
        assert arrived.state == "interrupted"
        assert len(arrived.metrics["train_loss"]) == len(record.epochs) >= 2
        (data,) = arrived.files.values()
        assert json.loads(data)["extensions"]["status"]["error"]["type"] == "SIGTERM"


@pytest.mark.skipif(os.name != "posix", reason="signals end a process so on POSIX")
def test_a_sink_that_never_returns_keeps_no_process_from_ending():
    """A signal's handler waits for it for some seconds; the file is whole."""
    script = (
        "from trackmetrics.sinks import attached\n"
        "attached._PATIENCE = 0.5\n"
        "lock = threading.Lock()\n"
        "class Stuck:\n"
        "    def run_began(self, record, path): lock.acquire()\n"
        "    def epoch_ended(self, record, path): pass\n"
        "    def run_ended(self, record, path): lock.acquire()\n"
        "train(sinks=[Stuck()])"
    )
    with running(script) as process:
        wait_for(process, "epoch 2")
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == -signal.SIGTERM
    assert load_run("output/t_training_metrics.json").extensions["status"]["state"] == "interrupted"


# What is sent


def test_numbers_alone_are_metrics():
    """No booleans, texts, lists, nor None."""
    epoch = EpochRecord(
        1, 0.5, None, 1, metrics={"a": True, "b": "x", "c": [1], "d": None, "e": 10**300, "f": math.nan}
    )
    assert repr(epoch_numbers(epoch)) == "{'train_loss': 0.5, 'dev_accuracy': 1.0, 'e': 1e+300, 'f': nan}"


def logged_twice(kind, values, hyperparameters=None):
    """A run of two epochs with these values in both; what arrived of it."""
    with Tracker("contract", sinks=[kind.sink], hyperparameters=hyperparameters, **GIVEN_ALL) as run:
        run.watch(toy.model())
        for _ in range(2):
            with run.epoch() as epoch:
                epoch.log(**SAID, **values)
    assert "warnings" not in load_run(run.path).extensions
    return kind.read()


def test_no_name_costs_more_than_its_signs(kind):
    """Whatever a metric or a hyperparameter is called, its values arrive, and are mixed up with no other's."""
    cut = ["x" * 300 + "a", "x" * 300 + "b", "x" * 249 + "/c", "x" * 250]
    names = ["", ".", "..", "...", "..a", "/", "//", "/a", "a/", "a//b", "a/./b", "a/../b", "a@b", "a#b", "a_b_2", *cut]
    names += [
        "*",
        "**",
        "acc*",
        "acc*x",
        "_step",
        "_runtime",
        "_timestamp",
        "_wandb",
        "x",
        "\\0",
        "a\\nb",
        "größe",
        "a:b",
    ]
    values = {name: 100.0 + index for index, name in enumerate(names)}
    arrived = logged_twice(kind, values, {"training": {name: f"of {value}" for name, value in values.items()}})
    found = sorted(items for items in arrived.metrics.values() if items[0][1] >= 100)
    assert found == [[(1, value), (2, value)] for value in values.values()]
    if "hyperparameters" in kind.holds:
        told = [text for text in arrived.hyperparameters.values() if text.startswith("of ")]
        assert sorted(told) == sorted(f"of {value}" for value in values.values())


def test_a_users_metric_with_the_name_of_a_final_result(kind):
    """Both arrive: the later one, the result, with a number."""
    if "results" not in kind.holds:
        pytest.skip("it takes no results")
    logged_twice(kind, {"final_results/dev_accuracy": 19.0}, {})
    results = kind.read().results
    assert results["dev_accuracy"] == kind.number(19.0)
    assert results["dev_accuracy_2"] != kind.number(19.0)


@pytest.mark.parametrize(
    ("own", "given", "expected"),
    [
        ("TensorBoard", ["", "..", "acc*x", "a@b", "a#b"], ["", "..", "acc*x", "a@b", "a#b"]),
        ("MLflow", ["", ".."], ["_", "_."]),
        ("MLflow", ["a/./b", "val/loss", "recall@5", ".a.b"], ["a/_/b", "val/loss", "recall_5", "_a.b"]),
        ("MLflow", ["a@b", "a#b", "a_b"], ["a_b", "a_b_2", "a_b_3"]),
        ("MLflow", ["x" * 250, "x" * 251], ["x" * 250, "x" * 240 + "_2"]),
        ("W&B", ["", "acc*x", "_", "a@b"], ["_", "acc_x", "__2", "a@b"]),
        ("W&B", ["_step", "_steps", "x" * 300], ["__step", "_steps", "x" * 300]),
    ],
)
def test_names_as_a_tracker_takes_them(own, given, expected):
    """One that it takes stays; of two that would be one the later one gets a number."""
    with entered(KINDS[own]) as kind:
        arrived = logged_twice(kind, {name: 100 + index for index, name in enumerate(given)})
    assert {name: items for name, items in arrived.metrics.items() if name not in SAID} == {
        name: [(1, 100 + index), (2, 100 + index)] for index, name in enumerate(expected)
    }


def test_an_mlflow_parameter_that_changes_becomes_a_tag():
    """A parameter can't change there; the later value stands beside it."""
    with entered(KINDS["MLflow, a run by its id"]) as kind:
        train([kind.sink], hyperparameters={"rate": 1, "num_epochs": 9, "text": "x" * 600})
        train([kind.sink], hyperparameters={"rate": 2, "num_epochs": 9, "text": "x" * 600})
        run = kind.run()
        assert run.data.params["training.rate"] == "1"
        assert {name: value for name, value in run.data.tags.items() if "mlflow." not in name} == {"training.rate": "2"}
        assert run.data.params["training.text"] == "x" * 500


def test_arrays_beside_the_file_are_sent_with_it():
    """Without them the file wouldn't be whole; another file's aren't."""
    with entered(OwnMlflowRun) as kind:
        Path("output").mkdir()
        Path("output/contract_training_metrics.foreign.00000000.npy").write_bytes(b"foreign")
        run = train([kind.sink], epochs=1, max_inline_mb=0)
        names = {item["file"] for item in json.loads(Path(run.path).read_text())["extensions"]["sidecars"].values()}
        assert len(names) == 2
        assert set(kind.read().files) == {*names, Path(run.path).name}


def test_the_active_run_is_found_where_the_training_begins_it():
    """`mlflow.start_run()` and `wandb.init()` in the training function: the sink goes on in those."""
    with entered(OwnMlflowRun) as kind:
        mlflow = pytest.importorskip("mlflow")
        experiment = kind.client.get_experiment_by_name("tried").experiment_id
        with Tracker("contract", sinks=[MLflow()], **GIVEN_ALL) as run:
            run.watch(toy.model())
            with mlflow.start_run(experiment_id=experiment), run.epoch() as epoch:
                epoch.log(**SAID)
        arrived = kind.read()
        assert (arrived.metrics["train_loss"], arrived.state) == ([(1, 1.0)], "completed")


def test_extensions_left_out_still_end_the_trackers_run():
    """Without the file's status, a run with no results has failed."""
    with entered(OwnMlflowRun) as kind:
        train([kind.sink], epochs=1, extensions=False)
        assert kind.read().state == "completed"

        def fail(number):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            train([kind.sink], extensions=False, at_epoch=fail)
        assert kind.read().state == "failed"


def test_wandbs_globals_stay_the_users():
    """While the sink has a run of its own, `wandb.run` is none, and `wandb.init` begins another one."""
    with entered(OwnWandbRun) as kind:
        wandb = pytest.importorskip("wandb")
        found = []

        def look(number):
            found.append((wandb.run, sys.exit, sys.excepthook))

        expected = (None, sys.exit, sys.excepthook)
        train([kind.sink], at_epoch=look)
        assert found == [expected] * 3


# Images


def a_run_with(attention):
    inference = FinalInference("x", None, np.asarray(attention))
    return RunRecord(Metadata("t", "2026-01-01T00:00:00Z"), final_inference=inference)


def test_a_shade_is_the_square_root_of_the_share_in_the_greatest():
    """A quarter of the greatest weight is the middle of the ramp; what is no number is grey."""
    (image,) = attention_images(a_run_with([[[2.0, 0.5], [0.0, math.nan]]])).values()
    assert image.dtype == np.uint8
    corners = [image[row, column].tolist() for row in (0, 255) for column in (0, 255)]
    assert corners == [[8, 48, 107], [107, 174, 214], [247, 251, 255], [200, 200, 200]]
    assert (image[:128, :128] == image[0, 0]).all()  # each cell is a square of 128 pixels
    assert (image[128:, :128] == image[255, 0]).all()


@pytest.mark.parametrize(("length", "side"), [(1, 256), (3, 258), (300, 300), (512, 512), (513, 257), (2000, 500)])
def test_images_are_large_enough_and_not_too_large(length, side):
    """Beyond 512 tokens a cell is the largest of a block, so that a single link is seen."""
    weights = np.zeros((1, length, length), np.float32)
    weights[0, -1, 0] = 1
    (image,) = attention_images(a_run_with(weights)).values()
    assert image.shape == (max(side, 256), max(side, 256), 3)
    assert image[-1, 0].tolist() == [8, 48, 107]


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 1300)])
def test_an_image_of_a_map_that_is_no_square(shape):
    """As a user's finalize may give it: a cell for each weight, as high as it is wide."""
    (image,) = attention_images(a_run_with([np.ones(shape).tolist()])).values()
    block = -(-max(shape) // 512)
    rows, columns = (-(-length // block) for length in shape)
    assert image.shape[0] * columns == image.shape[1] * rows
    assert (image == image[0, 0]).all()


def test_no_attention_is_no_image():
    """None where there is no final inference, no layer, or nothing but zeros; 64 layers at most."""
    assert attention_images(RunRecord(Metadata("t", ""))) == {}
    assert attention_images(a_run_with(np.zeros((0, 0, 0)))) == {}
    (image,) = attention_images(a_run_with(np.zeros((1, 2, 2)))).values()
    assert (image == [247, 251, 255]).all()
    assert len(attention_images(a_run_with(np.ones((70, 2, 2))))) == 64


def test_threads_of_other_runs_have_sinks_of_their_own():
    """Two runs in two threads at the same time, with one sink."""
    with entered(OwnEvents) as kind:
        threads = [threading.Thread(target=train, args=([kind.sink], 2, f"t{number}")) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(list(Path("output/tensorboard").glob("*/*/events*"))) == 2
