"""Attention maps in what a model returns.

A map is known by what it is, not by where it stands: square, its rows non-negative and each summing to 1 (or to 0,
where every key is masked).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch

from .attention_maps import AttentionMap, rows_are_shares, wide

_NAMES = {
    "attentions": "self",
    "attention_weights": "self",
    "attention": "self",
    "decoder_attentions": "self",
    "encoder_attentions": "encoder",
    "cross_attentions": "cross",
}


def returned_maps(output: Any, batch: Collection[int] = (1,)) -> list[AttentionMap]:
    """Find the attention maps in a model's output.

    They stand in `.attentions` or the like, or beside the predictions in a tuple or dict: one map a layer, a list of
    them, or one tensor. A layer's map is `[seq_len, seq_len]`, or has heads, or a batch dimension, or both, in front. A
    single tensor of three dimensions without a batch is read as layers. `batch` are the sizes that a batch may have.
    """
    return [
        AttentionMap(f"{name}.{index}" if name else str(index), kind, weights, "returned", None)
        for name, kind, candidate in _candidates(output)
        for index, weights in enumerate(_layers(candidate, batch, square=kind != "cross"))
    ]


def _candidates(output: Any) -> list[tuple[str, str, Any]]:
    """The values of an output that may be maps, each once, in their order, with name and kind."""
    if isinstance(output, torch.Tensor):
        return []
    values = [(name, kind, getattr(output, name, None)) for name, kind in _NAMES.items()]
    if isinstance(output, dict):
        values += [
            (str(key), _NAMES.get(str(key), "self"), value) for key, value in output.items() if _named_as_maps(str(key))
        ]
    elif isinstance(output, (tuple, list)):
        values += [("", "self", value) for value in output[1:]]
    each: dict[int, tuple[str, str, Any]] = {}
    for name, kind, value in values:
        if value is not None:
            each.setdefault(id(value), (name, kind, value))
    return list(each.values())


def _named_as_maps(key: str) -> bool:
    return key in _NAMES or (("attn" in key or "attention" in key) and "cross" not in key)


def _layers(candidate: Any, batch: Collection[int], square: bool) -> Iterator[torch.Tensor]:
    """The layers' maps in a candidate; what isn't one is left out."""
    one_layer = isinstance(candidate, torch.Tensor) and (
        candidate.ndim == 2 or (candidate.ndim in (3, 4) and candidate.shape[0] in batch)
    )
    if one_layer:
        candidate = [candidate]
    if not isinstance(candidate, (list, tuple)) and not (isinstance(candidate, torch.Tensor) and candidate.ndim > 2):
        return
    for layer in candidate:
        weights = _one_map(layer, batch)
        if weights is not None and (not square or weights.shape[-1] == weights.shape[-2]):
            yield weights


def _one_map(layer: Any, batch: Collection[int]) -> torch.Tensor | None:
    """One layer's map, `[batch, heads, query, key]`."""
    if not isinstance(layer, torch.Tensor) or not layer.is_floating_point() or not 2 <= layer.ndim <= 4:
        return None
    weights = wide(layer.detach())
    if weights.ndim == 3:
        weights = weights[:, None] if weights.shape[0] in batch else weights[None]
    if weights.ndim == 2:
        weights = weights[None, None]
    return weights if rows_are_shares(weights.mean(1)) else None
