"""A file that is replaced whole or not at all, whenever the process or the power fails."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

_WINDOWS = sys.platform == "win32"
_ATTEMPTS = 10  # at replacing a file that a reader holds open, which Windows refuses
_PAUSE_SECONDS = 0.05
_CHUNK = 1 << 20  # bytes


def replace_whole(path: Path, pieces: Iterable[Any], temporary: Path) -> None:
    """Put a file in its place: written as `temporary` beside it, synced, renamed, and the folder synced.

    Until the rename the earlier file stays as it is; a temporary file that an earlier attempt left goes. Raises
    `OSError` where the system refuses, and what `pieces` raises; of the attempt nothing stays then. The caller sees to
    it that nobody else writes there.
    """
    try:
        with _fresh(temporary) as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        _move(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it is in, where they are missing; and make that last, too. Raises `OSError`."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def open_whole(path: Path, *, follow_links: bool = True) -> BinaryIO:
    """Open a file for reading. Raises `OSError` for what isn't one: a folder, or a pipe, which may never end."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags | (0 if follow_links else getattr(os, "O_NOFOLLOW", 0)))
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError("Is a directory" if stat.S_ISDIR(mode) else "it is no regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def try_writing(temporary: Path) -> None:
    """Find out whether a temporary file can be written where `replace_whole` will; what was left there goes."""
    try:
        _fresh(temporary).close()
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def put_aside(path: Path, temporary: Path) -> None:
    """Keep a file, if there is one, under a second name that says when it was last written, until `path` is replaced.

    `runs.json` of noon on the first of May 2026 is `runs.20260501T120000Z.json` too. A file that was put aside
    already, by a run that was killed before it replaced it, is left at that.
    """
    if not path.exists():
        return
    try:
        written = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    except (ValueError, OverflowError):  # a date that no calendar has
        written = datetime.now(timezone.utc)
    date = written.strftime("%Y%m%dT%H%M%SZ")
    for number in count(1):
        aside = path.with_name(f"{path.stem}.{date}{f'-{number}' if number > 1 else ''}{path.suffix}")
        if not os.path.lexists(aside):
            break
        if os.path.samestat(aside.lstat(), path.lstat()):  # not of what a link leads to, which is replaced
            return
    try:
        os.link(path, aside)
    except OSError:  # a filesystem without links, or a full one
        with open(path, "rb") as file:
            replace_whole(aside, iter(lambda: file.read(_CHUNK), b""), temporary)


def _fresh(temporary: Path) -> BinaryIO:
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    # 0o666 less the user's umask, as any file the user writes; a temporary file's own 0600 would stay on. A link that
    # somebody put there isn't followed.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(temporary, flags, 0o666), "wb")


def _move(source: Path, target: Path) -> None:
    for _ in range(_ATTEMPTS if _WINDOWS else 0):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            time.sleep(_PAUSE_SECONDS)
    os.replace(source, target)


def sync_folder(folder: Path) -> None:
    """Make what was renamed or deleted in a folder last through a power loss, where the system can sync one."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
