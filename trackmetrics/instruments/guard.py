"""Sparing the training our own faults: an instrument that fails ends, and costs its own number alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import fault


def instrument_failed(error: Exception) -> str:
    """Say that a value is lost by a fault of ours."""
    return f"its instrument failed with {fault(error)}"


class Guard:
    """Calls one instrument's methods; its first exception is told to `on_fault` and ends the instrument.

    >>> faults = []
    >>> spare = Guard("division", lambda name, error: faults.append(name))
    >>> spare(lambda: 1 / 0, otherwise=0), spare(lambda: 1, otherwise=0), faults
    (0, 0, ['division'])
    """

    __slots__ = ("broken", "fault", "name", "on_fault")

    def __init__(self, name: str, on_fault: Callable[[str, Exception], None]) -> None:
        self.name = name
        self.on_fault = on_fault
        self.broken = False
        self.fault: str | None = None

    def __call__(self, method: Callable[..., Any], *args: Any, otherwise: Any = None) -> Any:
        """Give what `method` returns, or `otherwise` if it fails or the instrument has failed before."""
        if self.broken:
            return otherwise
        try:
            return method(*args)
        except Exception as error:
            self.fail(error)
            return otherwise

    def fail(self, error: Exception) -> None:
        """End the instrument; `fault` then says why."""
        self.broken = True
        self.fault = instrument_failed(error)
        self.on_fault(self.name, error)
