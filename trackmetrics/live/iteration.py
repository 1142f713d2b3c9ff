"""An iterable whose items are counted as they are gone through, for the live line."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from .pace import Loop

_Item = TypeVar("_Item")


class Follower(Protocol):
    """Who shows how far an iteration is."""

    @property
    def shows_progress(self) -> bool:
        """Whether anything is shown at all."""

    def loop_begins(self, total: int | None) -> Loop:
        """An iteration over `total` items begins."""

    def progress_made(self) -> None:
        """It is done with another item."""

    def loop_ends(self, loop: Loop) -> None:
        """It is over, to its end or not."""


class Counted(Generic[_Item]):
    """Goes through `iterable`: the same items, in the same order.

    It is as long as that is. While nobody follows, going through it is going through that.

    >>> counted = Counted("abc", lambda: None)
    >>> len(counted), list(counted)
    (3, ['a', 'b', 'c'])
    """

    def __init__(self, iterable: Iterable[_Item], follower: Callable[[], Follower | None]) -> None:
        self.iterable = iterable
        self._follower = follower

    def __len__(self) -> int:
        return len(self.iterable)  # type: ignore[arg-type]  # the iterable's own error, where it has no length

    def __iter__(self) -> Iterator[_Item]:
        iterator = iter(self.iterable)  # now: a loader draws its seed here
        follower = self._follower()
        if follower is None or not follower.shows_progress:
            return iterator
        return _counted(iterator, follower, _length(self.iterable))


def _counted(iterator: Iterator[_Item], follower: Follower, total: int | None) -> Generator[_Item]:
    loop = follower.loop_begins(total)
    try:
        while True:
            yield next(iterator)  # under no name: a batch that the loop lets go of is freed
            loop.done += 1
            follower.progress_made()
    except StopIteration:
        return
    finally:
        follower.loop_ends(loop)


def _length(iterable: Any) -> int | None:
    try:
        return len(iterable)
    except Exception:  # none, or one that it refuses to tell
        return None
