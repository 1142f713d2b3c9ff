"""One readable line an epoch on standard error."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Literal, TextIO

from .record import EpochRecord, RunRecord
from .standard_error import takes_a_line

_LABELS = {
    "train_loss": "loss",
    "train_accuracy": "train accuracy",
    "dev_accuracy": "dev accuracy",
    "gradient_norm": "gradient norm",
}


class ProgressLines:
    """Writes a line for each epoch and one at the end; never raises and never waits.

    A closed standard error is one that shows nothing, and so is a pipe that is full.
    """

    def __init__(self, progress: Literal["auto"] | bool, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._shown = _is_terminal(self._stream) if progress == "auto" else progress

    def epoch_done(self, epoch: EpochRecord) -> None:
        """Show an epoch's figures."""
        values = ((label, getattr(epoch, key)) for key, label in _LABELS.items())
        columns = [f"{label} {value:.4f}" if value is not None else f"{label} -" for label, value in values]
        self._write(f"epoch {epoch.epoch:>3}  " + "  ".join(columns) + f"  {epoch.elapsed_seconds:.1f} s")

    def run_done(self, record: RunRecord, path: Path) -> None:
        """Show the final results and where the file is."""
        results = record.final_results
        if results is not None:
            shown = {"train accuracy": results.train_accuracy, "dev accuracy": results.dev_accuracy}
            columns = [f"{label} {value:.4f}" for label, value in shown.items() if value is not None]
            self._write("final      " + "  ".join([*columns, f"{results.total_time_seconds:.1f} s"]))
        self._write(f"metrics in {path}")

    def _write(self, line: str) -> None:
        if self._shown:
            with contextlib.suppress(Exception):
                if not takes_a_line(self._stream):
                    return
                self._stream.write(line + "\n")
                self._stream.flush()


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except Exception:  # closed, or a stand-in that can't tell
        return False
