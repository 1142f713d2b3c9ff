"""The attention maps of a run's final example: in which rows they hang, and what is said of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..example import tokens
from ..extensions import objects, part
from ..plain import is_number
from ..record import RunRecord
from ..wording import visible
from .figures import token_label
from .heatmaps import LARGEST, Gallery, array_in

_OF_ONE_STREAM = ("self", "encoder")  # kinds whose queries and keys are the example's own tokens
_WINDOWS = 64  # of one attention over parts of the tokens


@dataclass(frozen=True)
class Tile:
    """A heatmap of the gallery by its place, and its short name among those beside it."""

    place: int
    name: str


@dataclass(frozen=True)
class Row:
    """One attention of the model with its tiles: the mean over heads first, then each head's."""

    title: str
    about: str
    tiles: list[Tile]


@dataclass(frozen=True)
class Attention:
    """The attention of one run. `stack` are the layers of `attention_weights`, `beside` the maps that don't fit in.

    `shrunk` says what became of maps too large to show as they are.
    """

    stack: list[Row]
    beside: list[Row]
    heads: int
    shrunk: str
    fault: str


def attention(run: RunRecord, place: int, gallery: Gallery) -> Attention:
    """Hang the maps of a run, whose place among the runs is given.

    >>> from trackmetrics.record import FinalInference, Metadata
    >>> inference = FinalInference("ab", np.log([[0.5, 0.5]] * 2), np.full((3, 2, 2), 0.5))
    >>> shown = attention(RunRecord(Metadata("demo", ""), (), None, inference), 0, Gallery())
    >>> [row.title for row in shown.stack]
    ['Layer 0', 'Layer 1', 'Layer 2']
    """
    said = part(run.extensions, "attention")
    first = len(gallery.heatmaps)
    stack, beside, heads = [], [], None
    if run.final_inference is not None:
        text, weights = run.final_inference.example_input, run.final_inference.attention_weights
        heads = _heads(said, weights)
        stack = list(_stack(place, text, weights, heads, said, gallery))
        beside = list(_beside(place, text, said, gallery))
    return Attention(
        stack,
        beside,
        0 if heads is None else heads.shape[1],
        _shrunk([item.of for item in gallery.heatmaps[first:]]),
        visible(said.get("fault") or ""),
    )


def _heads(said: Mapping[str, Any], weights: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    heads = array_in(said.get("heads"), 4)
    fits = heads is not None and (heads.shape[0], *heads.shape[2:]) == weights.shape
    return heads if fits else None


def _stack(
    place: int,
    text: str,
    weights: npt.NDArray[Any],
    heads: npt.NDArray[Any] | None,
    said: Mapping[str, Any],
    gallery: Gallery,
) -> Iterator[Row]:
    described = {entry["layer"]: entry for entry in objects(said, "maps") if isinstance(entry.get("layer"), int)}
    labels = _token_labels(text, weights.shape[-1])
    for layer, mean in enumerate(weights):
        title, about = f"Layer {layer}", _about(described.get(layer, {}))
        whole = [("mean" if heads is not None else "", mean)]
        each = [] if heads is None else [(f"head {number}", map) for number, map in enumerate(heads[layer])]
        tiles = [
            Tile(gallery.add("attention", place, _joined(title, name), about, map, labels, labels), name)
            for name, map in (*whole, *each)
        ]
        yield Row(title, about, tiles)


def _beside(place: int, text: str, said: Mapping[str, Any], gallery: Gallery) -> Iterator[Row]:
    """The maps that have weights of their own: of one matrix, of each head, of each window, of each head of these."""
    for entry in objects(said, "maps"):
        weights = array_in(entry.get("weights"), 2, 3, 4)
        if weights is None:
            continue
        title, about = visible(entry.get("name", "attention"), 60), _about({**entry, "name": ""})
        of_heads = weights.ndim == 3 and _batch(entry) == 1
        matrices = list(_matrices(weights, of_heads))
        more = f", the first {_WINDOWS} of {len(matrices)}" if len(matrices) > _WINDOWS else ""
        queries, keys = (_axis(text, length, entry.get("kind")) for length in weights.shape[-2:])
        tiles = [
            Tile(gallery.add("attention", place, _joined(title, name), about, matrix, queries, keys), name)
            for name, matrix in matrices[:_WINDOWS]
        ]
        yield Row(title, about + more, tiles)


def _batch(entry: Mapping[str, Any]) -> Any:
    shape = entry.get("shape")
    return shape[0] if isinstance(shape, Sequence) and shape else 1


def _matrices(weights: npt.NDArray[Any], of_heads: bool) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for index in np.ndindex(weights.shape[:-2]):
        names = ["head"] if of_heads else ["part", "head"]
        yield ", ".join(f"{name} {number}" for name, number in zip(names, index)), weights[index]


def _axis(text: str, length: int, kind: Any) -> list[str]:
    """Which tokens a stream has, only an attention in one stream tells; others are numbered."""
    if kind in _OF_ONE_STREAM:
        return _token_labels(text, length)
    return [str(number) for number in range(1, length + 1)]


def _token_labels(text: str, length: int) -> list[str]:
    return [token_label(token) for token in tokens(text, length)]


def _about(entry: Mapping[str, Any]) -> str:
    """Name, kind, source and check of a map, as far as the file says them."""
    said = [visible(entry[key], 60) for key in ("name", "kind", "source") if entry.get(key)]
    check = entry.get("check")
    if is_number(check):
        said.append(f"check {check:.0e}" if check else "check 0")
    return " · ".join(said)


def _joined(title: str, name: str) -> str:
    return f"{title}, {name}" if name else title


def _shrunk(shapes: Sequence[tuple[int, ...]]) -> str:
    longest = max((length for shape in shapes for length in shape), default=0)
    if longest <= LARGEST:
        return ""
    return (
        f"Maps of more than {LARGEST} tokens ({longest} here) are made smaller: each cell is the largest weight of a "
        "block of them. The file has them all."
    )
