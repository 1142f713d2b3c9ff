"""What stands in a file's extensions, where anything may: parts of the shape that is looked for, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def part(holder: Any, key: str) -> Mapping[str, Any]:
    """Give the object that an object holds under a key; an empty one where there is none.

    >>> part({"a": {"b": 1}}, "a"), part({"a": [1]}, "a"), part(None, "a")
    ({'b': 1}, {}, {})
    """
    value = holder.get(key) if isinstance(holder, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def objects(holder: Any, key: str) -> list[Mapping[str, Any]]:
    """Give the objects in the list that an object holds under a key.

    >>> objects({"a": [{"b": 1}, None]}, "a"), objects({}, "a")
    ([{'b': 1}], [])
    """
    value = holder.get(key) if isinstance(holder, Mapping) else None
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, Sequence) else []
