"""Test tracked training functions: their files are kept in memory, and time passes only when told."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import overload

from .errors import ArgumentError, MetricsFileError, PathInUseError, RunStateError
from .metrics_file import MetricsFile, decode_record, encode_record
from .options import Options
from .plain import is_number
from .record import RunRecord
from .run import disabled
from .surroundings import Clock, Surroundings, within

__all__ = ["FakeClock", "RunInMemory", "RunsInMemory", "runs_in_memory"]

_BEGINNING = datetime(2026, 1, 1, tzinfo=timezone.utc)


class FakeClock(Clock):
    """A clock that stands still until it is told to go on; `date` may be set, to an earlier one too.

    >>> clock = FakeClock()
    >>> clock.advance(90)
    >>> clock.seconds, clock.date.isoformat()
    (90.0, '2026-01-01T00:01:30+00:00')
    """

    def __init__(self, date: datetime = _BEGINNING) -> None:
        self.seconds = 0.0
        self.date = date

    def advance(self, seconds: float) -> None:
        """Let some seconds pass. Raises `ArgumentError` for what isn't a number of them, 0 or more."""
        if not is_number(seconds) or not 0 <= seconds < float("inf"):
            raise ArgumentError(f"seconds is {seconds!r}; give a number, 0 or more: this clock doesn't go back")
        self.seconds += seconds
        self.date += timedelta(seconds=seconds)

    def monotonic(self) -> float:
        """Give the seconds that have passed."""
        return self.seconds

    def now(self) -> datetime:
        """Give the date."""
        return self.date


class RunInMemory:
    """What a run would have written to `path`, as of its last save, while it goes on and afterwards."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._record: RunRecord | None = None
        self._text = b""

    def __repr__(self) -> str:
        return f"<the run in memory of {self.path.name}{'' if self.written else ', nothing written'}>"

    @property
    def written(self) -> bool:
        """Whether it wrote its file; a run does after each epoch and when it has completed."""
        return self._record is not None

    @property
    def record(self) -> RunRecord:
        """The record at full precision, as `tracker.record` has it. Raises `RunStateError` before the first save."""
        if self._record is None:
            raise RunStateError(
                f"the run of {self.path.name} has written nothing: a run does after its first epoch, or when it ends "
                "without an exception"
            )
        return self._record

    @property
    def text(self) -> str:
        """The file's text, strict JSON with all arrays in it. Raises `RunStateError` as `record` does."""
        assert self.record
        return self._text.decode()

    @property
    def warnings(self) -> list[str]:
        """What the file says was warned of. Raises `RunStateError` as `record` does, and without extensions."""
        if self.record.extensions is None:
            raise RunStateError(
                "this run has extensions=False, so that its file names no warnings; look for TrackmetricsWarning, as "
                "pytest.warns does"
            )
        return [str(message) for message in self.record.extensions.get("warnings", [])]

    def _write(self, record: RunRecord) -> None:
        self._record, self._text = record, encode_record(record)


class RunsInMemory(Sequence[RunInMemory]):
    """The runs that were entered in the block, in that order, and the `clock` that they go by."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self._runs: list[RunInMemory] = []
        self._live: dict[Path, RunInMemory] = {}

    @overload
    def __getitem__(self, index: int) -> RunInMemory: ...

    @overload
    def __getitem__(self, index: slice) -> list[RunInMemory]: ...

    def __getitem__(self, index: int | slice) -> RunInMemory | list[RunInMemory]:
        return self._runs[index]

    def __len__(self) -> int:
        return len(self._runs)

    def __repr__(self) -> str:
        return f"<runs in memory: {self._runs}>"


@contextlib.contextmanager
def runs_in_memory(clock: FakeClock | None = None, *, sinks: bool = False) -> Iterator[RunsInMemory]:
    """Keep in memory what the runs in this block would write: nothing is on the disk, on the terminal, or in trackers.

    Runs are those of decorated functions, `Tracker` and trainers' callbacks, in all threads of this process. One that
    resumes goes on from what an earlier one of the same block wrote. They go by `clock`, a new one by default: it
    stands still until `clock.advance(seconds)`. With `sinks` those of `sinks=` are told as ever.
    Raises `RunStateError` where tracking is disabled.

    >>> from trackmetrics import tracked_training
    >>> @tracked_training("demo", train=[], dev=[])
    ... def train(num_epochs, tracker, after_epoch):
    ...     for _ in range(num_epochs):
    ...         with tracker.epoch() as epoch:
    ...             epoch.log(train_loss=0.5, train_accuracy=1.0, dev_accuracy=1.0, gradient_norm=0.1)
    ...             after_epoch()
    >>> with runs_in_memory() as runs:
    ...     train(2, after_epoch=lambda: runs.clock.advance(30))
    >>> [run] = runs
    >>> run.path.name, [epoch.elapsed_seconds for epoch in run.record.epochs]
    ('demo_training_metrics.json', [30.0, 60.0])
    """
    if disabled():
        raise RunStateError("TRACKMETRICS_DISABLED is set, so that there would be no run; unset it for this test")
    runs = RunsInMemory(clock or FakeClock())
    with within(_Memory(runs, sinks)):
        yield runs


class _Memory(Surroundings):
    """Nothing of a run gets out."""

    def __init__(self, runs: RunsInMemory, sinks: bool) -> None:
        super().__init__(runs.clock)
        self._runs = runs
        self._sinks = sinks

    def allowed(self, options: Options) -> Options:
        return replace(options, progress=False, sinks=options.sinks if self._sinks else ())

    def file(self, options: Options) -> MetricsFile:
        return _MemoryFile(self._runs, options.folder, options.file_part)


class _MemoryFile(MetricsFile):
    """A metrics file that stands in memory, its arrays all in its text."""

    def __init__(self, runs: RunsInMemory, output_dir: str | os.PathLike[str], part: str) -> None:
        super().__init__(output_dir, part)
        self._runs = runs
        self._run = RunInMemory(self.path)

    def __enter__(self) -> MetricsFile:
        if self._runs._live.setdefault(self.path, self._run) is not self._run:
            raise PathInUseError(
                f"another live run writes {self.path} (in memory); give this one another part= or output_dir=, "
                "or wait until that one has ended"
            )
        self._runs._runs.append(self._run)
        return self

    def release(self) -> None:
        self._runs._live.pop(self.path, None)

    def exists(self) -> bool:
        return self._last_text() is not None

    def load(self) -> RunRecord:
        text = self._last_text()
        if text is None:
            raise MetricsFileError(f"{self.path} can't be read: No such file in memory")
        return decode_record(text)

    def _last_text(self) -> bytes | None:
        written = [run for run in self._runs if run.written and run.path == self.path]
        return written[-1]._text if written else None

    def write(self, record: RunRecord, *, last: bool = False) -> None:
        self._run._write(record)
