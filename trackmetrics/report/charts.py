"""The learning curves: which charts there are, and the lines of each run in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..curves import best, metric_names, norm_band, points, seconds_an_epoch, values
from ..record import METRIC_KEYS, RunRecord
from ..wording import visible
from .figures import figure, odd, spans

_LINES = {"train_accuracy": "train", "dev_accuracy": "dev"}  # where a chart has two of a run


@dataclass(frozen=True)
class Line:
    """One run's values by epoch, None where there is no finite number; `dashed` beside another line of the run.

    `best` is the place of the best value. `odd` holds the epochs of what is no finite number, with its name.
    """

    run: int
    name: str
    epochs: list[int]
    values: list[float | None]
    dashed: bool = False
    best: int | None = None
    odd: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Band:
    """The least and greatest value of a run's steps in each epoch."""

    run: int
    epochs: list[int]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Chart:
    """A chart with its lines; `notes` say what no line can show. `unit` follows the numbers."""

    title: str
    about: str
    lines: list[Line]
    bands: list[Band]
    notes: list[str]
    unit: str = ""

    @property
    def best(self) -> str:
        """The only run's best value in words; empty where the metric's name doesn't tell what is better."""
        found = [
            f"best {figure(line.values[line.best])}, epoch {line.epochs[line.best]}"
            for line in self.lines
            if line.best is not None
        ]
        return found[0] if len(found) == 1 else ""


def charts(runs: Sequence[RunRecord], labels: Sequence[str]) -> list[Chart]:
    """Give the charts that have a number in any run: the format's own, the seconds, then what was logged.

    >>> from trackmetrics.record import EpochRecord, Metadata
    >>> epoch = EpochRecord(1, train_loss=0.5, elapsed_seconds=2.0, metrics={"f1": 0.25})
    >>> [chart.title for chart in charts([RunRecord(Metadata("demo", ""), (epoch,))], ["demo"])]
    ['Training loss', 'Seconds an epoch', 'f1']
    """
    logged = [name for name in metric_names(*runs) if name not in METRIC_KEYS]
    bands = [band for place, run in enumerate(runs) if (band := _band(place, run)) is not None]
    mean = "mean over the epoch's steps" + (", band from the least to the greatest" if bands else "")
    drawn = [
        ("Training loss", "mean per target", _lines(runs, "train_loss"), [], ""),
        ("Accuracy", "dev solid, train dashed", _lines(runs, "dev_accuracy", "train_accuracy"), [], ""),
        ("Gradient norm", mean, _lines(runs, "gradient_norm"), bands, ""),
        ("Seconds an epoch", "training and evaluation", _seconds(runs), [], " s"),
        *((visible(name), "logged", _lines(runs, name), [], "") for name in logged),
    ]
    return [
        Chart(title, about, lines, bands, [note for line in lines for note in _notes(line, labels)], unit)
        for title, about, lines, bands, unit in drawn
        if lines
    ]


def _lines(runs: Sequence[RunRecord], *names: str) -> list[Line]:
    return [
        _line(place, run, name, dashed=name != names[0])
        for place, run in enumerate(runs)
        for name in names
        if points(run, name)
    ]


def _line(place: int, run: RunRecord, name: str, dashed: bool) -> Line:
    found = values(run, name)
    epochs = [epoch.epoch for epoch in run.epochs]
    top = None if dashed else best(run, name)
    strange = [(epoch, odd(value)) for epoch, value in zip(epochs, found) if value is not None and not _finite(value)]
    return Line(
        place,
        _LINES.get(name, ""),
        epochs,
        [value if _finite(value) else None for value in found],
        dashed,
        None if top is None else epochs.index(top.epoch),
        strange,
    )


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _band(place: int, run: RunRecord) -> Band | None:
    known = norm_band(run)
    return Band(place, *(list(column) for column in zip(*known))) if known else None


def _seconds(runs: Sequence[RunRecord]) -> list[Line]:
    return [
        Line(place, "", [epoch.epoch for epoch in run.epochs], [round(took, 2) for took in seconds_an_epoch(run)])
        for place, run in enumerate(runs)
        if run.epochs
    ]


def _notes(line: Line, labels: Sequence[str]) -> Iterator[str]:
    whose = [labels[line.run]] * (len(labels) > 1) + [line.name] * bool(line.name)
    for name in dict.fromkeys(name for _, name in line.odd):
        epochs = spans(epoch for epoch, said in line.odd if said == name)
        yield f"{' '.join(whose)}: {name} in epoch {epochs}" if whose else f"{name} in epoch {epochs}"
