"""Going on in an earlier run's file: what of it stays, and what has changed since."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from .errors import MetricsFileError, ResumeError
from .json_pointer import members
from .metrics_file import DESCRIBING_KEYS, MetricsFile, decode_record, encode_record
from .ranks import Ranks
from .record import Hyperparameters, RunRecord

OWN_KEYS = ("status", "environment", "gradient_norm", "attention", "seconds", "warnings", "resumed")  # of extensions

_TOLD = "the earlier run"
_MEND = "or leave out resume= to replace the file"


@dataclass(frozen=True)
class Earlier:
    """What a resumed run goes on from: the earlier record, its results taken out, and how many epochs were dropped."""

    record: RunRecord
    dropped_epochs: int = 0

    @property
    def elapsed_seconds(self) -> float:
        """How long the training had taken by its last epoch."""
        return self.record.epochs[-1].elapsed_seconds if self.record.epochs else 0.0

    @property
    def norm_summaries(self) -> list[dict[str, Any]]:
        """What the extensions say of each epoch's gradient norm; of an epoch that they leave out, its number."""
        summaries = self._said("gradient_norm", {}).get("epochs", [])
        known = {item["epoch"]: item for item in summaries if isinstance(item, dict) and type(item.get("epoch")) is int}
        return [known.get(epoch.epoch, {"epoch": epoch.epoch}) for epoch in self.record.epochs]

    @property
    def warnings(self) -> list[str]:
        """What was warned of."""
        return [str(message) for message in self._said("warnings", [])]

    @property
    def seconds(self) -> dict[str, float]:
        """What evaluation, inference and saving had taken."""
        seconds = self._said("seconds", {})
        return {key: value for key, value in seconds.items() if isinstance(value, (int, float))}

    @property
    def resumptions(self) -> list[Any]:
        """The resumptions before this one."""
        return list(self._said("resumed", []))

    @property
    def foreign(self) -> dict[str, Any]:
        """Extensions that aren't ours: another version's, or another program's."""
        own = (*OWN_KEYS, *DESCRIBING_KEYS)
        return {key: value for key, value in (self.record.extensions or {}).items() if key not in own}

    def _said(self, key: str, default: Any) -> Any:
        found = (self.record.extensions or {}).get(key)
        return found if isinstance(found, type(default)) else default

    def resumption(self, timestamp: str, now: Hyperparameters) -> dict[str, Any]:
        """Describe this resumption: when, after which epoch, and the hyperparameters that aren't what they were."""
        before = self.record.metadata.hyperparameters
        return {
            "timestamp": timestamp,
            "after_epoch": len(self.record.epochs),
            "dropped_epochs": self.dropped_epochs,
            "hyperparameters": dict(
                _changes(
                    {"model": before.model, "training": before.training}, {"model": now.model, "training": now.training}
                )
            ),
        }


def go_on(file: MetricsFile, task: str, after: bool | int) -> Earlier | None:
    """Read what a run goes on from; None where no file is and `after` is True.

    `after` is the last epoch to keep, True for all that are there. Raises `ResumeError` where the file is another
    task's, is damaged, or has no such epoch.
    """
    if not file.exists() and after is True:
        return None
    try:
        record = file.load()
    except MetricsFileError as error:
        raise ResumeError(f"resume={after}, but {error}; give the run its file, {_MEND}") from None
    if record.metadata.task != task:
        raise ResumeError(
            f"resume={after}, but {file.path} is of the task {record.metadata.task!r} and this run of {task!r}; "
            f"give it another part= or output_dir=, {_MEND}"
        )
    numbers = [epoch.epoch for epoch in record.epochs]
    if numbers != list(range(1, len(numbers) + 1)):
        raise ResumeError(f"resume={after}, but the epochs of {file.path} aren't numbered from 1 on; mend it, {_MEND}")
    kept = len(numbers) if after is True else after
    if kept > len(numbers):
        raise ResumeError(f"resume={after}, but {file.path} has {len(numbers)} epochs; give one of them, {_MEND}")
    record = replace(record, epochs=record.epochs[:kept], final_results=None, final_inference=None)
    return Earlier(record, len(numbers) - kept)


def read_and_tell(ranks: Ranks, file: MetricsFile, task: str, after: bool | int | None) -> Earlier | None:
    """Do so on the first rank, where `after` says that the run goes on; the others are told what it found, or why not.

    They may run on machines that don't have the file.
    """
    try:
        earlier = go_on(file, task, after) if after else None
    except ResumeError as error:
        fault = str(error)
        ranks.tell(_TOLD, lambda: {"fault": fault})
        raise
    ranks.tell(_TOLD, lambda: {} if earlier is None else _as_plain(earlier))
    return earlier


def _as_plain(earlier: Earlier) -> dict[str, Any]:
    return {"record": encode_record(earlier.record).decode(), "dropped_epochs": earlier.dropped_epochs}


def hear(ranks: Ranks) -> Earlier | None:
    """Give what the first rank goes on from. Raises its `ResumeError`, and `RanksApartError` where it says nothing."""
    told = ranks.hear(_TOLD)
    if "fault" in told:
        raise ResumeError(f"rank 0: {told['fault']}")
    return Earlier(decode_record(told["record"].encode()), told["dropped_epochs"]) if told else None


def _changes(before: Any, now: Any, pointer: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each place that differs, by JSON pointer, with what stood there `before` and stands there `now`."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        if before != now and repr(before) != repr(now):  # NaN is no change of NaN, in a list neither
            yield pointer, {"before": before, "now": now}
        return
    were, are = dict(members(before, pointer)), dict(members(now, pointer))
    for where in {**were, **are}:
        if where not in are:
            yield where, {"before": were[where]}
        elif where not in were:
            yield where, {"now": are[where]}
        else:
            yield from _changes(were[where], are[where], where)
