"""Values as the page shows them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from ..wording import number, visible

_LONGEST_TEXT = 4000  # letters of an example's input


def odd(value: float) -> str:
    """The name of what is no finite number.

    >>> odd(float("nan")), odd(float("inf")), odd(float("-inf"))
    ('NaN', '∞', '−∞')
    """
    return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"


def figure(value: float | None) -> str:
    """A metric's value.

    >>> figure(0.25), figure(None), figure(float("nan"))
    ('0.2500', '–', 'NaN')
    """
    if value is None:
        return "–"
    return number(value) if math.isfinite(value) else odd(value)


def percent(probability: float | None) -> str:
    """A probability in percent; what isn't whole is never rounded to 0 or 100.

    >>> percent(0.5), percent(0.99999), percent(1.0), percent(0.0001), percent(None)
    ('50.0%', '>99.9%', '100%', '<0.1%', 'NaN')
    """
    if probability is None or math.isnan(probability):
        return "NaN"
    if probability in (0, 1):
        return f"{probability:.0%}"
    if not 0.0005 <= probability < 0.9995:
        return ">99.9%" if probability > 0.5 else "<0.1%"
    return f"{probability:.1%}"


def count(value: Any) -> str:
    """A whole number in groups of three digits; of anything else its text.

    >>> count(86019), count(None), count("many")
    ('86,019', 'not known', 'many')
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "not known" if value is None else visible(value)


def short_count(value: int) -> str:
    """A large whole number in few letters.

    >>> short_count(86019), short_count(124439808), short_count(7241732096)
    ('86,019', '124.44 M', '7.24 B')
    """
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if value >= size:
            return f"{value / size:.2f} {letter}"
    return f"{value:,}"


def spans(numbers: Iterable[int]) -> str:
    """Rising whole numbers, those in a row joined.

    >>> spans([1, 2, 3, 5, 8, 9])
    '1–3, 5, 8–9'
    """
    rows = [[number for _, number in row] for _, row in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(str(row[0]) if len(row) == 1 else f"{row[0]}–{row[-1]}" for row in rows)


def token_label(token: str) -> str:
    """A token with its blanks and control characters to be seen.

    >>> token_label(" "), token_label("ab c"), token_label("\\n")
    ('␣', 'ab c', '\\\\n')
    """
    return "␣" * len(token) if token.strip(" ") == "" and token else visible(token)


def long_text(text: str) -> str:
    """A text with its lines, control characters escaped; of a very long one the beginning.

    >>> long_text("a\\nb\\x1b")
    'a\\nb\\\\x1b'
    """
    lines = text[:_LONGEST_TEXT].split("\n")
    cut = "\n".join(visible(line, _LONGEST_TEXT) for line in lines)
    return cut if len(text) <= _LONGEST_TEXT else f"{cut}…"
