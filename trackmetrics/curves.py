"""A run's metrics as curves: their names, their values by epoch, and which value is the best."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from .extensions import objects, part
from .plain import is_number
from .record import METRIC_KEYS, EpochRecord, RunRecord

# Words of a metric's name. A name with neither, or that only measures size (gradient_norm), has no best value.
_HIGHER = {"accuracy", "acc", "auc", "auroc", "bleu", "dice", "f", "iou", "miou", "precision", "r", "recall", "rouge"}
_SIZES = {"lr", "map", "norm", "rate", "scale", "size", "weight"}
_LOWER = {"bpc", "cer", "error", "errors", "loss", "mae", "mse", "nll", "perplexity", "ppl", "rmse", "wer"}


@dataclass(frozen=True)
class Point:
    """A metric's value in one epoch."""

    epoch: int
    value: float


def metric_names(*runs: RunRecord) -> list[str]:
    """Name the metrics that have a number in any epoch of any run: the format's own first, then those logged.

    >>> from trackmetrics.record import Metadata
    >>> epoch = EpochRecord(1, train_loss=0.5, metrics={"f1": 0.25, "note": "warm-up"})
    >>> metric_names(RunRecord(Metadata("demo", "2026-01-01T00:00:00Z"), (epoch,)))
    ['train_loss', 'f1']
    """
    logged = (name for run in runs for epoch in run.epochs for name in epoch.metrics)
    return [name for name in dict.fromkeys((*METRIC_KEYS, *logged)) if any(points(run, name) for run in runs)]


def values(run: RunRecord, name: str) -> list[float | None]:
    """Give a metric's value of each epoch, None where there is no number."""
    found = (recorded(epoch, name) for epoch in run.epochs)
    return [value if is_number(value) else None for value in found]


def recorded(epoch: EpochRecord, name: str) -> Any:
    """Give what stands in an epoch under a metric's name, a number or not; None where nothing does."""
    return getattr(epoch, name) if name in METRIC_KEYS else epoch.metrics.get(name)


def seconds_an_epoch(run: RunRecord) -> list[float]:
    """Give the seconds from the end of each epoch's record before to the end of its own; the first from the start."""
    ends = [epoch.elapsed_seconds for epoch in run.epochs]
    return [end - begin for begin, end in zip([0.0, *ends], ends, strict=False)]


def norm_band(run: RunRecord) -> list[tuple[int, float, float]]:
    """Give epoch, least and greatest gradient norm of a step, of the epochs of which the file says them."""
    rows = objects(part(run.extensions, "gradient_norm"), "epochs")
    band = [(row.get("epoch"), row.get("min"), row.get("max")) for row in rows]
    return [row for row in band if all(is_number(item) and abs(item) < math.inf for item in row)]  # type: ignore[misc]


def better(name: str) -> Literal["higher", "lower"] | None:
    """Say which values of a metric are better, as far as its name tells.

    >>> better("dev_accuracy"), better("val/loss"), better("gradient_norm")
    ('higher', 'lower', None)
    """
    apart = re.sub("(?<=[a-z])(?=[A-Z])", "_", name)
    words = set(re.findall("[a-z]+", f"{name} {apart}".lower()))
    if bool(words & _HIGHER) == bool(words & _LOWER) or words & _SIZES:
        return None
    return "higher" if words & _HIGHER else "lower"


def points(run: RunRecord, name: str) -> list[Point]:
    """Give the epochs in which a metric has a number, with it."""
    found = zip(run.epochs, values(run, name), strict=True)
    return [Point(epoch.epoch, value) for epoch, value in found if value is not None]


def best(run: RunRecord, name: str) -> Point | None:
    """Give a metric's best value and the first epoch that has it; None where its name doesn't tell what is better."""
    direction = better(name)
    finite = [point for point in points(run, name) if math.isfinite(point.value)]
    if direction is None or not finite:
        return None
    return (max if direction == "higher" else min)(finite, key=lambda point: point.value)


def last(run: RunRecord, name: str) -> Point | None:
    """Give a metric's last value and its epoch."""
    found = points(run, name)
    return found[-1] if found else None
