"""Attention maps as images: shades of one colour, each cell large enough to be seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..record import RunRecord

Images: TypeAlias = Mapping[str, npt.NDArray[np.uint8]]  # by name, `[height, width, 3]`

_RAMP = np.array([[247, 251, 255], [107, 174, 214], [8, 48, 107]])  # of a weight of 0, of the middle, of the largest
_NO_NUMBER = (200, 200, 200)
_MOST_LAYERS = 64
_LARGEST = 512  # cells on an axis; beyond, a cell is the largest of a block
_SIDE = 256  # pixels on an axis, at least


def attention_images(record: RunRecord) -> dict[str, npt.NDArray[np.uint8]]:
    """Give the final example's attention by name, `attention/layer_1`, ..., as `[height, width, 3]`.

    Rows attend, columns are attended to. A shade goes by the square root of the weight's share in the map's greatest.

    >>> from trackmetrics.record import FinalInference, Metadata
    >>> inference = FinalInference("ab", None, np.array([[[1.0, 0.0], [0.5, 0.5]]]))
    >>> image = attention_images(RunRecord(Metadata("demo", ""), final_inference=inference))["attention/layer_1"]
    >>> image.shape, image[0, 0].tolist(), image[0, -1].tolist()
    ((256, 256, 3), [8, 48, 107], [247, 251, 255])
    """
    if record.final_inference is None:
        return {}
    layers = record.final_inference.attention_weights[:_MOST_LAYERS]
    return {f"attention/layer_{number}": image for number, image in enumerate(_images(layers), 1)}


def _images(layers: npt.NDArray[np.floating]) -> Iterator[npt.NDArray[np.uint8]]:
    for weights in layers:
        block = -(-max(weights.shape) // _LARGEST)
        rows, columns = (range(0, length, block) for length in weights.shape)
        # A maximum keeps the one token that is attended to, where a mean would blur it away.
        shrunk = np.fmax.reduceat(np.fmax.reduceat(weights, rows, axis=0), columns, axis=1)
        yield np.kron(_coloured(shrunk), np.ones((-(-_SIDE // min(shrunk.shape)),) * 2 + (1,), np.uint8))


def _coloured(weights: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    finite = np.isfinite(weights)
    known = np.where(finite, weights, 0).clip(0)
    shades = np.sqrt(known / (known.max() or 1))
    colours = np.stack([np.interp(shades, (0, 0.5, 1), channel) for channel in _RAMP.T], axis=-1)
    colours[~finite] = _NO_NUMBER
    return colours.round().astype(np.uint8)
