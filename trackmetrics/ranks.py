"""The ranks of a distributed training: which one this process is, and how it comes to the run that they share."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from .meetings import ENTRY_SECONDS, Meetings, RanksApartError, wait

_Result = TypeVar("_Result")

_LONGEST_SECONDS = 300.0  # that a rank waits for one that is in the run; half of the group's own limit, if that is less

_runs: Counter[str] = Counter()  # of this process, by name: the number of the last one


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


class Ranks:
    """The ranks that take part in one run, of which this process is one; alone without a process group.

    Rank 0 begins the run in the group's store as soon as there is one. The others come to the one that it has begun by
    their first meeting: before, it may have had a run of its own.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._store: Any = None  # of all runs of this name
        self._meetings: Meetings | None = None  # of the run, once this rank has come to it
        self._rank = rank()
        self._size = 1
        self._limit = _LONGEST_SECONDS
        self._loop = self._epoch = 0
        self._told: dict[str, Callable[[], Any]] = {}
        self._number = 0  # of the run in which this rank has said that it is here
        self._waited = False  # for a run to come to
        self._left: list[tuple[str, str]] = []  # what it has left, and why, before there was a run
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
        self.find_group()
        return self._size

    @property
    def writes(self) -> bool:
        """Whether this is the rank that writes the file, and warns."""
        return self.rank == 0

    def next_stage(self) -> None:
        """Another epoch begins, or the end of the run, on each rank."""
        self._epoch += 1
        self.find_group()

    def leave_epoch(self, why: str) -> None:
        """An exception has ended the epoch on this rank; the others aren't to wait for it."""
        self._leave(f"{self._loop}/{self._epoch}/", f"left the epoch: {why}")

    def leave_loop(self) -> None:
        """A loop whose epochs are counted by steps is over on this rank; on others it may have steps left."""
        scope = f"{self._loop}/"
        self._leave(scope, "has no training step left in its loop")
        if self._meetings is not None:
            self._meetings.forget(scope)
        self._loop, self._epoch = self._loop + 1, 0

    def leave(self, why: str) -> None:
        """An exception has ended the run on this rank."""
        self.find_group()
        self._leave("", f"left the run: {why}")

    def end(self) -> None:
        """The run is over on this rank; nobody is to come to it any more."""
        if self._meetings is not None and self._rank == 0:
            with contextlib.suppress(Exception):  # the store may be gone with the rank that held it
                self._store.set("run", "0")

    def _leave(self, scope: str, why: str) -> None:
        with contextlib.suppress(Exception):
            if self._meetings is not None:
                self._meetings.leave(scope, why)
            else:
                self._left.append((scope, why))
                self._enter_if_begun()

    def _enter_if_begun(self) -> None:
        if self._store is not None and self._begun():
            self._enter(self._begun())

    # The run

    def find_group(self) -> None:
        """Take part in the run as soon as there is a group: rank 0 begins it, the others say that they are here."""
        if self._meetings is not None or self._fault is not None:
            return
        distributed = _group() if self._store is None else None
        try:
            if distributed is not None and distributed.get_world_size() > 1:
                self._rank, self._size = distributed.get_rank(), distributed.get_world_size()
                store = distributed.distributed_c10d._get_default_store()
                self._limit = min(_LONGEST_SECONDS, store.timeout.total_seconds() / 2)
                self._store = distributed.PrefixStore(f"trackmetrics/{self._name}", store)
                if self._rank == 0:
                    self._begin()
            if self._store is not None:
                self._say_here(self._begun())
                if self._left:
                    self._enter_if_begun()
        except Exception as error:  # MPI's group has no store
            self._fault = f"the process group's store can't be used ({error!r})"

    def _begin(self) -> None:
        meetings = self._enter(_runs[self._name] + 1)
        for about, value in self._told.items():
            meetings.tell(about, value())
        self._store.set("run", str(self._number))

    def _begun(self) -> int:
        """The number of the run that rank 0 has begun; 0 where there is none, or this rank was in it."""
        number = int(self._store.get("run")) if self._store.check(["run"]) else 0
        return number if number > _runs[self._name] else 0

    def _say_here(self, number: int) -> None:
        if number not in (0, self._number):
            self._number = number
            Meetings.come(self._of_run(number))

    def _enter(self, number: int) -> Meetings:
        self._say_here(number)
        _runs[self._name] = number
        self._meetings = meetings = Meetings(self._of_run(number), self._rank, self._size, self._limit)
        for scope, why in self._left:
            meetings.leave(scope, why)
        return meetings

    def _of_run(self, number: int) -> Any:
        return sys.modules["torch.distributed"].PrefixStore(str(number), self._store)

    def _in_run(self, seconds: float = ENTRY_SECONDS) -> Meetings:
        """Come to the run; wait for rank 0 to begin it, once."""
        if self._meetings is not None:
            return self._meetings
        limit = 0 if self._waited else min(seconds, self._limit)
        self._waited = True

        def check(waited: float) -> None:
            if waited >= limit:
                raise RanksApartError("rank 0 doesn't track this training; decorate it on each", late=True)

        wait(lambda: self._begun() > 0, check)
        return self._enter(self._begun())

    # Meetings

    def exchange(self, about: str, own: Any, combine: Callable[[Sequence[Any]], _Result]) -> _Result | Any:
        """Bring `own`, and take what `combine` makes of all ranks' own, in their order; alone, of this one's.

        Both are plain data; `combine` is called on rank 0. `about` names the meeting, of which each epoch has one.
        Raises `RanksApartError` where a rank doesn't come.
        """
        name = f"{self._loop}/{self._epoch}/{about}"
        if self.size == 1 and self._fault is None:
            return combine([own])
        return self._safely(lambda: self._in_run().meet(name, own, combine))

    def tell(self, about: str, value: Callable[[], Any]) -> None:
        """Let the others `hear` a value of rank 0, plain data, as soon as there is a group; before any epoch."""
        self._told[about] = value
        with contextlib.suppress(Exception):  # whatever looks for the group next begins the run
            self.find_group()

    def hear(self, about: str) -> Any:
        """Give what rank 0 tells. Raises `RanksApartError` where it doesn't."""
        return self._safely(lambda: self._in_run(self._limit).hear(about))  # the first rank may prepare data before

    def _safely(self, act: Callable[[], _Result]) -> _Result:
        """A store that fails isn't asked again."""
        if self._fault is None:
            try:
                return act()
            except RanksApartError:
                raise
            except Exception as error:
                self._fault = f"the ranks' store failed ({error!r})"
        raise RanksApartError(self._fault)
