"""The Lightning callback: what is logged, how a run ends, and that its faults stop no training."""

import os
import signal
import warnings
from pathlib import Path

import pytest
import torch
from oracle import one_thread  # noqa: F401
from torch.utils.data import DataLoader
from trainers import (
    Kept,
    Net,
    Sequences,
    by_lightning,
    by_loop,
    lightning_module,
    lightning_trainer,
    loaders,
    optimizer_of,
    share_right,
)

from trackmetrics import Tracker, TrackmetricsWarning, load_run, tracked_training, tracker
from trackmetrics.accuracies import Accuracies
from trackmetrics.errors import ArgumentError, OutputError, RunStateError
from trackmetrics.instruments.model_state import _things
from trackmetrics.record import METRIC_KEYS

library = pytest.importorskip("lightning.pytorch", reason="lightning isn't installed")
from trackmetrics.integrations.lightning import MetricsFileCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings(r"ignore:::(lightning|torch)\.")
FILE = "output/toy_training_metrics.json"


def fit(callbacks, module=None, data=None, **settings):
    """Train; give the trainer."""
    trainer = lightning_trainer(library, callbacks, **settings)
    trainer.fit(module or lightning_module(library), *(data or loaders()))
    return trainer


def metrics_of(record):
    return [epoch.metrics for epoch in record.epochs]


def test_what_is_logged_stands_in_the_epochs_record():
    """Also what the module's own hook logs at the epoch's very end; the record's own names are given another."""
    late = iter((10.0, 20.0, 30.0))

    def training_step(self, batch, index):
        loss = self.net(**batch)["loss"]
        self.log_dict({"train_loss": -1.0, "epoch": -2.0, "dev_accuracy": -3.0})
        self.log("mean", float(index), on_step=True, on_epoch=True)
        return loss

    def on_train_epoch_end(self):
        self.log("late", next(late))

    kept = Kept()
    module = lightning_module(library, training_step=training_step, on_train_epoch_end=on_train_epoch_end)
    fit([MetricsFileCallback("toy", sinks=[kept])], module)
    for epoch, expected in zip(kept.record.epochs, (10.0, 20.0, 30.0), strict=True):
        assert {name: epoch.metrics[name] for name in epoch.metrics if name.startswith("logged_")} == {
            "logged_train_loss": -1.0,
            "logged_epoch": -2.0,
            "logged_dev_accuracy": -3.0,
        }
        assert epoch.metrics["late"] == expected
        assert epoch.metrics["mean_epoch"] == pytest.approx(sum(8 * n for n in range(5)) / 46 + 6 * 5 / 46)
        assert epoch.train_loss > 0


def test_what_was_logged_in_an_earlier_epoch_is_not_said_again():
    """Lightning keeps the last values of all names; an epoch has its own."""
    kept = Kept()
    fit([MetricsFileCallback("toy", sinks=[kept])], check_val_every_n_epoch=2)
    assert ["val_loss" in metrics for metrics in metrics_of(kept.record)] == [False, True, False]
    assert all(epoch.dev_accuracy is not None for epoch in kept.record.epochs)


def test_the_validation_is_the_epochs_own(monkeypatch):
    """A validation over the whole dev set is its evaluation: the run makes no pass of its own before the end."""
    passes = []
    own_pass = Accuracies.of_dev
    monkeypatch.setattr(Accuracies, "of_dev", lambda self: passes.append("") or own_pass(self))
    kept, net, rights = Kept(), Net(), []

    class Watch(library.Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                rights.append(share_right(net, loaders()[1]))

    fit([MetricsFileCallback("toy", sinks=[kept]), Watch()], lightning_module(library, net))
    assert [epoch.dev_accuracy for epoch in kept.record.epochs] == rights
    assert len(passes) == 1


def test_part_of_a_validation_is_none():
    """With `limit_val_batches` the run evaluates the whole set itself."""
    kept, net = Kept(), Net()
    fit([MetricsFileCallback("toy", sinks=[kept])], lightning_module(library, net), limit_val_batches=1)
    assert kept.record.epochs[-1].dev_accuracy == share_right(net, loaders()[1])


def test_of_several_validation_sets_the_first_is_the_dev_set():
    kept, net = Kept(), Net()
    train, dev = loaders()
    other = DataLoader(Sequences(30, 9), batch_size=8)
    fit([MetricsFileCallback("toy", sinks=[kept])], lightning_module(library, net), data=(train, [dev, other]))
    assert kept.record.final_results.dev_accuracy == share_right(net, dev)
    assert kept.record.final_results.dev_accuracy != share_right(net, other)
    assert kept.record.epochs[-1].dev_accuracy == share_right(net, dev)


def test_a_dev_set_is_found_by_name_where_nothing_is_validated():
    """The names of the frame that trains are looked at, as those of a loop are."""
    kept, net = Kept(), Net()
    train, dev = loaders()
    trainer = lightning_trainer(library, [MetricsFileCallback("toy", sinks=[kept])], limit_val_batches=0)
    trainer.fit(lightning_module(library, net), train)
    assert kept.record.epochs[-1].dev_accuracy == share_right(net, dev)


def test_a_validation_set_that_comes_late_is_the_dev_set_from_then_on():
    """Lightning asks for it before the first validation, here in the second epoch."""
    kept = Kept()
    callback = MetricsFileCallback("toy", sinks=[kept])
    with pytest.warns(TrackmetricsWarning, match="dev_accuracy is null: no dev set was found"):
        fit([callback], data=loaders(), check_val_every_n_epoch=2, num_sanity_val_steps=0)
    assert [epoch.dev_accuracy is None for epoch in kept.record.epochs] == [True, False, False]


def test_without_a_dev_set_its_accuracy_is_null():
    kept = Kept()
    train = loaders()[0]
    with pytest.warns(TrackmetricsWarning) as caught:
        fit([MetricsFileCallback("toy", sinks=[kept])], data=(train,), limit_val_batches=0)
    assert [str(item.message).split(":")[0] for item in caught if item.category is TrackmetricsWarning] == [
        "dev_accuracy is null",
        "final_inference is null",
    ]
    assert all(epoch.dev_accuracy is None and epoch.train_accuracy is not None for epoch in kept.record.epochs)


def test_a_module_with_a_forward_is_evaluated_by_it():
    """What the module makes of the inputs counts: here it turns the answers round."""

    def forward(self, inputs, labels=None):
        return -self.net(inputs)["logits"]

    def training_step(self, batch, index):
        return torch.nn.functional.cross_entropy(self(batch["inputs"]), batch["labels"])

    kept = Kept()
    own = {"forward": forward, "training_step": training_step, "validation_step": lambda *args: None}
    trainer = lightning_trainer(library, [MetricsFileCallback("toy", sinks=[kept])])
    trainer.fit(lightning_module(library, **own), *loaders())  # no name of this function is the module's
    net = trainer.lightning_module.net
    assert kept.record.final_results.dev_accuracy == pytest.approx(1 - share_right(net, loaders()[1]))
    assert kept.record.epochs[0].dev_accuracy is not None


def test_hyperparameters_are_the_modules_and_the_trainers():
    kept = Kept()
    scheduled = {
        "configure_optimizers": lambda self: (
            [optimizer := optimizer_of(self)],
            [torch.optim.lr_scheduler.StepLR(optimizer, 5)],
        )
    }
    fit([MetricsFileCallback("toy", sinks=[kept], hyperparameters={"seed": 3})], lightning_module(library, **scheduled))
    training = kept.record.metadata.hyperparameters.training
    expected = {"width": 4, "accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "num_epochs": 3, "seed": 3}
    assert {name: training[name] for name in expected} == expected
    assert training["scheduler"] == {"name": "StepLR", "step_size": 5, "gamma": 0.1}


def test_manual_optimization():
    """The module's own steps, of accumulated and clipped gradients, are the plain loop's."""

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        self.manual_backward(self.net(**batch)["loss"] / 2)
        if index % 2:
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            optimizer.step()
            optimizer.zero_grad()

    kept, plain = Kept(), Kept()
    module = lightning_module(library, training_step=training_step, automatic_optimization=False)
    callback = MetricsFileCallback("toy", sinks=[kept])
    fit([callback], module, accumulate_grad_batches=1, gradient_clip_val=None)
    with Tracker("plain", sinks=[plain]) as run:
        by_loop(run)
    for found, expected in zip(kept.record.epochs, plain.record.epochs, strict=True):
        for key in METRIC_KEYS:
            assert getattr(found, key) == pytest.approx(getattr(expected, key), rel=1e-6)


def test_mixed_precision():
    """The norm of the float32 gradients that bf16's forward gives, before clipping; the loss as it is computed."""
    kept, norms, losses = Kept(), [], []

    def training_step(self, batch, index):
        loss = self.net(**batch)["loss"]
        losses.append(loss.item() * len(batch["labels"]))
        return loss

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        norms.append(torch.nn.utils.clip_grad_norm_(self.parameters(), 0.5).item())

    module = lightning_module(
        library, training_step=training_step, configure_gradient_clipping=configure_gradient_clipping
    )
    fit([MetricsFileCallback("toy", sinks=[kept])], module, precision="bf16-mixed", epochs=1)
    (epoch,) = kept.record.epochs
    assert epoch.gradient_norm == pytest.approx(sum(norms) / len(norms), rel=1e-6)
    assert epoch.train_loss == pytest.approx(sum(losses) / 46, rel=1e-6)
    assert kept.record.metadata.hyperparameters.training["precision"] == "bf16-mixed"


def test_the_final_weights_are_those_after_the_other_callbacks():
    """Another callback puts other weights in place when the training ends; the last epoch's are before that."""
    kept, net = Kept(), Net()
    rights = []

    class Swap(library.Callback):
        def on_train_end(self, trainer, pl_module):
            rights.append(share_right(net, loaders()[1]))
            with torch.no_grad():
                net.head.weight.neg_()
                net.head.bias.neg_()

    fit([MetricsFileCallback("toy", sinks=[kept]), Swap()], lightning_module(library, net))
    assert kept.record.epochs[-1].dev_accuracy == rights[0]
    assert kept.record.final_results.dev_accuracy == share_right(net, loaders()[1]) == pytest.approx(1 - rights[0])


def test_the_trainer_is_no_state_of_the_model():
    """An evaluation copies what the model holds: not what the trainer does, which the module knows."""
    reached = []

    class Watch(library.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            reached.append(trainer in list(_things(pl_module)))

    fit([Watch()], epochs=1)
    assert reached == [False]


# How a run ends


def failing(error, at=8):
    """A module whose training step raises at the step of this number."""
    steps = iter(range(100))

    def training_step(self, batch, index):
        if next(steps) == at:
            raise error
        return self.net(**batch)["loss"]

    return lightning_module(library, training_step=training_step)


def test_an_exception_ends_the_run():
    with pytest.raises(ZeroDivisionError, match="of the user's"):
        fit([MetricsFileCallback("toy")], failing(ZeroDivisionError("of the user's")))
    file = load_run(FILE)
    assert len(file.epochs) == 1
    assert file.extensions["status"]["state"] == "failed"
    assert file.extensions["status"]["error"] == {"type": "ZeroDivisionError", "message": "of the user's"}
    with pytest.raises(RunStateError):
        tracker.record  # noqa: B018


def test_ctrl_c_ends_the_run():
    """Lightning takes the interrupt and leaves the program; the file says what it was."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            fit([MetricsFileCallback("toy")], failing(KeyboardInterrupt()))
    finally:
        signal.signal(signal.SIGINT, handler)
    status = load_run(FILE).extensions["status"]
    assert (status["state"], status["error"]["type"]) == ("interrupted", "KeyboardInterrupt")


def test_a_signal_ends_the_run():
    """Lightning handles it, and tells its callbacks."""

    class Ends(library.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        fit([MetricsFileCallback("toy"), Ends()])
    file = load_run(FILE)
    assert file.extensions["status"]["state"] == "interrupted"
    assert "SIGTERM" in file.extensions["status"]["error"]["type"]
    assert len(file.epochs) == 1


def test_an_exception_at_the_epochs_end_leaves_nothing_in_the_trainer():
    """The callback that is there for a moment is gone, and the epoch, which isn't complete, too."""

    def on_train_epoch_end(self):
        raise ValueError("at the end")

    callback = MetricsFileCallback("toy")
    trainer = lightning_trainer(library, [callback])
    with pytest.raises(ValueError, match="at the end"):
        trainer.fit(lightning_module(library, on_train_epoch_end=on_train_epoch_end), *loaders())
    assert trainer.callbacks == [callback]
    with pytest.raises(RunStateError):
        callback.tracker  # noqa: B018


def test_one_callback_is_good_for_several_fits():
    """Each fit is a run of its own, and a later fit of one trainer goes on where it stopped."""
    kept = Kept()
    callback = MetricsFileCallback("toy", sinks=[kept], resume=True)
    trainer = lightning_trainer(library, [callback], epochs=2)
    module = lightning_module(library)
    trainer.fit(module, *loaders())
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, *loaders())
    assert [len(record.epochs) for record in kept.records] == [2, 3]
    fit([callback := MetricsFileCallback("toy")], epochs=1)
    assert len(load_run(FILE).epochs) == 1


def test_a_fit_resumed_from_a_checkpoint(tmp_path):
    """`resume=True` goes on after the checkpoint's epoch; what the file had beyond it is dropped."""
    module = lightning_module(library)
    trainer = fit([MetricsFileCallback("toy")], module, epochs=2)
    trainer.save_checkpoint("two.ckpt")
    fit([MetricsFileCallback("toy")], epochs=3)
    whole = load_run(FILE)
    resumed = lightning_trainer(library, [MetricsFileCallback("toy", resume=True)], epochs=3)
    resumed.fit(lightning_module(library), *loaders(), ckpt_path="two.ckpt")
    file = load_run(FILE)
    assert [epoch.epoch for epoch in file.epochs] == [1, 2, 3]
    for key in METRIC_KEYS:
        assert getattr(file.epochs[2], key) == getattr(whole.epochs[2], key)
    assert file.extensions["resumed"][0]["after_epoch"] == 2
    assert file.extensions["resumed"][0]["dropped_epochs"] == 1
    assert file.final_results.dev_accuracy == whole.final_results.dev_accuracy


def test_a_fit_that_was_broken_off_within_an_epoch():
    """The epoch's start isn't told when it goes on; its record is of the steps that were left."""
    checkpoint = library.callbacks.ModelCheckpoint("mid", every_n_train_steps=2, save_top_k=-1)
    fit([checkpoint], epochs=1, enable_checkpointing=True)
    (path,) = Path("mid").glob("*step=2.ckpt")
    kept = Kept()
    trainer = lightning_trainer(library, [MetricsFileCallback("toy", sinks=[kept])], epochs=2)
    trainer.fit(lightning_module(library), *loaders(), ckpt_path=str(path))
    steps = [epoch["steps"] for epoch in kept.record.extensions["gradient_norm"]["epochs"]]
    assert steps == [1, 3]


def test_a_fit_with_nothing_left_leaves_the_file():
    trainer = fit([MetricsFileCallback("toy")], epochs=1)
    before = Path(FILE).read_text()
    trainer.fit(lightning_module(library), *loaders())
    assert Path(FILE).read_text() == before


def test_validating_alone_is_no_run():
    trainer = lightning_trainer(library, [MetricsFileCallback("toy")])
    trainer.validate(lightning_module(library), loaders()[1], verbose=False)
    assert not Path("output").exists()


# A run around it


def test_it_joins_the_run_around_it():
    """A decorated function trains: its arguments are hyperparameters, what it returns is the model, all in one file."""

    @tracked_training(task="toy")
    def train(width, fails=False):
        net = Net()
        fit([MetricsFileCallback()], lightning_module(library, net))
        with tracker.epoch():
            pass
        if fails:
            raise LookupError("afterwards")
        return net

    with pytest.warns(TrackmetricsWarning, match="null: no backward was seen"):
        train(width=9)
    file = load_run(FILE)
    assert [epoch.epoch for epoch in file.epochs] == [1, 2, 3, 4]
    assert file.metadata.hyperparameters.training["width"] == 4  # the module's own
    assert file.final_results.dev_accuracy == file.epochs[-1].dev_accuracy
    with pytest.raises(LookupError), warnings.catch_warnings():
        warnings.simplefilter("ignore", TrackmetricsWarning)
        train(9, fails=True)
    assert load_run(FILE).extensions["status"]["error"]["type"] == "LookupError"


def test_an_exception_in_a_joined_run_ends_it_once():
    with pytest.raises(ZeroDivisionError), Tracker("toy"):
        fit([MetricsFileCallback()], failing(ZeroDivisionError()))
    assert load_run(FILE).extensions["status"]["error"]["type"] == "ZeroDivisionError"


def test_what_cannot_be_right_is_said_before_training():
    with pytest.raises(ArgumentError, match="without task="):
        MetricsFileCallback(train=[])
    with pytest.raises(ArgumentError, match="is no option"):
        MetricsFileCallback("toy", parts="x")
    with pytest.raises(ArgumentError, match="a Tracker has none"):
        MetricsFileCallback("toy", part="{fold}")
    with pytest.raises(RunStateError, match="give task="):
        fit([MetricsFileCallback()])
    Path("file").touch()
    with pytest.raises(OutputError):
        fit([MetricsFileCallback("toy", output_dir="file")])
    with Tracker("toy") as run, pytest.raises(RunStateError, match="inside another epoch"), run.epoch():
        fit([MetricsFileCallback()])


# Faults


@pytest.mark.parametrize(
    ("broken", "costs"),
    [
        ("integrations.lightning._known", "what the trainer knows"),
        ("integrations.lightning._evaluated", "what the trainer knows"),
        ("run.Epoch.log", "the logged val_loss"),
        ("run.Epoch.__enter__", "the epoch"),
        ("run.Epoch._leave", "the epoch's record"),
        ("run.Tracker._learn", "what the trainer knows"),
    ],
)
def test_a_fault_of_ours_stops_no_training(broken, costs, monkeypatch):
    """It costs what it is about, and is said once; the training is what it would have been."""

    def fault(*args, **kwargs):
        raise IndexError("ours")

    monkeypatch.setattr(f"trackmetrics.{broken}", fault)
    net = Net()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit([MetricsFileCallback("toy")], lightning_module(library, net))
    said = [str(item.message) for item in caught if item.category is TrackmetricsWarning]
    assert f"{costs} could not be had: IndexError('ours')" in said
    assert len(said) == len(set(said))
    expected = by_lightning(library)
    assert all(map(torch.equal, net.state_dict().values(), expected.state_dict().values()))


def test_values_that_are_no_plain_data_cost_themselves():
    kept = Kept()
    callback = MetricsFileCallback("toy", sinks=[kept])

    class Odd(library.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            callback._run.log({"odd": object(), 7: 1.0, "fine": 2})

    with pytest.warns(TrackmetricsWarning, match="odd is null"):
        fit([Odd(), callback], epochs=1)
    assert {name: kept.record.epochs[0].metrics[name] for name in ("odd", "7", "fine")} == {
        "odd": None, "7": 1.0, "fine": 2,
    }  # fmt: skip


def test_it_is_off_where_tracking_is(monkeypatch):
    monkeypatch.setenv("TRACKMETRICS_DISABLED", "1")
    fit([MetricsFileCallback("toy")])
    assert not Path("output").exists()
