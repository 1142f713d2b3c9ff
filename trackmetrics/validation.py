"""Whether a file keeps what the format promises: its JSON Schema, which ships beside this module, and its rules."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from .array_types import only_numbers
from .errors import shown
from .json_pointer import escaped
from .metrics_file import read_plain
from .places import File
from .rules import Fault, broken_rules

__all__ = ["SCHEMA", "Fault", "validate"]

SCHEMA = "metrics_file.schema.json"


def validate(path: str | os.PathLike[str], most: int | None = 100) -> list[Fault]:
    """Each fault of a metrics file, in its order: first what the schema says, then the rules; `most` of them.

    A hostile file has as many faults as it has letters: with `most` set to None all are worked out.
    Raises `MetricsFileError` for what can't be read or is no JSON.

    >>> validate("nowhere.json")
    Traceback (most recent call last):
    ...
    trackmetrics.errors.MetricsFileError: nowhere.json can't be read: No such file or directory
    """
    plain, folder = read_plain(path)
    return list(islice(_faults(plain, folder), most))


def _faults(plain: Any, folder: Path) -> Iterator[Fault]:
    file = File(plain, folder)
    for fault in _against_schema(plain):
        file.note_malformed(fault.pointer)
        yield fault
    yield from broken_rules(file)


def _against_schema(plain: Any) -> Iterator[Fault]:
    for error in _validator().iter_errors(plain):
        pointer = "".join(f"/{escaped(key)}" for key in error.absolute_path)
        yield Fault(pointer, shown(error.instance), error.message)


@functools.cache
def _validator() -> Any:
    schema = json.loads((files("trackmetrics") / SCHEMA).read_text(encoding="utf-8"))
    integers = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)  # 1.0 is none
    validator: Any = extend(Draft202012Validator, _KEYWORDS, type_checker=integers)  # type: ignore[no-untyped-call]
    return validator(schema)


# The schema's keywords with messages of our own. The library's show the whole value, which may be an array of millions
# or nested deeper than the stack. Each takes the validator, the keyword's value, the file's, and the schema around it.

_Keyword: TypeAlias = Callable[[Any, Any, Any, Any], Iterator[ValidationError]]
_ORDINARY: Mapping[str, _Keyword] = Draft202012Validator.VALIDATORS


class _Missing:
    def __repr__(self) -> str:
        return "missing"


def _required(validator: Any, keys: list[str], value: Any, schema: Any) -> Iterator[ValidationError]:
    for key in keys:
        if isinstance(value, dict) and key not in value:
            yield ValidationError("a metrics file has this key", path=[key], instance=_Missing())


def _additional(validator: Any, others: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    if others is not False:
        yield from _ORDINARY["additionalProperties"](validator, others, value, schema)
        return
    for key in value if isinstance(value, dict) else ():
        if key not in schema["properties"]:
            yield ValidationError("no key of the format", path=[key], instance=value[key])


def _items(validator: Any, items: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    """A row of numbers is judged as a whole: one by one, an array of millions takes minutes."""
    takes_numbers = items.keys() <= {"type", "items"} and {"number", "null"} <= set(items.get("type", ()))
    if not (takes_numbers and isinstance(value, list) and only_numbers(value)):
        yield from _ORDINARY["items"](validator, items, value, schema)


def _keyword(kind: str, holds: Callable[[Any, Any], bool], expected: str) -> _Keyword:
    """A keyword that only judges values of one kind, with when it holds, and what it says where it doesn't."""

    def check(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
        if validator.is_type(value, kind) and not holds(wanted, value):
            example = schema.get("examples", [""])[0]
            yield ValidationError(f"expected {expected.format(wanted, example=example)}")

    return check


def _type(validator: Any, types: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    named = [types] if isinstance(types, str) else types
    if not any(validator.is_type(value, name) for name in named):
        yield ValidationError(f"expected {' or '.join(map(_with_article, named))}")


def _with_article(name: str) -> str:
    return name if name == "null" else f"an {name}" if name[0] in "aio" else f"a {name}"


def _enum(validator: Any, members: list[Any], value: Any, schema: Any) -> Iterator[ValidationError]:
    if not any(type(value) is type(member) and value == member for member in members):
        yield ValidationError(f"expected {'one of ' * (len(members) > 1)}{', '.join(map(repr, members))}")


def _const(validator: Any, member: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    return _enum(validator, [member], value, schema)


_KEYWORDS: dict[str, _Keyword] = {
    "required": _required,
    "additionalProperties": _additional,
    "items": _items,
    "type": _type,
    "enum": _enum,
    "const": _const,
    "minimum": _keyword("number", lambda least, value: value >= least, "at least {}"),
    "maximum": _keyword("number", lambda most, value: value <= most, "at most {}"),
    "minLength": _keyword("string", lambda least, text: len(text) >= least, "a length of at least {}"),
    "minItems": _keyword("array", lambda least, items: len(items) >= least, "a length of at least {}"),
    "maxItems": _keyword("array", lambda most, items: len(items) <= most, "a length of at most {}"),
    "pattern": _keyword("string", lambda pattern, text: re.search(pattern, text) is not None, "text such as {example}"),
}
