"""What a run says once: one `TrackmetricsWarning` for each value that could not be had."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator

from .errors import TrackmetricsWarning, fault
from .standard_error import takes_a_line

# A fault in one of the package's own `with` blocks comes by way of contextlib.
_NOT_THE_USERS = (os.path.dirname(os.path.abspath(__file__)) + os.sep, os.path.abspath(contextlib.__file__))
_LONGEST = 1000  # characters: with the line that it is about, what a pipe with room takes without waiting


class Notices:
    """Warns of each thing once, and keeps the messages for the file; never raises, warnings made errors included.

    Where `warns` says no they are only kept.
    """

    def __init__(self, warns: Callable[[], bool] = lambda: True) -> None:
        self._warns = warns
        self._said: dict[str, str] = {}

    @property
    def messages(self) -> list[str]:
        """What was said, in order."""
        return list(self._said.values())

    def say(self, about: str, message: str) -> None:
        """Warn of `message`, unless something was said about the same value before."""
        if about in self._said:
            return
        message = message if len(message) <= _LONGEST else message[: _LONGEST - 3] + "..."
        self._said[about] = message
        # Where warnings are errors, or can't be shown, the message stands in the file and the training goes on.
        with contextlib.suppress(Exception):
            if not self._warns() or (sys.stderr is not None and not takes_a_line(sys.stderr)):
                return
            warnings.warn(TrackmetricsWarning(message), stacklevel=_users_level())

    def say_null(self, what: str, why: str) -> None:
        """Warn that it, "loss is" or "loss and accuracy are", is null: once for each reason, whatever else it costs."""
        self.say(f"reason: {why}", f"{what} null: {why}")

    def say_fault(self, what: str, error: Exception) -> None:
        """Warn that a fault of ours cost it."""
        self.say(what, f"{what} could not be had: {fault(error)}")

    @contextlib.contextmanager
    def sparing(self, what: str) -> Iterator[None]:
        """A fault of ours in this block costs `what`, never the training."""
        try:
            yield
        except Exception as error:
            self.say_fault(what, error)


def _users_level() -> int:
    """The stack level of the line of the user's program that led here."""
    level = 2
    frame = sys._getframe(2)
    torch = sys.modules.get("torch")  # whose hooks call us from deep inside it
    others = (*_NOT_THE_USERS, os.path.dirname(str(torch.__file__)) + os.sep) if torch else _NOT_THE_USERS
    while frame.f_back is not None and os.path.abspath(frame.f_code.co_filename).startswith(others):
        frame = frame.f_back
        level += 1
    return level
