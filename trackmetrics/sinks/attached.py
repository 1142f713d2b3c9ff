"""The sinks of a run: told in turn; one that fails is named once and dropped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from ..errors import TrackmetricsError
from ..notices import Notices
from ..record import RunRecord
from .sink import Sink

_PATIENCE = 5.0  # seconds that a process that is told to end waits for its sinks


class AttachedSinks:
    """Tells each sink what becomes of a run; a fault of one stops neither the training nor another sink."""

    def __init__(self, sinks: Iterable[Sink], path: str, notices: Notices) -> None:
        self._sinks = list(sinks)
        self._path = path
        self._notices = notices

    def __bool__(self) -> bool:
        """Whether there is a sink left to tell."""
        return bool(self._sinks)

    def run_began(self, record: RunRecord) -> None:
        """Raises what a sink says can't be right from the start, a `TrackmetricsError`."""
        waiting, self._sinks = self._sinks, []
        for sink in waiting:
            try:
                sink.run_began(record, self._path)
                self._sinks.append(sink)
            except TrackmetricsError:
                raise
            except Exception as error:
                self._drop(sink, error)

    def epoch_ended(self, record: RunRecord) -> None:
        """Another epoch is over, and its file written."""
        self._tell(lambda sink: sink.epoch_ended(record, self._path))

    def run_ended(self, record: RunRecord) -> None:
        """The run is over: no sink is told anything more."""
        self._tell(lambda sink: sink.run_ended(record, self._path))
        self._sinks = []

    def process_ends(self, record: RunRecord) -> None:
        """Say so as for a run's end, in a signal's handler: there, what a sink waits for may never come."""
        if self._sinks:
            teller = threading.Thread(target=self.run_ended, args=(record,), daemon=True)
            teller.start()
            teller.join(_PATIENCE)

    def _tell(self, call: Callable[[Sink], None]) -> None:
        for sink in self._sinks.copy():
            try:
                call(sink)
            except Exception as error:
                self._drop(sink, error)

    def _drop(self, sink: Sink, error: Exception) -> None:
        self._sinks = [other for other in self._sinks if other is not sink]
        self._notices.say(
            f"sink {id(sink)}",
            f"the sink {type(sink).__name__} failed with {error!r} and gets nothing more; the metrics file has it all",
        )
