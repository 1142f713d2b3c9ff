"""The decorator keeps what it decorates, and makes each call a run of its own."""

import asyncio
import copy
import inspect
import json
import pickle
import threading
from pathlib import Path

import pytest
import torch
import toy

from trackmetrics import Tracker, TrackmetricsError, load_run, tracked_training, tracker
from trackmetrics.errors import ArgumentError, InvalidNameError, OutputError, PathInUseError, RunStateError


def file_of(part, folder="output"):
    return Path(folder) / f"{part}_training_metrics.json"


def train(num_epochs, train, dev):
    """Train a linear model."""
    net = toy.model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(num_epochs):
        with tracker.epoch():
            toy.train_epoch(net, optimizer, train)
    return net


def test_signature_name_and_docs_are_kept():
    """The decorated function shows the name, docs, module and signature of its own."""
    tracked = tracked_training("t")(train)
    assert (tracked.__name__, tracked.__doc__, tracked.__module__) == (train.__name__, train.__doc__, train.__module__)
    assert inspect.signature(tracked) == inspect.signature(train)
    assert tracked.__wrapped__ is train


@pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")
def test_return_value_is_the_functions_own_object():
    """What the function returns comes back as the same object."""
    marker = object()

    @tracked_training("t")
    def returns():
        with tracker.epoch() as epoch:
            epoch.log(train_loss=1.0, train_accuracy=1.0, dev_accuracy=1.0, gradient_norm=1.0)
        return marker

    assert returns() is marker


@pytest.mark.parametrize("error", [ValueError("bad batch"), KeyboardInterrupt(), SystemExit(3)])
def test_the_users_exception_comes_through_untouched(error):
    """The very exception that the function raises leaves the decorated one."""

    @tracked_training("t")
    def fails(train):
        with tracker.epoch():
            raise error

    with pytest.raises(type(error)) as caught:
        fails(toy.loader())
    assert caught.value is error
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_call_that_does_not_fit_raises_the_functions_own_error():
    """A missing argument is reported as the interpreter does undecorated, and no file is made."""
    with pytest.raises(TypeError) as plain:
        train(1)
    with pytest.raises(TypeError) as tracked:
        tracked_training("t")(train)(1)
    assert str(tracked.value) == str(plain.value)
    assert not Path("output").exists()


class Trainer:
    """Each kind of function in a class."""

    @tracked_training("method")
    def method(self, train, dev):
        return self, train_plain(train, dev)

    @staticmethod
    @tracked_training("static_inside")
    def static_inside(train, dev):
        return train_plain(train, dev)

    @tracked_training("static_outside")
    @staticmethod
    def static_outside(train, dev):
        return train_plain(train, dev)

    @classmethod
    @tracked_training("class_inside")
    def class_inside(cls, train, dev):
        return cls, train_plain(train, dev)

    @tracked_training("class_outside")
    @classmethod
    def class_outside(cls, train, dev):
        return cls, train_plain(train, dev)


def train_plain(train, dev):
    net = toy.model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with tracker.epoch():
        toy.train_epoch(net, optimizer, train)
    return net


@pytest.mark.parametrize("kind", ["method", "static_inside", "static_outside", "class_inside", "class_outside"])
def test_methods_of_each_kind_keep_their_kind(kind):
    """A method is bound to its object, a class method to its class, a static one to nothing; each has its file."""
    trainer = Trainer()
    result = getattr(trainer, kind)(toy.loader(), dev=toy.loader(8, seed=1))
    owner = {"m": trainer, "c": Trainer}.get(kind[0])
    if owner is not None:
        assert result[0] is owner
    record = load_run(file_of(kind))
    assert record.epochs[0].train_loss is not None
    assert record.final_results is not None
    assert "self" not in record.metadata.hyperparameters.training


@tracked_training("pickled")
def pickled(train, dev):
    return train_plain(train, dev)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda function: pickle.loads(pickle.dumps(function))])
def test_a_decorated_function_is_pickled_and_copied_as_any_function_is(again):
    """By its name, as what starts processes wants it; a copy is the function itself, and a method's has its object."""
    assert again(pickled) is pickled
    assert b"trackmetrics" not in pickle.dumps(pickled)
    trainer = Trainer()
    trainer.mark = 7
    for kind in ("method", "static_inside", "static_outside", "class_inside", "class_outside"):
        for holder in (Trainer, trainer):
            if (holder, kind) != (Trainer, "method"):
                bound = again(getattr(holder, kind))
                result = bound(toy.loader(), dev=toy.loader(8, seed=1))
                owner = result[0] if isinstance(result, tuple) else None
                assert owner is None or owner is Trainer or owner.mark == 7
    assert again(Trainer.method)(trainer, toy.loader(), toy.loader(8, seed=1))[0] is trainer
    assert again({"fit": pickled})["fit"] is pickled


def test_a_coroutine_stays_a_coroutine():
    """An async function is awaited as before, and tracked while it runs; two of them interleave."""

    @tracked_training("async", part="{name}")
    async def train_async(name, lr, train, dev):
        net = toy.model()
        optimizer = torch.optim.SGD(net.parameters(), lr=lr)
        for _ in range(2):
            with tracker.epoch():
                for batch in train:
                    toy.train_epoch(net, optimizer, [batch])
                    await asyncio.sleep(0)
        return name

    assert inspect.iscoroutinefunction(train_async)

    async def both():
        data = toy.loader(), toy.loader(8, seed=1)
        return await asyncio.gather(train_async("a", 0.1, *data), train_async("b", 0.5, *data))

    assert asyncio.run(both()) == ["a", "b"]
    first, second = load_run(file_of("a")), load_run(file_of("b"))
    assert first.metadata.hyperparameters.training["learning_rate"] == 0.1
    assert second.metadata.hyperparameters.training["learning_rate"] == 0.5
    for run, lr in ((first, 0.1), (second, 0.5)):
        assert [epoch.train_loss for epoch in run.epochs] == pytest.approx(losses_by_hand(lr, 2), abs=5e-5)
        assert run.extensions["gradient_norm"]["steps"] == 6


def losses_by_hand(lr, num_epochs):
    """Each epoch's mean loss per example, by a loop of its own."""
    net = toy.model()
    means = []
    for _ in range(num_epochs):
        total = count = 0.0
        for features, classes in toy.loader():
            loss = torch.nn.functional.cross_entropy(net(features), classes)
            total, count = total + loss.item() * len(classes), count + len(classes)
            grads = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for parameter, grad in zip(net.parameters(), grads):
                    parameter -= lr * grad
        means.append(total / count)
    return means


def test_generators_are_refused_when_decorated():
    """A generator's body runs when its caller likes, so it can't be a run; the message says what to do."""

    def batches(train):
        yield from train

    with pytest.raises(ArgumentError, match=r"batches is a generator.*decorate the function that goes through it"):
        tracked_training("t")(batches)


def test_each_call_is_a_run_of_its_own():
    """A second call starts from epoch 1 and replaces the first one's file."""
    tracked = tracked_training("t")(train)
    data = toy.loader(), toy.loader(8, seed=1)
    tracked(3, *data)
    tracked(2, *data)
    assert [epoch.epoch for epoch in load_run(file_of("t")).epochs] == [1, 2]


def test_two_runs_in_two_threads_do_not_mix():
    """Each thread's file has the numbers of its own training."""
    tracked = tracked_training("thread", part="{name}")(train_named)
    barrier = threading.Barrier(2)
    errors = []

    def work(name, lr):
        try:
            tracked(name, lr, toy.loader(), toy.loader(8, seed=1), barrier)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=item) for item in (("a", 0.1), ("b", 0.5))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for name, lr in (("a", 0.1), ("b", 0.5)):
        losses = [epoch.train_loss for epoch in load_run(file_of(name)).epochs]
        assert losses == pytest.approx(losses_by_hand(lr, 4), abs=5e-5)


def train_named(name, lr, train, dev, barrier):
    net = toy.model()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(4):
        with tracker.epoch():
            for batch in train:
                barrier.wait()
                toy.train_epoch(net, optimizer, [batch])
    return net


def test_a_run_inside_another_is_its_own():
    """The inner run's steps are not the outer's; after it, `tracker` is the outer run again."""

    @tracked_training("outer")
    def search(train, dev):
        net = toy.model(seed=5)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with tracker.epoch():
            toy.train_epoch(net, optimizer, train)
            tracked_training("inner")(globals()["train"])(2, train, dev)
            toy.train_epoch(net, optimizer, train)
        return net

    search(toy.loader(), toy.loader(8, seed=1))
    outer, inner = load_run(file_of("outer")), load_run(file_of("inner"))
    assert outer.extensions["gradient_norm"]["steps"] == 6
    assert inner.extensions["gradient_norm"]["steps"] == 6
    assert [epoch.train_loss for epoch in inner.epochs] == pytest.approx(losses_by_hand(0.1, 2), abs=5e-5)


@pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")
def test_a_parameter_named_tracker_is_filled_in():
    """A function that asks for `tracker` gets its own run; a caller who gives one is left alone."""

    @tracked_training("t")
    def asks(train, dev, tracker=None):
        if isinstance(tracker, Tracker):
            with tracker.epoch() as epoch:
                epoch.log(train_loss=1.0, train_accuracy=1.0, dev_accuracy=1.0, gradient_norm=1.0)
        return tracker

    run = asks(toy.loader(), toy.loader(8))
    assert isinstance(run, Tracker)
    assert run.record.epochs[0].train_loss == 1.0
    assert asks(toy.loader(), toy.loader(8), tracker="mine") == "mine"
    assert list(inspect.signature(asks).parameters) == ["train", "dev", "tracker"]


def test_part_names_the_file_by_the_calls_arguments():
    """`part` may be a format over the arguments, defaults included, or a function of them."""

    def fold(num_epochs, train, dev, fold=3):
        return globals()["train"](num_epochs, train, dev)

    data = toy.loader(), toy.loader(8, seed=1)
    tracked_training("t", part="fold{fold}")(fold)(1, *data)
    tracked_training("t", part=lambda num_epochs, *rest: f"of{num_epochs}")(fold)(1, *data)
    assert file_of("fold3").exists()
    assert file_of("of1").exists()
    assert load_run(file_of("fold3")).metadata.task == "t"


def test_output_dir_may_be_worked_out_from_the_arguments():
    """`output_dir` may be a function that is called with the call's arguments."""

    def into(num_epochs, train, dev, folder):
        return globals()["train"](num_epochs, train, dev)

    tracked = tracked_training("t", output_dir=lambda *args, folder: folder)(into)
    tracked(1, toy.loader(), toy.loader(8, seed=1), folder="elsewhere")
    assert file_of("t", "elsewhere").exists()


def test_train_and_dev_may_be_named_parameters():
    """`train=` and `dev=` name parameters whose own names say nothing."""

    @tracked_training("t", train="first", dev="second")
    def fit(first, second):
        return train_plain(first, second)

    net = fit(toy.loader(), toy.loader(8, seed=1))
    record = load_run(file_of("t"))
    assert record.final_results.dev_accuracy == toy.accuracy(net, toy.loader(8, seed=1))
    assert record.final_results.train_accuracy == pytest.approx(toy.accuracy(net, toy.loader()), abs=5e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dev": "devv"}, r"dev='devv' names no parameter of train\(num_epochs, train, dev\); give one of its names"),
        ({"part": "fold{fold}"}, r"part='fold\{fold\}' names 'fold', which is no parameter of train"),
        ({"parts": "x"}, r"'parts' is no option; the options are part, output_dir, train, dev"),
        ({"evaluate_every": 0}, r"evaluate_every is 0, of type int; give a whole number of epochs, 1 or more"),
    ],
)
def test_a_wrong_option_is_refused_when_decorating(options, message):
    """What can't be right is said at once, with the value and the way to mend it."""
    with pytest.raises(ArgumentError, match=message):
        tracked_training("t", **options)(train)


@pytest.mark.parametrize("task", ["", "  ", "../x", "a/b", "a\\b", ".hidden", "x\n"])
def test_a_task_that_is_no_name_is_refused(task):
    """A task that can't be part of a file's name is refused before any training."""
    with pytest.raises(InvalidNameError):
        tracked_training(task)(train)


def test_a_forgotten_task_is_said_plainly():
    """`@tracked_training` without a call is a likely slip, and is named."""
    with pytest.raises(ArgumentError, match=r"write @tracked_training\(task="):
        tracked_training(train)


def test_an_unusable_folder_is_refused_before_training():
    """The function isn't entered where its file can't be written."""
    Path("output").write_text("in the way")
    entered = []

    @tracked_training("t")
    def fit(train):
        entered.append(True)

    with pytest.raises(OutputError, match=r"the output folder .*output is a file; choose an output_dir="):
        fit(toy.loader())
    assert not entered


def test_two_live_runs_on_one_path_are_refused():
    """The second is refused before it trains, and the first goes on and completes."""

    @tracked_training("t")
    def outer(train, dev):
        net = train_plain(train, dev)
        with pytest.raises(PathInUseError, match=r"another live run writes .*t_training_metrics.json \(process \d+ on"):
            tracked_training("t")(globals()["train"])(1, train, dev)
        return net

    outer(toy.loader(), toy.loader(8, seed=1))
    assert load_run(file_of("t")).extensions["status"]["state"] == "completed"


def test_every_error_of_ours_is_a_trackmetrics_error():
    """One class catches them all."""
    for kind in (ArgumentError, InvalidNameError, OutputError, PathInUseError, RunStateError):
        assert issubclass(kind, TrackmetricsError)


def test_training_is_bit_identical_to_the_undecorated_function():
    """Weights after a tracked training equal those of the same function untracked, to the last bit."""

    def fit(train, dev):
        torch.manual_seed(3)
        net = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(), torch.nn.Linear(8, 2)
        )
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        for _ in range(3):
            with tracker.epoch():
                toy.train_epoch(net, optimizer, train)
        return net

    def data():
        return toy.loader(shuffle=True, generator=torch.Generator().manual_seed(1)), toy.loader(8, seed=1)

    tracked = tracked_training("t")(fit)(*data())
    after = torch.rand(3)
    with Silent():
        plain = fit(*data())
    assert torch.equal(after, torch.rand(3))
    for (name, value), (_, expected) in zip(tracked.state_dict().items(), plain.state_dict().items()):
        assert torch.equal(value, expected), name
    copy.deepcopy(tracked)


class Silent:
    """A run in which `tracker` does nothing: the function as if it had never been decorated."""

    def __enter__(self):
        self._patch = pytest.MonkeyPatch()
        self._patch.setenv("TRACKMETRICS_DISABLED", "1")
        self._run = Tracker("untracked").__enter__()

    def __exit__(self, *exc):
        self._run.__exit__(*exc)
        self._patch.undo()


def test_disabled_it_does_nothing_at_all(monkeypatch):
    """With TRACKMETRICS_DISABLED=1 the function runs, and neither file nor folder is made."""
    monkeypatch.setenv("TRACKMETRICS_DISABLED", "1")
    net = tracked_training("t")(train)(1, toy.loader(), toy.loader(8))
    assert isinstance(net, torch.nn.Linear)
    assert not Path("output").exists()


def test_the_file_is_strict_json_in_the_seeds_order():
    """A parser that knows no NaN reads it, and the keys stand in the order of the format."""
    tracked_training("t", extensions=False)(train)(1, toy.loader(), toy.loader(8, seed=1))

    def refuse(constant):
        raise AssertionError(constant)

    data = json.loads(file_of("t").read_text(), parse_constant=refuse)
    assert list(data) == ["metadata", "epochs", "final_results", "final_inference"]
    assert list(data["epochs"][0]) == [
        "epoch", "train_loss", "train_accuracy", "dev_accuracy", "gradient_norm", "elapsed_seconds",
    ]  # fmt: skip


@pytest.mark.parametrize("given", [dict, 5, staticmethod(dict)], ids=["class", "number", "static class"])
def test_only_functions_are_decorated(given):
    """What is no function is named, before anything is called."""
    with pytest.raises(ArgumentError) as caught:
        tracked_training("t")(given)
    assert str(caught.value) == f"tracked_training decorates a function, and was given {given!r}"


def test_a_coroutines_call_that_does_not_fit_raises_its_own_error():
    """As without the decorator, and no run begins."""

    async def later(num_epochs):
        raise AssertionError("never called")

    def own_error(function):
        with pytest.raises(TypeError) as caught:
            asyncio.run(function(epochs=2))
        return str(caught.value)

    assert own_error(tracked_training("t")(later)) == own_error(later)
    assert not Path("output").exists()
