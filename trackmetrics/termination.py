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
from types import FrameType

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]

_told: list[tuple[int, Callable[[str], None]]] = []  # of each live run its process and whom to tell


@contextlib.contextmanager
def told_of_termination(tell: Callable[[str], None]) -> Iterator[None]:
    """Call `tell` with the signal's name if the process is asked to end in this block.

    Python hands signals to its main thread alone: a run in another thread is told only while one in the main thread
    lives too. A signal that the user handles, or ignores, is theirs.
    """
    entry = (os.getpid(), tell)
    handled = _handle() if threading.current_thread() is threading.main_thread() else []
    _told.append(entry)
    try:
        yield
    finally:
        _told.remove(entry)
        _let_go(handled)


def _handle() -> list[signal.Signals]:
    """Handle those signals that nobody handles yet, and say which."""
    free = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in free:
        signal.signal(number, _end)
    return free


def _let_go(handled: list[signal.Signals]) -> None:
    for number in handled:
        if signal.getsignal(number) is _end:  # else the user's own by now
            with contextlib.suppress(ValueError):  # a run that is left in another thread than it was entered in
                signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    try:
        for process, tell in reversed(_told):
            if process == os.getpid():  # a process forked from a run's has no run
                with contextlib.suppress(Exception):
                    tell(signal.Signals(number).name)
    finally:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
