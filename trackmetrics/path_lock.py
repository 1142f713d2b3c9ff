"""A lock that keeps other live runs away from a path: one at a time, and a dead one blocks nobody."""

from __future__ import annotations

import contextlib
import datetime
import errno
import multiprocessing
import os
import socket
import time
from pathlib import Path

import filelock

from .errors import OutputError, PathInUseError, reason
from .whole_file import open_whole

# What a filesystem without locks, or one whose lock service is away, answers.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
_ATTEMPTS = 10  # at reading who holds the lock: its holder writes that just after taking it
_PAUSE_SECONDS = 0.01
_LONGEST = 500  # bytes of what a lock file says
_RANKS = "; if the two are ranks of one training, call init_process_group or set RANK before, so that one writes"


def _may_be_a_rank() -> bool:
    """Whether this process was started by another one of Python's, which didn't say which rank it is."""
    return multiprocessing.parent_process() is not None and "RANK" not in os.environ


class PathLock:
    """Holds a path for one run, from `acquire` to `release`.

    The system lets go of a dead process's lock. `fault` is the reason, where the filesystem has no locks and the path
    is not held; else None.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock_path = path.with_name(f".{path.name}.lock")
        # A run may be left in another thread than it was entered in, so the lock is the object's, not the thread's.
        # Without locks of the system there is a warning: a lock file's mere existence would outlive a dead process.
        # Whoever may write in the folder may lock what a dead run of somebody else's left there: it holds nothing else.
        self._lock = filelock.FileLock(
            self._lock_path, timeout=0, mode=0o666, thread_local=False, fallback_to_soft=False
        )
        self._file: os.stat_result | None = None
        self._process: int | None = None
        self.fault: str | None = None

    def acquire(self) -> None:
        """Take the path. Raises `PathInUseError` where another live run holds it, `OSError` where none can be had."""
        self._process = os.getpid()
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise self._in_use() from None
        except (OSError, NotImplementedError) as error:
            if not isinstance(error, NotImplementedError) and error.errno not in _NO_LOCKS:
                if not self._lock_path.exists():
                    raise  # the folder itself can't be written
                raise OutputError(
                    f"{self._lock_path} can't be locked ({reason(error)}); choose another output_dir="
                ) from None
            self.fault = reason(error)
            with contextlib.suppress(OSError):
                self._lock_path.unlink()
            return
        except RuntimeError:  # this very thread holds it
            raise self._in_use() from None
        with contextlib.suppress(OSError):
            self._lock_path.write_text(_this_process(), encoding="utf-8")
            self._file = os.stat(self._lock_path)

    def keep(self) -> None:
        """Take the path again where the lock file was deleted, on which another run could have locked anew since.

        Raises `PathInUseError` where one did, and in a process that was forked from the run's.
        """
        if self._process != os.getpid():
            raise PathInUseError(f"{self._path} is written by process {self._process}, which forked this one")
        if self.fault is None and not (self._lock.is_locked and self._stands()):
            self._lock.release(force=True)
            self.acquire()

    def release(self) -> None:
        """Give the path back, and take the lock file away; a process forked from the run's has nothing to give."""
        if self._process == os.getpid():
            # While it is held: whoever waits for it finds the file gone, and makes a new one.
            if self._lock.is_locked and self._stands():
                with contextlib.suppress(OSError):
                    self._lock_path.unlink()
            self._lock.release(force=True)

    def _stands(self) -> bool:
        """Whether the lock file is still the one that was locked."""
        try:
            return self._file is not None and os.path.samestat(os.stat(self._lock_path), self._file)
        except OSError:
            return False

    def _in_use(self) -> PathInUseError:
        return PathInUseError(
            f"another live run writes {self._path} ({self._holder()}); give this one another part= or output_dir=, "
            f"or wait until that one has ended{_RANKS if _may_be_a_rank() else ''}"
        )

    def _holder(self) -> str:
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(OSError), open_whole(self._lock_path, follow_links=False) as file:
                text = file.read(_LONGEST).decode("utf-8", "replace").strip()
                if text.startswith("process "):
                    return text
            time.sleep(_PAUSE_SECONDS)
        return "it doesn't say which process it is"


def _this_process() -> str:
    started = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"process {os.getpid()} on {socket.gethostname()}, started {started}"
