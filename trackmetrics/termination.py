"""A process that is asked to end: live runs are told before it does.

SIGTERM (a scheduler, `kill`) and SIGHUP (a terminal that closes) end a process at once unless somebody handles them:
no exception is raised, no `finally` runs. While a run lives they are handled where nobody else does; when the runs have
been told, the process ends by the same signal, as it would have without us.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@dataclass(frozen=True, eq=False)
class _Entry:
    """A live run: whom to tell, and whether it was entered in the main thread, which alone may set handlers."""

    tell: Callable[[str], None]
    in_main_thread: bool


_told: list[_Entry] = []


@contextlib.contextmanager
def told_of_termination(tell: Callable[[str], None]) -> Iterator[None]:
    """Call `tell` with the signal's name if the process is asked to end in this block.

    Python hands signals to its main thread alone: a run in another thread is told only while one in the main thread
    lives too. A signal that the user handles, or ignores, is theirs.
    """
    entry = _Entry(tell, threading.current_thread() is threading.main_thread())
    try:
        _told.append(entry)
        if entry.in_main_thread:
            _handle()
        yield
    finally:
        if entry in _told:  # else in a process that was forked from the run's
            _told.remove(entry)
        if not any(other.in_main_thread for other in _told):
            _let_go()


def _handle() -> None:
    """Handle those signals that nobody handles yet."""
    for number in _SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _let_go() -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) is _end:  # else the user's own by now
            with contextlib.suppress(ValueError):  # a run that is left in another thread than it was entered in
                signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    if signal.getsignal(number) is not _end:
        return  # called by a handler of the user's, who decides: without us there would be none to call
    try:
        for entry in reversed(_told):
            with contextlib.suppress(Exception):
                entry.tell(signal.Signals(number).name)
    finally:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _forget() -> None:
    """A process that was forked from a run's has no run, and ends by a signal at once, in the midst of C code too."""
    _told.clear()
    _let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
