"""Figures and texts as people read them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

# Of the format's metrics, over a table's columns.
HEADINGS = {
    "train_loss": "loss",
    "train_accuracy": "train acc.",
    "dev_accuracy": "dev acc.",
    "gradient_norm": "grad. norm",
}
_BLOCKS = "▁▂▃▄▅▆▇█"
_LONGEST = 160  # letters of a value
_LONG = 10**15  # an integer from here on is shown by its first digits


def visible(value: Any, longest: int = _LONGEST) -> str:
    """Give a value's text on one line; what a terminal would obey, control characters and the like, is escaped.

    >>> visible("a\\x1b[31mb\\n"), visible({"lr": 0.1})
    ('a\\\\x1b[31mb\\\\n', '{"lr": 0.1}')
    """
    text = value if isinstance(value, str) else _plain_text(value)
    text = printable(text[: longest + 1])
    return text if len(text) <= longest else text[: longest - 1] + "…"


def printable(text: str) -> str:
    """Escape what a terminal would obey, control characters and the like.

    >>> printable("a\\x1b[31mb\\n")
    'a\\\\x1b[31mb\\\\n'
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _plain_text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        return repr(value)


def number(value: float | None, decimals: int = 4) -> str:
    """A figure in so many decimals, or in as many significant digits where it is very small or large; a dash for None.

    >>> number(0.5), number(0.0000123), number(1234567.0), number(None), number(float("nan"))
    ('0.5000', '1.23e-05', '1.235e+06', '-', 'nan')
    """
    if value is None:
        return "-"
    if isinstance(value, int) and abs(value) < _LONG:
        return str(value)
    if value and math.isfinite(value) and not 10**-decimals <= abs(value) < 10**6:
        return f"{value:.{decimals}g}"
    return f"{value:.{decimals}f}"


def moment(timestamp: str) -> str:
    """A run's timestamp as people read it.

    >>> moment("2026-01-30T22:08:22Z")
    '2026-01-30 22:08:22 UTC'
    """
    return visible(timestamp).replace("T", " ").replace("Z", " UTC")


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(4.25), duration(62), duration(7325)
    ('4.2 s', '1 min 2 s', '2 h 2 min')
    """
    if not 59.95 <= seconds < _LONG:
        return f"{seconds:.1f} s" if abs(seconds) < _LONG else f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def trend(numbers: Sequence[float | None], width: int = 12) -> str:
    """A line of blocks, each the mean of its part of the numbers, low to high between their least and greatest.

    >>> trend([0, 1, 2, 3, None, 7])
    '▁▂▃▄ █'
    """
    size = max(1, math.ceil(len(numbers) / width))
    cut = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    parts = [[value for value in part if value is not None and math.isfinite(value)] for part in cut]
    means = [math.fsum(value / len(part) for value in part) if part else None for part in parts]
    found = [mean for mean in means if mean is not None]
    if not found:
        return ""
    low, high = min(found), max(found)
    return "".join(" " if mean is None else _BLOCKS[_height(mean, low, high)] for mean in means)


def _height(mean: float, low: float, high: float) -> int:
    """Which block it is; halves, since the difference of the largest doubles is none."""
    span = high / 2 - low / 2
    return round((mean / 2 - low / 2) / span * (len(_BLOCKS) - 1)) if span else 0
