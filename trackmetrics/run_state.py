"""Whether a run still lives, as its file and this machine's processes tell it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from .extensions import part
from .record import RunRecord

_GRANULARITY = 1  # second, of a process's beginning and a file's date


@dataclass(frozen=True)
class RunState:
    """What became of a run.

    `name` is the file's `running`, `completed`, `failed` or `interrupted`; `died` where the file says `running` and no
    such process is there; `unknown` where it says nothing. `detail` says the error, the process, or the host on which
    to look; it may be empty.
    """

    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})" if self.detail else self.name


def state_of(run: RunRecord, path: str | os.PathLike[str]) -> RunState:
    """Give the state of the run whose file stands at `path`.

    >>> from trackmetrics.record import FinalResults, Metadata
    >>> state_of(RunRecord(Metadata("demo", "2026-01-01T00:00:00Z"), (), FinalResults(None, 1.0, 2.5)), "demo.json")
    RunState(name='completed', detail='')
    """
    said = part(run.extensions, "status")
    name = said.get("state")
    if not isinstance(name, str):
        return RunState("completed" if run.final_results is not None else "unknown")
    if name == "running":
        return _running(said.get("process"), said.get("host"), os.fspath(path))
    return RunState(name, error_text(said))


def error_text(status: Mapping[str, Any]) -> str:
    """Say which error a status names, its type and message; empty where it names none."""
    error = part(status, "error")
    return ": ".join(str(error[key]) for key in ("type", "message") if error.get(key))


def _running(process: object, host: object, path: str) -> RunState:
    if not isinstance(process, int):
        return RunState("running")
    if host != socket.gethostname():
        return RunState("running", f"process {process} on {host}, which can't be looked at from here")
    if _lives(process, path):
        return RunState("running", f"process {process}")
    return RunState("died", f"process {process} is gone")


def _lives(process: int, path: str) -> bool:
    """Whether the process is there that wrote the file, and not a later one of the same number."""
    try:
        found = psutil.Process(process)
        ended = found.status() == psutil.STATUS_ZOMBIE  # and nobody has asked for its status yet
        return not ended and bool(found.create_time() <= os.stat(path).st_mtime + _GRANULARITY)
    except psutil.AccessDenied:  # somebody else's is there
        return True
    except (psutil.NoSuchProcess, ValueError, OverflowError, OSError):
        return False
