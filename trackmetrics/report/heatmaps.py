"""Arrays as the page's heatmaps: made small enough to look at, and packed for its script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

LARGEST = 128  # rows or columns that stand as they are


@dataclass(frozen=True)
class Heatmap:
    """A matrix as the page holds it: `data` is its bytes in base64, little-endian, of the width `dtype`.

    `rows` and `columns` are the places of the labels on its axes in the gallery's `axes`. Each cell is the largest
    value of a block of so many rows and columns of the array, whose own shape is `of`.
    """

    kind: Literal["attention", "log_probs"]
    run: int
    title: str
    about: str
    data: str
    dtype: str
    shape: tuple[int, ...]
    block: tuple[int, ...]
    of: tuple[int, ...]
    rows: int
    columns: int


class Gallery:
    """The heatmaps of a page, and the labels on their axes, each list kept once.

    >>> gallery = Gallery()
    >>> gallery.add("attention", 0, "Layer 1", "", np.eye(300), [""] * 300, [""] * 300)
    0
    >>> gallery.heatmaps[0].shape, gallery.heatmaps[0].block, len(gallery.axes)
    ((100, 100), (3, 3), 1)
    """

    def __init__(self) -> None:
        self.axes: list[list[str]] = []
        self.heatmaps: list[Heatmap] = []

    def add(
        self,
        kind: Literal["attention", "log_probs"],
        run: int,
        title: str,
        about: str,
        matrix: npt.NDArray[Any],
        rows: Sequence[str],
        columns: Sequence[str],
    ) -> int:
        """Hang a matrix up and give its place; of a large one the largest value of each block.

        A maximum keeps the one token that is attended to, where a mean would blur it away.
        """
        block = tuple(max(1, -(-length // LARGEST)) for length in matrix.shape)
        shrunk = _largest(_largest(matrix, block[0], 0), block[1], 1)
        dtype = "float32" if matrix.dtype == np.float32 else "float64"
        packed = base64.b64encode(np.ascontiguousarray(shrunk, dtype=np.dtype(dtype).newbyteorder("<")).tobytes())
        self.heatmaps.append(
            Heatmap(
                kind, run, title, about, packed.decode(), dtype, shrunk.shape, block, matrix.shape,
                self._axis(rows, block[0]), self._axis(columns, block[1]),
            )
        )  # fmt: skip
        return len(self.heatmaps) - 1

    def _axis(self, labels: Sequence[str], block: int) -> int:
        """Give the place of the labels of blocks of so many."""
        cut = [labels[start : start + block] for start in range(0, len(labels), block)]
        joined = [group[0] if len(group) == 1 else f"{group[0]} … {group[-1]}" for group in cut]
        if joined not in self.axes:
            self.axes.append(joined)
        return self.axes.index(joined)


def _largest(matrix: npt.NDArray[Any], block: int, axis: int) -> npt.NDArray[Any]:
    """The largest of each block; a NaN only where a block has nothing else."""
    if block == 1:
        return matrix
    result: npt.NDArray[Any] = np.fmax.reduceat(matrix, range(0, matrix.shape[axis], block), axis=axis)
    return result


def array_in(value: Any, *dimensions: int) -> npt.NDArray[Any] | None:
    """Give an array of numbers that the extensions hold; None where there is none of so many dimensions.

    >>> array_in([[0.5, None]], 2), array_in("none", 2)
    (array([[0.5, nan]]), None)
    """
    try:
        array = value if isinstance(value, np.ndarray) else np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return array if array.ndim in dimensions and array.size else None
