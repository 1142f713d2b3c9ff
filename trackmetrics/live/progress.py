"""What a run shows of itself while it trains: a row or line for each epoch, and a live line for the one in progress.

In one of three forms: on a terminal, in a notebook, or as plain lines anywhere else. All are written to by the thread
that trains, a few times a second at most; none ever raises or waits.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Protocol, TextIO

from ..ranks import rank
from ..record import EpochRecord, RunRecord
from ..standard_error import takes_a_line
from ..wording import printable
from .epoch_table import HEADINGS, epoch_cells, epoch_line, final_cells, final_line, table_row
from .notebook import Notebook, kernel_shell
from .pace import Loop, Pace, Status
from .screen import Screen, screen_of, takes_unicode
from .status_line import Style, status_line

_EVERY = 0.25  # seconds between two drawings of the live line
_FIGURES_EVERY = 1.0  # the same, of the figures on it: nobody reads them faster
_STAGE_AFTER = 0.05  # from the last drawing to that of a stage, which may stand for long


class View(Protocol):
    """One form of what is shown. `live` says whether it has a line for the epoch in progress."""

    live: bool

    def epoch_done(self, epoch: EpochRecord) -> None:
        """Show an epoch's figures, to stay."""

    def run_done(self, record: RunRecord, path: Path) -> None:
        """Show the final results and where the file is."""

    def draw(self, status: Status) -> None:
        """Show this moment, until the next."""

    def close(self) -> None:
        """Take the live line away."""


class Progress:
    """Shows a run where that is wanted; never raises and never waits.

    The live line costs a look at the clock, `due`, unless it is to be drawn. Of the processes of one training only the
    first one shows anything.
    """

    def __init__(
        self, progress: Literal["auto"] | bool, clock: Callable[[], float], stream: TextIO | None = None
    ) -> None:
        self._clock = clock
        self._view = _view(progress, sys.stderr if stream is None else stream)
        self._pace = Pace(clock)
        self._drawn = self._staged = float("-inf")  # when the line was, and when anything was in its place
        self._figures: Mapping[str, float] = {}
        self._figures_read = float("-inf")
        self.live = self._view is not None and self._view.live

    # The epoch in progress

    def epoch_begins(self, number: int, epochs: int | None, steps: int | None = None) -> None:
        """An epoch begins; `epochs` and `steps` are how many there will be, where that is known."""
        self._pace.epoch_begins(number, epochs, steps)
        self._figures = {}

    def loop_begins(self, total: int | None) -> Loop:
        """Somebody begins to go through `total` items."""
        return self._pace.loop_begins(total)

    def loop_ends(self, loop: Loop) -> None:
        """They are done with it."""
        self._pace.loop_ends(loop)

    def due(self) -> bool:
        """Whether it is time to draw the live line again."""
        return self.live and self._clock() - self._drawn >= _EVERY

    def draw(self, steps: int, figures: Callable[[], Mapping[str, float]]) -> None:
        """Draw it, after so many steps of the epoch; `figures`, its `loss` and `norm`, are asked for less often."""
        self._drawn = self._clock()
        if not self._figures or self._drawn - self._figures_read >= _FIGURES_EVERY:
            self._figures, self._figures_read = figures(), self._drawn
        self._draw(self._pace.status(steps, self._figures.get("loss"), self._figures.get("norm")))

    def stage(self, steps: int, stage: str) -> None:
        """Say on the live line what goes on now, where that is no training."""
        if self.live and self._clock() - self._staged >= _STAGE_AFTER:
            self._draw(self._pace.status(steps, stage=stage))

    def _draw(self, status: Status) -> None:
        self._staged = self._clock()
        self._show(lambda view: view.draw(status))

    # What stays

    def epoch_done(self, epoch: EpochRecord, steps: int = 0) -> None:
        """Show an epoch's figures."""
        self._pace.epoch_ends(steps)
        self._show(lambda view: view.epoch_done(epoch))

    def run_done(self, record: RunRecord, path: Path) -> None:
        """Show the final results and where the file is."""
        self._show(lambda view: view.run_done(record, path))

    def close(self) -> None:
        """Leave the terminal as it was, but for what stays."""
        view, self._view, self.live = self._view, None, False
        if view is not None:
            with contextlib.suppress(Exception):
                view.close()

    def _show(self, show: Callable[[View], None]) -> None:
        if self._view is None:
            return
        with contextlib.suppress(Exception):
            if rank() != 0:
                self.close()  # for good: the processes may part before the run ends
            else:
                show(self._view)


def _view(progress: Literal["auto"] | bool, stream: TextIO | None) -> View | None:
    if progress is False:
        return None
    shell = kernel_shell()
    if shell is not None:
        return Notebook(shell)
    if progress is True or _is_terminal(stream):
        screen = screen_of(stream)
        return Lines(stream) if screen is None else Terminal(screen, stream)
    return None


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except Exception:  # closed, or a stand-in that can't tell
        return False


class Lines:
    """Plain lines on a stream. A closed one shows nothing, and so does a pipe that is full."""

    live = False

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def epoch_done(self, epoch: EpochRecord) -> None:
        self._write(epoch_line(epoch))

    def run_done(self, record: RunRecord, path: Path) -> None:
        if record.final_results is not None:
            self._write(final_line(record.final_results))
        self._write(f"metrics in {path}")

    def draw(self, status: Status) -> None:
        """Nothing is drawn that doesn't stay."""

    def close(self) -> None:
        """There is nothing to take away."""

    def _write(self, line: str) -> None:
        with contextlib.suppress(Exception):
            if self._stream is not None and takes_a_line(self._stream):
                self._stream.write(line + "\n")
                self._stream.flush()


class Terminal:
    """A table's rows on a terminal, and the live line below all that is written there."""

    live = True

    def __init__(self, screen: Screen, stream: TextIO | None) -> None:
        self._screen = screen
        self._style = Style(takes_unicode(getattr(stream, "encoding", None)), not os.environ.get("NO_COLOR"))
        self._heading = ""

    def epoch_done(self, epoch: EpochRecord) -> None:
        self._row(epoch_cells(epoch))

    def run_done(self, record: RunRecord, path: Path) -> None:
        if record.final_results is not None:
            self._row(final_cells(record.final_results))
        self._screen.add_row(printable(f"metrics in {path}"))

    def _row(self, cells: tuple[str, ...]) -> None:
        """One row, below a heading that has its columns."""
        width = self._screen.columns - 1
        heading = table_row(HEADINGS, width)
        if heading != self._heading:
            self._heading = heading
            self._screen.add_row(heading, "2" if self._style.colour else "")
        self._screen.add_row(table_row(cells, width))

    def draw(self, status: Status) -> None:
        self._screen.draw(status_line(status, self._screen.columns - 1, self._style))

    def close(self) -> None:
        self._screen.close()
