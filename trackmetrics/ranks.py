"""The ranks of a distributed training: which one this process is, and how they tell each other their figures.

They meet in the store of torch.distributed's process group, never in a collective: a rank that doesn't come costs the
others a wait with an end, not the training.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

_Result = TypeVar("_Result")

_ENTRY_SECONDS = 30.0  # that a rank waits for the others to come to the run at all
_LONGEST_SECONDS = 300.0  # that it waits for one that is in the run; half of the group's own limit, if that is less
_PAUSE_SECONDS = (0.0005, 0.05)  # between two looks, the first one and the longest

_runs: Counter[str] = Counter()  # of this process, by name


def rank() -> int:
    """Give this process's rank: the process group's, else what torchrun says of it, else 0."""
    distributed = _group()
    return int(distributed.get_rank()) if distributed is not None else _said_by_environment("RANK", 0)


def world_size() -> int:
    """Give how many processes the process group has; 1 without one."""
    distributed = _group()
    return int(distributed.get_world_size()) if distributed is not None else 1


def _group() -> Any:
    """torch.distributed, if there is a process group and this process is of it; torch isn't imported for that."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed if distributed.get_rank() >= 0 else None


def _said_by_environment(name: str, otherwise: int) -> int:
    said = os.environ.get(name, "")
    return int(said) if said.isdecimal() else otherwise


class RanksApartError(Exception):
    """The ranks didn't meet: the text says which, and why. `for_good` they won't any more."""

    def __init__(self, why: str, *, for_good: bool = True) -> None:
        super().__init__(why)
        self.why = why
        self.for_good = for_good


class Ranks:
    """The ranks that take part in one run, of which this process is one; alone without a process group.

    Each `exchange` is a meeting of all: each brings its figures, and takes the same result with it. Where they have
    once waited in vain they don't wait again.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._store: Any = None
        self._rank = rank()
        self._size = 1
        self._limit = _LONGEST_SECONDS
        self._epoch = 0
        self._last = ""  # the meeting before
        self._complete = False  # whether all have come to the run
        self._fault: str | None = None

    @property
    def rank(self) -> int:
        """This process's rank, the last one that was known: a group may be gone before the run ends."""
        if self._store is None:
            self._rank = rank()
        return self._rank

    @property
    def size(self) -> int:
        """How many ranks there are."""
        self._find_group()
        return self._size

    @property
    def writes(self) -> bool:
        """Whether this is the rank that writes the file, and warns."""
        return self.rank == 0

    def next_stage(self) -> None:
        """Another epoch begins, or the end of the run, on each rank."""
        self._epoch += 1
        self._find_group()

    def leave_epoch(self, why: str) -> None:
        """An exception has ended the epoch on this rank; the others aren't to wait for it."""
        self._leave(f"{self._epoch}/left", "the epoch", why)

    def leave(self, why: str) -> None:
        """An exception has ended the run on this rank."""
        self._leave("left", "the run", why)

    def _leave(self, key: str, what: str, why: str) -> None:
        if self._store is not None and self._fault is None:
            with contextlib.suppress(Exception):  # the store may be gone with the rank that held it
                self._store.set(key, f"rank {self._rank} left {what}: {why}")

    def _find_group(self) -> None:
        """Come to the run in the group's store, as soon as there is one."""
        distributed = _group() if self._store is None and self._fault is None else None
        if distributed is None or distributed.get_world_size() == 1:
            return
        self._rank, self._size = distributed.get_rank(), distributed.get_world_size()
        _runs[self._name] += 1
        try:
            store = distributed.distributed_c10d._get_default_store()
            self._limit = min(_LONGEST_SECONDS, store.timeout.total_seconds() / 2)
            found = distributed.PrefixStore(f"trackmetrics/{self._name}/{_runs[self._name]}", store)
            found.add("here", 1)
            self._store = found
        except Exception as error:  # MPI's group has no store
            self._fault = f"the process group's store can't be used ({error!r})"

    # Meetings

    def exchange(self, about: str, own: Any, combine: Callable[[Sequence[Any]], _Result]) -> _Result | Any:
        """Bring `own`, and take what `combine` makes of all ranks' own, in their order; alone, of this one's.

        Both are plain data; `combine` is called on rank 0. `about` names the meeting, of which each epoch has one.
        Raises `RanksApartError` where a rank doesn't come, and whatever the store raises.
        """
        self._find_group()
        if self._fault is not None:
            raise RanksApartError(self._fault)
        if self._store is None:
            return combine([own])
        try:
            return self._meet(f"{self._epoch}/{about}", own, combine)
        except RanksApartError as error:
            self._fault = str(error) if error.for_good else None
            raise
        except Exception as error:
            self._fault = f"the ranks' store failed ({error!r})"
            raise RanksApartError(self._fault) from None

    def _meet(self, key: str, own: Any, combine: Callable[[Sequence[Any]], Any]) -> Any:
        store, told = self._store, f"{key}/told"
        store.set(f"figures/{self._rank}", json.dumps([key, own]))
        store.add(key, 1)
        if self._rank != 0:
            self._wait(lambda: store.check([told]), lambda: "rank 0 didn't come")
            return json.loads(store.get("result"))
        self._wait(
            lambda: store.add(key, 0) >= self._size,
            lambda: f"only {store.add(key, 0)} of {self._size} ranks came to the end of the epoch",
        )
        brought = [json.loads(text) for text in store.multi_get([f"figures/{each}" for each in range(self._size)])]
        result = json.dumps(combine([figures for _, figures in brought]))
        store.set("result", result)
        store.add(told, 1)
        if self._last:  # which all have left by now
            store.delete_key(self._last)
            store.delete_key(f"{self._last}/told")
        self._last = key
        return json.loads(result)

    def _wait(self, come: Callable[[], bool], missing: Callable[[], str]) -> None:
        """Look until `come` says so; raise `RanksApartError` when a rank has left, or the time is over."""
        store, began, pause = self._store, time.monotonic(), _PAUSE_SECONDS[0]
        while not come():
            for key in ("left", f"{self._epoch}/left"):
                if store.check([key]):
                    raise RanksApartError(store.get(key).decode(), for_good=key == "left")
            waited = time.monotonic() - began
            here = self._size if self._complete else store.add("here", 0)
            self._complete = here >= self._size
            if not self._complete and waited > min(_ENTRY_SECONDS, self._limit):
                raise RanksApartError(f"only {here} of {self._size} ranks track this training; decorate it on each")
            if waited > self._limit:
                raise RanksApartError(f"{missing()} within {self._limit:.0f} seconds")
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE_SECONDS[1])
