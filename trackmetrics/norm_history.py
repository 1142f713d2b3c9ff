"""What the extensions say of the gradient norm: its counts over the whole run, and each epoch's figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_COUNTS = ("steps", "skipped_steps", "non_finite_steps")


class NormHistory:
    """Collects each epoch's summary.

    >>> history = NormHistory([{"epoch": 1, "steps": 3}])
    >>> history.add({"epoch": 2, "steps": 4})
    >>> history.described(2)["steps"]
    7
    """

    def __init__(self, summaries: Iterable[Mapping[str, Any]] = ()) -> None:
        self._epochs: tuple[Mapping[str, Any], ...] = ()
        self._counts: dict[str, int | None] = dict.fromkeys(_COUNTS, 0)
        for summary in summaries:
            self.add(summary)

    def add(self, summary: Mapping[str, Any]) -> None:
        """Add the next epoch's; a count that one of them doesn't have isn't known of the run."""
        self._epochs = (*self._epochs, summary)
        for name, count in self._counts.items():
            more = summary.get(name)
            self._counts[name] = count + more if isinstance(count, int) and isinstance(more, int) else None

    def described(self, epochs: int) -> dict[str, Any]:
        """Give the counts, and the summaries of so many epochs: a tuple, since it only grows."""
        return {**self._counts, "epochs": self._epochs[:epochs]}
