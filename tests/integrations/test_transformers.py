"""The Trainer's callback: when an epoch is over, what is logged, and what becomes of a training that fails."""

import contextlib
import gc
import io
import signal
import subprocess
import sys
import textwrap
import types
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from oracle import one_thread  # noqa: F401
from trainers import CLIP, Kept, Net, Sequences, by_trainer, loaders, optimizer_of, sets, share_right, trainer_of

from trackmetrics import Tracker, TrackmetricsWarning, load_run, tracked_training, tracker
from trackmetrics.accuracies import Accuracies
from trackmetrics.errors import ArgumentError, RunStateError
from trackmetrics.record import METRIC_KEYS

transformers = pytest.importorskip("transformers", reason="transformers isn't installed")
pytest.importorskip("accelerate", reason="the Trainer needs accelerate")
from trackmetrics.integrations.transformers import MetricsFileCallback  # noqa: E402

FILE = "output/toy_training_metrics.json"
SUPPORT = Path(__file__).parents[1] / "support"


class Before(transformers.TrainerCallback):
    """Keeps the dev accuracy by hand as it was when an epoch ended."""

    def __init__(self):
        self.rights = []

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        self.rights.append(share_right(model, loaders()[1]))


def train(trainer, **settings):
    """Train quietly; give the model."""
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train(**settings)
    return trainer.model


def test_what_is_logged_stands_in_the_epochs_record():
    """Its evaluation and `compute_metrics` too; the fraction of the epoch and what is logged at the end do not."""
    kept = Kept()
    trainer = trainer_of([MetricsFileCallback("toy", sinks=[kept])])
    train(trainer)
    for number, epoch in enumerate(kept.record.epochs, 1):
        history = [log for log in trainer.state.log_history if log["epoch"] == number and "train_runtime" not in log]
        expected = {name: value for log in history for name, value in log.items() if name not in ("epoch", "step")}
        assert epoch.metrics == expected
        assert {"loss", "grad_norm", "learning_rate", "eval_loss", "eval_right"} < set(epoch.metrics)
        assert epoch.metrics["eval_right"] == epoch.dev_accuracy


def test_names_that_the_record_has_itself_are_given_another():
    class Named(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            logs["train_loss"] = logs["elapsed_seconds"] = -1.0

    kept = Kept()
    train(trainer_of([Named(), MetricsFileCallback("toy", sinks=[kept])], num_train_epochs=1))
    (epoch,) = kept.record.epochs
    assert epoch.metrics["logged_train_loss"] == epoch.metrics["logged_elapsed_seconds"] == -1.0
    assert epoch.train_loss > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_strategy": "epoch", "logging_strategy": "no"},
        {"eval_strategy": "epoch", "logging_strategy": "epoch"},
        {"eval_strategy": "epoch", "logging_strategy": "steps", "logging_steps": 1},
        {"eval_strategy": "steps", "eval_steps": 2, "logging_strategy": "steps", "logging_steps": 3},
        {"eval_strategy": "epoch", "logging_strategy": "epoch", "save_strategy": "epoch"},
        {"eval_strategy": "epoch", "eval_delay": 2, "logging_strategy": "no"},
        {"eval_strategy": "epoch", "eval_on_start": True},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_an_epochs_accuracy_is_that_of_its_weights(settings):
    """Whatever is logged, evaluated and saved after it, in whatever order."""
    kept, before = Kept(), Before()
    train(trainer_of([before, MetricsFileCallback("toy", sinks=[kept], dev=loaders()[1])], **settings))
    assert [epoch.dev_accuracy for epoch in kept.record.epochs] == before.rights
    evaluated = ["eval_loss" in epoch.metrics for epoch in kept.record.epochs]
    assert evaluated == [False, True, True] if "eval_delay" in settings else all(evaluated)


@pytest.fixture
def passes(monkeypatch):
    """The evaluations that the run makes of the dev set."""
    made = []
    own_pass = Accuracies.of_dev
    monkeypatch.setattr(Accuracies, "of_dev", lambda *args: made.append("") or own_pass(*args))
    return made


def test_the_trainers_evaluation_is_the_epochs_own(passes):
    """An evaluation over the whole dev set is its evaluation: the run makes no pass of its own before the end."""
    kept, before = Kept(), Before()
    train(trainer_of([before, MetricsFileCallback("toy", sinks=[kept])]))
    assert [epoch.dev_accuracy for epoch in kept.record.epochs] == before.rights
    assert len(passes) == 1


def test_an_evaluation_of_other_examples_is_none(passes):
    """Of a part of the dev set, or of another set: the run evaluates it itself."""
    kept, before = Kept(), Before()
    part = torch.utils.data.Subset(sets()[1], range(32))
    trainer = trainer_of([before, MetricsFileCallback("toy", sinks=[kept], dev=loaders()[1])])
    trainer.eval_dataset = part
    train(trainer)
    assert [epoch.dev_accuracy for epoch in kept.record.epochs] == before.rights
    assert [epoch.metrics["eval_right"] for epoch in kept.record.epochs] != before.rights
    assert len(passes) == 4


def test_the_best_weights_are_the_final_ones():
    """They are loaded when the training is over: final results are theirs, the last epoch's accuracy isn't."""
    kept, before = Kept(), Before()
    calls = iter((9.0, 1.0, 2.0))
    trainer = trainer_of(
        [before, MetricsFileCallback("toy", sinks=[kept])],
        load_best_model_at_end=True,
        metric_for_best_model="mine",
        greater_is_better=True,
        save_strategy="epoch",
        learning_rate=0.1,
    )
    trainer.compute_metrics = lambda found: {"mine": next(calls)}
    model = train(trainer)
    assert [epoch.dev_accuracy for epoch in kept.record.epochs] == before.rights
    assert [epoch.metrics["eval_mine"] for epoch in kept.record.epochs] == [9.0, 1.0, 2.0]
    assert kept.record.final_results.dev_accuracy == share_right(model, loaders()[1]) == before.rights[0]
    assert before.rights[0] != before.rights[2]


def test_of_several_evaluation_sets_the_first_is_the_dev_set():
    kept = Kept()
    trainer = trainer_of([MetricsFileCallback("toy", sinks=[kept])])
    trainer.eval_dataset = {"own": trainer.eval_dataset, "other": trainer.train_dataset, "third": Sequences(9, 3)}
    model = train(trainer)
    assert kept.record.final_results.dev_accuracy == share_right(model, loaders()[1])
    assert len(kept.record.epochs) == 3
    for epoch in kept.record.epochs:
        assert {"eval_own_loss", "eval_own_right", "eval_other_loss", "eval_third_loss"} < set(epoch.metrics)
    assert kept.record.epochs[-1].dev_accuracy == kept.record.final_results.dev_accuracy


def test_what_is_logged_at_the_very_end_is_no_epochs():
    """Also where a log is due when an epoch ends that the Trainer leaves out, since that step was logged."""
    kept = Kept()
    callback = MetricsFileCallback("toy", sinks=[kept], dev=loaders()[1])
    steps = {"gradient_accumulation_steps": 6, "num_train_epochs": 1, "logging_first_step": True}
    train(trainer_of([callback], eval_strategy="no", **steps))
    (epoch,) = kept.record.epochs
    assert set(epoch.metrics) == {"loss", "grad_norm", "learning_rate"}


def test_without_an_evaluation_the_dev_set_is_one_in_reach():
    kept = Kept()
    dev = loaders()[1]
    model = train(trainer_of([MetricsFileCallback("toy", sinks=[kept], dev=dev)], eval_strategy="no"))
    assert kept.record.epochs[-1].dev_accuracy == kept.record.final_results.dev_accuracy == share_right(model, dev)
    with pytest.warns(TrackmetricsWarning) as caught:
        by_trainer(MetricsFileCallback("none"), eval_strategy="no")
    assert str(caught[0].message).startswith("dev_accuracy is null: no dev set was found")


def test_steps_that_end_within_an_epoch():
    """A step has two micro-batches, an epoch three steps; four steps are an epoch and a third."""
    kept = Kept()
    by_trainer(MetricsFileCallback("toy", sinks=[kept]), max_steps=4)
    assert [epoch["steps"] for epoch in kept.record.extensions["gradient_norm"]["epochs"]] == [3, 1]
    assert kept.record.final_results is not None


def test_norms_are_those_before_clipping_and_of_accumulated_gradients():
    """The Trainer's own figure is the last step's, before clipping: with one step an epoch it is ours."""
    kept = Kept()
    trainer = trainer_of([MetricsFileCallback("toy", sinks=[kept])], gradient_accumulation_steps=6)
    train(trainer)
    for epoch in kept.record.epochs:
        assert epoch.gradient_norm == pytest.approx(epoch.metrics["grad_norm"], rel=1e-6)
    assert max(epoch.gradient_norm for epoch in kept.record.epochs) > CLIP


def test_mixed_precision():
    kept = Kept()
    train(trainer_of([MetricsFileCallback("toy", sinks=[kept])], bf16=True, gradient_accumulation_steps=6))
    for epoch in kept.record.epochs:
        assert epoch.gradient_norm == pytest.approx(epoch.metrics["grad_norm"], rel=1e-5)
        assert epoch.train_loss is not None
        assert epoch.dev_accuracy == epoch.metrics["eval_right"]


def test_a_language_model_of_the_library():
    """It computes its loss inside, of shifted labels, by the number of tokens in all micro-batches of a step."""
    torch.manual_seed(1)
    net = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0)
    )
    rows = torch.randint(11, (24, 6))
    rows[::3, 4:] = -100
    data = [{"input_ids": row.clamp(min=0), "labels": row} for row in rows]
    kept, losses = Kept(), []

    class Losses(transformers.Trainer):
        def compute_loss(self, model, inputs, **kwargs):
            with torch.no_grad():
                scores = model(input_ids=inputs["input_ids"]).logits[:, :-1].log_softmax(-1)
            wanted = inputs["labels"][:, 1:]
            picked = scores.gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
            losses.extend(-picked[wanted != -100])
            return super().compute_loss(model, inputs, **kwargs)

    arguments = transformers.TrainingArguments(
        "lm", num_train_epochs=1, per_device_train_batch_size=4, gradient_accumulation_steps=3, eval_strategy="epoch",
        save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    callback = MetricsFileCallback("toy", sinks=[kept])
    train(Losses(net.train(), arguments, train_dataset=data[:16], eval_dataset=data[16:], callbacks=[callback]))
    (epoch,) = kept.record.epochs
    net.eval()
    with torch.no_grad():
        right = net(input_ids=rows[16:].clamp(min=0)).logits[:, :-1].argmax(-1) == rows[16:, 1:]
    counted = rows[16:, 1:] != -100
    assert epoch.dev_accuracy == pytest.approx((right & counted).sum().item() / counted.sum().item(), rel=1e-6)
    assert epoch.train_loss == pytest.approx(torch.stack(losses).double().mean().item(), rel=0.02)  # dropout
    assert len(kept.record.final_inference.attention_weights) == 2
    assert kept.record.metadata.hyperparameters.model["n_layer"] == 2


def test_label_smoothing_is_a_loss_of_the_trainers_own():
    """The model isn't given its labels then: the loss is the scalar, and there is no accuracy to be seen."""
    net = Net()
    net.config = types.SimpleNamespace(problem_type=None)  # the Trainer asks for it
    with pytest.warns(TrackmetricsWarning) as caught:
        by_trainer(MetricsFileCallback("toy"), net=net, label_smoothing_factor=0.1, num_train_epochs=1)
    (epoch,) = load_run(FILE).epochs
    assert epoch.train_accuracy is epoch.dev_accuracy is None
    assert epoch.train_loss == pytest.approx(epoch.metrics["loss"], abs=1e-3)
    said = {str(item.message).partition(" is null")[0] for item in caught if item.category is TrackmetricsWarning}
    assert {"train_accuracy", "dev_accuracy"} <= said


def test_label_smoothing_by_torchs_criterion():
    """As a loss function of the user's it trains the same model, and accuracies are seen."""

    def smoothed(outputs, labels, num_items_in_batch=None):
        loss = torch.nn.functional.cross_entropy(outputs["logits"], labels, label_smoothing=0.1, reduction="sum")
        return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    net = Net()
    net.config = types.SimpleNamespace(problem_type=None)
    by_itself = by_trainer(net=net, count=48, label_smoothing_factor=0.1).state_dict()
    kept, before = Kept(), Before()
    trainer = trainer_of([before, MetricsFileCallback("toy", sinks=[kept])], count=48)
    trainer.compute_loss_func = smoothed
    model = train(trainer)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, by_itself[name], rtol=1e-4, atol=1e-5)
    assert [epoch.dev_accuracy for epoch in kept.record.epochs] == before.rights
    assert all(epoch.train_accuracy is not None for epoch in kept.record.epochs)
    assert kept.record.metadata.hyperparameters.training["criterion"]["label_smoothing"] == 0.1


def test_a_training_resumed_from_a_checkpoint():
    """`resume=True` goes on after the checkpoint's epoch; what the file had beyond it is dropped."""
    train(trainer_of([MetricsFileCallback("toy")], save_strategy="epoch"))
    whole = load_run(FILE)
    checkpoint = sorted(Path("trainer").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[1]
    train(trainer_of([MetricsFileCallback("toy", resume=True)]), resume_from_checkpoint=str(checkpoint))
    file = load_run(FILE)
    assert [epoch.epoch for epoch in file.epochs] == [1, 2, 3]
    for key in METRIC_KEYS:
        assert getattr(file.epochs[2], key) == getattr(whole.epochs[2], key)
    assert file.extensions["resumed"][0]["dropped_epochs"] == 1


def test_a_training_with_nothing_left_leaves_the_file():
    train(trainer_of([MetricsFileCallback("toy")], save_strategy="epoch"))
    before = Path(FILE).read_text()
    (last,) = Path("trainer").glob("checkpoint-9")
    train(trainer_of([MetricsFileCallback("toy")]), resume_from_checkpoint=str(last))
    assert Path(FILE).read_text() == before


# How a run ends


class Failing(transformers.TrainerCallback):
    """Raises in the second epoch."""

    def __init__(self, error):
        self.error = error

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise self.error


def test_a_run_around_the_training_ends_by_its_exception():
    with pytest.raises(ZeroDivisionError), Tracker("toy"):
        train(trainer_of([MetricsFileCallback(), Failing(ZeroDivisionError("users"))]))
    file = load_run(FILE)
    assert len(file.epochs) == 1
    assert file.extensions["status"]["error"] == {"type": "ZeroDivisionError", "message": "users"}


def test_a_run_that_failed_holds_nothing():
    """The callback that joined it wasn't told of its end, and still lets go of the model."""
    callback, net = MetricsFileCallback(), Net()
    gone = weakref.ref(net)
    with contextlib.suppress(ZeroDivisionError), Tracker("toy"):
        train(trainer_of([callback, Failing(ZeroDivisionError())], net=net))
    del net
    gc.collect()
    assert gone() is None
    with Tracker("toy") as run:  # and is good for another training
        with contextlib.suppress(ZeroDivisionError):
            train(trainer_of([callback, Failing(ZeroDivisionError())]))
        train(trainer_of([callback], num_train_epochs=1))
    assert len(run.record.epochs) == 2


def test_a_decorated_function_trains():
    @tracked_training(task="toy")
    def fit(width):
        return train(trainer_of([MetricsFileCallback()]))

    model = fit(5)
    file = load_run(FILE)
    assert file.metadata.hyperparameters.training["width"] == 5
    assert file.final_results.dev_accuracy == round(share_right(model, loaders()[1]), 4)


def test_a_run_that_was_left_open_ends_when_the_next_one_begins():
    """Also where it is the run of another callback, as in a cell that is run again; the file is free again."""
    first = MetricsFileCallback("toy")
    with pytest.raises(ZeroDivisionError):
        train(trainer_of([first, Failing(ZeroDivisionError())]))
    assert first.tracker.record.epochs
    kept = Kept()
    train(trainer_of([MetricsFileCallback("toy", sinks=[kept], keep_previous=True)]))
    (previous,) = (path for path in Path("output").iterdir() if path != Path(FILE))
    assert load_run(previous).extensions["status"]["state"] == "interrupted"
    assert "the Trainer" in load_run(previous).extensions["status"]["error"]["message"]
    assert len(kept.record.epochs) == 3
    with pytest.raises(RunStateError):
        first.tracker  # noqa: B018
    with pytest.raises(RunStateError):
        tracker.record  # noqa: B018


def test_one_callback_that_was_left_open_is_good_for_the_next_training():
    callback = MetricsFileCallback("toy")
    with pytest.raises(ZeroDivisionError):
        train(trainer_of([callback, Failing(ZeroDivisionError())]))
    train(trainer_of([callback]))
    assert len(load_run(FILE).epochs) == 3


def test_a_training_inside_another_ends_nothing():
    """A run that trains still is none that was left open."""

    class Inner(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                train(trainer_of([MetricsFileCallback("inner")], folder="inner", num_train_epochs=1))

    kept = Kept()
    train(trainer_of([MetricsFileCallback("toy", sinks=[kept]), Inner()]))
    assert len(kept.record.epochs) == 3
    assert kept.record.extensions["status"]["state"] == "completed"
    assert len(load_run("output/inner_training_metrics.json").epochs) == 1


@pytest.mark.parametrize(
    ("end", "state", "kind"),
    [
        ("raise ZeroDivisionError('users')", "failed", "ZeroDivisionError"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "interrupted", "SIGTERM"),
    ],
)
def test_a_process_that_ends_says_how(end, state, kind, tmp_path):
    """The interpreter's last exception is the training's; the exit code is what it would have been."""
    code = f"""
        import sys
        sys.path.insert(0, {str(SUPPORT)!r})
        import transformers
        from trainers import trainer_of
        from trackmetrics.integrations.transformers import MetricsFileCallback

        class Ends(transformers.TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == 4:
                    {end}

        trainer_of([MetricsFileCallback("toy"), Ends()]).train()
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    expected = {"ZeroDivisionError": 1, "SIGTERM": -signal.SIGTERM}[kind]
    assert done.returncode == expected, done.stderr
    file = load_run(FILE)
    assert (file.extensions["status"]["state"], file.extensions["status"]["error"]["type"]) == (state, kind)
    assert len(file.epochs) == 1


# Faults


def test_what_cannot_be_right_is_said_before_training():
    with pytest.raises(ArgumentError, match="without task="):
        MetricsFileCallback(train=[])
    with pytest.raises(RunStateError, match="give task="):
        by_trainer(MetricsFileCallback())


@pytest.mark.parametrize(
    ("broken", "costs"),
    [
        ("integrations.transformers._known", "what the trainer knows"),
        ("run.Epoch.log", "the logged loss"),
        ("run.Epoch.__enter__", "the epoch"),
        ("run.Epoch._leave", "the epoch's record"),
        ("run.Tracker._learn", "what the trainer knows"),
        ("run.Tracker.__exit__", "the end of the run"),
    ],
)
def test_a_fault_of_ours_stops_no_training(broken, costs, monkeypatch):
    def fault(*args, **kwargs):
        raise IndexError("ours")

    net = Net()
    callback = MetricsFileCallback("toy")
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(f"trackmetrics.{broken}", fault)
        trainer = trainer_of([callback], net=net)
        opened = []
        begin = callback._run.begin
        patch.setattr(callback._run, "begin", lambda *args: (begin(*args), opened.append(callback.tracker)))
        train(trainer)
    opened[0].__exit__(None, None, None) if "__exit__" in broken else None
    said = [str(item.message) for item in caught if item.category is TrackmetricsWarning]
    assert f"{costs} could not be had: IndexError('ours')" in said
    assert len(said) == len(set(said))
    assert all(map(torch.equal, net.state_dict().values(), by_trainer().state_dict().values()))


def test_the_schedule_is_found():
    kept = Kept()
    trainer = trainer_of([MetricsFileCallback("toy", sinks=[kept])], lr_scheduler_type="linear")
    train(trainer)
    training = kept.record.metadata.hyperparameters.training
    assert training["scheduler"]["name"] == "LambdaLR"
    assert training["max_grad_norm"] == CLIP
    assert training["seed"] == 42
    assert training["learning_rate"] == optimizer_of(trainer.model).defaults["lr"]
