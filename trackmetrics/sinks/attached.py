"""The sinks of a run: told in turn; one that fails is named once and dropped."""

from __future__ import annotations

import contextlib
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator

from ..errors import TrackmetricsError, fault
from ..notices import Notices
from ..record import RunRecord
from .copies import Copies
from .sink import Sink

_PATIENCE = 5.0  # seconds that a process that is told to end waits for its sinks


class AttachedSinks:
    """Tells each sink what becomes of a run; a fault of one stops neither the training nor another sink.

    Each gets copies of the record that are its own: what it changes in them, no other sink and no file shows.
    """

    def __init__(self, sinks: Iterable[Sink], path: str, notices: Notices) -> None:
        self._sinks = [(sink, Copies()) for sink in sinks]
        self._path = path
        self._notices = notices

    def __bool__(self) -> bool:
        """Whether there is a sink left to tell."""
        return bool(self._sinks)

    def run_began(self, record: RunRecord) -> None:
        """Raises what a sink says can't be right from the start, a `TrackmetricsError`."""
        waiting, self._sinks = self._sinks, []
        for sink, copies in waiting:
            with self._dropped_at_a_fault(sink, TrackmetricsError):
                sink.run_began(copies.of(record), self._path)
                self._sinks.append((sink, copies))

    def epoch_ended(self, record: RunRecord) -> None:
        """Another epoch is over, and its file written."""
        self._tell(lambda sink, copies: sink.epoch_ended(copies.of(record), self._path))

    def run_ended(self, record: RunRecord) -> None:
        """The run is over: no sink is told anything more."""
        self._tell(lambda sink, copies: sink.run_ended(copies.of(record), self._path))
        self._sinks = []

    def process_ends(self, record: RunRecord) -> None:
        """Say so as for a run's end, in a signal's handler: there, what a sink waits for may never come."""
        if self._sinks:
            teller = threading.Thread(target=self.run_ended, args=(record,), daemon=True)
            teller.start()
            teller.join(_PATIENCE)

    def _tell(self, call: Callable[[Sink, Copies], None]) -> None:
        for sink, copies in self._sinks.copy():
            with self._dropped_at_a_fault(sink):
                call(sink, copies)

    @contextlib.contextmanager
    def _dropped_at_a_fault(self, sink: Sink, users: type[BaseException] = KeyboardInterrupt) -> Iterator[None]:
        """Whatever a sink raises costs the sink alone, `sys.exit()` too; what is the user's comes through."""
        try:
            yield
        except (KeyboardInterrupt, users):
            raise
        except BaseException as error:
            if not isinstance(error, Exception) and _raised_by_a_signals_handler(error):
                raise
            self._drop(sink, error)

    def _drop(self, sink: Sink, error: BaseException) -> None:
        self._sinks = [(other, copies) for other, copies in self._sinks if other is not sink]
        self._notices.say(
            f"sink {id(sink)}",
            f"the sink {type(sink).__name__} failed with {fault(error)} and gets nothing more; "
            "the metrics file has it all",
        )


def _raised_by_a_signals_handler(error: BaseException) -> bool:
    """Whether a function that the user set for a signal raised it: the sink is only where it came."""
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()}
    return any(frame.f_code in handlers for frame, _ in traceback.walk_tb(error.__traceback__))
