"""An epoch's figures as plain numbers, which the ranks of a distributed training put together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple

SKIPPED = -1.0  # stands for a step that a fused optimizer skipped by itself; a norm is never negative
_ALIKE = 1e-5  # relative: gradients that were averaged are the same on each rank but for a last digit
_NOT_AVERAGED = (
    "the ranks' gradients differ at the end of a backward: nothing has averaged them yet, or each rank has parameters "
    "of its own"
)


class Share(NamedTuple):
    """A sum over so many things: what a process has of a mean that several may have together."""

    total: float = 0.0
    weight: float = 0.0

    @property
    def mean(self) -> float | None:
        """The mean; None over nothing."""
        return self.total / self.weight if self.weight else None


_NOTHING = Share()


@dataclass(frozen=True)
class NormSummary:
    """An epoch's gradient norms: `mean`, `min`, `median`, `max` over the finite steps, None where there is none."""

    mean: float | None = None
    min: float | None = None
    median: float | None = None
    max: float | None = None
    steps: int = 0
    skipped_steps: int = 0
    non_finite_steps: int = 0


@dataclass(frozen=True)
class Norms:
    """The norms of an epoch's steps. Of steps with shards a pair: the norm of what is whole, and of the shards.

    `skipped` counts the steps that aren't in the lists.
    """

    whole: Sequence[float] = ()
    sharded: Sequence[tuple[float, float]] = ()
    skipped: int = 0

    def summary(self) -> NormSummary:
        """What the file says of them."""
        norms = [*self.whole, *(norm if norm == SKIPPED else math.hypot(norm, shards) for norm, shards in self.sharded)]
        taken = [norm for norm in norms if norm != SKIPPED]
        finite = [norm for norm in taken if norm < math.inf]  # NaN isn't
        return NormSummary(
            mean=statistics.fmean(finite) if finite else None,
            min=min(finite, default=None),
            median=statistics.median(finite) if finite else None,
            max=max(finite, default=None),
            steps=len(taken),
            skipped_steps=self.skipped + len(norms) - len(taken),
            non_finite_steps=len(taken) - len(finite),
        )


@dataclass(frozen=True)
class Figures:
    """What an epoch's training showed; `faults` say by the record's key why a value is missing."""

    loss: Share = _NOTHING
    accuracy: Share = _NOTHING
    norms: Norms = field(default_factory=Norms)
    faults: Mapping[str, str] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As data that a store can carry."""
        return asdict(self)

    @staticmethod
    def of(plain: Mapping[str, Any]) -> Figures:
        """Of such data again."""
        return Figures(Share(*plain["loss"]), Share(*plain["accuracy"]), Norms(**plain["norms"]), dict(plain["faults"]))


def together(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put the plain figures of all ranks together: sums are added up, and the norms of shards.

    Each rank has the norm of what is whole by itself; where theirs differ nothing says which one was applied.

    >>> one = Figures(Share(2.0, 4.0), norms=Norms([0.5], [(0.0, 3.0)])).plain()
    >>> other = Figures(Share(3.0, 6.0), norms=Norms([0.5], [(0.0, 4.0)])).plain()
    >>> both = Figures.of(together([one, other]))
    >>> both.loss.mean, both.norms.summary().max
    (0.5, 5.0)
    """
    if len(ranks) == 1:
        return dict(ranks[0])
    all_figures = [Figures.of(plain) for plain in ranks]
    faults: dict[str, str] = {}
    for rank, figures in enumerate(all_figures):
        for key, fault in figures.faults.items():
            faults.setdefault(key, f"on rank {rank} {fault}")
    norms = [figures.norms for figures in all_figures]
    whole = _longest([one.whole for one in norms])
    sharded = _longest([one.sharded for one in norms])
    apart = not all(_alike(one.whole, whole) for one in norms)
    apart |= len({len(one.sharded) for one in norms}) > 1
    apart |= not all(_alike([norm for norm, _ in one.sharded], [norm for norm, _ in sharded]) for one in norms)
    if apart:
        faults.setdefault("gradient_norm", _NOT_AVERAGED)
    summed = [
        (norm, math.hypot(*(one.sharded[step][1] for one in norms))) for step, (norm, _) in enumerate(sharded)
    ] if not apart else []  # fmt: skip
    return Figures(
        add([figures.loss for figures in all_figures]),
        add([figures.accuracy for figures in all_figures]),
        Norms(whole, summed, max(one.skipped for one in norms)),
        faults,
    ).plain()


def add(shares: Iterable[Sequence[float]]) -> Share:
    """Add up what processes have of a mean."""
    totals, weights = zip(*shares)
    return Share(math.fsum(totals) if all(map(math.isfinite, totals)) else sum(totals), math.fsum(weights))


def _longest(lists: Sequence[Sequence[Any]]) -> Sequence[Any]:
    return max(lists, key=len)


def _alike(own: Sequence[float], others: Sequence[float]) -> bool:
    """Whether norms agree, as far as both have steps: at the end of uneven data some ranks have fewer."""
    pairs = (pair for pair in zip_longest(own, others) if None not in pair)
    return all(one == other or math.isclose(one, other, rel_tol=_ALIKE) or one != one != other for one, other in pairs)
