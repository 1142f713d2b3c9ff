"""What stays of each epoch on a screen: rows of a table under one heading, or lines that stand by themselves."""

from __future__ import annotations

from .. import wording
from ..record import EpochRecord, FinalResults
from ..wording import duration, number

_LABELS = {
    "train_loss": "loss",
    "train_accuracy": "train accuracy",
    "dev_accuracy": "dev accuracy",
    "gradient_norm": "gradient norm",
}
HEADINGS = ("epoch", *wording.HEADINGS.values(), "elapsed")
_WIDTHS = (5, 10, 10, 10, 10, 12)
_GAP = 2


def epoch_cells(epoch: EpochRecord) -> tuple[str, ...]:
    """An epoch's figures, under the headings."""
    figures = (number(getattr(epoch, key)) for key in wording.HEADINGS)
    return (str(epoch.epoch), *figures, duration(epoch.elapsed_seconds))


def final_cells(results: FinalResults) -> tuple[str, ...]:
    """The final results, under the same headings."""
    accuracies = ("" if value is None else number(value) for value in (results.train_accuracy, results.dev_accuracy))
    return ("final", "", *accuracies, "", duration(results.total_time_seconds))


def table_row(cells: tuple[str, ...], width: int) -> str:
    """Give a table's row in at most `width` letters: as many of its columns as have room.

    >>> table_row(("1", "0.5000", "1.0000", "1.0000", "0.1000", "4.2 s"), 30)
    '    1      0.5000      1.0000'
    """
    row = ""
    for cell, size in zip(cells, _WIDTHS, strict=True):
        longer = row + " " * (_GAP if row else 0) + cell.rjust(size)
        if len(longer) > width and row:
            break
        row = longer
    return row[:width]


def epoch_line(epoch: EpochRecord) -> str:
    """An epoch's figures as a line of its own."""
    values = ((label, getattr(epoch, key)) for key, label in _LABELS.items())
    columns = [f"{label} {value:.4f}" if value is not None else f"{label} -" for label, value in values]
    return f"epoch {epoch.epoch:>3}  " + "  ".join(columns) + f"  {epoch.elapsed_seconds:.1f} s"


def final_line(results: FinalResults) -> str:
    """The final results as a line of their own."""
    shown = {"train accuracy": results.train_accuracy, "dev accuracy": results.dev_accuracy}
    columns = [f"{label} {value:.4f}" for label, value in shown.items() if value is not None]
    return "final      " + "  ".join([*columns, f"{results.total_time_seconds:.1f} s"])
