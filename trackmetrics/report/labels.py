"""Short names by which the files of several runs can be told apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..wording import visible

_SUFFIX = "_training_metrics"


def labels(paths: Sequence[Path]) -> list[str]:
    """Name each file by its task, with as many of its folders as it takes; the same file twice is numbered.

    >>> labels([Path("a/x_training_metrics.json"), Path("b/x_training_metrics.json"), Path("b/y.json")])
    ['a/x', 'b/x', 'y']
    >>> labels([Path("x.json"), Path("x.json")])
    ['x', 'x (2)']
    """
    parts = [(*path.absolute().parts[:-1], path.stem.removesuffix(_SUFFIX)) for path in paths]
    named = ["/".join(_telling(own, parts)) for own in parts]
    seen: Counter[str] = Counter()
    numbered = []
    for name in named:
        seen[name] += 1
        numbered.append(visible(name) + (f" ({seen[name]})" if seen[name] > 1 else ""))
    return numbered


def _telling(own: tuple[str, ...], all_parts: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The shortest end of a path that no other path has."""
    others = [parts for parts in all_parts if parts != own]
    for length in range(1, len(own)):
        if all(parts[-length:] != own[-length:] for parts in others):
            return own[-length:]
    return own
