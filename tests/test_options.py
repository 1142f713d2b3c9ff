"""Options: what can't be right is refused before training, with the value and what to give instead."""

import dataclasses
import inspect
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch

from trackmetrics import Tracker
from trackmetrics.errors import ArgumentError, InvalidNameError
from trackmetrics.options import Options, OptionValues, make_options
from trackmetrics.record import METRIC_KEYS

NAME_MEND = "of letters, digits, spaces, '_', '-' and '.', such as 'letter_counting'"
OPTIONS = (
    "the options are part, output_dir, train, dev, example, evaluate, evaluate_every, final_train_accuracy, "
    "finalize, describe, attention, hyperparameters, metrics, sinks, resume, keep_previous, max_inline_mb, progress, "
    "extensions"
)


class Unshowable:
    """A value whose repr fails."""

    def __repr__(self):
        raise RuntimeError("no repr")


def train_classifier(args, train_data, dev_data, fold=0):
    """A function with parameters to name."""


def train_anything(args, **kwargs):
    """A function that takes any names."""


class Metric:
    """What has the three methods."""

    def __repr__(self):
        return "a metric"

    def update(self, outputs, targets):
        """Take a batch."""

    def compute(self):
        """Give the value."""

    def reset(self):
        """Begin anew."""


SUCH_AS = (
    ", such as {'f1': MulticlassF1Score(num_classes=3)}",
    "; give an object, such as MulticlassF1Score(num_classes=3)",
)
SIGNATURE = inspect.signature(train_classifier)
ANY = inspect.signature(train_anything)


def message_of(function, *args, error=ArgumentError, **kwargs):
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def test_the_defaults_are_right():
    """A task alone is enough."""
    assert make_options("t", {}) == Options("t")
    assert dataclasses.asdict(Options("t")) == {
        "task": "t",
        "part": None,
        "output_dir": "output",
        "train": None,
        "dev": None,
        "example": None,
        "evaluate": None,
        "evaluate_every": 1,
        "final_train_accuracy": True,
        "finalize": None,
        "describe": None,
        "attention": "mean",
        "hyperparameters": None,
        "metrics": None,
        "sinks": (),
        "resume": False,
        "keep_previous": False,
        "max_inline_mb": 256,
        "progress": "auto",
        "extensions": True,
    }


def test_the_typed_names_are_the_options():
    """What a type checker lets a user write is what the run takes, in the same order."""
    assert list(OptionValues.__annotations__) == [field.name for field in dataclasses.fields(Options)][1:]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("part", "fold_1"),
        ("part", "fold{fold}"),
        ("part", lambda args: "x"),
        ("output_dir", Path("runs") / "a"),
        ("output_dir", lambda args: "runs"),
        ("train", "train_data"),
        ("dev", [1, 2]),
        ("example", 0),
        ("evaluate", len),
        ("evaluate_every", 5),
        ("final_train_accuracy", False),
        ("finalize", print),
        ("describe", str),
        ("hyperparameters", {"seed": 7, "model": {"layers": 2}}),
        ("hyperparameters", MappingProxyType({"lr": np.float32(0.5)})),
        ("metrics", {}),
        ("metrics", MappingProxyType({"f1": Metric()})),
        ("progress", True),
        ("progress", False),
        ("extensions", False),
    ],
)
def test_each_option_takes_what_is_right(name, value):
    """A right value is kept as it is."""
    assert getattr(make_options("t", {name: value}), name) is value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("train", 5, "train is 5, of type int; give a data set, or the name of the parameter that holds it"),
        ("dev", 0.5, "dev is 0.5, of type float; give a data set, or the name of the parameter that holds it"),
        ("part", 5, "part is 5, of type int; give a string, or a function of the call's arguments"),
        ("part", ["a"], "part is ['a'], of type list; give a string, or a function of the call's arguments"),
        ("part", "", f"the part is empty (''); give a part {NAME_MEND}"),
        (
            "part",
            "a/b",
            f"the part 'a/b' looks like a path; give a part {NAME_MEND} (the folder goes into output_dir=)",
        ),
        ("part", "fold{", "part='fold{' is no format: Single '{' encountered in format string"),
        ("part", "fold}", "part='fold}' is no format: Single '}' encountered in format string"),
        ("output_dir", None, "output_dir is None, of type NoneType; give a folder's path"),
        ("output_dir", "", "output_dir is '', of type str; give a folder's path"),
        ("output_dir", b"output", "output_dir is b'output', of type bytes; give a folder's path"),
        ("evaluate", 0.5, "evaluate is 0.5, of type float; give a function"),
        ("finalize", "mine", "finalize is 'mine', of type str; give a function"),
        ("describe", {}, "describe is {}, of type dict; give a function"),
        ("attention", True, "attention is True, of type bool; give 'mean', 'heads' or False"),
        ("attention", np.zeros(2), "attention is array([0., 0.]), of type ndarray; give 'mean', 'heads' or False"),
        ("attention", "all", "attention is 'all', of type str; give 'mean', 'heads' or False"),
        ("metrics", Metric(), f"metrics is a metric, of type Metric; give a dict of names and metrics{SUCH_AS[0]}"),
        ("metrics", [Metric()], f"metrics is [a metric], of type list; give a dict of names and metrics{SUCH_AS[0]}"),
        ("metrics", {5: Metric()}, "metrics has the name 5; give a text, such as 'f1'"),
        ("metrics", {"": Metric()}, "metrics has the name ''; give a text, such as 'f1'"),
        ("metrics", {"f1": Metric}, f"metrics['f1'] is <class '{Metric.__module__}.Metric'>, a class{SUCH_AS[1]}"),
        ("metrics", {"f1": 0.5}, f"metrics['f1'] is 0.5, without update, compute, reset{SUCH_AS[1]}"),
        ("metrics", {"f1": set()}, f"metrics['f1'] is set(), without compute, reset{SUCH_AS[1]}"),
        ("evaluate_every", 0, "evaluate_every is 0, of type int; give a whole number of epochs, 1 or more"),
        ("evaluate_every", -1, "evaluate_every is -1, of type int; give a whole number of epochs, 1 or more"),
        ("evaluate_every", 2.0, "evaluate_every is 2.0, of type float; give a whole number of epochs, 1 or more"),
        ("evaluate_every", True, "evaluate_every is True, of type bool; give a whole number of epochs, 1 or more"),
        ("evaluate_every", None, "evaluate_every is None, of type NoneType; give a whole number of epochs, 1 or more"),
        ("final_train_accuracy", 1, "final_train_accuracy is 1, of type int; give True or False"),
        ("final_train_accuracy", None, "final_train_accuracy is None, of type NoneType; give True or False"),
        ("extensions", "no", "extensions is 'no', of type str; give True or False"),
        ("progress", "always", "progress is 'always', of type str; give 'auto', True or False"),
        ("progress", None, "progress is None, of type NoneType; give 'auto', True or False"),
        ("progress", 1, "progress is 1, of type int; give 'auto', True or False"),
        ("progress", 0.0, "progress is 0.0, of type float; give 'auto', True or False"),
        ("progress", np.zeros(2), "progress is array([0., 0.]), of type ndarray; give 'auto', True or False"),
        ("progress", Unshowable(), "progress is a Unshowable, of type Unshowable; give 'auto', True or False"),
        ("hyperparameters", [1], "hyperparameters is [1], of type list; give a dict of names and plain values"),
        (
            "hyperparameters",
            {"seed": 7, "net": torch.nn.Linear(1, 1)},
            "hyperparameters['net'] holds a value of type torch.nn.modules.linear.Linear; "
            "give numbers, strings, booleans, None, and lists and dicts of them",
        ),
        (
            "hyperparameters",
            {"model": {"act": len}},
            "hyperparameters['model'] holds a value of type builtins.builtin_function_or_method; "
            "give numbers, strings, booleans, None, and lists and dicts of them",
        ),
        (
            "hyperparameters",
            {(1, 2): 3},
            "hyperparameters[(1, 2)] holds a key of type tuple; "
            "give numbers, strings, booleans, None, and lists and dicts of them",
        ),
        (
            "hyperparameters",
            {1: "a", "1": "b"},
            "hyperparameters holds two keys that both become '1'; give each parameter a name of its own",
        ),
        ("evaluate_evry", 2, f"'evaluate_evry' is no option; {OPTIONS}"),
        ("task", "t", f"'task' is no option; {OPTIONS}"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else type(value).__name__,
)
def test_each_wrong_value_is_refused(name, value, message):
    """The message says which option, which value of which type, and what to give."""
    assert message_of(make_options, "t", {name: value}) == message


@pytest.mark.parametrize("task", ["", "../x", "a/b", None, 5])
def test_a_wrong_task_is_refused(task):
    """The task names the file, so it is checked as a name."""
    assert message_of(make_options, task, {}, error=InvalidNameError).startswith("the task ")


def test_a_long_value_is_cut_and_put_on_one_line():
    """A model given where a function belongs doesn't fill the screen."""
    model = torch.nn.Sequential(*[torch.nn.Linear(3, 3) for _ in range(50)])
    message = message_of(make_options, "t", {"progress": model})
    assert message == (
        "progress is Sequential(   (0): Linear(in_features=3, out_features=3, ..., "
        "of type Sequential; give 'auto', True or False"
    )


# Against the decorated function


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"train": "training"},
            "train='training' names no parameter of train_classifier(args, train_data, dev_data, fold); "
            "give one of its names, or the data itself",
        ),
        (
            {"dev": ""},
            "dev='' names no parameter of train_classifier(args, train_data, dev_data, fold); "
            "give one of its names, or the data itself",
        ),
        (
            {"part": "{seed}"},
            "part='{seed}' names 'seed', which is no parameter of train_classifier(args, train_data, dev_data, fold)",
        ),
        (
            {"part": "f{fold}_{options.seed:03d}"},
            "part='f{fold}_{options.seed:03d}' names 'options', which is no parameter of "
            "train_classifier(args, train_data, dev_data, fold)",
        ),
        (
            {"part": "{}"},
            "part='{}' names '', which is no parameter of train_classifier(args, train_data, dev_data, fold)",
        ),
    ],
)
def test_an_option_that_names_no_parameter_is_refused(values, message):
    """The message gives the names that there are."""
    options = make_options("t", values)
    assert message_of(options.check_parameters, "train_classifier", SIGNATURE) == message


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"train": "train_data", "dev": "dev_data"},
        {"train": [1], "dev": [2]},
        {"part": "fold{fold}"},
        {"part": "{args.seed}-{args.names[0]}"},
        {"part": "{{fold}}"},
        {"part": str},
    ],
)
def test_options_that_name_parameters_are_taken(values):
    """Names of parameters, fields and items of them, and data itself pass."""
    options = make_options("t", values)
    options.check_parameters("train_classifier", SIGNATURE)
    assert options == make_options("t", values)


def test_a_function_that_takes_any_name_is_not_second_guessed():
    """With `**kwargs` any name may be a parameter."""
    options = make_options("t", {"train": "batches", "part": "{seed}"})
    options.check_parameters("train_anything", ANY)
    assert options.train == "batches"


# A call


def call(part, *args, train=None, dev=None, **kwargs):
    """The options of one call of `train_classifier`."""
    bound = SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    return make_options("t", {"part": part, "train": train, "dev": dev}).for_call(bound.arguments, args, kwargs)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (None, None),
        ("fixed", "fixed"),
        ("fold{fold}", "fold3"),
        ("fold{fold:02d}", "fold03"),
        ("{args.name}_{args.seeds[1]}", "small_9"),
        ("{{fold}}", "{fold}"),
        (lambda args, train, dev, fold: f"{args.name}-{fold}", "small-3"),
    ],
)
def test_a_part_is_worked_out_from_the_calls_arguments(part, expected):
    """A string stays, a format is filled in, a function is called as the decorated one is."""
    args = SimpleNamespace(name="small", seeds=[7, 9])
    assert call(part, args, [1], [2], fold=3).part == expected


def test_a_format_sees_defaults():
    """A parameter that the call leaves out has its default in the format."""
    assert call("fold{fold}", None, [1], [2]).part == "fold0"


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        ("{args.seed}", ArgumentError, "part='{args.seed}' can't be made from the call's arguments: AttributeError("),
        ("{args[0]}", ArgumentError, "part='{args[0]}' can't be made from the call's arguments: TypeError("),
        (
            "{train_data[9]}",
            ArgumentError,
            "part='{train_data[9]}' can't be made from the call's arguments: IndexError(",
        ),
        ("{fold:d}", ArgumentError, "part='{fold:d}' can't be made from the call's arguments: ValueError("),
        ("{train_data:d}", ArgumentError, "part='{train_data:d}' can't be made from the call's arguments: TypeError("),
        ("{fold}", InvalidNameError, "the part '../up' looks like a path; "),
        (lambda *args, **kwargs: "", InvalidNameError, "the part is empty (''); "),
        (lambda *args, **kwargs: 5, InvalidNameError, "the part is 5, of type int; "),
    ],
)
def test_a_part_that_cannot_be_made_is_refused(part, error, message):
    """A format that doesn't fit the arguments, and a result that is no name, are found before training."""
    assert message_of(call, part, None, [1], [2], fold="../up", error=error).startswith(message)


def test_a_parts_own_error_comes_out():
    """What the user's function raises is the user's to see."""

    def part(*args, **kwargs):
        raise ZeroDivisionError("mine")

    assert message_of(call, part, None, [1], [2], error=ZeroDivisionError) == "mine"


def test_a_folder_is_worked_out_from_the_calls_arguments():
    """A function is called as the decorated one is, and gives the folder."""
    options = make_options("t", {"output_dir": lambda args, fold: Path("runs") / f"{args}{fold}"})
    assert options.for_call({}, ("small",), {"fold": 3}).folder == Path("runs") / "small3"


@pytest.mark.parametrize("folder", [None, "", 5, len])
def test_a_folder_that_is_none_is_refused(folder):
    """What the function gives is checked as a folder that is given outright."""
    options = make_options("t", {"output_dir": lambda: folder})
    assert message_of(options.for_call, {}, (), {}) == (
        f"output_dir is {folder!r}, of type {type(folder).__name__}; give a folder's path"
    )


def test_the_file_is_named_by_the_part_or_else_by_the_task():
    """Without a part the task names the file."""
    assert make_options("t", {}).file_part == "t"
    assert make_options("t", {"part": "fold1"}).file_part == "fold1"


def test_data_sets_are_looked_up_by_their_parameters():
    """A name becomes the argument; data itself stays."""
    train, dev, other = [1], [2], [3]
    options = call(None, None, train, dev, train="train_data", dev=other)
    assert options.train is train
    assert options.dev is other


def test_a_call_does_not_change_the_options():
    """The same decorated function is called again with other arguments."""
    options = make_options("t", {"part": "fold{fold}", "train": "train_data"})
    assert options.for_call({"fold": 1, "train_data": [1]}, (), {}).part == "fold1"
    assert options.for_call({"fold": 2, "train_data": [1]}, (), {}).part == "fold2"
    assert (options.part, options.train) == ("fold{fold}", "train_data")


# Without a function


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": "train_data"}, "train='train_data' names a parameter, and a Tracker has none; give the data itself"),
        ({"dev": "dev_data"}, "dev='dev_data' names a parameter, and a Tracker has none; give the data itself"),
        (
            {"part": "fold{fold}"},
            "part='fold{fold}' asks for a call's arguments, and a Tracker has none; give a string",
        ),
        (
            {"output_dir": lambda args: "runs"},
            "output_dir= is a function of a call's arguments; a Tracker has none: give a path",
        ),
        (
            {"resume": len},
            "resume= is a function of a call's arguments; a Tracker has none: give True or a number",
        ),
        ({"part": len}, f"part={len!r} asks for a call's arguments, and a Tracker has none; give a string"),
    ],
)
def test_a_tracker_has_no_parameters_to_name(values, message):
    """`with Tracker(...)` has no call to take arguments from."""
    assert message_of(make_options("t", values).check_without_function) == message


def test_a_tracker_takes_data_and_a_fixed_part():
    """What needs no call is right without one."""
    options = make_options("t", {"train": [1], "dev": [2], "part": "fixed"})
    options.check_without_function()
    assert options.part == "fixed"


# Hyperparameters


def test_given_hyperparameters_go_to_their_sections():
    """`model` and `training` go where they say, other names to training; a section's own entry wins."""
    options = make_options(
        "t",
        {"hyperparameters": {"seed": 7, "layers": 1, "model": {"layers": 2}, "training": {"seed": 8, "lr": (0.1,)}}},
    )
    assert options.given_hyperparameters("model") == {"layers": 2}
    assert options.given_hyperparameters("training") == {"seed": 8, "layers": 1, "lr": [0.1]}


def test_a_model_that_is_no_section_is_a_training_parameter():
    """`{"model": "bert-base"}` names a value, not a section."""
    options = make_options("t", {"hyperparameters": {"model": "bert-base", "seed": 7}})
    assert options.given_hyperparameters("model") == {}
    assert options.given_hyperparameters("training") == {"model": "bert-base", "seed": 7}


def test_without_given_hyperparameters_both_sections_are_empty():
    """Nothing given, nothing added."""
    for values in ({}, {"hyperparameters": None}, {"hyperparameters": {}}):
        assert make_options("t", values).given_hyperparameters("model") == {}
        assert make_options("t", values).given_hyperparameters("training") == {}


@pytest.mark.parametrize("key", METRIC_KEYS)
def test_metrics_have_no_names_of_the_records_own(key):
    """`train_loss` and the like are what the run measures itself."""
    role, _, name = key.partition("_")
    if role in ("train", "dev"):
        message = message_of(make_options, "t", {"metrics": {name: Metric()}})
        assert message == f"metrics[{name!r}] collides with what the run measures itself; choose another name"


@pytest.mark.parametrize("call", ["epoch", "epochs"])
def test_an_epochs_metrics_are_checked_before_it(call, tmp_path):
    """As those of the run are, and also outside an epoch."""
    with Tracker("t", output_dir=tmp_path, train=[], dev=[]) as run:
        begin = run.epoch if call == "epoch" else lambda metrics: run.epochs(every=1, metrics=metrics)
        assert "metrics is 5, of type int" in message_of(begin, metrics=5)
        with run.epoch(metrics=None) as epoch:
            epoch.log(train_loss=0.5, train_accuracy=0.5, dev_accuracy=0.5, gradient_norm=0.5)
