"""One run's section of the page: what it is, what became of it, and what it was made with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..curves import last, metric_names, recorded
from ..extensions import objects, part
from ..plain import is_number
from ..record import EpochRecord, RunRecord
from ..run_files import RunFile
from ..run_state import RunState, error_text
from ..summary import hyperparameters
from ..wording import duration, moment, visible
from .attention import Attention, attention
from .figures import count, figure, short_count, spans
from .final_example import Example, final_example
from .heatmaps import Gallery

_FIRST, _LAST = 50, 150  # rows of a long table of epochs
_LONGEST = 600  # letters of a value
_HEADINGS = {
    "train_loss": "train loss",
    "train_accuracy": "train acc.",
    "dev_accuracy": "dev acc.",
    "gradient_norm": "gradient norm",
}
_NONE_YET = {
    "running": "The run goes on; it comes when the training has completed.",
    "died": "The run's process ended before the training had completed.",
    "failed": "The training ended in an error before this.",
    "interrupted": "The training was interrupted before this.",
}


@dataclass(frozen=True)
class Figure:
    """A headline number with its name, and a word on it."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class EpochTable:
    """The epochs' numbers as text; None among the rows stands for those that are left out."""

    headings: list[str]
    rows: list[list[str] | None]


@dataclass(frozen=True)
class Section:
    """All that the page says of one run."""

    label: str
    file: str
    task: str
    began: str
    device: str
    state: RunState
    figures: list[Figure]
    epochs: EpochTable
    example: Example | None
    attention: Attention
    none_yet: str
    hyperparameters: dict[str, list[tuple[str, str]]]
    environment: list[tuple[str, str]]
    gradient_norm: list[tuple[str, str]]
    seconds: list[tuple[str, str]]
    troubles: list[str]
    warnings: list[str]

    def figure(self, name: str) -> str:
        """Give the headline number of a name."""
        return next((figure.value for figure in self.figures if figure.name == name), "–")


def section(item: RunFile, label: str, place: int, gallery: Gallery) -> Section:
    """Give the section of the run at a place among the runs; its heatmaps go to the gallery.

    >>> from pathlib import Path
    >>> from trackmetrics.record import Metadata
    >>> run = RunRecord(Metadata("demo", "2026-01-01T00:00:00Z"))
    >>> shown = section(RunFile(Path("demo.json"), run, RunState("unknown")), "demo", 0, Gallery())
    >>> shown.began, shown.state.name, shown.epochs.rows
    ('2026-01-01 00:00:00 UTC', 'unknown', [])
    """
    run, state = item.run, item.state
    inference = run.final_inference
    told = (run.extensions or {}).get("warnings")
    return Section(
        label=label,
        file=visible(str(item.path), _LONGEST),
        task=visible(run.metadata.task),
        began=moment(run.metadata.timestamp),
        device=visible(run.metadata.device or ""),
        state=RunState(visible(state.name), visible(state.detail, _LONGEST)),
        figures=list(_figures(run)),
        epochs=_epochs(run),
        example=None if inference is None else final_example(inference, place, gallery),
        attention=attention(run, place, gallery),
        none_yet=_NONE_YET.get(state.name, "The file has none."),
        hyperparameters=_hyperparameters(run),
        environment=list(_pairs((run.extensions or {}).get("environment"))),
        gradient_norm=list(_gradient_norm(run)),
        seconds=[(visible(name), _seconds(took)) for name, took in part(run.extensions, "seconds").items()],
        troubles=list(_troubles(run)),
        warnings=[visible(text, _LONGEST) for text in told] if isinstance(told, list) else [],
    )


def _figures(run: RunRecord) -> Iterator[Figure]:
    results = run.final_results
    if results is not None:
        yield Figure("Dev accuracy", figure(results.dev_accuracy), "final weights")
        yield Figure("Train accuracy", figure(results.train_accuracy), "final weights")
    elif (point := last(run, "dev_accuracy")) is not None:
        yield Figure("Dev accuracy", figure(point.value), f"epoch {point.epoch}")
    if (point := last(run, "train_loss")) is not None:
        yield Figure("Training loss", figure(point.value), f"epoch {point.epoch}")
    planned = run.metadata.hyperparameters.training.get("num_epochs")
    of = f"of {planned}" if isinstance(planned, int) and planned != len(run.epochs) else ""
    yield Figure("Epochs", str(len(run.epochs)), of)
    if run.epochs:
        yield Figure("Time", duration(run.epochs[-1].elapsed_seconds))
    parameters = run.metadata.hyperparameters.model.get("num_parameters")
    if isinstance(parameters, int):
        trained = run.metadata.hyperparameters.model.get("num_trainable_parameters")
        exact = count(parameters) if parameters >= 10**6 else ""
        note = exact if trained in (None, parameters) else f"{count(trained)} trained"
        yield Figure("Parameters", short_count(parameters), note)


def _epochs(run: RunRecord) -> EpochTable:
    names = metric_names(run)
    headings = ["epoch", *(_HEADINGS.get(name, visible(name, 40)) for name in names), "elapsed"]
    if len(run.epochs) <= _FIRST + _LAST:
        return EpochTable(headings, [_row(epoch, names) for epoch in run.epochs])
    first, rest = run.epochs[:_FIRST], run.epochs[-_LAST:]
    rows = [*(_row(epoch, names) for epoch in first), None, *(_row(epoch, names) for epoch in rest)]
    return EpochTable(headings, rows)


def _row(epoch: EpochRecord, names: Sequence[str]) -> list[str]:
    cells = (_cell(recorded(epoch, name)) for name in names)
    return [str(epoch.epoch), *cells, duration(epoch.elapsed_seconds)]


def _cell(value: Any) -> str:
    return figure(value) if value is None or is_number(value) else visible(value, 40)


def _hyperparameters(run: RunRecord) -> dict[str, list[tuple[str, str]]]:
    given = hyperparameters(run)
    return {
        heading: [
            (visible(name.partition(".")[2]), visible(value, _LONGEST))
            for name, value in given.items()
            if name.startswith(prefix)
        ]
        for heading, prefix in (("Model", "model."), ("Training", "training."))
    }


def _pairs(given: Any) -> Iterator[tuple[str, str]]:
    for name, value in given.items() if isinstance(given, Mapping) else ():
        yield visible(name).replace("_", " "), visible(value, _LONGEST)


def _seconds(took: Any) -> str:
    return f"{took:.2f} s" if is_number(took) else count(took)


def _gradient_norm(run: RunRecord) -> Iterator[tuple[str, str]]:
    said = part(run.extensions, "gradient_norm")
    for key in ("steps", "skipped_steps", "non_finite_steps"):
        if key in said:
            yield key.replace("_", "-" if key.startswith("non") else " ", 1).replace("_", " "), count(said[key])
    if said.get("measured"):
        yield "measured", visible(said["measured"])


def _troubles(run: RunRecord) -> Iterator[str]:
    """What the numbers themselves tell of: an error, steps that aren't finite, resumptions."""
    status = part(run.extensions, "status")
    if part(status, "error"):
        yield "The run ended in " + visible(error_text(status), _LONGEST)
    norm = part(run.extensions, "gradient_norm")
    for key, words in (("non_finite_steps", "had a gradient norm that is NaN or infinite"),
                       ("skipped_steps", "were skipped by the gradient scaler")):  # fmt: skip
        if norm.get(key):
            epochs = [item["epoch"] for item in objects(norm, "epochs") if item.get(key) and "epoch" in item]
            where = f", in epoch {spans(epochs)}" if all(isinstance(epoch, int) for epoch in epochs) and epochs else ""
            yield f"{count(norm[key])} of {count(norm.get('steps'))} steps {words}{where}."
    for resumption in objects(run.extensions, "resumed"):
        changed = "".join(
            f"; {visible(name)} was {visible(change.get('before'))}, is {visible(change.get('now'))}"
            for name, change in part(resumption, "hyperparameters").items()
            if isinstance(change, Mapping)
        )
        dropped = f", {count(resumption['dropped_epochs'])} dropped" if resumption.get("dropped_epochs") else ""
        yield f"Resumed after epoch {count(resumption.get('after_epoch'))}{dropped}{changed}."
