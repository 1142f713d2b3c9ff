"""Hyperparameters by themselves: plain values under the names that were fixed, and no secret, model or data set."""

import argparse
import collections
import copy
import dataclasses
import functools
import gc
import pathlib
import queue

import pytest
import torch
import toy
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from trackmetrics import Tracker, tracked_training, tracker
from trackmetrics.instruments.events import Listener, listening
from trackmetrics.instruments.hyperparameters import (
    WITHHELD,
    ConstructorArguments,
    OptimizerSettings,
    find_schedulers,
    is_secret,
    of_model,
    optimizer_settings,
    plain_values,
    scheduler_settings,
    spread,
)

# Arguments


@dataclasses.dataclass
class Inner:
    heads: int = 4
    act: object = functools.partial(max)
    api_key: str = "k3y"


@dataclasses.dataclass
class Config:
    lr: float = 0.1
    inner: Inner = dataclasses.field(default_factory=Inner)


class PlainObject:
    def __init__(self):
        self.lr, self.sizes = 0.1, (2, 3)


class Vocabulary:
    """Data, though all its attributes are plain: it has a length."""

    def __init__(self):
        self.words = ["a"]

    def __len__(self):
        return 1


class Table:
    """Data: one of its attributes is an array."""

    def __init__(self):
        self.rows, self.name = torch.ones(3), "numbers"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (argparse.Namespace(lr=0.1, layers=2), {"lr": 0.1, "layers": 2}),
        ({"lr": 0.1, "betas": (0.9, 0.99)}, {"lr": 0.1, "betas": [0.9, 0.99]}),
        (Config(), {"lr": 0.1, "inner": {"heads": 4, "api_key": WITHHELD}}),
        (PlainObject(), {"lr": 0.1, "sizes": [2, 3]}),
        (argparse.Namespace(model=Inner(), net=nn.Linear(1, 1)), {"model": {"heads": 4, "api_key": WITHHELD}}),
        ({"a": {"b": {"c": Inner(8)}}}, {"a": {"b": {"c": {"heads": 8, "api_key": WITHHELD}}}}),
        (0.5, {"args": 0.5}),
        (None, {"args": None}),
        ([16, 32], {"args": [16, 32]}),
        (pathlib.PurePosixPath("a/b"), {"args": "a/b"}),
        (torch.tensor(0.5), {"args": 0.5}),
        (torch.float16, {"args": "torch.float16"}),
        ({}, {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_arguments_are_spread_out_under_their_own_names(argument, expected):
    """A Namespace, dataclass, dict or plain object gives its entries; all else stands under the argument's name."""
    assert spread({"args": argument}) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net", nn.Linear(1, 1)),
        ("layers", [nn.Linear(1, 1)]),
        ("parts", {"encoder": nn.Linear(1, 1)}),
        ("jobs", queue.Queue()),
        ("loader", toy.loader()),
        ("words", Vocabulary()),
        ("train", [([1, 2, 3], 0), ([4], 1)]),
        ("dev_data", [("text", 0)]),
        ("table", torch.ones(3)),
        ("tables", [torch.ones(3)]),
        ("long", list(range(1000))),
        ("nested", [[1] * 200, [1] * 200]),
        ("vocab", {str(number): number for number in range(1000)}),
        ("corpus", "word " * 5000),
        ("callback", print),
        ("kind", dict),
        ("module", torch),
        ("generator", torch.Generator()),
        ("optimizer", torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.5)),
        ("table_object", Table()),
        ("lock", __import__("threading").Lock()),
    ],
)
def test_models_queues_and_data_are_not_dragged_in(name, value):
    """What is no parameter leaves no trace, not even its repr."""
    assert spread({name: value, "lr": 0.1}) == {"lr": 0.1}
    assert spread({"args": argparse.Namespace(**{name: value, "lr": 0.1})}).keys() <= {"lr", name}


def test_a_cycle_is_left_out():
    """A bundle that holds itself ends somewhere, and costs nothing else."""
    loop = {"lr": 0.1}
    loop["self"] = loop
    assert spread({"args": loop})["lr"] == 0.1
    knot = []
    knot.append(knot)
    assert plain_values({"knot": knot, "lr": 0.1}) == {"lr": 0.1}


SECRETS = [
    "api_key",
    "wandb_key",
    "wandb_api_key",
    "openai_api_key_2",
    "apiKey",
    "APIKey",
    "hf_token",
    "HFToken",
    "hftoken",
    "github_token",
    "token",
    "tokens",
    "key",
    "keys",
    "access_key",
    "access_key_id",
    "aws_access_key_id",
    "secret",
    "client_secret",
    "secret_name",
    "password",
    "passwd",
    "db_password",
    "passphrase",
    "credentials",
    "authToken",
    "auth-token",
    "private_key",
    "ssh_key",
    "encryption_key",
    "bearer_token_2",
]


@pytest.mark.parametrize("name", SECRETS)
def test_names_of_secrets_are_withheld(name):
    """Text under such a name is withheld, on its own, in a bundle, in a list and deep inside."""
    assert is_secret(name, "x")
    for found in (
        spread({name: "hunter2"}),
        spread({"args": argparse.Namespace(**{name: "hunter2"})}),
        spread({name: ["hunter2"]}),
        spread({name: {"inner": "hunter2"}}),
        spread({"args": {"deep": {"deeper": {name: "hunter2"}}}}),
        spread({"args": [{name: "hunter2"}]}),
    ):
        assert "hunter2" not in str(found)
        assert WITHHELD in str(found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokenizer", "bpe"),
        ("tokenizer_name", "gpt2"),
        ("tokenization", "words"),
        ("num_tokens", 100),
        ("n_tokens", "100"),
        ("max_tokens", 512),
        ("key_dim", 64),
        ("key_size", "64"),
        ("num_keys", 3),
        ("pad_token", "<pad>"),
        ("pad_token_id", 0),
        ("eos_token", "</s>"),
        ("mask_token", "[MASK]"),
        ("special_tokens", ["<s>", "</s>"]),
        ("use_token_type", True),
        ("token_dropout", 0.1),
        ("keyword", "x"),
        ("keypoints", "coco"),
        ("label_key", "labels"),
        ("monkey", "see"),
        ("api_key", None),
    ],
)
def test_names_that_merely_look_like_secrets_are_kept(name, value):
    """Sizes, counts, special tokens and names of fields are parameters."""
    assert spread({name: value}) == {name: value}


# The model


class Net(nn.Module):
    def __init__(self, width, depth=2, *, act="relu", config=None, vocabulary=None):
        super().__init__()
        width = width * 10  # after the base's constructor: not what was passed
        self.body = nn.Linear(2, 3)


class Sub(Net):
    pass


class Deeper(Net):
    def __init__(self, name, **kwargs):
        super().__init__(7, **kwargs)
        self.body.bias.requires_grad = False


class AnyArguments(Net):
    def __init__(self, *args, extra=1, **kwargs):
        super().__init__(*args, **kwargs)


class Sizes(nn.Module):
    def __init__(self, *sizes, dropout=0.1):
        super().__init__()


def _decorated(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class Decorated(nn.Module):
    @_decorated
    def __init__(self, width):
        super().__init__()


@dataclasses.dataclass(eq=False)
class Data(nn.Module):
    width: int = 5

    def __post_init__(self):
        super().__init__()


class _Listens(Listener):
    def __init__(self):
        self.arguments = ConstructorArguments()
        self.module_built = self.arguments.module_built


def _built(build):
    listens = _Listens()
    with listening(listens):
        model = build()
    return of_model(model, listens.arguments)


DEFAULTS = {"depth": 2, "act": "relu", "config": None, "vocabulary": None}


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: Net(8), {**DEFAULTS, "width": 8}),
        (lambda: Net(8, 3, act="gelu"), {**DEFAULTS, "width": 8, "depth": 3, "act": "gelu"}),
        (lambda: Sub(8), {**DEFAULTS, "width": 8}),
        (lambda: Deeper("big", act="tanh"), {**DEFAULTS, "name": "big", "width": 7, "act": "tanh"}),
        (lambda: AnyArguments(8, 4, act="x"), {**DEFAULTS, "extra": 1, "width": 8, "depth": 4, "act": "x"}),
        (lambda: Sizes(2, 3, 4), {"sizes": [2, 3, 4], "dropout": 0.1}),
        (lambda: Decorated(6), {"width": 6}),
        (lambda: Data(9), {"width": 9}),
        (lambda: Net(8, config=Config()), {"depth": 2, "act": "relu", "vocabulary": None, "width": 8, "lr": 0.1,
                                           "inner": {"heads": 4, "api_key": WITHHELD}}),
        (lambda: Net(8, vocabulary=Vocabulary()), {"depth": 2, "act": "relu", "config": None, "width": 8}),
        (lambda: nn.DataParallel(Net(8)), {**DEFAULTS, "width": 8}),
    ],
    ids=["positional", "keywords", "inherited", "through a subclass", "any arguments", "sizes", "decorated",
         "dataclass", "config", "an object", "wrapped"],
)  # fmt: skip
def test_constructor_arguments_are_those_passed(build, expected):
    """Under their own names, defaults included, a subclass's and its base's, as they were passed."""
    found = _built(build)
    fixed = {name: found.pop(name) for name in ("class", "num_parameters", "num_trainable_parameters")}
    assert found == expected
    assert fixed["class"] in ("Net", "Sub", "Deeper", "AnyArguments", "Sizes", "Decorated", "Data")


def test_parameters_are_counted():
    """All of them, and those that are trained; each once where it is shared."""
    found = _built(lambda: Deeper("big"))
    assert (found["class"], found["num_parameters"], found["num_trainable_parameters"]) == ("Deeper", 9, 6)
    layer = nn.Linear(2, 3)
    assert of_model(nn.Sequential(layer, layer), ConstructorArguments())["num_parameters"] == 9


def test_a_model_built_before_the_run_is_read_from_its_attributes():
    """Attributes of the constructor's names give what wasn't seen."""
    found = of_model(nn.Linear(4, 2, bias=False), ConstructorArguments())
    assert (found["class"], found["in_features"], found["out_features"]) == ("Linear", 4, 2)
    assert (found["num_parameters"], found["num_trainable_parameters"]) == (8, 8)


def test_a_models_config_is_read():
    """`model.config`, a Namespace, dict, dataclass or Hugging Face configuration, is part of the architecture."""

    class HuggingFaceConfig:
        model_type = "toy"

        def to_dict(self):
            return {"hidden_size": 64, "use_cache": True, "auth_token": "s3cret"}

    for config in (argparse.Namespace(hidden_size=64), {"hidden_size": 64}, HuggingFaceConfig()):
        model = nn.Linear(1, 1)
        model.config = config
        found = of_model(model, ConstructorArguments())
        assert found["hidden_size"] == 64
        assert "s3cret" not in str(found)


def test_no_module_is_kept_alive():
    """Remembering a constructor's arguments keeps neither module nor argument."""
    import gc
    import weakref

    listens = _Listens()
    with listening(listens):
        net = Net(8, vocabulary=(words := Vocabulary()))
    references = weakref.ref(net), weakref.ref(words)
    del net, words
    gc.collect()
    assert [reference() for reference in references] == [None, None]


# Optimizer and scheduler


def _parameters(count=2):
    return [nn.Parameter(torch.ones(2)) for _ in range(count)]


def test_an_optimizers_settings_are_its_own():
    """Name and settings, without parameters and what is left to torch."""
    found = optimizer_settings(torch.optim.AdamW(_parameters(), 0.01, betas=(0.8, 0.9), weight_decay=0.5))
    assert found == {
        "name": "AdamW", "lr": 0.01, "betas": [0.8, 0.9], "eps": 1e-8, "weight_decay": 0.5, "amsgrad": False,
        "maximize": False, "capturable": False, "differentiable": False,
        **({"decoupled_weight_decay": True} if "decoupled_weight_decay" in found else {}),
    }  # fmt: skip


def test_parameter_groups_say_how_they_differ():
    """The first group's settings, and for each group what differs from them."""
    one, two = _parameters()
    optimizer = torch.optim.SGD([{"params": [one]}, {"params": [two], "lr": 0.5, "name": "head"}], lr=0.1, momentum=0.9)
    found = optimizer_settings(optimizer)
    assert (found["name"], found["lr"], found["momentum"]) == ("SGD", 0.1, 0.9)
    assert found["groups"] == [{}, {"lr": 0.5, "name": "head"}] or found["groups"] == [{}, {"name": "head", "lr": 0.5}]


def _observed(*optimizers):
    settings = OptimizerSettings()
    for optimizer in optimizers:
        settings.optimizer_steps(optimizer)
    return settings.observed()


def test_the_learning_rate_is_the_initial_one():
    """A schedule's later rates, and its warm-up's first one, are not the learning rate."""
    parameter = _parameters(1)
    optimizer = torch.optim.SGD(parameter, 0.1)
    lr_scheduler.LambdaLR(optimizer, lambda epoch: (epoch + 1) / 10)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    found = _observed(optimizer)
    assert found["learning_rate"] == 0.1
    assert found["optimizer"]["lr"] == 0.1

    optimizer = torch.optim.SGD(parameter, 0.1)
    settings = OptimizerSettings()
    settings.optimizer_steps(optimizer)
    optimizer.param_groups[0]["lr"] = 0.003  # lowered by hand, later on
    settings.optimizer_steps(optimizer)
    assert settings.observed()["learning_rate"] == 0.1


def test_several_groups_and_several_optimizers_are_lists():
    """A list of rates where groups differ, a list of entries where there are several optimizers; one, once."""
    one, two = _parameters()
    groups = torch.optim.SGD([{"params": [one]}, {"params": [two], "lr": 0.5}], lr=0.1)
    assert _observed(groups)["learning_rate"] == [0.1, 0.5]
    both = _observed(torch.optim.SGD([one], 0.1), torch.optim.Adam([two], 0.2))
    assert both["learning_rate"] == [0.1, 0.2]
    assert [entry["name"] for entry in both["optimizer"]] == ["SGD", "Adam"]
    anew = _observed(torch.optim.SGD([one], 0.1), torch.optim.SGD([one], 0.1))
    assert anew["learning_rate"] == 0.1
    assert _observed() == {"learning_rate": None, "optimizer": None}


class Wrapper(torch.optim.Optimizer):
    """Steps others in its own step."""

    def __init__(self, *inner):
        parameters = [item for each in inner for group in each.param_groups for item in group["params"]]
        super().__init__(parameters, {"lr": 0.25, "alpha": 0.5})
        self.inner = list(inner) if len(inner) > 1 else inner[0]
        self.itself = self

    def step(self):
        """Of each."""
        for optimizer in self.inner if isinstance(self.inner, list) else [self.inner]:
            optimizer.step()


def _settings_of_a_run(folder, model, optimizer):
    with Tracker(task="wraps", output_dir=folder) as run, run.epoch():
        for _ in range(3):
            nn.functional.cross_entropy(model(torch.ones(4, 3)), torch.tensor([0, 1, 1, 0])).backward()
            optimizer.step()
    assert run.record.extensions["gradient_norm"]["epochs"][0]["steps"] == 3
    return run.record.metadata.hyperparameters.training


def test_an_optimizer_that_steps_another_stands_for_it(tmp_path):
    """It stands once, with what differs of the other; one that it holds for other parameters is none of that."""
    model = nn.Linear(3, 2)
    optimizer = Wrapper(Wrapper(torch.optim.SGD(model.parameters(), lr=0.25, dampening=0.1)))
    optimizer.other = torch.optim.Adagrad(_parameters(1), lr=0.5)
    training = _settings_of_a_run(tmp_path, model, optimizer)
    assert training["learning_rate"] == 0.25
    wraps = training["optimizer"].pop("wraps")
    assert training["optimizer"] == {"name": "Wrapper", "lr": 0.25, "alpha": 0.5}
    assert wraps[0] == {"name": "Wrapper"}
    assert wraps[1].items() >= {"name": "SGD", "dampening": 0.1}.items()
    assert "lr" not in wraps[1]


def test_an_optimizer_that_steps_several(tmp_path):
    """A list of them."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    inner = torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[1].parameters(), lr=0.2)
    training = _settings_of_a_run(tmp_path, model, Wrapper(*inner))
    assert training["learning_rate"] == 0.25
    assert [(each["name"], each["lr"]) for each in training["optimizer"]["wraps"]] == [("SGD", 0.1), ("Adam", 0.2)]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda o: lr_scheduler.StepLR(o, 3, 0.5), {"name": "StepLR", "step_size": 3, "gamma": 0.5}),
        (lambda o: lr_scheduler.MultiStepLR(o, [5, 3]), {"name": "MultiStepLR", "milestones": [3, 5], "gamma": 0.1}),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, 9), {"name": "CosineAnnealingLR", "T_max": 9, "eta_min": 0.0}),
        (
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
            {"name": "CosineAnnealingWarmRestarts", "T_0": 4, "T_mult": 1, "eta_min": 0.0},
        ),
        (lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1.0), {"name": "LambdaLR"}),
        (
            lr_scheduler.ReduceLROnPlateau,
            {
                "name": "ReduceLROnPlateau", "factor": 0.1, "default_min_lr": 0, "min_lrs": [0], "patience": 10,
                "cooldown": 0, "eps": 1e-8, "mode": "min", "threshold": 1e-4, "threshold_mode": "rel",
            },
        ),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_schedulers_settings_do_not_move(make, expected):
    """Name and settings; what changes as it goes is none of them, so that they stay the same after steps."""
    optimizer = torch.optim.SGD(_parameters(1), 0.1)
    scheduler = make(optimizer)
    assert scheduler_settings(scheduler) == expected
    optimizer.step()
    for metric in (1.0, 2.0):
        scheduler.step(*([metric] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
    assert scheduler_settings(scheduler) == expected


def test_schedulers_are_those_of_the_trainings_optimizers():
    """Found by what they drive, each once, in any of the scope's layers."""
    mine, other = (torch.optim.SGD(_parameters(1), 0.1) for _ in range(2))
    scheduler, stranger = lr_scheduler.StepLR(mine, 1), lr_scheduler.StepLR(other, 1)
    assert find_schedulers([{"a": stranger, "b": scheduler}, {"c": scheduler}], [mine]) == [scheduler]


# In a run


class Classifier(nn.Linear):
    def __init__(self, features, classes, dropout=0.25):
        super().__init__(features, classes)


def _train(args, train_loader, dev_loader):
    torch.manual_seed(1234)
    model = Classifier(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.5)
    scheduler = lr_scheduler.StepLR(optimizer, 1, 0.1)
    for _ in range(args.epochs):
        with tracker.epoch():
            toy.train_epoch(model, optimizer, train_loader)
            scheduler.step()
    return model


ARGS = argparse.Namespace(lr=0.5, epochs=2, wandb_key="s3cret", hidden=[4, 2])


def _hyperparameters(args=ARGS, **options):
    runs = []

    @tracked_training("task", **options)
    def train_it(args, train_loader, dev_loader):
        model = _train(args, train_loader, dev_loader)
        runs.append(tracker.record)
        return model

    train_it(args, toy.loader(batch_size=6), toy.loader(seed=2))
    return runs[-1].metadata.hyperparameters


@pytest.mark.filterwarnings("ignore:.*attention_weights:trackmetrics.TrackmetricsWarning")
class TestInARun:
    def test_all_stand_under_their_fixed_names(self):
        """Arguments under their own names, and what was observed under those that the contract fixes."""
        found = _hyperparameters()
        training = dict(found.training)
        assert training.pop("optimizer").items() >= {"name": "SGD", "lr": 0.5, "momentum": 0.5}.items()
        assert training.pop("scheduler") == {"name": "StepLR", "step_size": 1, "gamma": 0.1}
        assert training.pop("criterion").items() >= {"name": "cross_entropy", "reduction": "mean"}.items()
        assert training == {
            "lr": 0.5, "epochs": 2, "wandb_key": WITHHELD, "hidden": [4, 2], "num_epochs": 2, "batch_size": 6,
            "learning_rate": 0.5, "seed": 1234,
        }  # fmt: skip
        model = dict(found.model)
        assert model.items() >= {"class": "Classifier", "features": 4, "classes": 2, "dropout": 0.25}.items()
        assert (model["num_parameters"], model["num_trainable_parameters"]) == (10, 10)

    def test_what_the_user_gives_is_added_and_wins(self):
        """`hyperparameters=` by section, or loose for training."""
        given = {"model": {"features": 5, "heads": 8}, "training": {"seed": 7}, "lr": 0.9, "note": "mine"}
        found = _hyperparameters(hyperparameters=given)
        assert (found.model["features"], found.model["heads"], found.model["classes"]) == (5, 8, 2)
        assert {name: found.training[name] for name in ("seed", "lr", "note", "epochs")} == {
            "seed": 7, "lr": 0.9, "note": "mine", "epochs": 2,
        }  # fmt: skip

    def test_arguments_named_like_what_is_observed_are_not_lost(self):
        """A `seed` and a `batch_size` among the arguments stand, as does the rate that was in fact used."""
        args = argparse.Namespace(lr=0.5, epochs=1, seed=99, learning_rate=123)
        found = _hyperparameters(args)
        assert found.training["seed"] == 99
        assert found.training["learning_rate"] == 0.5

    def test_a_script_has_what_was_observed(self):
        """A `Tracker` without a function has no arguments, and all the rest."""
        train, dev = toy.loader(batch_size=6), toy.loader(seed=2)
        with Tracker("task", train=train, dev=dev) as run:
            model = Classifier(4, 2)
            optimizer = torch.optim.Adam(model.parameters(), 0.01)
            for _ in range(3):
                with run.epoch():
                    for features, classes in train:
                        optimizer.zero_grad()
                        F.cross_entropy(model(features), classes, label_smoothing=0.1).backward()
                        optimizer.step()
        found = run.record.metadata.hyperparameters
        assert found.training["num_epochs"] == 3
        assert found.training["learning_rate"] == 0.01
        assert found.training["criterion"]["label_smoothing"] == 0.1
        assert found.training["scheduler"] is None
        assert found.model["dropout"] == 0.25


def test_a_counter_becomes_a_list():
    """A counter, as a scheduler keeps its milestones, becomes the sorted list of what it counts."""
    assert plain_values({"milestones": collections.Counter([3, 1, 3])}) == {"milestones": [1, 3, 3]}


def test_modules_with_a_hash_of_their_own():
    """What a module was built with is known by the module itself, and is let go of with it."""

    class Hashed(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.width = width

        def __hash__(self):
            return hash(self.width)

        def __eq__(self, other):
            return True

    seen = ConstructorArguments()

    class Listening(Listener):
        def module_built(self, module, frame):
            seen.module_built(module, frame)

    with listening(Listening()):
        one, other = Hashed(1), Hashed(2)
    assert [seen.of(module) for module in (one, other, copy.deepcopy(one))] == [{"width": 1}, {"width": 2}, {}]
    del one, other
    gc.collect()
    assert not seen._seen
