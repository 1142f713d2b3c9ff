"""A run as the value of a notebook's cell."""

from __future__ import annotations

import io

from .record import RunRecord
from .terminal import plain_console, shown_record

_ROWS, _WIDTH = 24, 100
_PRE = '<pre style="white-space: pre; overflow-x: auto; line-height: 1.25; font-family: monospace">{code}</pre>'


def as_html(run: RunRecord) -> str:
    """Give a run as HTML, in the colours of whatever page it stands on.

    >>> from trackmetrics.record import Metadata
    >>> "2026-01-01" in as_html(RunRecord(Metadata("<script>", "2026-01-01T00:00:00Z")))
    True
    """
    console = plain_console(
        file=io.StringIO(), record=True, width=_WIDTH, color_system="standard", force_terminal=True, force_jupyter=False
    )
    console.print(shown_record(run, _ROWS, _WIDTH))
    return console.export_html(inline_styles=True, code_format=_PRE)
