"""What the sinks of trackers have in common: what of a run is sent, and when."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any, ClassVar

from .. import extras
from ..metrics_file import SUFFIX
from ..plain import is_number
from ..record import METRIC_KEYS, EpochRecord, RunRecord
from ..run_state import state_of
from ..sidecars import standing_beside
from ..summary import hyperparameters
from .attention_images import Images, attention_images

_ROOM = 240  # characters of a name that gets a number, since trackers take 250


class TrackerRun(ABC):
    """A run in a tracker, that a sink writes to.

    `client` is what the tracker's library writes to it with; `first_epoch` is the first one that it is to have. A run
    that is the sink's `own` is ended with the training, the user's stays open.
    """

    def __init__(self, client: Any, first_epoch: int, *, own: bool) -> None:
        self.client, self.first_epoch, self.own = client, first_epoch, own
        self._names: dict[tuple[str, str], str] = {}

    def named(self, values: Mapping[str, Any], below: str = "") -> dict[str, Any]:
        """Give values under names that the tracker takes; where two would be one, the later one gets a number."""
        return {self._name(below, name): value for name, value in values.items()}

    def _name(self, below: str, name: str) -> str:
        if (below, name) not in self._names:
            accepted, taken = self.accepted(below + name), set(self._names.values())
            numbered = (f"{accepted[:_ROOM]}_{number}" for number in count(2))
            self._names[below, name] = next(found for found in chain([accepted], numbered) if found not in taken)
        return self._names[below, name]

    def accepted(self, name: str) -> str:
        """Give the name, changed where the tracker refuses it or takes it for something else."""
        return name

    @abstractmethod
    def log_epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        """Take an epoch's metrics."""

    @abstractmethod
    def log_hyperparameters(self, values: Mapping[str, Any], *, last: bool) -> None:
        """Take the hyperparameters as they are known; they may change until they are told for the `last` time."""

    @abstractmethod
    def log_end(self, number: int, results: Mapping[str, float], images: Images, files: list[Path]) -> None:
        """Take what there is as of the last epoch: final results, images, the metrics file and the arrays beside it."""

    @abstractmethod
    def close(self, state: str) -> None:
        """End what is the sink's own, `completed`, `interrupted` or `failed`; leave what is the user's open."""


class TrackerSink(ABC):
    """Sends epoch metrics and hyperparameters after each epoch, all the rest at the end.

    The tracker's run is opened after the first epoch, so that one that the training function begins is found. A value
    that is no number isn't sent.
    """

    libraries: ClassVar[tuple[str, ...]]  # that have to be there
    extra: ClassVar[str]  # of the package, which installs them

    def __init__(self) -> None:
        self._earlier: dict[str, int] = {}  # by the metrics file's path, the epochs that were there before the run
        self._open: dict[str, TrackerRun] = {}

    @abstractmethod
    def _opened(self, path: Path, timestamp: str, earlier: int) -> TrackerRun:
        """Open a run in the tracker, or take the user's; `earlier` epochs were there before this run began."""

    def run_began(self, record: RunRecord, path: str) -> None:
        """Check that the libraries are there. Raises `MissingExtraError`."""
        for library in self.libraries:
            extras.load(library, extra=self.extra)
        self._earlier[path] = len(record.epochs)

    def epoch_ended(self, record: RunRecord, path: str) -> None:
        """Send the epochs that weren't sent yet, and the hyperparameters."""
        with self._closing_at_a_fault(path):
            run = self._send_epochs(record, path)
            run.log_hyperparameters(run.named(_known(hyperparameters(record))), last=False)

    def run_ended(self, record: RunRecord, path: str) -> None:
        """Send what is left, and close what the sink opened."""
        trained = len(record.epochs) > self._earlier[path]
        if trained:  # else the file stays as it was, and so do its copies
            state = state_of(record, path).name
            state = state if state in ("completed", "interrupted") else "failed"
            with self._closing_at_a_fault(path, state):
                self._conclude(record, Path(path), self._send_epochs(record, path))
            self._open.pop(path).close(state)
        del self._earlier[path]

    def _send_epochs(self, record: RunRecord, path: str) -> TrackerRun:
        run = self._open.get(path)
        if run is None:
            run = self._open[path] = self._opened(Path(path), record.metadata.timestamp, self._earlier[path])
        for epoch in record.epochs:
            if epoch.epoch >= run.first_epoch:
                run.log_epoch(epoch.epoch, run.named(epoch_numbers(epoch)))
                run.first_epoch = epoch.epoch + 1
        return run

    def _conclude(self, record: RunRecord, path: Path, run: TrackerRun) -> None:
        run.log_hyperparameters(run.named(_known(hyperparameters(record))), last=True)
        results = _known(vars(record.final_results)) if record.final_results else {}
        run.log_end(
            record.epochs[-1].epoch,
            run.named(results, "final_results/"),
            attention_images(record),
            [path, *standing_beside(path)] if path.exists() else [],
        )

    @contextlib.contextmanager
    def _closing_at_a_fault(self, path: str, state: str = "failed") -> Iterator[None]:
        """A sink that raises isn't called again: it has no later moment to close what it opened."""
        try:
            yield
        except Exception:
            run = self._open.pop(path, None)
            self._earlier.pop(path, None)
            with contextlib.suppress(Exception):
                if run is not None:
                    run.close(state)
            raise


def part_of(path: Path) -> str:
    """Give the part of a metrics file's name that is the run's own."""
    return path.name.removesuffix(SUFFIX)


def epoch_numbers(epoch: EpochRecord) -> dict[str, float]:
    """Give an epoch's metrics that are numbers, the format's own and those logged; NaN and infinities are.

    >>> epoch_numbers(EpochRecord(1, train_loss=0.5, metrics={"f1": 1, "note": "warm-up"}))
    {'train_loss': 0.5, 'f1': 1.0}
    """
    found = {**{key: getattr(epoch, key) for key in METRIC_KEYS}, **epoch.metrics}
    return {name: float(value) for name, value in found.items() if is_number(value)}


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
