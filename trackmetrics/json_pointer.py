"""Places in JSON data, named as RFC 6901 names them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

_NOT_ESCAPED = re.compile("~(?![01])")


def escaped(key: str | int) -> str:
    """Give a key as it stands in a pointer.

    >>> escaped("a/b~c")
    'a~1b~0c'
    """
    return str(key).replace("~", "~0").replace("/", "~1")


def members(value: Any, pointer: str) -> Iterator[tuple[str, Any]]:
    """Give what an object or a list holds, each with the pointer at which it stands; nothing of anything else.

    >>> list(members({"a/b": 1, "rows": [2]}, ""))
    [('/a~1b', 1), ('/rows', [2])]
    """
    if isinstance(value, dict):
        yield from ((f"{pointer}/{escaped(key)}", item) for key, item in value.items())
    elif isinstance(value, list):
        yield from ((f"{pointer}/{index}", item) for index, item in enumerate(value))


def inside_another(pointers: Iterable[str]) -> str | None:
    """Give a pointer that leads into the place of another, or None.

    Entries by pointer that each go through what stands at their place would go through it as often as it nests.

    >>> inside_another(["/a", "/b/0", "/ab", "/b"])
    '/b/0'
    """
    parts = sorted(pointer.split("/") for pointer in pointers)
    nested = (inner for outer, inner in pairwise(parts) if inner[: len(outer)] == outer)
    return next(("/".join(inner) for inner in nested), None)


def place(plain: Any, pointer: str) -> tuple[Any, Any]:
    """Give what holds the place that a pointer names, and the place's key in there.

    Raises `KeyError`, `IndexError`, `TypeError` or `ValueError` where the pointer leads nowhere.
    """
    if _NOT_ESCAPED.search(pointer):
        raise ValueError(pointer)
    root, *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")]
    if root:
        raise ValueError(pointer)
    holder = plain
    for part in parents:
        holder = holder[_key(holder, part)]
    return holder, _key(holder, last)


def _key(holder: Any, part: str) -> Any:
    if not isinstance(holder, list):
        return part
    if not part.isdecimal() or str(int(part)) != part:
        raise ValueError(part)
    return int(part)
