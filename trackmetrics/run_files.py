"""Metrics files to look at: read, told apart by short names, found in a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from .errors import MetricsFileError, reason
from .metrics_file import SUFFIX, load_run
from .record import RunRecord
from .run_state import RunState, state_of


@dataclass(frozen=True)
class RunFile:
    """A run, with the file it stands in and what became of it."""

    path: Path
    run: RunRecord
    state: RunState


def read(path: str | os.PathLike[str]) -> RunFile:
    """Read a run's file. Raises `MetricsFileError` for what isn't one."""
    run = load_run(path)
    return RunFile(Path(path), run, state_of(run, path))


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
    """Name files by what tells them apart: the part alone, or with as many of its folders as it takes.

    >>> short_names(["out/a_training_metrics.json", "out/b_training_metrics.json"])
    ['a', 'b']
    >>> short_names(["one/out/a_training_metrics.json", "two/out/a_training_metrics.json"])
    ['one/out/a', 'two/out/a']
    """
    parts = [PurePath(path).parts for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = [PurePath(*part[-length:]).as_posix() for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    return [name.removesuffix(SUFFIX) for name in names] if parts else []
