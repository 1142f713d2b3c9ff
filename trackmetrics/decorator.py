"""The decorator: each call of the decorated function is a run of its own."""

from __future__ import annotations

import copy
import inspect
import operator
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import wrapt

from .errors import ArgumentError
from .options import OptionValues, make_options
from .run import Tracker

if TYPE_CHECKING:
    from typing_extensions import Unpack

_Function = TypeVar("_Function", bound=Callable[..., Any])


def tracked_training(task: str, **options: Unpack[OptionValues]) -> Callable[[_Function], _Function]:
    """Track every call of a training function, and write its metrics file.

    Args:
        task: the task's name; it names the file too, unless `part=` does.
        **options: see `trackmetrics.options.Options`.

    The function keeps its signature, name, docs and kind (function, method, static or class method, coroutine);
    what it returns and raises is untouched. A parameter named `tracker` that the caller leaves out is filled in; with
    types, `tracker: Tracker = tracker` says so to a type checker.
    Raises `ArgumentError` when decorating where an option can't be right, and when called, before training,
    `OutputError` or `PathInUseError` where the file can't be this run's.

    >>> import tempfile
    >>> @tracked_training("demo", output_dir=tempfile.mkdtemp())
    ... def train(num_epochs, tracker):
    ...     for _ in range(num_epochs):
    ...         with tracker.epoch() as epoch:
    ...             epoch.log(train_loss=0.5, train_accuracy=1.0, dev_accuracy=1.0, gradient_norm=0.1)
    ...     return len(tracker.record.epochs)
    >>> train(2)
    2
    """
    if callable(task):
        raise ArgumentError('tracked_training needs the task\'s name: write @tracked_training(task="...")')
    chosen = make_options(task, options)

    def decorate(function: _Function) -> _Function:
        inner = _inner(function)
        signature = inspect.signature(inner)
        chosen.check_parameters(inner.__name__, signature)
        if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
            raise ArgumentError(
                f"{inner.__name__} is a generator, whose body runs when its caller likes; "
                "decorate the function that goes through it"
            )
        takes_tracker = "tracker" in signature.parameters

        def run_of(wrapped: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tracker | None:
            arguments = _bound(wrapped, args, kwargs)
            if arguments is None:
                return None
            run = Tracker._for_call(chosen.for_call(arguments, args, kwargs), arguments)
            if takes_tracker and "tracker" not in arguments:
                kwargs["tracker"] = run
            return run

        async def awaited(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            run = run_of(wrapped, args, kwargs)
            if run is None:
                return await wrapped(*args, **kwargs)
            with run:
                return run._returns(await wrapped(*args, **kwargs))

        def called(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            run = run_of(wrapped, args, kwargs)
            if run is None:
                return wrapped(*args, **kwargs)
            with run:
                return run._returns(wrapped(*args, **kwargs))

        return cast(_Function, _Tracked(function, awaited if inspect.iscoroutinefunction(inner) else called))

    return decorate


class _TrackedMethod(wrapt.BoundFunctionWrapper):  # type: ignore[type-arg]
    """A decorated function bound to its object, or looked up in its class."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        owner = self._self_instance
        if owner is None:  # a static method, or one looked up in its class
            owner = operator.attrgetter(self.__qualname__.rpartition(".")[0])(sys.modules[self.__module__])
        return getattr, (owner, self.__name__)

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        if self._self_instance is None:
            return self
        return getattr(copy.deepcopy(self._self_instance, memo), self.__name__)


class _Tracked(wrapt.FunctionWrapper):  # type: ignore[type-arg]
    """A decorated function: pickled by its name and copied as itself, as any function is."""

    __bound_function_wrapper__ = _TrackedMethod

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__qualname__

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self


def _inner(function: Any) -> Any:
    """The function inside a static or class method."""
    inner = function.__func__ if isinstance(function, (staticmethod, classmethod)) else function
    if not callable(inner) or inspect.isclass(inner):
        raise ArgumentError(f"tracked_training decorates a function, and was given {function!r:.80}")
    return inner


def _bound(wrapped: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The call's arguments by parameter, defaults included, without a `tracker` that the caller left out.

    None where the call doesn't fit the signature: then the function itself is to raise its own error.
    """
    signature = inspect.signature(wrapped)
    try:
        given = signature.bind_partial(*args, **kwargs).arguments
        left_out = "tracker" in signature.parameters and "tracker" not in given
        bound = signature.bind(*args, **kwargs, **({"tracker": None} if left_out else {}))
    except TypeError:
        return None
    bound.apply_defaults()
    arguments: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= value
        elif name != "tracker" or not left_out:
            arguments[name] = value
    return arguments
