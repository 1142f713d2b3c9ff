"""Keeping out of the way of `torch.compile`.

Where compiled code pauses (a backward in a compiled step, a function between two compiled ones), its compiler takes up
every Python frame that it meets, ours too. Ours are marked to be passed over; and a pass of ours runs what was
compiled as it was written, for `eval()` and other sizes would have it compiled again.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import torch
from torch._dynamo import eval_frame
from torch._dynamo.decorators import skip_code  # type: ignore[attr-defined]  # an optimizer loads all of it anyway
from torch._dynamo.utils import counters

_PACKAGE = __name__.partition(".")[0]
_lock = threading.Lock()
_marked: set[str] = set()
_passes = 0
_stance: Any = None


def pass_over_ours() -> None:
    """Have the compiler pass over every function of this package that is loaded by now."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == _PACKAGE and name not in _marked:
            _marked.add(name)
            for value in list(vars(module).values()):
                for function in (value, *(vars(value).values() if isinstance(value, type) else ())):
                    _mark(function, name)


def _mark(value: Any, name: str) -> None:
    if isinstance(value, property):
        value = value.fget
    elif isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, FunctionType) and value.__module__ == name:
        for code in _with_inner(value.__code__):
            skip_code(code)


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)


def anything_to_compile() -> bool:
    """Whether `torch.compile` was called in this process: what it gave may be compiled at any moment."""
    return any(backend is not None for backend in eval_frame.cached_backends.values())  # None: not to compile


def anything_compiled() -> bool:
    """Whether the compiler has compiled anything in this process."""
    return bool(counters["stats"]["unique_graphs"])


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Run what was compiled as it was written.

    The compiler's stance is one for the whole process; of passes in several threads the last one puts it back.
    """
    global _passes, _stance
    with _lock:
        _passes += 1
        if _passes == 1:
            _stance = torch.compiler.set_stance("force_eager")
    try:
        yield
    finally:
        with _lock:
            _passes -= 1
            if _passes == 0:
                stance, _stance = _stance, None
                stance.__exit__(None, None, None)
