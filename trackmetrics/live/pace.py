"""How far a run is: the steps of the epoch in progress, how fast they come, what time is left."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

_MOMENTS = 20  # looks back that the rate is taken over


@dataclass(frozen=True)
class Status:
    """One moment of a run.

    `done` of `total` is counted in `unit`s; a total that is `estimated` is that of the epoch before. `stage` says what
    goes on where that is no training; `seconds_left` are those of all epochs where their number is known, else the
    epoch's.
    """

    epoch: int | None = None
    epochs: int | None = None
    unit: str = "step"
    done: int = 0
    total: int | None = None
    estimated: bool = False
    rate: float | None = None
    loss: float | None = None
    norm: float | None = None
    seconds_left: float | None = None
    stage: str = ""

    @property
    def fraction(self) -> float | None:
        """The share of the total that is done; None where there is none."""
        return self.done / self.total if self.total else None


@dataclass(eq=False)
class Loop:
    """Something gone through: how many of its items are done with, and how many it has, where that is known."""

    total: int | None
    done: int = 0


class Pace:
    """Follows epochs and loops, and works out rates and times.

    >>> seconds = iter([0.0, 2.0])
    >>> pace = Pace(lambda: next(seconds))
    >>> pace.epoch_begins(1, 3, steps=10)
    >>> status = pace.status(4)
    >>> status.rate, status.fraction, status.seconds_left
    (2.0, 0.4, 13.0)
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._epoch: int | None = None
        self._epochs: int | None = None
        self._steps: int | None = None  # of this epoch, where they are known
        self._steps_before: int | None = None
        self._first_began = self._began = 0.0
        self._done = 0  # epochs
        self._loops: list[Loop] = []
        self._measured: Loop | None = None
        self._moments: deque[tuple[float, int]] = deque(maxlen=_MOMENTS)

    def epoch_begins(self, number: int, epochs: int | None, steps: int | None = None) -> None:
        """An epoch begins; `epochs` and `steps` are how many there will be, where that is known."""
        self._began = self._clock()
        if not self._done:
            self._first_began = self._began
        self._epoch, self._epochs, self._steps = number, epochs, steps
        self._look_back_to(None, self._began, 0)

    def epoch_ends(self, steps: int) -> None:
        """The epoch is over, after so many steps."""
        self._done += 1
        self._epoch, self._steps_before = None, steps

    def loop_begins(self, total: int | None) -> Loop:
        """Somebody begins to go through `total` items."""
        loop = Loop(total)
        self._loops.append(loop)
        return loop

    def loop_ends(self, loop: Loop) -> None:
        """They are done with it."""
        self._loops.remove(loop)

    def _look_back_to(self, loop: Loop | None, now: float, done: int) -> None:
        self._measured = loop
        self._moments.clear()
        self._moments.append((now, done))

    def status(self, steps: int, loss: float | None = None, norm: float | None = None, stage: str = "") -> Status:
        """Where the run stands after so many steps of the epoch; counted is the innermost loop, where there is one."""
        now = self._clock()
        loop = self._loops[-1] if self._loops else None
        done, total = (steps, self._steps or self._steps_before) if loop is None else (loop.done, loop.total)
        if total is not None and done > total:
            total = None
        if loop is not self._measured:
            self._look_back_to(loop, now, done)
        then, before = self._moments[0] if self._moments else (now, done)
        self._moments.append((now, done))
        epochs = self._epochs if self._epoch is not None and self._epoch <= (self._epochs or 0) else None
        return Status(
            epoch=self._epoch,
            epochs=epochs,
            unit="step" if loop is None else "batch",
            done=done,
            total=total,
            estimated=loop is None and self._steps is None,
            rate=(done - before) / (now - then) if now > then and done > before else None,
            loss=loss,
            norm=norm,
            seconds_left=self._seconds_left(now, epochs, done / total if total else None),
            stage=stage,
        )

    def _seconds_left(self, now: float, epochs: int | None, fraction: float | None) -> float | None:
        """By the mean of the epochs so far; in the first one by how far it is."""
        if self._epoch is None:
            return None
        inside = now - self._began
        ahead = 0 if epochs is None else epochs - self._epoch
        if self._done and epochs is not None:
            mean = (self._began - self._first_began) / self._done
            return max(0.0, mean - inside) + ahead * mean
        return inside * (1 - fraction + ahead) / fraction if fraction else None
