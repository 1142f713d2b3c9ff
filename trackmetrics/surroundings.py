"""What a run is given from outside of it: the time, its file, and whom it may show itself to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import datetime, timezone

from .metrics_file import MetricsFile
from .options import Options


class Clock:
    """Where the time comes from."""

    def monotonic(self) -> float:
        """Give seconds that never fall."""
        return time.monotonic()

    def now(self) -> datetime:
        """Give the date, with its time zone."""
        return datetime.now(timezone.utc)


class Surroundings:
    """The world as it is: the system's clock, a file on the disk, and all outlets that the options ask for.

    Each run asks once, when it is entered; what stands in for it in tests is `trackmetrics.testing`'s.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()

    def allowed(self, options: Options) -> Options:
        """Give what of a run's options is to be done here."""
        return options

    def file(self, options: Options) -> MetricsFile:
        """Give the file of a run."""
        return MetricsFile(
            options.folder,
            options.file_part,
            keep_previous=options.keep_previous,
            max_inline_mb=options.max_inline_mb,
        )


_nested = [Surroundings()]


def surroundings() -> Surroundings:
    """Give those of a run that is entered now, in any thread."""
    return _nested[-1]


@contextlib.contextmanager
def within(inner: Surroundings) -> Iterator[None]:
    """Give runs that are entered in this block, in any thread of the process, these surroundings to their end."""
    _nested.append(inner)
    try:
        yield
    finally:
        _nested.remove(inner)  # not the last one, where two threads' blocks overlap
