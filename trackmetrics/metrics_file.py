"""The metrics file: where it stands, written whole or not at all, read back, and held by one run at a time.

It is the truth about a run, not a sink: what can't be right about it raises before training begins.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock

from .errors import MetricsFileError, OutputError, PathInUseError, shown
from .json_text import array_types, decode, encode, non_finite, restore_arrays, restore_non_finite
from .names import check_name
from .record import FORMAT_VERSION, RunRecord, record_from_plain, record_to_plain, single_or_double

DESCRIBING_KEYS = ("format_version", "dtypes", "non_finite")  # of the extensions: what they say is about the text
_SUFFIX = "_training_metrics.json"


class MetricsFile:
    """One run's metrics file.

    >>> import tempfile
    >>> with MetricsFile(tempfile.mkdtemp(), "demo") as file:
    ...     file.path.name
    'demo_training_metrics.json'

    Entering makes the folder, tries it by writing, and takes the lock that keeps other live runs away; leaving
    gives the lock back. An earlier file stays as it is until the first `write`.
    Raises `OutputError` where the folder can't be used and `PathInUseError` where another live run holds the path.
    """

    def __init__(self, output_dir: str | os.PathLike[str], part: str) -> None:
        try:
            self.folder = Path(output_dir).absolute()
        except TypeError:
            raise OutputError(
                f"output_dir is {shown(output_dir)}, of type {type(output_dir).__name__}; give a folder's path"
            ) from None
        except FileNotFoundError:
            raise OutputError(
                f"output_dir is {shown(output_dir)}, in a working folder that no longer exists; give an absolute path"
            ) from None
        self.path = self.folder / f"{check_name('part', part)}{_SUFFIX}"
        self._lock_path = self.folder / f".{self.path.name}.lock"
        # A run may be left in another thread than it was entered in, so the lock is the object's, not the thread's.
        self._lock = filelock.FileLock(self._lock_path, timeout=0, thread_local=False)

    def __enter__(self) -> MetricsFile:
        self._try_folder()
        holder = self._holder()  # read first: a contender's attempt may empty the lock's text
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise self._in_use(holder) from None
        except (OSError, NotImplementedError) as error:
            raise OutputError(
                f"{self._lock_path} can't be locked ({_reason(error)}); choose another output_dir="
            ) from None
        except RuntimeError:  # this very thread holds it
            raise self._in_use(holder) from None
        with contextlib.suppress(OSError):
            self._lock_path.write_text(_this_process(), encoding="utf-8")
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def _in_use(self, holder: str) -> PathInUseError:
        return PathInUseError(
            f"another live run writes {self.path} ({holder}); give this one another part= or output_dir=, "
            "or wait until that one has ended"
        )

    def _try_folder(self) -> None:
        mend = "choose an output_dir= that can be written"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.path.is_dir():
                raise OutputError(f"{self.path} is a folder, where the metrics file is to stand; move it away")
            descriptor, probe = tempfile.mkstemp(prefix=f".{self.path.name}.", suffix=".tmp", dir=self.folder)
            os.close(descriptor)
            os.unlink(probe)
        except OutputError:
            raise
        except FileExistsError:
            raise OutputError(f"the output folder {self.folder} is a file; {mend}") from None
        except (OSError, ValueError) as error:  # ValueError: a null character
            raise OutputError(f"the output folder {self.folder} can't be written ({_reason(error)}); {mend}") from None

    def _holder(self) -> str:
        try:
            text = self._lock_path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            text = ""
        return text or "it doesn't say which process it is"

    def write(self, record: RunRecord) -> None:
        """Put the record in the file's place: whole, synced, by one rename; the old file stays until then.

        Raises `OSError` where the disk refuses, and leaves no temporary file behind.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{self.path.name}.{os.getpid()}.tmp"
        try:
            # 0o666 less the user's umask, as any file the user writes; a temporary file's own 0600 would stay on.
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            with os.fdopen(descriptor, "wb") as file:
                file.write(encode_record(record))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(self.folder)


def encode_record(record: RunRecord) -> bytes:
    """Give the file's text for a record, with the entries of `extensions` that describe the text itself."""
    widened = _widened(record)
    plain = record_to_plain(widened)
    if widened.extensions is not None:
        given = {key: value for key, value in plain["extensions"].items() if key not in DESCRIBING_KEYS}
        plain["extensions"] = {"format_version": FORMAT_VERSION, **given}
        described = {"dtypes": _dtypes(plain), "non_finite": non_finite(plain)}
        plain["extensions"] |= {key: value for key, value in described.items() if value}
    return encode(plain)


def _widened(record: RunRecord) -> RunRecord:
    """JSON writers know two widths of floats: half types become float32, whatever else float64."""
    inference = record.final_inference
    if inference is None:
        return record
    log_probs = None if inference.log_probs is None else single_or_double(inference.log_probs)
    attention = single_or_double(inference.attention_weights)
    return replace(record, final_inference=replace(inference, log_probs=log_probs, attention_weights=attention))


def _dtypes(plain: dict[str, Any]) -> dict[str, str]:
    """Which arrays are float32: their decimals are the shortest for that width, so a reader must know it.

    Of the extensions all arrays are named: there, a list that is none may look the same.
    """
    inference = dict(array_types(plain["final_inference"], "/final_inference"))
    single = {place: kind for place, kind in inference.items() if kind == "float32"}
    return single | dict(array_types(plain["extensions"], "/extensions"))


def load_run(path: str | os.PathLike[str]) -> RunRecord:
    """Read a metrics file back: arrays as NumPy arrays of their own width, non-finite values restored.

    A null in an array of which the file doesn't say what it was (the extensions were left out) becomes NaN.
    Raises `MetricsFileError`, which says what is wrong and where, for anything that isn't a metrics file.

    >>> load_run("nowhere.json")
    Traceback (most recent call last):
    ...
    trackmetrics.errors.MetricsFileError: nowhere.json can't be read: No such file or directory
    """
    text = read_text(path)
    try:
        return _decode_record(text)
    except MetricsFileError as error:
        raise MetricsFileError(f"{os.fspath(path)} is not a metrics file: {error}") from None


def read_text(path: str | os.PathLike[str]) -> bytes:
    """Give a file's text as it stands on the disk, or raise `MetricsFileError`, which says why that can't be had."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise MetricsFileError(f"{os.fspath(path)} can't be read: {_reason(error)}") from None


def _decode_record(text: bytes) -> RunRecord:
    plain = decode(text)
    extensions = plain.get("extensions") if isinstance(plain, dict) else None
    if isinstance(extensions, dict) and "non_finite" in extensions:
        restore_non_finite(plain, extensions["non_finite"])
    if isinstance(extensions, dict) and isinstance(extensions.get("dtypes"), dict):
        own = {place: kind for place, kind in extensions["dtypes"].items() if place.startswith("/extensions/")}
        restore_arrays(plain, own)
    return record_from_plain(plain)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _this_process() -> str:
    started = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"process {os.getpid()} on {socket.gethostname()}, started {started}"


def _sync_folder(folder: Path) -> None:
    """Make the rename last through a power loss, where the system can sync a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
