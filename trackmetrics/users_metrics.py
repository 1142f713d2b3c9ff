"""The user's metrics over a run: begun with each epoch, computed of its training and of its dev set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .instruments.metric_objects import MetricObjects
from .instruments.training import Training
from .notices import Notices


class UsersMetrics:
    """What `metrics=` holds; a fault of ours costs their values alone, each named."""

    def __init__(self, given: Mapping[str, Any] | None, training: Training, notices: Notices) -> None:
        self._of_run = given or {}
        self._given: Mapping[str, Any] = {}
        self._training = training
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

    def _lose(self, error: Exception) -> None:
        """None of them has a value any more in this epoch."""
        entries = {} if self._metrics is None else self._metrics.entries
        self._metrics = MetricObjects.lost(self._given, entries, f"its instrument failed with {error!r}")

    def of_training(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Give what they make of the epoch's training; what is `said` by the user isn't missing."""
        if self._metrics is None:
            return {}
        try:
            if self._training.metrics_fault is not None:
                self._metrics.spoil(self._training.metrics_fault)
            return self._computed("train", said, "no criterion call was seen that a backward reached")
        except Exception as error:
            self._lose(error)
            return self._computed("train", said, "")

    def wanted(self, due: bool, said: Mapping[str, Any]) -> MetricObjects | None:
        """Give what is to be fed with the dev set, where that is `due` and the user hasn't `said` all of its values."""
        if not due or self._metrics is None:
            return None
        try:
            if self._metrics.absent("dev").keys() <= said.keys():
                return None
            if self._metrics.fed:
                self._metrics.restart()
        except Exception as error:
            self._lose(error)
        return self._metrics

    def of_dev(
        self, wanted: MetricObjects | None, said: Mapping[str, Any], feed: Callable[[MetricObjects], None]
    ) -> dict[str, Any]:
        """Give what they make of the dev set; where the pass for its accuracy hasn't fed them, `feed` does."""
        if self._metrics is None:
            return {}
        try:
            if wanted is None:
                return dict(self._metrics.absent("dev"))
            if not wanted.fed and not wanted.spoilt:
                feed(wanted)
            return self._computed("dev", said, "the dev set has no target that counts")
        except Exception as error:
            self._lose(error)
            return self._computed("dev", said, "")

    def _computed(self, role: str, said: Mapping[str, Any], otherwise: str) -> dict[str, Any]:
        assert self._metrics is not None
        values, faults = self._metrics.take(role, otherwise)
        for key, fault in faults.items():
            if key not in said:
                self._notices.say(f"metric {key}", f"{key} is null: {fault}; say it with `epoch.log({key}=...)`")
        return values
