"""The text of the live line: as much of a moment of the run as a width has room for."""

from __future__ import annotations

from dataclasses import dataclass

from ..wording import number
from .pace import Status

_LONGEST_BAR = 30
_SHORTEST_BAR = 6
_BAR_STEP = 4  # it changes its length by so much, not with each digit beside it
_GAP = "  "
# What goes first where there is no room for all.
_DISPENSABLE = ("norm", "rate", "bar", "left", "loss", "count", "stage")


@dataclass(frozen=True)
class Style:
    """What there is to draw with: letters beyond ASCII, colours, and whether the bar is among them."""

    unicode: bool = True
    colour: bool = False
    bar: bool = True


def status_line(status: Status, width: int, style: Style) -> str:
    """Give the line, `width` letters at most, colours not counted.

    >>> status_line(Status(3, 10, done=30, total=40, rate=58.2, loss=0.25, seconds_left=72), 60, Style())
    'epoch 3/10  ━━━━──  step 30/40  58/s  loss 0.2500  1:12 left'
    """
    parts = _parts(status)
    if not style.bar:
        parts.pop("bar", None)
    for name in _DISPENSABLE:
        if _length(parts) <= width:
            break
        parts.pop(name, None)
    if "bar" in parts:
        room = min(_LONGEST_BAR - _SHORTEST_BAR, width - _length(parts))
        parts["bar"] = "·" * (_SHORTEST_BAR + room // _BAR_STEP * _BAR_STEP)
    line = _GAP.join(_drawn(name, text, status, style) for name, text in parts.items())
    return line if _length(parts) <= width else _GAP.join(parts.values())[:width]


def _length(parts: dict[str, str]) -> int:
    return len(_GAP.join(parts.values()))


def _parts(status: Status) -> dict[str, str]:
    """The line's parts in their order; the bar's length is to be found."""
    of_epochs = "" if status.epochs is None else f"/{status.epochs}"
    parts = {
        "head": "" if status.epoch is None else f"epoch {status.epoch}{of_epochs}",
        "stage": status.stage,
    }
    if not status.stage:
        total = "" if status.total is None else str(status.total)
        of_total = total and "/" + "~" * status.estimated + total
        parts |= {
            "bar": "" if status.fraction is None else "·" * _SHORTEST_BAR,
            "count": f"{status.unit} {status.done:>{len(total)}}{of_total}",
            "rate": "" if status.rate is None else _pace(status.rate),
            "loss": "" if status.loss is None else f"loss {number(status.loss)}",
            "norm": "" if status.norm is None else f"norm {number(status.norm)}",
            "left": "" if status.seconds_left is None else f"{clock_time(status.seconds_left)} left",
        }
    return {name: text for name, text in parts.items() if text}


def _pace(rate: float) -> str:
    """Of what is faster than one a second, how many a second; of what is slower, how long each takes."""
    if rate < 1:
        return f"{1 / rate:.1f} s each"
    return f"{rate:.1f}/s" if rate < 9.95 else f"{rate:.0f}/s"


def clock_time(seconds: float) -> str:
    """Seconds as a clock shows them.

    >>> clock_time(72.4), clock_time(7325)
    ('1:12', '2:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _drawn(name: str, text: str, status: Status, style: Style) -> str:
    if name == "bar":
        filled = int(len(text) * (status.fraction or 0.0))
        done, ahead = ("━", "─") if style.unicode else ("#", "-")
        return _coloured(done * filled, "36", style) + _coloured(ahead * (len(text) - filled), "2", style)
    return _coloured(text, {"head": "1", "rate": "2", "left": "2"}.get(name, ""), style)


def _coloured(text: str, code: str, style: Style) -> str:
    return f"\x1b[{code}m{text}\x1b[m" if style.colour and code and text else text
