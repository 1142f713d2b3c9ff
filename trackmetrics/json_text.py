"""The file's text: strict JSON that people can read.

Objects are indented, each object of a list begins a line, an epoch stands on one, and so does a matrix row. NaN and
infinities are written as null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from .errors import MetricsFileError
from .json_pointer import members
from .non_finite import non_finite
from .plain import MAX_DIGITS, Growing

_LINE_WIDTH = 100
_LONG_INTEGER = re.compile(rb"[0-9]{19}")  # may be past 64 bits, where orjson reads a float


@dataclass(frozen=True)
class _Written:
    """What was made of the items of a growing list so far."""

    items: Sequence[Any] = ()
    texts: tuple[bytes, ...] = ()
    non_finite: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Members:
    """An object whose members are text already."""

    texts: tuple[bytes, ...]

    def __bool__(self) -> bool:
        return bool(self.texts)


class JsonText:
    """The text of plain data that is written again and again; of a `Growing` list only what is new is made.

    >>> text = JsonText()
    >>> b"".join(text.pieces({"losses": Growing((0.5, float("nan")), lambda loss: {"loss": loss})})).split()
    [b'{', b'"losses":', b'[', b'{"loss":', b'0.5},', b'{"loss":', b'null}', b']', b'}']
    """

    def __init__(self) -> None:
        self._written: dict[str, _Written] = {}

    def non_finite(self, plain: Any) -> Members:
        """Say where stands what JSON has no word for, as `trackmetrics.non_finite.non_finite` does."""
        return Members(self._non_finite(plain, ""))

    def _non_finite(self, plain: Any, pointer: str) -> tuple[bytes, ...]:
        if isinstance(plain, Growing):
            return self._grown(plain, pointer).non_finite
        if isinstance(plain, dict):
            entries = (self._non_finite(item, where) for where, item in members(plain, pointer))
            return tuple(chain.from_iterable(entries))
        return tuple(_texts(non_finite(plain, pointer)))

    def pieces(self, plain: Any) -> Iterator[bytes]:
        """Give the text of plain data (dicts, lists, scalars, NumPy arrays, growing lists) in pieces, in UTF-8.

        Floats take the shortest decimal that gives back the same float of the same width. An item of a growing list
        stands on one line. Of an array no piece is longer than a row.
        """
        yield from self._pieces(plain, "", 0)
        yield b"\n"

    def _pieces(self, value: Any, pointer: str, depth: int) -> Iterator[bytes]:
        if isinstance(value, Growing):
            yield from _lines(self._grown(value, pointer).texts, b"[]", depth)
        elif isinstance(value, Members):
            short = b"{" + b", ".join(value.texts) + b"}"
            yield from [short] if _fits(short, depth) else _lines(value.texts, b"{}", depth)
        elif isinstance(value, np.ndarray) and value.ndim > 1:
            yield from _bracketed((self._pieces(row, pointer, depth + 1) for row in value), b"[]", depth)
        elif (line := _line(value, depth)) is not None:
            yield line
        else:
            items = (self._pieces(item, where, depth + 1) for where, item in members(value, pointer))
            if isinstance(value, dict):
                yield from _bracketed(map(_member, value, items), b"{}", depth)
            else:
                yield from _bracketed(items, b"[]", depth)

    def _grown(self, growing: Growing, pointer: str) -> _Written:
        """What was made of a list, and of what was added since."""
        known = self._written.get(pointer, _Written())
        if growing.items is known.items:
            return known
        if len(known.items) > len(growing.items) or not all(map(is_, known.items, growing.items)):
            known = _Written()
        new = growing[len(known.items) :]
        if new:
            texts = (*known.texts, *map(_one_line, new))
            entries = [non_finite(item, f"{pointer}/{index}") for index, item in enumerate(new, len(known.items))]
            known = _Written(growing.items, texts, (*known.non_finite, *chain.from_iterable(map(_texts, entries))))
            self._written[pointer] = known  # in one assignment: a signal handler may save in between
        return known


def encode(plain: Any) -> bytes:
    """Write plain data as one JSON text, with a last newline."""
    return b"".join(JsonText().pieces(plain))


def decode(text: bytes) -> Any:
    """Parse strict JSON. Raises `MetricsFileError` with the place and the reason."""
    try:
        plain = orjson.loads(text)
        return json.loads(text, parse_int=_integer) if _LONG_INTEGER.search(text) else plain
    except (ValueError, RecursionError) as error:  # ValueError: an integer too long for Python, too
        raise MetricsFileError(f"not valid JSON: {error}") from None


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"an integer of more than {MAX_DIGITS} digits")
    return int(digits)


def text_length(array: npt.NDArray[Any]) -> int:
    """Say how many bytes the numbers of an array take in the text, commas included."""
    rows = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else [array]
    return sum(len(_row(row)) for row in rows)


# The one float32 (with its negative) whose shortest decimal, 7.038531e-26, readers take for its neighbour, since they
# parse decimals as doubles. tests/benchmarks/float32_decimals.py looks at each float32 there is.
_MISREAD = np.float32(float.fromhex("0x1.5c87fap-84"))


def _row(row: npt.NDArray[Any]) -> bytes:
    if row.dtype == np.float32 and (np.abs(row) == _MISREAD).any():
        row = row.astype(np.float64)
    return orjson.dumps(np.ascontiguousarray(row), option=orjson.OPT_SERIALIZE_NUMPY)


def _member(key: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
    yield orjson.dumps(key) + b": "
    yield from pieces


def _texts(value: dict[str, Any]) -> Iterator[bytes]:
    """An object's members, each on one line."""
    return (orjson.dumps(key) + b": " + _one_line(item) for key, item in value.items())


def _lines(texts: Iterable[bytes], brackets: bytes, depth: int) -> Iterator[bytes]:
    """What is text already, a line for each: joined at once, since there may be many thousands."""
    lines = (b"," + _margin(depth + 1)).join(texts)
    yield from _bracketed([[lines]], brackets, depth) if lines else [brackets]


def _bracketed(items: Iterable[Iterable[bytes]], brackets: bytes, depth: int) -> Iterator[bytes]:
    yield brackets[:1]
    separator = _margin(depth + 1)
    for item in items:
        yield separator
        yield from item
        separator = b"," + _margin(depth + 1)
    yield _margin(depth) + brackets[1:]


def _margin(depth: int) -> bytes:
    return b"\n" + b"  " * depth


def _one_line(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"{" + b", ".join(_texts(value)) + b"}"
    if isinstance(value, list):
        return b"[" + b", ".join(_one_line(item) for item in value) + b"]"
    if isinstance(value, np.ndarray):  # a row, or the runs of what is not finite
        return _row(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return b"%d" % value  # JSON has no largest integer, orjson has
    return orjson.dumps(value)


def _fits(line: bytes, depth: int) -> bool:
    return len(line) + 2 * depth <= _LINE_WIDTH


def _line(value: Any, depth: int) -> bytes | None:
    """Give the text of what stands on one line, and None of what doesn't."""
    if not isinstance(value, np.ndarray) and _holds_long_things(value):
        return None
    line = _one_line(value)
    return line if _fits(line, depth) or isinstance(value, np.ndarray) or _is_flat(value) else None


def _is_flat(value: Any) -> bool:
    """A container of scalars alone, such as an epoch: one line, however long."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not any(isinstance(item, (dict, list)) for item in items)


def _holds_long_things(value: Any) -> bool:
    """Whether an array or a list of objects stands in it, which take lines of their own."""
    if isinstance(value, list):
        objects = bool(value) and all(isinstance(item, dict) for item in value)
        return objects or any(map(_holds_long_things, value))
    if isinstance(value, dict):
        return any(map(_holds_long_things, value.values()))
    return isinstance(value, (np.ndarray, Growing, Members))
