"""What `sinks=` may hold: names of the package's own sinks, and objects with a sink's methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

from ..errors import ArgumentError, shown
from .mlflow import MLflow
from .sink import METHODS, Sink
from .tensorboard import TensorBoard
from .wandb import Wandb

_NAMED: dict[str, Callable[[], Sink]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": Wandb}
_DEFERRED = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


def chosen_sinks(given: Any) -> list[Sink]:
    """Give the sinks of a run: those that are given, a new one for each name. Raises `ArgumentError`.

    >>> chosen_sinks(["tensorbord"])
    Traceback (most recent call last):
    ...
    trackmetrics.errors.ArgumentError: sinks holds 'tensorbord'; the names are 'tensorboard', 'mlflow', 'wandb'
    """
    if not isinstance(given, (list, tuple)):
        raise ArgumentError(
            f"sinks is {shown(given)}, of type {type(given).__name__}; give a list of names and sinks, "
            "such as ['tensorboard']"
        )
    for index, item in enumerate(given):
        if any(item is other or (isinstance(item, str) and item == other) for other in given[:index]):
            raise ArgumentError(f"sinks holds {shown(item)} twice; give each sink once")
    return [_chosen(item) for item in given]


def _chosen(item: Any) -> Sink:
    if isinstance(item, str):
        if item not in _NAMED:
            raise ArgumentError(f"sinks holds {shown(item)}; the names are {', '.join(map(repr, _NAMED))}")
        return _NAMED[item]()
    if isinstance(item, type):
        raise ArgumentError(f"sinks holds the class {item.__name__}; give an object of it, {item.__name__}()")
    missing = [name for name in METHODS if not callable(getattr(item, name, None))]
    if missing:
        raise ArgumentError(
            f"sinks holds {shown(item)}, which has no method {' or '.join(missing)}; a sink has "
            f"{', '.join(METHODS[:-1])} and {METHODS[-1]}, each called with the record and the file's path"
        )
    for name in METHODS:
        if any(deferred(getattr(item, name)) for deferred in _DEFERRED):
            raise ArgumentError(
                f"sinks holds {shown(item)}, whose {name} is a coroutine or a generator: calling it runs nothing; "
                "give a plain method"
            )
    return cast(Sink, item)
