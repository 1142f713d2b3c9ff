"""The terminal that standard error is: rows that stay, and one row at its bottom that is drawn again and again.

Whoever else writes to the terminal (a `print`, a bar of tqdm's, a worker process, C code) neither knows of this nor
has to: nothing of Python's is replaced. The terminal itself is told to scroll all rows but the last one, which is the
live line's. A row that stays is inserted above the line that the cursor is in, however far that one is written. After
either the cursor is where it was.

All that is needed of a terminal is what a VT102 of 1982 did.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from typing import Any

from rich.cells import cell_len

try:
    import fcntl
    import termios
except ImportError:  # Windows
    _HAS_TERMINALS = False
else:
    _HAS_TERMINALS = True

_SAVE, _RESTORE = "\x1b7", "\x1b8"  # the cursor and its colours
_UP, _DOWN = "\x1b[A", "\x1b[B"
_PLAIN = "\x1b[m"
_NO_MARGINS = _SAVE + "\x1b[r" + _RESTORE  # setting margins moves the cursor
_CLEAR_BELOW = _SAVE + _PLAIN + "\x1b[J" + _RESTORE
_LEAST_ROWS = 4  # of a terminal one of whose rows is taken
_MOST_WAITING = 2**16  # bytes for a terminal that is stopped


def _room_below(rows: int) -> str:
    """Scroll if the cursor has fewer rows below it; it stays on its line, in its column."""
    return "\x1bD" * rows + _UP * rows


class Screen:
    """A terminal, opened anew so that no write to it ever waits."""

    def __init__(self, path: str, encoding: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._encoding = encoding
        self._process = os.getpid()
        self._waiting = b""
        self._taken: os.terminal_size | None = None  # how large it was when its last row was taken

    @property
    def columns(self) -> int:
        """How wide it is now."""
        return self._size().columns or 80

    def _size(self) -> os.terminal_size:
        return os.get_terminal_size(self._file)

    def add_row(self, text: str, colour: str = "") -> None:
        """Insert a row that stays, above the line that the cursor is in; a long one takes several."""
        rows = max(1, -(-cell_len(text) // self.columns))
        self._send(f"{_room_below(rows)}{_SAVE}{_PLAIN}\r\x1b[{rows}L\x1b[{colour}m{text}{_RESTORE}{_DOWN * rows}")

    def draw(self, text: str) -> None:
        """Show `text`, shorter than a row, in the last row, if that can be had: one run at a time has it."""
        if not self._in_foreground():
            self.give_back()
            return
        if self._waiting and not self._send(""):
            return
        size = self._size()
        if size != self._taken:
            if size.lines < _LEAST_ROWS or not self._hold():
                return
            cleared = _NO_MARGINS + _CLEAR_BELOW if self._taken is not None else ""  # its row is elsewhere now
            if self._taken is None:
                atexit.register(self.give_back)  # for a run that nobody ends
            self._taken = size
            self._send(f"{cleared}{_room_below(1)}{_SAVE}\x1b[1;{size.lines - 1}r{_RESTORE}")
        self._send(f"{_SAVE}{_PLAIN}\x1b[{size.lines};1H{text}\x1b[K{_RESTORE}")

    def give_back(self) -> None:
        """Let the terminal scroll all of its rows again; what stood in the last one is gone."""
        if self._taken is None or os.getpid() != self._process:
            return
        taken, self._taken = self._taken, None
        atexit.unregister(self.give_back)
        if self._size() == taken:
            self._send(f"{_SAVE}{_PLAIN}\x1b[{taken.lines};1H\x1b[2K\x1b[r{_RESTORE}")
        else:
            self._send(_NO_MARGINS + _CLEAR_BELOW)
        with contextlib.suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_UN)  # by name: workers that were forked meanwhile have it too

    def close(self) -> None:
        """Give the last row back, and let go of the terminal."""
        if self._file >= 0:
            try:
                self.give_back()
            finally:
                os.close(self._file)
                self._file = -1

    def _hold(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._file) == os.getpgrp()
        except OSError:  # a terminal that controls no process
            return True

    def _send(self, text: str) -> bool:
        """Write what the terminal takes at once, and keep the rest for the next time; say whether all is written."""
        if os.getpid() != self._process:
            return False
        if len(self._waiting) < _MOST_WAITING:
            self._waiting += text.encode(self._encoding, "backslashreplace")
        if not self._in_foreground() and termios.tcgetattr(self._file)[3] & termios.TOSTOP:
            return False  # it would stop the process
        with contextlib.suppress(BlockingIOError):
            while self._waiting:
                self._waiting = self._waiting[os.write(self._file, self._waiting) :]
        return not self._waiting


def screen_of(stream: Any) -> Screen | None:
    """The screen that a stream writes to; None where that is no terminal, or one that can't move its cursor."""
    if not _HAS_TERMINALS or os.environ.get("TERM", "") in ("", "dumb", "unknown"):
        return None
    if "JPY_PARENT_PID" in os.environ:  # `!python train.py` in a notebook, which shows letters and colours alone
        return None
    try:
        if not os.isatty(stream.fileno()):
            return None
        return Screen(os.ttyname(stream.fileno()), stream.encoding or "ascii")
    except (AttributeError, OSError, ValueError, LookupError, TypeError):  # a stand-in; or the terminal is another's
        return None


def takes_unicode(encoding: str | None) -> bool:
    """Whether a terminal shows letters beyond ASCII, by the encoding of its stream and by the user's locale.

    Without a locale Python writes UTF-8 all the same, and says so in `LC_CTYPE`.
    """
    locale = os.environ.get("LC_ALL") or os.environ.get("LANG") or ""
    return all(name.lower().replace("-", "").find("utf8") >= 0 for name in (encoding or "", locale))
