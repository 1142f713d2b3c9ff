"""The metrics file: where it stands, written whole or not at all, read back, and held by one run at a time.

It is the truth about a run, not a sink: what can't be right about it raises before training begins.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from . import sidecars
from .array_types import arrays_in, restore_arrays
from .errors import MetricsFileError, OutputError, reason, shown
from .json_pointer import place
from .json_text import JsonText, decode
from .names import check_name
from .non_finite import restore_non_finite
from .path_lock import PathLock
from .record import FORMAT_VERSION, RunRecord, record_from_plain, record_to_plain
from .whole_file import make_folder, open_whole, put_aside, replace_whole, try_writing

DESCRIBING_KEYS = ("format_version", "dtypes", "non_finite", "sidecars")  # of the extensions: they are about the text
MAX_INLINE_MB = 256
DEEPEST = 100  # levels of nesting in a file; a value that a user hands in has 64 at most
SUFFIX = "_training_metrics.json"
_MEGABYTE = 1_000_000


class MetricsFile:
    """One run's metrics file.

    >>> import tempfile
    >>> with MetricsFile(tempfile.mkdtemp(), "demo") as file:
    ...     file.path.name
    'demo_training_metrics.json'

    Entering makes the folder, tries it by writing, and takes the lock that keeps other live runs away; leaving
    gives the lock back. An earlier file stays as it is until the first `write`, which with `keep_previous` puts it
    aside. Arrays whose text takes more than `max_inline_mb` million bytes go to files beside it.
    Raises `OutputError` where the folder can't be used and `PathInUseError` where another live run holds the path.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        part: str,
        *,
        keep_previous: bool = False,
        max_inline_mb: float = MAX_INLINE_MB,
    ) -> None:
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
        self.path = self.folder / f"{check_name('part', part)}{SUFFIX}"
        self._keep_previous = keep_previous
        self._max_inline = max_inline_mb * _MEGABYTE
        self._lock = PathLock(self.path)
        self._temporary = self.folder / f".{self.path.name}.tmp"
        self._text = JsonText()
        self._written = self._ended = False  # by this run
        # A signal's handler may save for a thread that is saving: then it waits, or, in that very thread, goes first.
        self._writing = threading.RLock()

    def __enter__(self) -> MetricsFile:
        mend = "choose an output_dir= that can be written"
        try:
            make_folder(self.folder)
            self._check_place()
            self._lock.acquire()
        except OutputError:
            raise
        except FileExistsError:
            raise OutputError(f"the output folder {self.folder} is a file; {mend}") from None
        except (OSError, ValueError) as error:  # ValueError: a null character
            raise OutputError(f"the output folder {self.folder} can't be written ({reason(error)}); {mend}") from None
        try:
            if self._lock.fault is not None:  # another run may write here, with a temporary file of its own
                self._temporary = self.folder / f".{self.path.name}.{secrets.token_hex(4)}.tmp"
            try_writing(self._temporary)
        except BaseException as error:
            self._lock.release()
            if not isinstance(error, OSError):
                raise  # Ctrl+C
            raise OutputError(f"the output folder {self.folder} can't be written ({reason(error)}); {mend}") from None
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the lock back; again, if need be."""
        self._lock.release()

    @property
    def lock_fault(self) -> str | None:
        """Why the path can't be held, where the filesystem has no locks."""
        return self._lock.fault

    def exists(self) -> bool:
        """Whether a file stands at the path, this run's or an earlier one's."""
        return self.path.exists()

    def load(self) -> RunRecord:
        """Read the file that stands there back. Raises `MetricsFileError`."""
        return load_run(self.path)

    def _check_place(self) -> None:
        if self.path.is_symlink():
            raise OutputError(
                f"{self.path} is a symbolic link, to {shown(os.readlink(self.path))}; remove it, or give output_dir= "
                "the folder that it leads to"
            )
        if self.path.is_dir():
            raise OutputError(f"{self.path} is a folder, where the metrics file is to stand; move it away")

    def write(self, record: RunRecord, *, last: bool = False) -> None:
        """Put the record in the file's place: whole, synced, by one rename; the old file stays until then.

        After the `last` one nothing is written any more: a process that ends may have other threads that go on.
        Raises `OSError` where the disk refuses, or another run took the path since the folder was deleted, and leaves
        no temporary file behind.
        """
        with self._writing:
            if self._ended:
                return
            make_folder(self.folder)
            self._check_place()
            self._lock.keep()
            plain = record_to_plain(record)
            beside = self._write_beside(plain)
            _describe(plain, beside, self._text)
            if self._keep_previous:
                put_aside(self.path, self._temporary)
                self._keep_previous = False  # once, however often the file itself can't be replaced then
            replace_whole(self.path, self._text.pieces(plain), self._temporary)
            if beside or not self._written:
                sidecars.remove_unnamed(self.path, [entry["file"] for entry in beside.values()])
            self._written, self._ended = True, last

    def _write_beside(self, plain: dict[str, Any]) -> dict[str, Any]:
        """Write the arrays that are too large for the text to files of their own, and put nulls in their places."""
        if "extensions" not in plain:
            return {}  # nowhere to name them
        arrays = dict(_arrays(plain))
        beside = {}
        for pointer in sidecars.too_large(arrays, self._max_inline):
            beside[pointer] = sidecars.write(self.path, pointer, arrays[pointer], self._temporary)
            holder, key = place(plain, pointer)
            holder[key] = None
        return beside


def encode_record(record: RunRecord) -> bytes:
    """Give the file's text for a record, all its arrays in it."""
    plain, text = record_to_plain(record), JsonText()
    _describe(plain, {}, text)
    return b"".join(text.pieces(plain))


def decode_record(text: bytes) -> RunRecord:
    """Read what `encode_record` gave. Raises `MetricsFileError`."""
    return _restored(decode(text), Path())


def _arrays(plain: dict[str, Any]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for key in ("final_inference", "extensions"):
        yield from arrays_in(plain.get(key), f"/{key}")


def _describe(plain: dict[str, Any], beside: Mapping[str, Any], text: JsonText) -> None:
    """Add to the extensions, unless they are left out, what is about the text itself.

    Of the two arrays of the final inference only those in float32 are named: their decimals are the shortest for that
    width, so a reader must know it. Of the extensions all are: there, a list that is none may look the same.
    """
    if "extensions" not in plain:
        return
    given = {key: value for key, value in plain["extensions"].items() if key not in DESCRIBING_KEYS}
    plain["extensions"] = {"format_version": FORMAT_VERSION, **given}
    types = {pointer: str(array.dtype) for pointer, array in _arrays(plain)}
    described = {
        "sidecars": dict(beside),
        "dtypes": {pointer: kind for pointer, kind in types.items() if pointer.startswith("/ext") or kind == "float32"},
        "non_finite": text.non_finite(plain),
    }
    plain["extensions"] |= {key: value for key, value in described.items() if value}


def load_run(path: str | os.PathLike[str]) -> RunRecord:
    """Read a metrics file back: arrays as NumPy arrays of their own width, non-finite values restored.

    Arrays that stand in files beside it are read from there. A null in an array of which the file doesn't say what it
    was (the extensions were left out) becomes NaN. Raises `MetricsFileError`, which says what is wrong and where, for
    anything that isn't a metrics file.

    >>> load_run("nowhere.json")
    Traceback (most recent call last):
    ...
    trackmetrics.errors.MetricsFileError: nowhere.json can't be read: No such file or directory
    """
    plain, folder = read_plain(path)
    try:
        return _restored(plain, folder)
    except MetricsFileError as error:
        raise MetricsFileError(f"{os.fspath(path)} is not a metrics file: {error}") from None


def read_plain(path: str | os.PathLike[str]) -> tuple[Any, Path]:
    """Give a file's data as it stands in the text, and the folder in which arrays may stand beside it.

    Raises `MetricsFileError` for what can't be read or is no JSON.
    """
    try:
        with open_whole(Path(path)) as file:
            text, folder = file.read(), Path(path).resolve().parent
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise MetricsFileError(f"{os.fspath(path)} can't be read: {reason(error)}") from None
    try:
        return decode(text), folder
    except MetricsFileError as error:
        raise MetricsFileError(f"{os.fspath(path)} is not a metrics file: {error}") from None


def _restored(plain: Any, folder: Path) -> RunRecord:
    extensions = plain.get("extensions") if isinstance(plain, dict) else None
    if isinstance(extensions, dict):
        _restore_beside(plain, extensions.get("sidecars", {}), folder)
        restore_non_finite(plain, extensions.get("non_finite", {}))
        if isinstance(extensions.get("dtypes"), dict):
            own = {where: kind for where, kind in extensions["dtypes"].items() if where.startswith("/extensions/")}
            restore_arrays(plain, own)
    record = record_from_plain(plain)
    if nests_too_deep(plain):
        raise MetricsFileError(f"nested deeper than {DEEPEST} levels")
    return record


def nests_too_deep(plain: dict[str, Any]) -> bool:
    """Whether a file nests deeper than `DEEPEST` levels; the final inference's arrays have their dimensions."""
    level = [item for key, item in plain.items() if key != "final_inference" and isinstance(item, (dict, list))]
    for _ in range(DEEPEST):
        values = (item.values() if isinstance(item, dict) else item for item in level)
        level = [inner for items in values for inner in items if isinstance(inner, (dict, list))]
        if not level:
            return False
    return True


def _restore_beside(plain: Any, entries: Any, folder: Path) -> None:
    """Put the arrays that stand in files of their own in the places of their nulls."""
    if not isinstance(entries, dict):
        raise MetricsFileError(f"/extensions/sidecars is {shown(entries)}; expected an object")
    beside = sidecars.Beside(folder)
    for pointer, entry in entries.items():
        try:
            holder, key = place(plain, pointer)
            if holder[key] is not None:
                raise ValueError(pointer)
        except (KeyError, IndexError, TypeError, ValueError):
            raise MetricsFileError(
                f"/extensions/sidecars names {shown(entry)} for {shown(pointer)}, where no null is"
            ) from None
        try:
            if not pointer.startswith(("/final_inference/", "/extensions/")):
                raise MetricsFileError("expected a place of final_inference or extensions")
            holder[key] = beside.read(entry)
        except MetricsFileError as error:
            raise MetricsFileError(f"/extensions/sidecars names {shown(entry)} for {shown(pointer)}: {error}") from None
