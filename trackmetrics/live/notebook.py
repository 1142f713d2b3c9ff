"""A run in a notebook: a table that grows, and a live line above it, each one output that is shown anew."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from ..record import EpochRecord, RunRecord
from .epoch_table import HEADINGS, epoch_cells, final_cells, table_row
from .pace import Status
from .status_line import Style, status_line

_WIDTH = 100  # letters of what is shown where there is no HTML
_ROWS = 500  # of the table; it is sent whole each time


def kernel_shell() -> Any:
    """The shell of the notebook that this process runs; None where it runs none, as in a process forked from one."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    kernel = getattr(shell, "kernel", None)
    if kernel is None or getattr(getattr(kernel, "session", None), "pid", None) != os.getpid():
        return None
    return shell


class Notebook:
    """Shows a run in the output of the cell that it began in."""

    live = True

    def __init__(self, shell: Any) -> None:
        from IPython.display import display  # there is a shell, so it is loaded

        self._display: Any = display
        self._outputs: dict[str, Any] = {}
        self._rows: list[tuple[str, ...]] = []
        self._left_out = 0
        self._end = ""

    def epoch_done(self, epoch: EpochRecord) -> None:
        self._rows.append(epoch_cells(epoch))
        if len(self._rows) > _ROWS:
            del self._rows[0]
            self._left_out += 1
        self._show_table()

    def run_done(self, record: RunRecord, path: Path) -> None:
        if record.final_results is not None:
            self._rows.append(final_cells(record.final_results))
        self._end = f"metrics in {path}"
        self._show_table()

    def draw(self, status: Status) -> None:
        text = status_line(status, _WIDTH, Style())
        bar = "" if status.fraction is None else f'<progress value="{status.fraction:.4f}" max="1"></progress> '
        told = status_line(status, _WIDTH, Style(bar=False))
        self._show("line", f'<div style="font-family: monospace">{bar}{escape(told)}</div>', text)

    def close(self) -> None:
        if "line" in self._outputs:
            self._show("line", "", "")

    def _show_table(self) -> None:
        earlier = f"{self._left_out} earlier epochs stand in the file" if self._left_out else ""
        lines = [table_row(cells, _WIDTH) for cells in (HEADINGS, *self._rows)]
        head, body = _table_row("th", HEADINGS), "".join(_table_row("td", cells) for cells in self._rows)
        self._show(
            "table",
            f"<table><caption>{earlier}</caption><thead>{head}</thead><tbody>{body}</tbody></table>"
            f"<div>{escape(self._end)}</div>",
            "\n".join(line for line in (earlier, *lines, self._end) if line),
        )

    def _show(self, which: str, html: str, text: str) -> None:
        """Show an output, or show it anew."""
        data = {"text/html": html, "text/plain": text}
        if which in self._outputs:
            self._outputs[which].update(data, raw=True)
        else:
            self._outputs[which] = self._display(data, raw=True, display_id=True)


def _table_row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f'<{tag} style="text-align: right">{escape(cell)}</{tag}>' for cell in cells) + "</tr>"
