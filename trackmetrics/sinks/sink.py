"""What a sink is: an object with three methods, which are told of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..record import RunRecord

METHODS = ("run_began", "epoch_ended", "run_ended")


class Sink(Protocol):
    """Gets copies of a run's record while it goes on, never the run.

    `record` is the run so far, at full precision, a copy that is this sink's own; `path` is its metrics file, written
    before the sink is told. One sink may be told of several runs, at the same time too: no two live ones have the same
    `path`. The calls come from the thread that trains, between epochs, and nothing but the sink waits for them. A sink
    that raises, whatever it is but Ctrl+C, is named in one warning and not called again.
    """

    def run_began(self, record: RunRecord, path: str) -> None:
        """Training is about to begin; a resumed run's record has the epochs that were there before.

        A `TrackmetricsError`, such as `MissingExtraError`, is raised to the user.
        """

    def epoch_ended(self, record: RunRecord, path: str) -> None:
        """Another epoch is over: its record is the last one."""

    def run_ended(self, record: RunRecord, path: str) -> None:
        """The run is over, whichever way: `trackmetrics.run_state.state_of(record, path)` says which."""
