"""Libraries that not everyone needs: loaded when they are, by the extra that brings them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .errors import MissingExtraError


def load(module: str, *, extra: str) -> Any:
    """Import a library's module, or raise `MissingExtraError` with the line that installs it.

    >>> load("nowhere_to_be_had", extra="plot")
    Traceback (most recent call last):
    ...
    trackmetrics.errors.MissingExtraError: nowhere_to_be_had isn't installed; pip install 'trackmetrics[plot]'
    """
    library = module.partition(".")[0]
    if not installed(library):
        raise MissingExtraError(f"{library} isn't installed; pip install 'trackmetrics[{extra}]'")
    return import_module(module)


def installed(library: str) -> bool:
    """Whether a library is there to be imported."""
    return find_spec(library) is not None
