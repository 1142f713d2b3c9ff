"""Accelerate's tracker: the user's loop and epochs, its configuration, its logs and its end."""

import itertools
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from oracle import one_thread  # noqa: F401
from trainers import CLIP, Kept, Net, by_accelerate, by_loop, loaders, optimizer_of, share_right

from trackmetrics import Tracker, TrackmetricsWarning, load_run, tracked_training, tracker
from trackmetrics.accuracies import Accuracies
from trackmetrics.errors import ArgumentError, OutputError, RunStateError
from trackmetrics.record import METRIC_KEYS

accelerate = pytest.importorskip("accelerate", reason="accelerate isn't installed")
from trackmetrics.integrations.accelerate import MetricsFileTracker  # noqa: E402

FILE = "output/toy_training_metrics.json"
SUPPORT = Path(__file__).parents[1] / "support"


def test_what_is_logged_stands_in_the_open_epochs_record():
    """The last value under a name counts; the record's own names are given another."""

    def log(accelerator, epoch, loss):
        accelerator.log({"loss": 100.0}, step=1)
        accelerator.log({"loss": loss, "epoch": 7, "train_loss": -1.0, "note": "so far"}, step=epoch)
        losses.append(loss.item())

    kept, losses = Kept(), []
    by_accelerate(MetricsFileTracker("toy", sinks=[kept]), log=log)
    expected = {"logged_epoch": 7, "logged_train_loss": -1.0, "note": "so far"}
    for epoch, loss in zip(kept.record.epochs, losses, strict=True):
        assert epoch.metrics == {"loss": pytest.approx(loss), **expected}
        assert epoch.train_loss > 0


def test_the_configuration_is_hyperparameters():
    kept = Kept()
    by_accelerate(MetricsFileTracker("toy", sinks=[kept], hyperparameters={"of": "mine"}))
    training = kept.record.metadata.hyperparameters.training
    assert (training["width"], training["of"], training["batch_size"]) == (4, "mine", 8)


def test_what_is_logged_outside_an_epoch_is_not_kept():
    """It is said once; the next epoch isn't given it."""
    accelerator = accelerate.Accelerator(cpu=True, log_with=MetricsFileTracker("toy"))
    accelerator.init_trackers("toy")
    outside = r"outside an epoch.*loss: log it within `with tracker\.epoch"
    with pytest.warns(TrackmetricsWarning, match=outside):
        accelerator.log({"loss": 1.0})
    accelerator.log({"other": 1.0})
    with tracker.epoch() as epoch:
        epoch.log(train_loss=1.0, train_accuracy=1.0, gradient_norm=1.0, dev_accuracy=1.0)
    assert tracker.record.epochs[0].metrics == {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrackmetricsWarning)
        accelerator.end_training()


def test_each_tracker_is_the_run():
    own = MetricsFileTracker("toy")
    accelerator = accelerate.Accelerator(cpu=True, log_with=[own])
    with pytest.raises(RunStateError):
        own.tracker  # noqa: B018
    accelerator.init_trackers("toy")
    assert accelerator.get_tracker("trackmetrics") is own
    assert accelerator.get_tracker("trackmetrics", unwrap=True) is own.tracker
    assert isinstance(own.tracker, Tracker)
    assert tracker.path == own.tracker.path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrackmetricsWarning)
        accelerator.end_training()
    with pytest.raises(RunStateError):
        own.tracker  # noqa: B018


def test_mixed_precision():
    """Under autocast, the evaluation too; the norm is that of the float32 gradients before clipping."""
    kept, norms = Kept(), []
    accelerator = accelerate.Accelerator(
        cpu=True, mixed_precision="bf16", log_with=MetricsFileTracker("toy", sinks=[kept])
    )
    accelerator.init_trackers("toy")
    net = Net()
    train_loader, dev_loader = loaders()
    model, optimizer, train_loader = accelerator.prepare(net, optimizer_of(net), train_loader)
    with tracker.epoch():
        for batch in train_loader:
            accelerator.backward(model(**batch)["loss"])
            norms.append(accelerator.clip_grad_norm_(model.parameters(), CLIP).item())
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            right = [model(batch["inputs"])["logits"].argmax(1) == batch["labels"] for batch in dev_loader]
        model.train()
    accelerator.end_training()
    (epoch,) = kept.record.epochs
    assert epoch.gradient_norm == pytest.approx(sum(norms) / len(norms), rel=1e-6)
    assert epoch.dev_accuracy == torch.cat(right).double().mean().item()
    assert kept.record.final_inference is not None


def evaluate(model, loader, batches=None):
    """A loop's own evaluation of a set, or of its first batches."""
    model.eval()
    right = []
    with torch.no_grad():
        for batch in itertools.islice(loader, batches):
            output = model(**batch)
            right.append(output["logits"].argmax(1) == batch["labels"])
    model.train()
    return torch.cat(right).double().mean().item()


@pytest.mark.parametrize(("batches", "passes"), [(None, 1), (7, 3), (1, 3)])
def test_the_loops_evaluation_is_the_epochs_own(monkeypatch, batches, passes):
    """With accelerate's loader, which asks for a batch before it gives the one before; a part of the set is none."""
    made = []
    own_pass = Accuracies.of_dev
    monkeypatch.setattr(Accuracies, "of_dev", lambda *args: made.append("") or own_pass(*args))
    kept, expected = Kept(), []
    accelerator = accelerate.Accelerator(cpu=True, log_with=MetricsFileTracker("toy", sinks=[kept]))
    accelerator.init_trackers("toy")
    net = Net()
    model, optimizer, train_loader, dev_loader = accelerator.prepare(net, optimizer_of(net), *loaders())
    for _ in range(2):
        with tracker.epoch():
            for batch in train_loader:
                accelerator.backward(model(**batch)["loss"])
                optimizer.step()
                optimizer.zero_grad()
            evaluate(model, dev_loader, batches)
        expected.append(share_right(net, loaders()[1]))
    accelerator.end_training()
    assert [epoch.dev_accuracy for epoch in kept.record.epochs] == expected
    assert len(made) == passes


def test_reading_the_loaders_leaves_the_gradient_state():
    """At the end of its loader the accelerator steps: our passes go through the same sets and don't tell it so."""
    own = MetricsFileTracker("toy")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4, log_with=own)
    accelerator.init_trackers("toy")
    net = Net()
    model, optimizer, train_loader, dev_loader = accelerator.prepare(net, optimizer_of(net), *loaders())
    synced = []
    for _ in range(2):
        with tracker.epoch():
            for batch in train_loader:
                with accelerator.accumulate(model):
                    accelerator.backward(model(**batch)["loss"])
                    synced.append(accelerator.sync_gradients)
                    optimizer.step()
                    optimizer.zero_grad()
        state = accelerate.state.GradientState()
        assert state.active_dataloader is None
        assert state.dataloader_references == [None]
        assert (train_loader.iteration, dev_loader.iteration) == (len(synced) // 6, 0)
    assert synced == 2 * [False, False, False, True, False, True]
    assert [epoch["steps"] for epoch in own.tracker.record.extensions["gradient_norm"]["epochs"]] == [2, 2]
    accelerator.end_training()


def test_it_joins_the_run_around_it():
    @tracked_training(task="toy")
    def train(depth):
        return by_accelerate(MetricsFileTracker())

    net = train(3)
    file = load_run(FILE)
    training = file.metadata.hyperparameters.training
    assert (training["depth"], training["width"], len(file.epochs)) == (3, 4, 3)
    assert file.final_results.dev_accuracy == round(share_right(net, loaders()[1]), 4)


def test_a_joined_run_is_the_plain_loops():
    """An exception ends the run around it, and nothing is left open."""
    with pytest.raises(ZeroDivisionError), Tracker("toy") as run:
        by_accelerate(MetricsFileTracker(), log=lambda accelerator, epoch, loss: epoch < 1 or 1 / 0)
    file = load_run(FILE)
    assert file.extensions["status"]["error"]["type"] == "ZeroDivisionError"
    assert [epoch.epoch for epoch in run.record.epochs] == [1]
    with Tracker("plain") as plain:
        by_loop(plain, epochs=1)
    for key in METRIC_KEYS:
        assert getattr(run.record.epochs[0], key) == pytest.approx(getattr(plain.record.epochs[0], key), rel=1e-6)


def test_a_run_that_was_left_open_ends_when_the_next_one_begins():
    """A cell that failed is run again: with a new accelerator and tracker, on the same file."""
    with pytest.raises(ZeroDivisionError):
        by_accelerate(MetricsFileTracker("toy"), log=lambda accelerator, epoch, loss: epoch < 1 or 1 / 0)
    assert len(tracker.record.epochs) == 1
    kept = Kept()
    by_accelerate(MetricsFileTracker("toy", sinks=[kept], keep_previous=True))
    (previous,) = (path for path in Path("output").iterdir() if path != Path(FILE))
    assert load_run(previous).extensions["status"]["state"] == "interrupted"
    assert len(kept.record.epochs) == 3
    with pytest.raises(RunStateError):
        tracker.record  # noqa: B018


@pytest.mark.parametrize(
    ("end", "state", "kind"),
    [("1 / 0", "failed", "ZeroDivisionError"), ("print('no end_training()')", "interrupted", "TrainingLeftError")],
)
def test_a_process_that_ends_says_how(end, state, kind):
    code = f"""
        import sys
        sys.path.insert(0, {str(SUPPORT)!r})
        import accelerate
        from trainers import by_loop
        from trackmetrics import tracker
        from trackmetrics.integrations.accelerate import MetricsFileTracker

        accelerator = accelerate.Accelerator(cpu=True, log_with=MetricsFileTracker("toy"))
        accelerator.init_trackers("toy")
        by_loop(tracker, epochs=1)
        {end}
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == (1 if state == "failed" else 0), done.stderr
    file = load_run(FILE)
    assert (file.extensions["status"]["state"], file.extensions["status"]["error"]["type"]) == (state, kind)
    assert len(file.epochs) == 1


def test_what_cannot_be_right_is_said_before_training():
    with pytest.raises(ArgumentError, match="without task="):
        MetricsFileTracker(train=[])
    with pytest.raises(RunStateError, match="give task="):
        by_accelerate(MetricsFileTracker())
    Path("file").touch()
    with pytest.raises(OutputError):
        by_accelerate(MetricsFileTracker("toy", output_dir="file"))


def test_of_several_processes_each_has_to_be_in_a_run(monkeypatch):
    """Accelerate begins trackers on the first one alone; without a task the tracker joins a run that each is in."""
    monkeypatch.setattr("trackmetrics.integrations.accelerate.world_size", lambda: 2)
    with pytest.raises(RunStateError, match="with @tracked_training"):
        by_accelerate(MetricsFileTracker("toy"))
    with Tracker("toy") as run:
        assert MetricsFileTracker().tracker is run  # where Accelerate doesn't begin it
        by_accelerate(MetricsFileTracker())
    assert len(run.record.epochs) == 3


@pytest.mark.parametrize(
    ("broken", "costs"),
    [
        ("run.Epoch.log", "the logged loss"),
        ("run.Tracker._learn", "what the trainer knows"),
    ],
)
def test_a_fault_of_ours_stops_no_training(broken, costs, monkeypatch):
    def fault(*args, **kwargs):
        raise IndexError("ours")

    monkeypatch.setattr(f"trackmetrics.{broken}", fault)
    with pytest.warns(TrackmetricsWarning) as caught:
        net = by_accelerate(MetricsFileTracker("toy"), log=lambda accelerator, *_: accelerator.log({"loss": 1.0}))
    assert [str(item.message) for item in caught] == [f"{costs} could not be had: IndexError('ours')"]
    assert all(map(torch.equal, net.state_dict().values(), by_loop().state_dict().values()))


def test_it_is_off_where_tracking_is(monkeypatch):
    monkeypatch.setenv("TRACKMETRICS_DISABLED", "1")
    accelerator = accelerate.Accelerator(cpu=True, log_with=MetricsFileTracker("toy"))
    accelerator.init_trackers("toy", config={"width": 4})
    accelerator.log({"loss": 1.0})
    with tracker.epoch():
        accelerator.log({"loss": 1.0})
    accelerator.end_training()
    assert not Path("output").exists()
