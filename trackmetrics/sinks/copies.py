"""Copies of a record that grows, for one who may change what they are given."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from operator import is_
from typing import Any

from ..record import RunRecord


class Copies:
    """Copies one run's record again and again; of a tuple, which only grows, what is new alone.

    An item of a tuple that is still the same object is taken to hold the same.

    >>> from trackmetrics.record import EpochRecord, Metadata
    >>> copies, record = Copies(), RunRecord(Metadata("demo", ""), (EpochRecord(1, metrics={"f1": 0.5}),))
    >>> copies.of(record).epochs[0].metrics["f1"] = 1.0
    >>> record.epochs[0].metrics["f1"]
    0.5
    """

    def __init__(self) -> None:
        self._grown: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {}  # by place, the items and their copies

    def of(self, record: RunRecord) -> RunRecord:
        """Give a copy that shares nothing with the record which can be changed."""
        return replace(
            record,
            metadata=deepcopy(record.metadata),
            epochs=self._copied(record.epochs, "epochs"),
            final_inference=deepcopy(record.final_inference),
            extensions=self._copied(record.extensions, "extensions"),
        )

    def _copied(self, value: Any, place: str) -> Any:
        if isinstance(value, dict):
            return {key: self._copied(item, f"{place}/{key}") for key, item in value.items()}
        if not isinstance(value, tuple):
            return deepcopy(value)
        items, copies = self._grown.get(place, ((), ()))
        if len(items) > len(value) or not all(map(is_, items, value)):
            copies = ()
        copies = (*copies, *map(deepcopy, value[len(copies) :]))
        self._grown[place] = value, copies  # in one assignment: a signal's handler may copy in between
        return copies
