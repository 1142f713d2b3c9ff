"""A run's epochs as a table: columns of plain values, or a pandas or polars data frame."""

from __future__ import annotations

import sys
from typing import Any, Literal

from . import extras
from .errors import ArgumentError, MissingExtraError, shown
from .json_text import encode
from .record import METRIC_KEYS, RunRecord

_LIBRARIES = ("pandas", "polars")
_LARGEST = 2**63  # of a column's integers


def columns(run: RunRecord) -> dict[str, list[Any]]:
    """Give the epochs by column: `epoch`, the format's metrics, those logged, `elapsed_seconds`.

    A column holds numbers, booleans or texts, and None where there is none; what else was logged becomes JSON text.

    >>> from trackmetrics.record import EpochRecord, Metadata
    >>> run = RunRecord(Metadata("demo", "2026-01-01T00:00:00Z"), (EpochRecord(1, 0.5, metrics={"f1": [0.5, 1]}),))
    >>> columns(run)["train_loss"], columns(run)["f1"]
    ([0.5], ['[0.5, 1]'])
    """
    logged = dict.fromkeys(name for epoch in run.epochs for name in epoch.metrics)
    table = {"epoch": [epoch.epoch for epoch in run.epochs]}
    table |= {name: [getattr(epoch, name) for epoch in run.epochs] for name in METRIC_KEYS}
    table |= {name: _alike([epoch.metrics.get(name) for epoch in run.epochs]) for name in logged}
    return {**table, "elapsed_seconds": [epoch.elapsed_seconds for epoch in run.epochs]}


def _alike(values: list[Any]) -> list[Any]:
    """Values of one type that a column can have, integers among floats as floats; else the JSON text of each."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    short = not any(isinstance(value, int) and abs(value) >= _LARGEST for value in values)
    if len(kinds) <= 1 and kinds <= {int, float, bool, str} and short:
        return values
    return [None if value is None else value if isinstance(value, str) else _json(value) for value in values]


def _json(value: Any) -> str:
    return encode(value).decode().strip()


def to_frame(run: RunRecord, library: Literal["pandas", "polars"] | None = None) -> Any:
    """Give the epochs as a data frame, a row each, with the columns that `columns` names.

    Without `library`, of the one that is imported already, else the one that is installed; pandas comes first.
    Raises `MissingExtraError` where it isn't, `ArgumentError` for another library's name.

    >>> to_frame(RunRecord(None), "numpy")
    Traceback (most recent call last):
    ...
    trackmetrics.errors.ArgumentError: library is 'numpy'; give 'pandas' or 'polars'
    """
    name = library or _at_hand()
    if name not in _LIBRARIES:
        raise ArgumentError(f"library is {shown(library)}; give 'pandas' or 'polars'")
    return extras.load(name, extra="frames").DataFrame(columns(run))


def _at_hand() -> str:
    for name in (*(name for name in _LIBRARIES if name in sys.modules), *_LIBRARIES):
        if extras.installed(name):
            return name
    raise MissingExtraError("neither pandas nor polars is installed; pip install 'trackmetrics[frames]'")
