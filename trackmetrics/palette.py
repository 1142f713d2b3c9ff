"""Colours that tell runs apart, as many as there are runs."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

_GOLDEN = (5**0.5 - 1) / 2  # of the circle of hues: each lies far from those before it


def run_colours(chosen: Sequence[str], count: int, lightness: float) -> list[str]:
    """Give the colours of as many runs: those chosen by hand, then further hues about as light, no two the same.

    >>> run_colours(["#0072b2", "#d55e00"], 4, 0.4)
    ['#0072b2', '#d55e00', '#83c526', '#921c83']
    """
    return [*chosen, *(_hue(index, lightness) for index in range(len(chosen), count))][:count]


def _hue(index: int, lightness: float) -> str:
    shade = lightness + (index % 3 - 1) * 0.06  # hues crowd in time; neighbours differ in lightness, too
    rgb = colorsys.hls_to_rgb(index * _GOLDEN % 1, shade, 0.68)
    return "#" + "".join(f"{round(part * 255):02x}" for part in rgb)
