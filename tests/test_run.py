"""A run from entering to leaving: its epochs, what it says, what it never does."""

import contextvars
import gc
import io
import json
import os
import pickle
import subprocess
import sys
import textwrap
import warnings
import weakref
from pathlib import Path

import pytest
import torch
import toy

import trackmetrics.subject
from trackmetrics import Tracker, TrackmetricsWarning, load_run, tracked_training, tracker
from trackmetrics.errors import ArgumentError, RunStateError
from trackmetrics.instruments.gradient_norm import GradientNorm
from trackmetrics.instruments.trained_parameters import TrainedParameters
from trackmetrics.instruments.training_metrics import TrainingMetrics

FILE = Path("output/t_training_metrics.json")


def fit(net, num_epochs=1, lr=0.1, train=None):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(num_epochs):
        with tracker.epoch():
            toy.train_epoch(net, optimizer, train or toy.loader())


# Epochs and where they may stand


def test_tracker_outside_a_run_says_so():
    """`tracker.epoch()` without a run names both ways to open one."""
    with pytest.raises(RunStateError, match=r"tracker.epoch was used outside a run; decorate .*Tracker\(task=\.\.\.\)"):
        tracker.epoch()


@pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")
def test_an_epoch_inside_another_is_refused():
    """Two epochs of one run can't be open at once; the outer one isn't lost."""
    with Tracker("t") as run, run.epoch(), pytest.raises(RunStateError, match="inside another epoch of the same run"):
        run.epoch().__enter__()
    assert len(run.record.epochs) == 1


@pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")
def test_an_ended_run_refuses_epochs():
    """A run can be entered once; afterwards it says that it has ended."""
    with Tracker("t") as run:
        pass
    with pytest.raises(RunStateError, match="a run that is ended"), run.epoch():
        pass
    with pytest.raises(RunStateError, match="make a new Tracker"), run:
        pass


def test_a_script_without_a_function_opens_a_run_itself():
    """`with Tracker(...)` finds model and data among the names around it."""
    model = toy.model()
    train_loader, val_loader = toy.loader(), toy.loader(10, seed=2)
    with Tracker(task="t") as run:
        fit_here = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            with run.epoch():
                toy.train_epoch(model, fit_here, train_loader)
    assert run.record.final_results.dev_accuracy == toy.accuracy(model, val_loader)
    assert run.record.final_results.train_accuracy == toy.accuracy(model, train_loader)
    assert run.path == str(FILE.absolute())


def test_a_module_level_script_is_tracked(tmp_path):
    """A script with its loop at module level, run by itself, has model and data in its globals."""
    script = textwrap.dedent(
        """
        import torch
        from torch.utils.data import DataLoader
        from trackmetrics import Tracker

        torch.manual_seed(0)
        x = torch.randn(40, 4)
        pairs = list(zip(x, (x.sum(1) > 0).long()))
        train_data = DataLoader(pairs[:30], batch_size=8, shuffle=True)
        valid_data = DataLoader(pairs[30:], batch_size=8)
        net = torch.nn.Linear(4, 2)
        sgd = torch.optim.SGD(net.parameters(), lr=0.5)
        with Tracker(task="script") as run:
            for _ in range(3):
                with run.epoch():
                    for features, classes in train_data:
                        sgd.zero_grad()
                        torch.nn.CrossEntropyLoss()(net(features), classes).backward()
                        sgd.step()
        """
    )
    path = tmp_path / "script.py"
    path.write_text(script)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, cwd=tmp_path, check=True)
    record = load_run(tmp_path / "output" / "script_training_metrics.json")
    assert len(record.epochs) == 3
    assert None not in (record.epochs[0].train_loss, record.epochs[0].dev_accuracy, record.final_results.train_accuracy)
    assert done.stdout == ""


def test_step_counting_loops_get_a_record_each_n_steps():
    """`epochs(every=4)` over 10 steps gives records of 4, 4 and 2 steps, each with its own figures."""
    model, train, dev = toy.model(), toy.loader(80, batch_size=8), toy.loader(8, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Tracker("t", train=train, dev=dev) as run, run.epochs(every=4):
        toy.train_epoch(model, optimizer, train)
    steps = [summary["steps"] for summary in run.record.extensions["gradient_norm"]["epochs"]]
    assert steps == [4, 4, 2]
    assert [epoch.epoch for epoch in run.record.epochs] == [1, 2, 3]
    assert all(epoch.dev_accuracy is not None for epoch in run.record.epochs)


def test_no_empty_record_follows_a_whole_number_of_steps():
    """Eight steps, four a record: two records, not a third without steps."""
    model, train = toy.model(), toy.loader(64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Tracker("t", train=train, dev=toy.loader(8)) as run, run.epochs(every=4):
        toy.train_epoch(model, optimizer, train)
    assert len(run.record.epochs) == 2


@pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")
@pytest.mark.parametrize("every", [0, -1, 1.5, True, "10"])
def test_a_wrong_number_of_steps_is_refused(every):
    """`every` is a whole number from 1."""
    with (
        Tracker("t", progress=False) as run,
        pytest.raises(ArgumentError, match="give a whole number of training steps"),
    ):
        run.epochs(every=every)


# Times


def test_times_come_from_the_monotonic_clock(clock):
    """The timestamp is the start in UTC; elapsed seconds add up from there, evaluation included."""
    train, dev = toy.loader(), toy.loader(8)
    model = toy.model()
    with Tracker("t", train=train, dev=dev) as run:
        for seconds in (1.25, 2.5):
            with run.epoch():
                toy.train_epoch(model, torch.optim.SGD(model.parameters(), lr=0.1), train)
                clock.advance(seconds)
                clock.date = clock.date.replace(year=1999)  # a wall clock set back changes nothing
        clock.advance(100)
    assert run.record.metadata.timestamp == "2026-01-30T22:08:22Z"
    assert [epoch.elapsed_seconds for epoch in run.record.epochs] == [1.25, 3.75]
    assert run.record.final_results.total_time_seconds == 3.75


# What is said


def test_the_file_stands_whole_after_every_epoch():
    """Inside the second epoch the file already holds the first, with results still null."""
    model, train, dev = toy.model(), toy.loader(), toy.loader(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Tracker("t") as run:
        with run.epoch():
            toy.train_epoch(model, optimizer, train)
            assert not FILE.exists()
        first = json.loads(FILE.read_text())
        with run.epoch():
            toy.train_epoch(model, optimizer, train)
            assert json.loads(FILE.read_text()) == first
    assert (len(first["epochs"]), first["final_results"], first["final_inference"]) == (1, None, None)
    assert first["extensions"]["status"]["state"] == "running"
    assert first["extensions"]["status"]["process"] == os.getpid()
    assert load_run(FILE).extensions["status"]["state"] == "completed"
    assert len(dev) == 1


def test_what_the_user_logs_wins_and_follows():
    """A logged value replaces what was observed; other names follow the record's own keys, at full precision."""
    model, train, dev = toy.model(), toy.loader(), toy.loader(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Tracker("t") as run, run.epoch() as epoch:
        toy.train_epoch(model, optimizer, train)
        epoch.log(train_loss=torch.tensor(0.5), perplexity=12.3456789)
        epoch.log(dev_accuracy=0.123456789, tags=["a", "b"])
    record = run.record.epochs[0]
    assert (record.train_loss, record.dev_accuracy) == (0.5, 0.123456789)
    written = json.loads(FILE.read_text())["epochs"][0]
    assert list(written)[-3:] == ["elapsed_seconds", "perplexity", "tags"]
    assert (written["dev_accuracy"], written["perplexity"]) == (0.1235, 12.3456789)
    assert len(dev) == 1


@pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")
@pytest.mark.parametrize("name", ["epoch", "elapsed_seconds"])
def test_names_that_collide_are_refused(name):
    """The run's own keys can't be logged."""
    with Tracker("t") as run, run.epoch() as epoch, pytest.raises(ArgumentError, match=f"log\\({name}=...\\) collides"):
        epoch.log(**{name: 1})


def test_everything_missing_is_warned_of_once(recwarn):
    """A training of which nothing can be found gives nulls, and one warning a value over two epochs."""
    warnings.simplefilter("always")
    with Tracker("t") as run:
        for _ in range(2):
            with run.epoch():
                pass
    messages = [str(item.message) for item in recwarn if item.category is TrackmetricsWarning]
    assert len(messages) == len(set(messages))
    about = [message.split(" is null")[0] for message in messages]
    assert about == [
        "dev_accuracy", "train_loss", "train_accuracy", "gradient_norm",
        "final_results.train_accuracy", "final_inference",
    ]  # fmt: skip
    assert run.record.extensions["warnings"] == messages
    assert all(item.filename == __file__ for item in recwarn if item.category is TrackmetricsWarning)
    record = run.record.epochs[0]
    assert (record.train_loss, record.train_accuracy, record.dev_accuracy, record.gradient_norm) == (None,) * 4


def test_two_models_are_not_guessed_between_and_watch_decides():
    """Two models trained together: no dev accuracy, until the user says which one is meant."""
    first, second = toy.model(), torch.nn.Linear(2, 2)
    train, dev = toy.loader(), toy.loader(8, seed=1)
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1)

    def epoch(run):
        with run.epoch():
            for features, classes in train:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(second(first(features)), classes).backward()
                optimizer.step()

    with pytest.warns(TrackmetricsWarning) as warned, Tracker("t", dev=dev) as run:
        epoch(run)
    assert "no single module in reach owns everything that was trained" in str(warned[0].message)
    assert "tracker.watch(model)" in str(warned[0].message)
    assert run.record.epochs[0].dev_accuracy is None
    both = torch.nn.Sequential(first, second)
    with Tracker("t", train=train, dev=dev) as run:
        run.watch(both)
        epoch(run)
    assert run.record.epochs[0].dev_accuracy == toy.accuracy(both, dev)


@pytest.mark.filterwarnings("ignore:final_results.train_accuracy")
def test_evaluate_and_its_savings():
    """`evaluate=` replaces the pass and is called each second epoch; the final train pass can be saved."""
    calls = []

    def evaluate(model, data):
        calls.append((model.training, torch.is_grad_enabled(), data))
        torch.rand(5)
        return 0.25

    dev = toy.loader(8)
    with Tracker("t", dev=dev, evaluate=evaluate, evaluate_every=2, final_train_accuracy=False) as run:
        fit(model := toy.model(), num_epochs=3)
    assert [epoch.dev_accuracy for epoch in run.record.epochs] == [None, 0.25, None]
    assert run.record.final_results.train_accuracy is None
    assert calls == [(False, False, dev)] * 2
    assert model.training


def test_finalize_replaces_the_final_inference():
    """`finalize=` is handed model and first dev example, and its record stands in the file."""
    seen = []

    def finalize(model, example):
        seen.append((model.training, example[1].item()))
        return {
            "example_input": "four numbers",
            "log_probs": model(example[0][None]).log_softmax(-1),
            "attention_weights": torch.full((1, 1, 1), 1.0),
        }

    dev = toy.loader(8, seed=3)
    with Tracker("t", dev=dev, finalize=finalize) as run:
        fit(net := toy.model())
    inference = load_run(FILE).final_inference
    assert inference.example_input == "four numbers"
    expected = net(dev.dataset[0][0][None]).log_softmax(-1)
    assert torch.equal(torch.from_numpy(inference.log_probs), expected.detach())
    assert seen == [(False, dev.dataset[0][1].item())]
    assert run.record.final_inference == inference


# What goes wrong


@pytest.mark.parametrize(
    ("error", "state"),
    [(ValueError("bad"), "failed"), (KeyboardInterrupt(), "interrupted"), (SystemExit(2), "interrupted")],
)
def test_an_exception_leaves_the_complete_epochs_and_its_name(error, state):
    """The epochs before it are in the file, with what ended the run; the one in progress isn't."""
    dev = toy.loader(8)
    with pytest.raises(type(error)), Tracker("t", dev=dev) as run:
        fit(net := toy.model(), num_epochs=2)
        with run.epoch():
            toy.train_epoch(net, torch.optim.SGD(net.parameters(), lr=0.1), toy.loader())
            raise error
    record = load_run(FILE)
    assert len(record.epochs) == 2
    assert record.final_results is None
    assert record.extensions["status"]["state"] == state
    assert record.extensions["status"]["error"] == {"type": type(error).__name__, "message": str(error)}


def test_a_run_that_dies_before_its_first_epoch_destroys_nothing():
    """An earlier run's file is still there, as it was."""
    FILE.parent.mkdir()
    FILE.write_text("an earlier run")
    with pytest.raises(ValueError, match="early"), Tracker("t"):
        raise ValueError("early")
    assert FILE.read_text() == "an earlier run"


@pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")
def test_an_epoch_left_by_an_exception_has_no_record():
    """A caught failure inside an epoch leaves no half record; the next epoch takes its number."""
    net, dev = toy.model(), toy.loader(8)
    with Tracker("t", dev=dev) as run:
        with pytest.raises(RuntimeError), run.epoch():
            toy.train_epoch(net, torch.optim.SGD(net.parameters(), lr=0.1), toy.loader())
            raise RuntimeError("out of memory")
        fit(net)
    assert [epoch.epoch for epoch in run.record.epochs] == [1]
    assert run.record.extensions["gradient_norm"]["steps"] == 3


@pytest.mark.parametrize(
    ("instrument", "method", "lost"),
    [
        (GradientNorm, "measure", {"gradient_norm"}),
        (TrainedParameters, "prepare", {"gradient_norm"}),
        (GradientNorm, "take", {"gradient_norm"}),
        (TrainingMetrics, "criterion_called", {"train_loss", "train_accuracy", "dev_accuracy"}),
        (TrainingMetrics, "backward_ended", {"train_loss", "train_accuracy", "dev_accuracy"}),
        (trackmetrics.subject.Subject, "_look_for_model", {"dev_accuracy"}),
        (trackmetrics.subject.Subject, "_look_for_data", set()),
    ],
)
def test_an_instrument_that_fails_costs_its_own_number(monkeypatch, instrument, method, lost):
    """A fault inside one instrument leaves the training and the other numbers as they are."""
    expected = toy.model()
    toy.train_epoch(expected, torch.optim.SGD(expected.parameters(), lr=0.1), toy.loader())
    reference = toy.model()
    dev = toy.loader(8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrackmetricsWarning)
        with Tracker("t", dev=dev) as run:
            fit(reference)
        sound = run.record.epochs[0]

        def fault(*args, **kwargs):
            raise ZeroDivisionError("injected")

        net = toy.model()
        with Tracker("t", dev=dev) as run:
            monkeypatch.setattr(instrument, method, fault)
            fit(net)
    broken = run.record.epochs[0]
    for key in ("train_loss", "train_accuracy", "dev_accuracy", "gradient_norm"):
        assert (getattr(broken, key) is None) == (key in lost), key
        if key not in lost:
            assert getattr(broken, key) == getattr(sound, key)
    assert any("injected" in message for message in run.record.extensions["warnings"])
    for parameter, untouched in zip(net.parameters(), expected.parameters()):
        assert torch.equal(parameter, untouched)


def test_warnings_made_errors_do_not_stop_training():
    """Under `-W error` the training completes, and the file says what would have been warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Tracker("t") as run:
            fit(toy.model())
    assert any("no dev set was found" in message for message in load_run(FILE).extensions["warnings"])
    assert run.record.epochs[0].train_loss is not None


def test_a_disk_that_refuses_costs_a_save_not_the_training(monkeypatch):
    """A save that fails warns once and keeps the last good file; the next epoch tries again."""
    dev, net = toy.loader(8), toy.model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    replace = os.replace

    def full(*args):
        raise OSError(28, "No space left on device")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Tracker("t", dev=dev) as run:
            for disk in (replace, full, full, replace):
                monkeypatch.setattr(os, "replace", disk)
                with run.epoch():
                    toy.train_epoch(net, optimizer, toy.loader())
                assert len(load_run(FILE).epochs) == (4 if len(run.record.epochs) == 4 else 1)
    assert sum("could not be written" in str(item.message) for item in caught) == 1
    assert [path.name for path in FILE.parent.iterdir() if path.name.endswith(".tmp")] == []


def test_nothing_of_the_run_outlives_it():
    """The model is collected when the user drops it, although the run is kept; it pickles and has no hooks."""
    net, dev = toy.model(), toy.loader(8)
    with Tracker("t", dev=dev) as run:
        fit(net)
    assert all(not parameter._post_accumulate_grad_hooks for parameter in net.parameters())
    assert not net._forward_hooks
    assert not net._forward_pre_hooks
    pickle.dumps(net)
    torch.save(net, io.BytesIO())
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None
    assert run.record.epochs[0].train_loss is not None


def test_no_parameter_hook_is_left_after_an_exception():
    """Hooks go also when the training raises."""
    net = toy.model()
    with pytest.raises(ValueError, match="stop"), Tracker("t") as run, run.epoch():
        toy.train_epoch(net, torch.optim.SGD(net.parameters(), lr=0.1), toy.loader())
        raise ValueError("stop")
    assert all(not parameter._post_accumulate_grad_hooks for parameter in net.parameters())


def test_decorating_the_function_of_one_epoch_is_noticed():
    """A function called once an epoch is decorated by mistake: the second call says what to decorate."""

    @tracked_training("t")
    def train_one_epoch(model, train, dev):
        with tracker.epoch():
            toy.train_epoch(model, torch.optim.SGD(model.parameters(), lr=0.1), train)

    model, data = toy.model(), (toy.loader(), toy.loader(8))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_one_epoch(model, *data)
        assert not any("decorate the one with the loop" in str(item.message) for item in caught)
        train_one_epoch(model, *data)
    assert any("decorate the one with the loop" in str(item.message) for item in caught)


def test_a_run_without_epochs_says_how_to_track_them():
    """A decorated function that never enters an epoch is told about `tracker.epoch()`."""

    @tracked_training("t")
    def forgets(train, dev):
        return None

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        forgets(toy.loader(), toy.loader(8))
    assert any("wrap each epoch's body in `with tracker.epoch():`" in str(item.message) for item in caught)


def test_a_test_set_among_the_arguments_gives_way_to_a_dev_set_made_inside():
    """A dev set that only the function's body has is used, and nothing is said of the test set."""
    dev = toy.loader(8, seed=4)

    @tracked_training("t", describe=lambda example: "example")
    def fit_here(train, test):
        dev_loader = dev
        net = toy.model()
        with tracker.epoch():
            toy.train_epoch(net, torch.optim.SGD(net.parameters(), lr=0.1), train)
        return net, len(dev_loader)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net, _ = fit_here(toy.loader(), toy.loader(8, seed=5))
    assert not any("test" in str(item.message).split(":")[0] for item in caught)
    assert load_run(FILE).final_results.dev_accuracy == toy.accuracy(net, dev)


@pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")
def test_two_heads_on_one_target_have_no_accuracy_anywhere():
    """Where the training's accuracy isn't clear, no head is picked for the dev set's."""
    body, main, side = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
    heads = torch.nn.ModuleList([body, main, side])
    heads.forward = lambda x: (side(body(x)), main(body(x)))
    optimizer = torch.optim.SGD(heads.parameters(), lr=0.1)
    with Tracker("t", train=toy.loader(), dev=toy.loader(8)) as run, run.epoch():
        for features, classes in toy.loader():
            aside, scores = heads(features)
            entropy = torch.nn.functional.cross_entropy
            optimizer.zero_grad()
            (entropy(scores, classes) + 0.4 * entropy(aside, classes)).backward()
            optimizer.step()
    assert run.record.epochs[0].train_loss is not None
    assert (run.record.epochs[0].train_accuracy, run.record.epochs[0].dev_accuracy) == (None, None)


def test_a_returned_average_of_the_weights_is_the_model_at_the_end():
    """Final results are those of the averaged model that the function returns; the epochs' are the trained one's."""

    @tracked_training("t")
    def fit_averaged(train, dev):
        net = toy.model()
        average = torch.optim.swa_utils.AveragedModel(net, avg_fn=lambda old, new, count: torch.zeros_like(old))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        with tracker.epoch():
            toy.train_epoch(net, optimizer, train)
            average.update_parameters(net)
            average.update_parameters(net)
        return average

    dev = toy.loader(40, seed=6)
    average = fit_averaged(toy.loader(), dev)
    record = load_run(FILE)
    assert record.final_results.dev_accuracy == toy.accuracy(average, dev)
    assert record.final_results.dev_accuracy != record.epochs[0].dev_accuracy


@pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")
def test_evaluate_is_not_called_for_a_training_set_that_is_not_there():
    """`evaluate=` ignoring its data gives no final training accuracy out of nothing."""
    net = toy.model()
    with Tracker("t", evaluate=lambda model, data: 0.5) as run, run.epoch():
        toy.train_epoch(net, torch.optim.SGD(net.parameters(), lr=0.1), toy.loader())
    assert (run.record.final_results.train_accuracy, run.record.final_results.dev_accuracy) == (None, 0.5)


def test_labels_out_of_the_trainings_range_are_not_compared():
    """A list with labels from 1 beside a loop that shifts them to 0: null, and said, not a low accuracy."""
    net = toy.model()
    train = [(features, classes + 1) for features, classes in toy.examples(24)]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Tracker("t", train=train, dev=train) as run, run.epoch():
            for features, classes in train:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(net(features), classes - 1).backward()
                optimizer.step()
    assert run.record.epochs[0].dev_accuracy is None
    assert any("no index of the 2 classes" in str(item.message) for item in caught)


# What is shown


def test_progress_is_a_line_an_epoch_on_standard_error(capsys):
    """`progress=True` writes to standard error alone; by default, off a terminal, nothing is written at all."""
    dev = toy.loader(8)
    with Tracker("t", dev=dev, progress=True):
        fit(toy.model(), num_epochs=2)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split()[0] for line in err.splitlines()] == ["epoch", "epoch", "final", "metrics"]
    with Tracker("t", dev=dev):
        fit(toy.model())
    assert capsys.readouterr() == ("", "")


def test_an_exception_that_cannot_be_shown_is_not_replaced():
    """The user's own exception comes through although its text can't be had."""

    class Odd(Exception):
        def __str__(self):
            raise ZeroDivisionError("no text")

    with pytest.raises(Odd), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Tracker("t", dev=toy.loader(8)):
            fit(toy.model())
            raise Odd
    assert load_run(FILE).extensions["status"]["error"]["type"] == "Odd"


def test_a_warning_from_inside_torch_points_at_the_users_line():
    """A record that closes in an optimizer's hook is warned of at the user's line, not at torch's."""
    net, train = toy.model(), toy.loader()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Tracker("t", train=train) as run, run.epochs(every=1):
            toy.train_epoch(net, optimizer, train)
    first = [item for item in caught if "dev_accuracy is null" in str(item.message)]
    assert [Path(item.filename).name for item in first] == ["toy.py"]


def test_before_it_begins_a_run_has_neither_record_nor_file():
    """Each says so, and why."""
    run = Tracker("t")
    with pytest.raises(RunStateError, match=r"^this run has no record: it is not begun yet, or tracking is disabled$"):
        run.record  # noqa: B018
    with pytest.raises(RunStateError, match=r"^this run has no file: it is not begun yet, or tracking is disabled$"):
        run.path  # noqa: B018


def test_a_run_that_is_left_in_another_context_is_in_progress_in_neither():
    """As some notebooks run each cell in a context of its own."""
    run = Tracker("t", train=[], dev=[])
    entered = contextvars.copy_context()
    entered.run(run.__enter__)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.__exit__(None, None, None)
    assert not [warning for warning in caught if "the end of the run" in str(warning.message)]
    for context in (entered, contextvars.copy_context()):
        with pytest.raises(RunStateError, match=r"tracker\.record was used outside a run"):
            context.run(lambda: tracker.record)
    with Tracker("t", train=[], dev=[]) as another:
        assert tracker.path == another.path
        with another.epoch() as epoch:
            epoch.log(train_loss=0.5, train_accuracy=0.5, dev_accuracy=0.5, gradient_norm=0.5)
