"""Metrics files to look at: read, told apart by short names, found in a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from .errors import MetricsFileError, reason
from .metrics_file import SUFFIX, load_run
from .record import RunRecord
from .run_state import RunState, state_of

_ENDED = ("completed", "failed", "interrupted", "died")


@dataclass(frozen=True)
class RunFile:
    """A run, with the file it stands in and what became of it."""

    path: Path
    run: RunRecord
    state: RunState
    written: int = 0  # nanoseconds


def read(path: str | os.PathLike[str]) -> RunFile:
    """Read a run's file. Raises `MetricsFileError` for what isn't one."""
    while True:
        written = _date(path)  # before it is read: what is written meanwhile is seen
        run = load_run(path)
        found = RunFile(Path(path), run, state_of(run, path), written)
        if not _outdated(found):
            return found


def _outdated(item: RunFile) -> bool:
    """Whether a run only seems to have died: it has written its end since its file was read, and is gone."""
    return item.state.name == "died" and _date(item.path) != item.written


def follow(paths: Sequence[Path], pause_seconds: float = 0.5) -> Iterator[dict[Path, RunFile | None]]:
    """Give the runs, None for a file that isn't there yet, and again whenever one has changed, until all have ended.

    A file is read only when it was written anew. Raises `MetricsFileError` for one that isn't a metrics file.
    """
    found: dict[Path, RunFile | None] = {}
    while True:
        before, found = found, {path: _anew(path, found.get(path)) for path in paths}
        if found != before:
            yield found
        if all(item is not None and item.state.name in _ENDED for item in found.values()):
            return
        time.sleep(pause_seconds)


def _anew(path: Path, known: RunFile | None) -> RunFile | None:
    written = _date(path)
    if not written:
        return None
    if known is None or known.written != written:
        return read(path)
    found = replace(known, state=state_of(known.run, path))
    return read(path) if _outdated(found) else found


def _date(path: str | os.PathLike[str]) -> int:
    """When a file was written, in nanoseconds; 0 where there is none."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def find(folder: Path, *, deep: bool = False) -> list[Path]:
    """Find the metrics files in a folder, in those below it too if `deep`, by name.

    Raises `MetricsFileError` where there is no such folder, or none in it.
    """
    try:
        paths = [Path(item.path) for item in os.scandir(folder)]
        found = sorted(folder.rglob(f"*{SUFFIX}") if deep else paths)
    except OSError as error:
        raise MetricsFileError(f"{folder} can't be listed ({reason(error)}); give a folder of metrics files") from None
    found = [path for path in found if path.name.endswith(SUFFIX) and not path.name.startswith(".")]
    if not found:
        below = "" if deep else ", or look below it with --recursive"
        raise MetricsFileError(f"no metrics file (*{SUFFIX}) is in {folder}; give another folder{below}")
    return found


def short_names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Name files by their parts, each with as many folders as it takes to tell it apart; the same one is numbered.

    >>> short_names(["out/a_training_metrics.json", "out/b_training_metrics.json"])
    ['a', 'b']
    >>> short_names(["one/a_training_metrics.json", "two/a_training_metrics.json", "one/a_training_metrics.json"])
    ['one/a', 'two/a', 'one/a (2)']
    """
    parts = [Path(path).absolute().parts for path in paths]
    apart = set(parts)
    names = [PurePath(*_telling(own, apart)).as_posix().removesuffix(SUFFIX) for own in parts]
    times = [names[: place + 1].count(name) for place, name in enumerate(names)]
    return [f"{name} ({count})" if count > 1 else name for name, count in zip(names, times, strict=True)]


def _telling(own: tuple[str, ...], paths: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The shortest end of a path that no other path has."""
    lengths = (length for length in range(1, len(own)) if sum(path[-length:] == own[-length:] for path in paths) == 1)
    return own[-next(lengths, 0) :]
