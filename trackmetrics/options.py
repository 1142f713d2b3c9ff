"""What a user may choose for a run, checked before any training begins."""

from __future__ import annotations

import inspect
import os
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from .errors import ArgumentError, shown
from .names import check_name
from .plain import NotPlainError, is_number, to_plain

if TYPE_CHECKING:
    from .sinks.sink import Sink


class OptionValues(TypedDict, total=False):
    """The keyword arguments of `tracked_training` and `Tracker`, all optional; `Options` says what each means."""

    part: str | Callable[..., str] | None
    output_dir: str | os.PathLike[str] | Callable[..., str | os.PathLike[str]]
    train: Any
    dev: Any
    example: Any
    evaluate: Callable[[Any, Any], float] | None
    evaluate_every: int
    final_train_accuracy: bool
    finalize: Callable[[Any, Any], Any] | None
    describe: Callable[[Any], str] | None
    attention: Literal["mean", "heads", False]
    hyperparameters: Mapping[str, Any] | None
    metrics: Mapping[str, Any] | None
    sinks: Sequence[Sink | str]
    resume: bool | int | str | Callable[..., bool | int | None] | None
    keep_previous: bool
    max_inline_mb: float
    progress: Literal["auto"] | bool
    extensions: bool


@dataclass(frozen=True)
class Options:
    """One run's choices.

    Attributes:
        task: the task's name, as it stands in the file.
        part: the file is `<part>_training_metrics.json`; the task's name by default. For a decorated function also
            a format over the call's arguments (`"fold{fold}"`), or a function that is called with them.
        output_dir: the folder of the file, made if missing. For a decorated function also a function that is called
            with the call's arguments.
        train: the training set, or the name of the decorated function's parameter that holds it; found by its name by
            default.
        dev: the dev set, likewise.
        example: the example of the final inference, where the dev set doesn't give a first one.
        evaluate: `evaluate(model, data) -> accuracy` in place of the evaluation pass.
        evaluate_every: dev accuracy each so many epochs; null between.
        final_train_accuracy: False saves the pass over the full training set at the end; null then.
        finalize: `finalize(model, example)`, in place of the final inference; returns a `FinalInference` or a dict of
            its three keys.
        describe: `describe(example) -> str`, the text for `example_input`.
        attention: the final inference's attention maps: `"mean"` over heads, `"heads"` for each head's too, in the
            extensions, False for none.
        hyperparameters: added to what is found, and wins: `{"model": {...}, "training": {...}}`; names outside the
            two are training parameters.
        metrics: objects with `update(outputs, targets)`, `compute()` and `reset()`, such as torchmetrics', by name: fed
            with each epoch's training and with the dev set. The run works with copies of its own.
        sinks: other trackers that get copies of the record: `"tensorboard"`, `"mlflow"`, `"wandb"`, or objects as
            `trackmetrics.sinks` has them.
        resume: True goes on in the earlier file, a new one where there is none; a number goes on after that epoch, that
            of the checkpoint, and drops the later ones (0: a new run). For a decorated function also the name of the
            parameter that holds it, or a function that is called with the call's arguments.
        keep_previous: True puts an earlier file aside, under a name with its date, before it is replaced.
        max_inline_mb: arrays whose text takes more, in millions of bytes, stand in files beside the metrics file.
        progress: what is shown while the run trains, a live line and a row an epoch: `"auto"` on a terminal and in a
            notebook, True also elsewhere, as plain lines, False nowhere.
        extensions: False leaves all that the seed format doesn't name out of the file.

    Raises `ArgumentError` for a value that can't be right.
    """

    task: str
    part: str | Callable[..., str] | None = None
    output_dir: str | os.PathLike[str] | Callable[..., str | os.PathLike[str]] = "output"
    train: Any = None
    dev: Any = None
    example: Any = None
    evaluate: Callable[[Any, Any], float] | None = None
    evaluate_every: int = 1
    final_train_accuracy: bool = True
    finalize: Callable[[Any, Any], Any] | None = None
    describe: Callable[[Any], str] | None = None
    attention: Literal["mean", "heads", False] = "mean"
    hyperparameters: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] | None = None
    sinks: Sequence[Sink | str] = ()
    resume: bool | int | str | Callable[..., bool | int | None] | None = False
    keep_previous: bool = False
    max_inline_mb: float = 256
    progress: Literal["auto"] | bool = "auto"
    extensions: bool = True

    def __post_init__(self) -> None:
        check_name("task", self.task)
        if not (self.part is None or isinstance(self.part, str) or callable(self.part)):
            raise _wrong("part", self.part, "a string, or a function of the call's arguments")
        if isinstance(self.part, str) and not _fields(self.part):
            check_name("part", self.part)
        if not callable(self.output_dir):
            _check_folder(self.output_dir)
        for name in ("evaluate", "finalize", "describe"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise _wrong(name, getattr(self, name), "a function")
        if not isinstance(self.evaluate_every, int) or isinstance(self.evaluate_every, bool) or self.evaluate_every < 1:
            raise _wrong("evaluate_every", self.evaluate_every, "a whole number of epochs, 1 or more")
        if not callable(self.resume) and not isinstance(self.resume, str):
            _check_resume(self.resume)
        limit = self.max_inline_mb
        if not is_number(limit) or not limit >= 0:
            raise _wrong("max_inline_mb", limit, "a number of millions of bytes, 0 or more")
        for name in ("final_train_accuracy", "extensions", "keep_previous"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, getattr(self, name), "True or False")
        if not isinstance(self.progress, bool) and not (isinstance(self.progress, str) and self.progress == "auto"):
            raise _wrong("progress", self.progress, "'auto', True or False")
        if self.attention is not False and not (isinstance(self.attention, str) and self.attention in _DETAILS):
            raise _wrong("attention", self.attention, "'mean', 'heads' or False")
        for name in ("train", "dev"):
            value = getattr(self, name)
            if value is not None and not hasattr(value, "__iter__") and not hasattr(value, "__getitem__"):
                raise _wrong(name, value, "a data set, or the name of the parameter that holds it")
        self._check_hyperparameters()
        check_metrics(self.metrics)
        self.make_sinks()

    def _check_hyperparameters(self) -> None:
        given = self.hyperparameters
        if given is None:
            return
        if not isinstance(given, Mapping):
            raise _wrong("hyperparameters", given, "a dict of names and plain values")
        for name, value in given.items():
            try:
                to_plain({name: value})
            except NotPlainError as error:
                raise ArgumentError(
                    f"hyperparameters[{name!r}] holds {error}; give numbers, strings, booleans, None, "
                    "and lists and dicts of them"
                ) from None
        try:
            to_plain(given)
        except NotPlainError as error:
            raise ArgumentError(f"hyperparameters holds {error}; give each parameter a name of its own") from None

    @property
    def folder(self) -> str | os.PathLike[str]:
        """The output folder of a run, whose call's arguments have been worked in."""
        assert not callable(self.output_dir)
        return self.output_dir

    @property
    def file_part(self) -> str:
        """The part that names a run's file, whose call's arguments have been worked in."""
        assert not callable(self.part)
        return self.part or self.task

    @property
    def resumed_after(self) -> bool | int:
        """The last epoch to go on from, True for all, 0 or False for none, of a run whose arguments are worked in."""
        assert not callable(self.resume)
        assert not isinstance(self.resume, str)
        return self.resume or False

    def make_sinks(self) -> list[Sink]:
        """The sinks of a run: those that are given, a new one for each name."""
        if isinstance(self.sinks, tuple) and not self.sinks:
            return []
        from .sinks.choice import chosen_sinks  # which knows the record, and so NumPy

        return chosen_sinks(self.sinks)

    def given_hyperparameters(self, section: str) -> dict[str, Any]:
        """What `hyperparameters=` says for `model` or `training`; names outside the two are for training."""
        given = to_plain(dict(self.hyperparameters or {}))
        sections = {name: value for name, value in given.items() if name in ("model", "training")}
        sections = {name: value for name, value in sections.items() if isinstance(value, dict)}
        loose = {name: value for name, value in given.items() if name not in sections}
        return {**(loose if section == "training" else {}), **sections.get(section, {})}

    def check_parameters(self, function: str, signature: inspect.Signature) -> None:
        """Raise `ArgumentError` where an option names a parameter that `function` doesn't have."""
        known = signature.parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        for option, other in (("train", "the data itself"), ("dev", "the data itself"), ("resume", "True")):
            name = getattr(self, option)
            if isinstance(name, str) and name not in known and not takes_any:
                raise ArgumentError(
                    f"{option}={name!r} names no parameter of {function}({', '.join(known)}); "
                    f"give one of its names, or {other}"
                )
        for field in _fields(self.part) if isinstance(self.part, str) else ():
            if field not in known and not takes_any:
                raise ArgumentError(
                    f"part={self.part!r} names {field!r}, which is no parameter of {function}({', '.join(known)})"
                )

    def check_without_function(self) -> None:
        """Raise `ArgumentError` where an option is about a function's parameters, and there is no function."""
        for option, other in (("train", "the data itself"), ("dev", "the data itself"), ("resume", "True or a number")):
            name = getattr(self, option)
            if isinstance(name, str):
                raise ArgumentError(f"{option}={name!r} names a parameter, and a Tracker has none; give {other}")
        if callable(self.resume):
            raise ArgumentError(
                "resume= is a function of a call's arguments; a Tracker has none: give True or a number"
            )
        if callable(self.output_dir):
            raise ArgumentError("output_dir= is a function of a call's arguments; a Tracker has none: give a path")
        if callable(self.part) or (self.part is not None and _fields(self.part)):
            raise ArgumentError(
                f"part={self.part!r} asks for a call's arguments, and a Tracker has none; give a string"
            )

    def for_call(self, arguments: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Options:
        """The options of one call: its part worked out, its data sets looked up among its arguments."""
        train, dev = (arguments.get(value) if isinstance(value, str) else value for value in (self.train, self.dev))
        folder = self.output_dir(*args, **kwargs) if callable(self.output_dir) else self.output_dir
        resume = arguments.get(self.resume) if isinstance(self.resume, str) else self.resume
        resume = resume(*args, **kwargs) if callable(resume) else resume
        return replace(
            self,
            part=self._part_of(arguments, args, kwargs),
            output_dir=_check_folder(folder),
            train=train,
            dev=dev,
            resume=_check_resume(resume),
        )

    def _part_of(self, arguments: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
        if callable(self.part):
            return check_name("part", self.part(*args, **kwargs))
        if self.part is None:
            return None
        try:
            part = self.part.format(**arguments)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ArgumentError(f"part={self.part!r} can't be made from the call's arguments: {error!r}") from None
        return check_name("part", part)


_DETAILS = ("mean", "heads")
_MEASURED = ("loss", "accuracy")  # what the run measures by itself of training and dev set, and writes under such names
_SUCH_AS = "MulticlassF1Score(num_classes=3)"
_METHODS = ("update", "compute", "reset")


def make_options(task: Any, values: Mapping[str, Any]) -> Options:
    """Check a user's keyword arguments. Raises `ArgumentError` for a name that is no option, too."""
    known = list(Options.__dataclass_fields__)[1:]
    for name in values:
        if name not in known:
            raise ArgumentError(f"{name!r} is no option; the options are {', '.join(known)}")
    return Options(task, **values)


def check_metrics(metrics: Any) -> Mapping[str, Any]:
    """Give metrics by name; raise `ArgumentError` for names and objects that can't be right.

    >>> check_metrics({"f1": 0.5})
    Traceback (most recent call last):
    ...
    trackmetrics.errors.ArgumentError: metrics['f1'] is 0.5, without update, compute, reset; give an object, \
such as MulticlassF1Score(num_classes=3)
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise _wrong("metrics", metrics, f"a dict of names and metrics, such as {{'f1': {_SUCH_AS}}}")
    for name, metric in metrics.items():
        if not isinstance(name, str) or not name:
            raise ArgumentError(f"metrics has the name {shown(name)}; give a text, such as 'f1'")
        if name in _MEASURED:
            raise ArgumentError(f"metrics[{name!r}] collides with what the run measures itself; choose another name")
        missing = [method for method in _METHODS if not callable(getattr(metric, method, None))]
        if missing or isinstance(metric, type):
            lacks = f"without {', '.join(missing)}" if missing else "a class"
            raise ArgumentError(f"metrics[{name!r}] is {shown(metric)}, {lacks}; give an object, such as {_SUCH_AS}")
    return metrics


def _fields(pattern: str) -> list[str]:
    """The parameters that a format names."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None]
    except ValueError as error:
        raise ArgumentError(f"part={pattern!r} is no format: {error}") from None
    return [name.split(".")[0].split("[")[0] for name in names]


def _check_resume(resume: Any) -> bool | int:
    if resume is not None and not (isinstance(resume, int) and resume >= 0):
        raise _wrong("resume", resume, "True, False, or the number of the epoch to go on after")
    return resume or False


def _check_folder(folder: Any) -> str | os.PathLike[str]:
    if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
        raise _wrong("output_dir", folder, "a folder's path")
    return folder


def _wrong(name: str, value: Any, expected: str) -> ArgumentError:
    return ArgumentError(f"{name} is {shown(value)}, of type {type(value).__name__}; give {expected}")
