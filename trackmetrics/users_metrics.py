"""The user's metrics over a run: begun with each epoch, computed of its training and of its dev set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .instruments.guard import instrument_failed
from .instruments.metric_objects import MetricObjects
from .instruments.training import Training
from .meetings import RanksApartError
from .notices import Notices
from .ranks import Ranks


class UsersMetrics:
    """What `metrics=` holds; a fault of ours costs their values alone, each named."""

    def __init__(self, given: Mapping[str, Any] | None, training: Training, ranks: Ranks, notices: Notices) -> None:
        self._of_run = given or {}
        self._given: Mapping[str, Any] = {}
        self._training = training
        self._ranks = ranks
        self._notices = notices
        self._metrics: MetricObjects | None = None

    def epoch_begins(self, of_epoch: Mapping[str, Any]) -> None:
        """Feed an epoch's training to the metrics of the run, and to these of the epoch alone."""
        self._given = {**self._of_run, **of_epoch}
        if not self._given and self._metrics is None:
            return
        try:
            metrics = self._metrics or MetricObjects()
            metrics.begin(self._given)
            self._metrics = metrics if self._given else None
            self._training.feed(self._metrics)
        except Exception as error:
            self._lose(error)

    @property
    def given(self) -> bool:
        """Whether there are any in this epoch."""
        return self._metrics is not None

    def of_training(self, said: Mapping[str, Any], due: bool) -> tuple[dict[str, Any], MetricObjects | None]:
        """Give what they make of the epoch's training on all ranks, and what is to be fed with the dev set.

        That is for where it is `due`, and the user hasn't `said` all of its values; what is said isn't missing.
        """
        if self._metrics is not None and self._training.metrics_fault is not None:
            self._metrics.spoil(self._training.metrics_fault)
        values, wanted = self._computed("train", said, "no criterion call was seen that a backward reached", due)
        return values, self._own if wanted else None

    def of_dev(self, wanted: MetricObjects | None, said: Mapping[str, Any]) -> dict[str, Any]:
        """Give what they make of the dev set on all ranks, where they were `wanted`."""
        if wanted is None:
            return dict(self._own.absent("dev"))
        return self._computed("dev", said, "the dev set has no target that counts", False)[0]

    @property
    def _own(self) -> MetricObjects:
        return self._metrics or MetricObjects()  # none is given here, but on the first rank

    def _computed(self, role: str, said: Mapping[str, Any], otherwise: str, due: bool) -> tuple[dict[str, Any], bool]:
        """Meet the other ranks; the first one computes, and says whether to go on to the dev set."""

        def compute(brought: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, str], bool]:
            try:
                for rank, others in enumerate(brought[1:], 1):
                    self._own.join(rank, others)
                values, faults = self._own.take(role, otherwise)
                return values, faults, due and not self._own.absent("dev").keys() <= said.keys()
            except Exception as error:
                self._lose(error)
                return (*self._own.take(role, otherwise), due)

        own = {} if self._ranks.rank == 0 else self._brought()
        try:
            values, faults, wanted = self._ranks.exchange(f"metrics {role}", own, compute)
        except RanksApartError as error:
            self._own.spoil(error.why)
            values, faults, wanted = compute([own])
        if self._ranks.rank != 0:
            self._own.restart()
        for key, fault in faults.items():
            if key not in said:
                self._notices.say(f"metric {key}", f"{key} is null: {fault}; say it with `epoch.log({key}=...)`")
        return values, wanted

    def _brought(self) -> dict[str, Any]:
        try:
            return self._own.bring()
        except Exception as error:
            self._lose(error)
            return self._own.bring()

    def _lose(self, error: Exception) -> None:
        """None of them has a value any more in this epoch."""
        entries = {} if self._metrics is None else self._metrics.entries
        self._metrics = MetricObjects.lost(self._given, entries, instrument_failed(error))
