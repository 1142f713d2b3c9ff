"""Where model and data stand: found by what is trained and by name, in each place where a program keeps them."""

import os
import re
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from trackmetrics import Tracker, TrackmetricsWarning, load_run, tracked_training, tracker
from trackmetrics.instruments.discovery import (
    DEV_ROLES,
    Scope,
    find_data,
    find_model,
    looks_like_data,
    model_in,
    unwrapped,
)

PAIRS = [(1, 2)]
LOADER = toy.loader()

# Data by its name


@pytest.mark.parametrize(
    "name",
    [
        "train",
        "train_loader",
        "trainloader",
        "train_dataloader",
        "train_data_loader",
        "train_data",
        "train_ds",
        "train_dl",
        "train_set",
        "trainset",
        "train_dataset",
        "train_examples",
        "train_exs",
        "train_split",
        "train_iter",
        "training",
        "training_data",
        "training_set",
        "_train",
        "TRAIN",
        "TrainLoader",
        "train1",
        "train_loader_2",
        "loader_train",
        "data_loader_train",
        "dl_train",
        "training_batches",
    ],
)
def test_a_training_set_is_known_by_its_name(name):
    """Every usual name of a training set is one, and none of a dev set."""
    scope = Scope({name: PAIRS})
    assert [found.name for found in find_data(scope, ["train"])] == [name]
    assert find_data(scope, [*DEV_ROLES, "test"]) == []


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("dev", "dev"),
        ("dev_loader", "dev"),
        ("dev_exs", "dev"),
        ("development_set", "dev"),
        ("val", "val"),
        ("val_ds", "val"),
        ("val_loader", "val"),
        ("valloader", "val"),
        ("valset", "val"),
        ("valid", "valid"),
        ("valid_loader", "valid"),
        ("validloader", "valid"),
        ("validation_data", "valid"),
        ("eval", "eval"),
        ("eval_dataset", "eval"),
        ("evaluation_set", "eval"),
        ("ds_val", "val"),
    ],
)
def test_a_dev_set_is_known_by_its_name(name, role):
    """Every usual name of a dev set is one, and none of a training or test set."""
    scope = Scope({name: PAIRS})
    assert [(found.name, found.role) for found in find_data(scope, DEV_ROLES)] == [(name, role)]
    assert find_data(scope, ["train", "test"]) == []


@pytest.mark.parametrize(
    "name",
    [
        "train_losses",
        "train_loss_list",
        "val_acc",
        "val_accs",
        "train_steps",
        "trained",
        "trainer",
        "training_args",
        "dev_accuracies",
        "evaluate",
        "evaluator",
        "validate",
        "devices",
        "device",
        "values",
        "value",
        "valley",
        "testimony",
        "contest",
        "retrain",
        "evals_result",
        "test_names",
        "interval",
        "pretrain_x",
        "train_metrics",
        "val_history",
    ],
)
def test_other_names_are_no_data(name):
    """A name that merely begins like a set's is none, whatever it holds."""
    assert find_data(Scope({name: PAIRS}), ["train", *DEV_ROLES, "test"]) == []


class Callback:
    def __call__(self):
        pass

    def __iter__(self):
        return iter([])


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.5,
        "a path",
        b"bytes",
        {"a": 1},
        [],
        [0.5, 0.4],
        ["a", "b"],
        torch.ones(3),
        np.float64(3),
        torch.device("cpu"),
        nn.Linear(1, 1),
        nn.Sequential(nn.Linear(1, 1)),
        torch,
        list,
        lambda: None,
        Callback(),
        SimpleNamespace(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_values_are_no_data(value):
    """Numbers, texts, tensors, lists of losses, functions, models: no data set, whatever their name."""
    assert not looks_like_data(value)
    assert find_data(Scope({"train": value, "val": value}), ["train", "val"]) == []


@pytest.mark.parametrize(
    "value",
    [
        LOADER,
        TensorDataset(torch.ones(3)),
        PAIRS,
        tuple(PAIRS),
        (torch.ones(2), torch.ones(2)),
        iter(PAIRS),
        [{"a": 1}],
    ],
    ids=lambda value: type(value).__name__,
)
def test_sets_of_every_form_are_data(value):
    """Loaders, datasets, lists, columns; iterators too, so that the run can say why it can't read them."""
    assert looks_like_data(value)


def _names(scope, roles):
    return [found.name for found in find_data(scope, roles)]


def test_places_come_before_roles_and_roles_before_forms():
    """Arguments, locals, `self`; in each dev before val before valid before eval; of those, loaders first."""
    owner = SimpleNamespace(dev_loader=toy.loader())
    scope = Scope(
        {"val": [(1, 1)], "dev_data": [(2, 2)], "dev_loader": toy.loader()},
        {"dev": [(3, 3)], "self": owner},
        {"dev_set": [(4, 4)], "eval_set": [(5, 5)], "valid_set": [(6, 6)]},
    )
    assert _names(scope, DEV_ROLES) == ["dev_loader", "dev_data", "val", "dev", "dev_loader"]


def test_globals_count_only_where_nothing_nearer_has_the_role():
    """A notebook's or module's own sets are no substitute for one at hand that can't be read."""
    far = {"dev_set": [(4, 4)], "eval_set": [(5, 5)], "valid_set": [(6, 6)]}
    assert _names(Scope({}, {"train": PAIRS}, far), DEV_ROLES) == ["dev_set", "valid_set", "eval_set"]
    assert _names(Scope({"val": [(1, 1)]}, {}, far), DEV_ROLES) == ["val"]


def test_a_head_is_passed_over_for_the_model_with_its_frozen_rest():
    """What is evaluated is the whole that was called, not the part of it that was trained."""
    head = nn.Linear(2, 2)
    frozen = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), head)
    scope = Scope({}, {"head": head, "model": frozen})
    assert find_model(scope, _leaves(head)) is frozen
    left_out = nn.Sequential(nn.Linear(2, 2), head)  # its other parameters get gradients, and no optimizer
    left_out(torch.ones(1, 2)).sum().backward()
    assert find_model(Scope({}, {"head": head, "model": left_out}), _leaves(head)) is left_out


def test_a_set_under_two_names_is_found_once():
    """The same object in two places counts where it stands first."""
    assert _names(Scope({"train_data": PAIRS}, {"train": PAIRS}), ["train"]) == ["train_data"]


@pytest.mark.parametrize("name", ["dataloaders", "loaders", "image_datasets", "data", "splits"])
def test_sets_in_a_dict_are_found_by_their_keys(name):
    """`dataloaders["train"]` is a training set; a history of numbers, or of tensors by another name, is none."""
    loaders = {"train": LOADER, "val": PAIRS, "sizes": 3}
    scope = Scope({}, {name: loaders, "history": {"train": [torch.ones(1)], "val": [torch.ones(1)]}})
    assert _names(scope, ["train"]) == [f"{name}['train']"]
    assert _names(scope, DEV_ROLES) == [f"{name}['val']"]


# The model by what is trained


def _leaves(*modules):
    return [parameter for module in modules for parameter in module.parameters()]


def test_the_model_is_the_smallest_that_owns_all_that_is_trained():
    """Neither a part of it, nor a copy, nor a bigger one around it."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    around = nn.Sequential(model, nn.Linear(2, 2))
    copy = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    scope = Scope({}, {"copy": copy, "around": around, "part": model[0], "model": model})
    assert find_model(scope, _leaves(model)) is model
    assert find_model(scope, _leaves(model[0])) is model[0]
    assert find_model(scope, _leaves(around)) is around
    assert find_model(scope, _leaves(model, copy)) is None
    assert find_model(scope, []) is None


@pytest.mark.parametrize("place", ["arguments", "locals", "self", "globals"])
@pytest.mark.parametrize("depth", ["itself", "attribute", "dict", "list"])
def test_a_model_is_found_in_every_place_and_one_deep(place, depth):
    """As a parameter, local, attribute of `self` or global: itself, or held by an object, dict or list there."""
    model = toy.model()
    held = {
        "itself": model,
        "attribute": SimpleNamespace(net=model),
        "dict": {"net": model},
        "list": [model],
    }[depth]
    spaces = {"arguments": {}, "locals": {}, "globals": {}}
    if place == "self":
        spaces["locals"] = {"self": SimpleNamespace(thing=held)}
    else:
        spaces[place] = {"thing": held}
    assert find_model(Scope(**spaces), _leaves(model)) is model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        lambda model: (model, [0.5]),
        lambda model: [0.5, model],
        lambda model: {"model": model, "history": [0.5]},
        lambda model: SimpleNamespace(model=model),
    ],
    ids=["itself", "tuple", "list", "dict", "object"],
)
def test_a_returned_model_is_found_in_what_holds_it(wrap):
    """The return value is the model, or holds it one level deep."""
    model = toy.model()
    assert model_in(wrap(model)) == [model]


@pytest.mark.parametrize("result", [None, 0.5, "text", [0.5], {"loss": 1}])
def test_other_return_values_hold_no_model(result):
    """Nothing is found in plain values."""
    assert model_in(result) == []


def test_wrappers_are_taken_off():
    """DataParallel and torch.compile wrap a model; a user's own attribute `module` doesn't."""
    model = toy.model()

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = model

    own = Own()
    assert unwrapped(nn.DataParallel(model)) is model
    assert unwrapped(torch.compile(nn.DataParallel(model))) is model
    assert unwrapped(own) is own


# In a run


def _fit(model, optimizer, batches):
    toy.train_epoch(model, optimizer, batches)


def _sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1)


def _one_epoch(body):
    with tracker.epoch():
        body()


def _check(record, model):
    """Final results are of that model, over the toy's seeds 1 (training) and 2 (dev)."""
    assert record.final_results.train_accuracy == pytest.approx(toy.accuracy(model, toy.loader(seed=1)), abs=1e-12)
    assert record.final_results.dev_accuracy == pytest.approx(toy.accuracy(model, toy.loader(seed=2)), abs=1e-12)
    assert record.epochs[-1].dev_accuracy == record.final_results.dev_accuracy
    assert record.final_inference is not None


def test_model_and_data_among_the_functions_parameters():
    """A decorated function is handed all three; the epoch itself runs in a helper that sees none of them."""
    net, runs = toy.model(), []

    @tracked_training("task")
    def train_it(net, train, dev, tracker):
        runs.append(tracker)
        _one_epoch(lambda: _fit(net, _sgd(net), train))

    train_it(net, toy.loader(seed=1), toy.loader(seed=2))
    _check(runs[0].record, net)


def test_model_and_data_among_the_locals():
    """A `main()` with local loaders."""

    def main():
        train_loader, val_loader = toy.loader(seed=1), toy.loader(seed=2)
        net = toy.model()
        optimizer = _sgd(net)
        with Tracker("task") as run:
            for _ in range(2):
                with run.epoch():
                    _fit(net, optimizer, train_loader)
        return run, net, val_loader

    run, net, _ = main()
    _check(run.record, net)


def test_model_and_data_on_self():
    """A trainer class with a method that is decorated."""

    class Trainer:
        def __init__(self):
            self.net = toy.model()
            self.train_loader, self.val_loader = toy.loader(seed=1), toy.loader(seed=2)
            self.run = None

        @tracked_training("task")
        def fit(self, tracker):
            self.run = tracker
            optimizer = _sgd(self.net)
            with tracker.epoch():
                _fit(self.net, optimizer, self.train_loader)

    trainer = Trainer()
    trainer.fit()
    _check(trainer.run.record, trainer.net)


SCRIPT = """
import warnings
import toy, torch
from trackmetrics import Tracker
warnings.filterwarnings("ignore", ".*the dev set is 'test_loader'")

train_loader, {dev}_loader = toy.loader(seed=1), toy.loader(seed=2)
test_name = "test set"
val_accuracies = [0.5]
def evaluate(): ...
model = toy.model()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
with Tracker("script") as run:
    for epoch in range(2):
        with run.epoch():
            toy.train_epoch(model, optimizer, train_loader)
print(toy.accuracy(model, toy.loader(seed=1)), toy.accuracy(model, toy.loader(seed=2)))
"""


@pytest.mark.parametrize("dev", ["dev", "test"])
def test_model_and_data_at_module_level(dev, tmp_path):
    """A script without any function finds its globals."""
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT.format(dev=dev)))
    path = os.pathsep.join([os.path.dirname(toy.__file__), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "error::trackmetrics.TrackmetricsWarning", "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = load_run(tmp_path / "output" / "script_training_metrics.json").final_results
    printed = [round(float(word), 4) for word in done.stdout.split()]
    assert [results.train_accuracy, results.dev_accuracy] == printed


def test_a_model_called_by_its_forward_is_found():
    """Calling `model.forward(x)` passes by every hook of the module, and all the same it is found."""
    train_loader, dev_loader = toy.loader(seed=1), toy.loader(seed=2)
    net = toy.model()
    optimizer = _sgd(net)
    with Tracker("task") as run, run.epoch():
        for features, classes in train_loader:
            optimizer.zero_grad()
            F.cross_entropy(net.forward(features), classes).backward()
            optimizer.step()
    _check(run.record, net)
    assert dev_loader is not None


@pytest.mark.parametrize("holder", ["tuple", "dict", "object"])
def test_a_model_that_only_comes_back_is_found(holder):
    """Out of reach while it trained, the model is found in what the function returns."""

    def hidden():
        model = toy.model()
        optimizer = _sgd(model)
        return lambda batches: toy.train_epoch(model, optimizer, batches), lambda: model

    runs = []

    @tracked_training("task", evaluate_every=9)
    def train_hidden(train, dev, tracker):
        runs.append(tracker)
        step, get = hidden()
        with tracker.epoch():
            step(train)
        model = get()
        return {"tuple": (model, 1), "dict": {"net": model}, "object": SimpleNamespace(net=model)}[holder]

    result = train_hidden(toy.loader(seed=1), toy.loader(seed=2))
    (model,) = model_in(result)
    results = runs[0].record.final_results
    assert results.dev_accuracy == pytest.approx(toy.accuracy(model, toy.loader(seed=2)), abs=1e-12)


@pytest.mark.parametrize("rebound", ["reloaded", "wrapped", "in each epoch"])
def test_a_model_bound_anew_is_followed(rebound):
    """The final results are those of the model that is returned: a checkpoint loaded anew, or a wrapper."""
    runs = []

    @tracked_training("task")
    def train_it(train, dev, tracker):
        runs.append(tracker)
        net = toy.model()
        optimizer = _sgd(net)
        for _ in range(2):
            with tracker.epoch():
                toy.train_epoch(net, optimizer, train)
                if rebound == "in each epoch":
                    net = nn.DataParallel(net.module if isinstance(net, nn.DataParallel) else net)
        if rebound == "reloaded":
            return toy.model(seed=5)  # another object of the class, as a checkpoint is loaded
        return nn.DataParallel(net) if rebound == "wrapped" else net

    returned = train_it(toy.loader(seed=1), toy.loader(seed=2))
    results = runs[0].record.final_results
    assert results.dev_accuracy == pytest.approx(toy.accuracy(returned, toy.loader(seed=2)), abs=1e-12)
    assert results.train_accuracy == pytest.approx(toy.accuracy(returned, toy.loader(seed=1)), abs=1e-12)
    assert runs[0].record.metadata.hyperparameters.model["class"] == "Linear"


def _train_two(one, two, watched=None):
    train, dev = toy.loader(seed=1), toy.loader(seed=2)
    optimizer = torch.optim.SGD([*one.parameters(), *two.parameters()], 0.1)
    with Tracker("task", train=train, dev=dev) as run:
        if watched:
            run.watch(watched)
        for _ in range(2):
            with run.epoch():
                for features, classes in train:
                    optimizer.zero_grad()
                    (F.cross_entropy(one(features), classes) + two(features).square().mean()).backward()
                    optimizer.step()
    return run


def test_two_models_are_null_and_said_once():
    """No single module owns what was trained; one warning for each value names `tracker.watch`."""
    with pytest.warns(TrackmetricsWarning) as warned:
        run = _train_two(toy.model(), toy.model(1))
    said = [str(item.message) for item in warned]
    assert [epoch.dev_accuracy for epoch in run.record.epochs] == [None, None]
    assert run.record.final_results.dev_accuracy is None
    assert run.record.final_inference is None
    about = [text for text in said if text.startswith("dev_accuracy")]
    assert len(about) == 1
    assert re.search(r"no single module .* `tracker\.watch\(model\)`", about[0])


def test_watching_says_which_of_two_models():
    """`tracker.watch` settles it: all that is evaluated is that model."""
    one, two = toy.model(), toy.model(1)
    run = _train_two(one, two, watched=one)
    _check(run.record, one)


@pytest.fixture(scope="module")
def compiler():
    """The compiler at work: from its first use on, it has a patch of its own on `nn.Module.__init__`."""
    torch.compile(nn.Linear(1, 1), backend="eager")(torch.ones(1, 1))
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("compiler")
def test_a_compiled_model_is_found_and_evaluated():
    """A model behind `torch.compile` gives the accuracy of the model inside, and its hyperparameters."""
    train, dev = toy.loader(seed=1), toy.loader(seed=2)
    inner = toy.model()
    net = torch.compile(inner, backend="eager")
    with Tracker("task", train=train, dev=dev) as run, run.epoch():
        toy.train_epoch(net, _sgd(net), train)
    _check(run.record, inner)
    assert run.record.metadata.hyperparameters.model["class"] == "Linear"


def test_a_test_set_is_the_last_resort_and_said():
    """With nothing else in reach the test set serves, and one warning says so; beside a dev set it is left alone."""
    net = toy.model()
    optimizer = _sgd(net)

    def main(train_loader, test_loader):
        with Tracker("task") as run:
            for _ in range(2):
                with run.epoch():
                    _fit(net, optimizer, train_loader)
        return run

    train_loader, test_loader = toy.loader(seed=1), toy.loader(seed=2)
    with pytest.warns(TrackmetricsWarning) as warned:
        run = main(train_loader, test_loader)
    said = [str(item.message) for item in warned if "test_loader" in str(item.message)]
    assert len(said) == 1
    assert "the dev set is 'test_loader'" in said[0]
    assert "give dev=" in said[0]
    _check(run.record, net)

    valid_loader = DataLoader(test_loader.dataset, 5)
    with Tracker("task") as run, run.epoch():  # a warning would be an error
        _fit(net, optimizer, train_loader)
    assert valid_loader.batch_size == 5
    _check(run.record, net)


def test_without_any_set_the_accuracies_are_null_and_say_which_names_would_do():
    """One warning each, with the names that would have been found and the option that says it."""
    net = toy.model()
    batches = list(toy.loader(seed=1))
    with pytest.warns(TrackmetricsWarning) as warned, Tracker("task") as run, run.epoch():
        _fit(net, _sgd(net), batches)
    said = {str(item.message).split(" ")[0]: str(item.message) for item in warned}
    assert "give `dev=`" in said["dev_accuracy"]
    assert "dev, val_loader" in said["dev_accuracy"]
    assert "give `train=`" in said["final_results.train_accuracy"]
    assert run.record.final_results.train_accuracy is None
