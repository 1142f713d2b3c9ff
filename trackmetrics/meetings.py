"""How the ranks of one run meet in a store: each brings its figures, all take the same result, or all take none.

The store is one of torch.distributed's, never a collective: a rank that doesn't come costs the others a wait with an
end, not the training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .errors import fault

_PAUSE_SECONDS = (0.0005, 0.05)  # between two looks, the first one and the longest
ENTRY_SECONDS = 30.0  # that a rank waits for the others to come to the run at all


class RanksApartError(Exception):
    """The ranks didn't meet; `why` says for what reason. A rank that is `late` may come yet."""

    def __init__(self, why: str, *, late: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.late = late


def wait(come: Callable[[], bool], check: Callable[[float], None]) -> None:
    """Look until they `come`; `check`, called with the seconds waited so far, raises where it is no use any more."""
    began, pause = time.monotonic(), _PAUSE_SECONDS[0]
    while not come():
        check(time.monotonic() - began)
        time.sleep(pause)
        pause = min(2 * pause, _PAUSE_SECONDS[1])


class Meetings:
    """The meetings of one run, as one of its `size` ranks sees them; none is waited for longer than `limit` seconds.

    A meeting that one rank has given up is over for all, so that none has numbers that another lacks. Until all have
    come to it, late as they may be, nobody waits for another one.
    """

    def __init__(self, store: Any, rank: int, size: int, limit: float) -> None:
        self._store = store
        self._rank, self._size = rank, size
        self._limit = limit
        self._complete = False  # whether all have been in the run
        self._missed: tuple[str, str] | None = None  # the last meeting that one was late for, and why
        self._over: list[str] = []  # entries of the store that nobody needs once the next meeting has been one

    @staticmethod
    def come(store: Any) -> None:
        """Say in a run's store that this rank is in the run; once."""
        store.add("here", 1)

    def tell(self, about: str, value: Any) -> None:
        """Let the other ranks `hear` it: plain data."""
        self._store.set(f"told/{about}", json.dumps(value))

    def hear(self, about: str) -> Any:
        """Give what rank 0 tells. Raises `RanksApartError` where it doesn't."""
        key, missing = f"told/{about}", f"rank 0 didn't tell of {about}"
        wait(lambda: bool(self._store.check([key])), lambda waited: self._check(key, lambda: missing, waited))
        return json.loads(self._store.get(key))

    def leave(self, scope: str, why: str) -> None:
        """Say that this rank comes to no more meeting whose name begins with `scope`, which is "" or ends in "/"."""
        self._store.set(f"{scope}left", f"rank {self._rank} {why}")

    def forget(self, scope: str) -> None:
        """There won't be any more of these on any rank."""
        self._over.append(f"{scope}left")

    def meet(self, name: str, own: Any, combine: Callable[[Sequence[Any]], Any]) -> Any:
        """Bring `own`; take what `combine` makes on rank 0 of all that was brought, in the ranks' order.

        Both are plain data. `name` is a path; no two meetings have the same. Raises `RanksApartError`, on all ranks
        alike, where one doesn't come.
        """
        came, outcome = f"{name}/came", f"{name}/outcome"
        self._store.set(f"figures/{self._rank}", json.dumps([name, own]))
        self._store.add(came, 1)
        try:
            self._check_for_the_missing()
            found = self._combined(name, came, combine) if self._rank == 0 else self._awaited(name, came, outcome)
        except RanksApartError as error:
            found = {"why": error.why, "late": error.late}
        if self._rank == 0 or "why" in found:  # the first who says how it ended says so for all
            found = json.loads(self._store.compare_set(outcome, "", json.dumps(found)))
        return self._ended(found, name, [came, outcome])

    def _combined(self, name: str, came: str, combine: Callable[[Sequence[Any]], Any]) -> dict[str, Any]:
        self._wait_for(name, came, lambda: self._number(came) >= self._size)
        brought = [
            json.loads(text) for text in self._store.multi_get([f"figures/{each}" for each in range(self._size)])
        ]
        if any(meeting != name for meeting, _ in brought):
            raise RanksApartError("a rank didn't wait", late=True)
        try:
            return {"result": combine([figures for _, figures in brought])}
        except Exception as error:
            raise RanksApartError(f"what the ranks brought can't be put together ({fault(error)})") from None

    def _awaited(self, name: str, came: str, outcome: str) -> dict[str, Any]:
        self._wait_for(name, came, lambda: bool(self._store.check([outcome])))
        found: dict[str, Any] = json.loads(self._store.get(outcome))
        return found

    def _wait_for(self, name: str, came: str, over: Callable[[], bool]) -> None:
        def missing() -> str:
            return f"only {self._number(came)} of {self._size} ranks came to the end of the epoch"

        wait(over, lambda waited: self._check(name, missing, waited))

    def _ended(self, found: Mapping[str, Any], name: str, entries: list[str]) -> Any:
        if "why" in found:
            self._over += entries
            if found["late"]:
                self._missed = name, found["why"]
            raise RanksApartError(found["why"], late=found["late"])
        if self._rank == 0:  # all have come to this meeting, so all have left the ones before
            for key in self._over:
                self._store.delete_key(key)
        self._over, self._missed = entries, None
        return found["result"]

    def _check_for_the_missing(self) -> None:
        if self._missed is not None:
            name, why = self._missed
            if self._number(f"{name}/came") < self._size and self._said_of(name) is None:
                raise RanksApartError(why, late=True)

    def _check(self, name: str, missing: Callable[[], str], waited: float) -> None:
        """Raise `RanksApartError` where a rank has left, or the time is over."""
        said = self._said_of(name)
        if said is not None:
            raise RanksApartError(said)
        here = self._size if self._complete else self._number("here")
        self._complete = here >= self._size
        if not self._complete and waited > min(ENTRY_SECONDS, self._limit):
            why = f"only {here} of {self._size} ranks track this training; decorate it on each"
            raise RanksApartError(why, late=True)
        if waited > self._limit:
            raise RanksApartError(f"{missing()} within {self._limit:.0f} seconds", late=True)

    def _said_of(self, name: str) -> str | None:
        """What a rank has said that left the run, the loop or the epoch of a meeting."""
        parts = name.split("/")
        for scope in ("".join(f"{part}/" for part in parts[:depth]) for depth in range(len(parts))):
            if self._store.check([f"{scope}left"]):
                return str(self._store.get(f"{scope}left").decode())
        return None

    def _number(self, key: str) -> int:
        return int(self._store.add(key, 0))
