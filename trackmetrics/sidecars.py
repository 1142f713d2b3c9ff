"""Arrays that are too large for the file's text: one `.npy` file each beside it, named after what it holds."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .errors import MetricsFileError, reason
from .json_text import text_length
from .whole_file import open_whole, replace_whole

_TYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float64": np.dtype("<f8")}
_LONGEST_NUMBER = 26  # bytes of a number's text and its comma, at most
_LABEL_LENGTH = 19  # with the longest part, below the 255 bytes of filesystems
_DIGEST_LENGTH = 8
_LARGEST_HEADER = 10_000


def too_large(arrays: Mapping[str, npt.NDArray[Any]], limit: float) -> list[str]:
    """Say which arrays leave the text so that those that stay take `limit` bytes at most: the largest first."""
    if sum(array.size for array in arrays.values()) * _LONGEST_NUMBER <= limit:
        return []  # without counting
    lengths = {pointer: text_length(array) for pointer, array in arrays.items() if array.size}
    leaving = []
    while sum(lengths.values()) > limit:
        leaving.append(max(lengths, key=lambda pointer: lengths[pointer]))
        del lengths[leaving[-1]]
    return leaving


def write(path: Path, pointer: str, array: npt.NDArray[Any], temporary: Path) -> dict[str, Any]:
    """Write an array beside the metrics file at `path`, whole, and give the entry that names it there.

    Its name holds a part of its content's SHA-256: what an earlier metrics file names isn't written over.
    """
    stored = np.asarray(array, dtype=_TYPES[str(array.dtype)])
    digest = hashlib.sha256()
    for piece in _pieces(stored):
        digest.update(piece)
    label = re.sub(r"\W", "", pointer.rpartition("/")[2], flags=re.ASCII)[:_LABEL_LENGTH] or "array"
    name = f"{path.stem}.{label}.{digest.hexdigest()[:_DIGEST_LENGTH]}.npy"
    replace_whole(path.with_name(name), _pieces(stored), temporary)
    return {"file": name, "dtype": str(array.dtype), "shape": list(array.shape), "sha256": digest.hexdigest()}


def _pieces(array: npt.NDArray[Any]) -> Iterator[Any]:
    header = io.BytesIO()
    said = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(header, said)
    yield header.getvalue()
    for part in array:
        yield np.ascontiguousarray(part).data


class Beside:
    """The arrays beside a file in `folder`: each is read once, however many entries name it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arrays: dict[Any, npt.NDArray[Any]] = {}

    def read(self, entry: Any) -> npt.NDArray[Any]:
        """Give the array that an entry names. Raises `MetricsFileError` as the module's `read` does."""
        said = described(entry)
        if said is None or said not in self._arrays:
            self._arrays[said] = read(self._folder, entry)
        return self._arrays[said]


def read(folder: Path, entry: Any) -> npt.NDArray[Any]:
    """Read the array that an entry names, from a file of `folder` itself; nothing is unpickled.

    Raises `MetricsFileError` where the entry can't be right, or the file isn't the one that it describes.
    """
    said = described(entry)
    if said is None:
        raise MetricsFileError("expected an object of file, dtype, shape and sha256")
    name, kind, shape, digest = said
    if not name.endswith(".npy") or name != os.path.basename(name) or "\\" in name or not name.isprintable():
        raise MetricsFileError("expected the name of a .npy file in the metrics file's own folder")
    try:
        with open_whole(folder / name, follow_links=False) as file:
            array = _read(file, _TYPES[kind], shape, digest)
    except OSError as error:
        raise MetricsFileError(f"that file can't be read: {reason(error)}") from None
    except (ValueError, MemoryError) as error:
        raise MetricsFileError(f"that file isn't this array: {error}") from None
    return array.astype(kind, copy=False)


def described(entry: Any) -> tuple[str, str, tuple[int, ...], str] | None:
    """Give an entry's file, type, shape and digest, or None where it can't be an entry."""
    if not isinstance(entry, dict):
        return None
    name, kind, shape, digest = (entry.get(key) for key in ("file", "dtype", "shape", "sha256"))
    if not (isinstance(name, str) and isinstance(kind, str) and isinstance(digest, str) and isinstance(shape, list)):
        return None
    sizes = all(type(size) is int and size > 0 for size in shape)
    return (name, kind, tuple(shape), digest) if kind in _TYPES and shape and sizes else None


def _read(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...], digest: Any) -> npt.NDArray[Any]:
    """Read an array whose header, size and content are compared with what they should be, before memory is taken."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("its format isn't version 1.0 of .npy")
    try:
        found = np.lib.format.read_array_header_1_0(file, max_header_size=_LARGEST_HEADER)
    except Exception as error:  # a parser's own, tokenize's among them
        raise ValueError(f"its header can't be read: {reason(error)}") from None
    if found != (shape, False, dtype):
        raise ValueError(f"it holds shape {found[0]} of {found[2]}{', column by column' if found[1] else ''}")
    start = file.tell()
    size = os.fstat(file.fileno()).st_size
    if size != start + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"it has {size} bytes")
    array = np.fromfile(file, dtype, math.prod(shape)).reshape(shape)
    file.seek(0)
    sha256 = hashlib.sha256(file.read(start))
    sha256.update(array.data if array.size else b"")
    if sha256.hexdigest() != digest:
        raise ValueError("its content has another SHA-256")
    return array


def standing_beside(path: Path) -> list[Path]:
    """Give the arrays that the metrics file at `path` names, as the files that they stand in."""
    endings = _endings(path)
    text = path.read_bytes() if endings else b""
    return [path.with_name(name) for name, ending in sorted(endings.items()) if ending in text]


def _endings(path: Path) -> dict[str, bytes]:
    """The files that have a name as the arrays beside `path` do, each with the part by which a text is searched."""
    stem = re.escape(path.stem)
    own = re.compile(rf"{stem}\.\w{{1,{_LABEL_LENGTH}}}(\.[0-9a-f]{{{_DIGEST_LENGTH}}}\.npy)", re.ASCII)
    return {name: match[1].encode() for name in os.listdir(path.parent) if (match := own.fullmatch(name))}


def remove_unnamed(path: Path, named: Iterable[str]) -> None:
    """Take away the arrays that neither the metrics file at `path` names, nor any other JSON file of the folder.

    They are of files that were replaced, or of a run that was killed before its file named them. Others' files are
    searched for the names, not parsed: one that was put aside may be large, or damaged, or renamed.
    """
    with contextlib.suppress(OSError):  # one that can't be read may name any
        endings = _endings(path)
        for name in named:
            endings.pop(name, None)
        for name in os.listdir(path.parent) if endings else ():
            other = path.with_name(name)
            if name.endswith(".json") and name != path.name and other.is_file() and other.stat().st_size:
                with open_whole(other) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                    endings = {array: ending for array, ending in endings.items() if text.find(ending) < 0}
        for name in endings:
            path.with_name(name).unlink()
