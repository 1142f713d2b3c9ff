"""Standard error, which may be closed, or a pipe that nobody reads and that would hold the training up."""

from __future__ import annotations

import select
from typing import Any


def takes_a_line(stream: Any) -> bool:
    """Say whether a stream takes a line (of 4096 bytes at most) without waiting; True where that can't be known.

    >>> import io
    >>> takes_a_line(io.StringIO())
    True
    """
    if stream is None:
        return False
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & select.POLLOUT for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no file behind it, or a system without poll
        return True
