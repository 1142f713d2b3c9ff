"""Attention maps in what a model returns.

A map is known by what it is, not by where it stands: square, its rows non-negative and each summing to 1 (or to 0,
where every key is masked).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

_TOLERANCE = 1e-2  # half types keep 3 digits
_NAMES = ("attentions", "attention_weights", "attention")


def returned_maps(output: Any, batched: bool, length: int | None = None) -> torch.Tensor | None:
    """Find the attention maps in a model's output: `[num_layers, seq_len, seq_len]`, heads averaged.

    They stand in `.attentions`, or beside the predictions in a tuple or dict: one map a layer, a list of them, or one
    tensor. A layer's map is `[seq_len, seq_len]`, or has heads, or a batch dimension of one, or both, in front. A
    single tensor of three dimensions without a batch is read as layers. Where the maps have several lengths, those
    of `length` are taken, else those of the length that most have. None where there are no maps.
    """
    maps = [layer for candidate in _candidates(output) for layer in _layers(candidate, batched)]
    if not maps:
        return None
    lengths = Counter(len(layer) for layer in maps)
    chosen = length if length in lengths else lengths.most_common(1)[0][0]
    return torch.stack([layer for layer in maps if len(layer) == chosen])


def _candidates(output: Any) -> list[Any]:
    """The values of an output that may be maps, each once, in their order."""
    if isinstance(output, torch.Tensor):
        return []
    values = [getattr(output, name, None) for name in _NAMES]
    if isinstance(output, dict):
        values += [value for key, value in output.items() if _named_as_maps(str(key))]
    elif isinstance(output, (tuple, list)):
        values += output[1:]
    return list({id(value): value for value in values if value is not None}.values())


def _named_as_maps(key: str) -> bool:
    return ("attn" in key or "attention" in key) and "cross" not in key


def _layers(candidate: Any, batched: bool) -> Iterator[torch.Tensor]:
    """The layers' maps in a candidate; what isn't one is left out."""
    one_layer = isinstance(candidate, torch.Tensor) and (
        candidate.ndim == 2 or (batched and candidate.ndim in (3, 4) and candidate.shape[0] == 1)
    )
    if one_layer:
        candidate = [candidate]
    if not isinstance(candidate, (list, tuple)) and not (isinstance(candidate, torch.Tensor) and candidate.ndim > 2):
        return
    for layer in candidate:
        weights = _one_map(layer, batched)
        if weights is not None:
            yield weights


def _one_map(layer: Any, batched: bool) -> torch.Tensor | None:
    """One layer's map, heads averaged, of the first example in the batch."""
    if not isinstance(layer, torch.Tensor) or not layer.is_floating_point() or not 2 <= layer.ndim <= 4:
        return None
    if layer.shape[-1] != layer.shape[-2] or layer.numel() == 0:
        return None
    weights = layer.detach() if layer.dtype is torch.float64 else layer.detach().float()
    if weights.ndim == 4 or (weights.ndim == 3 and batched and weights.shape[0] == 1):
        weights = weights[0]
    if weights.ndim == 3:
        weights = weights.mean(0)
    return weights if _rows_are_shares(weights) else None


def _rows_are_shares(weights: torch.Tensor) -> bool:
    """Whether each row sums to 1, or to 0 where every key is masked; not all of them to 0."""
    sums = weights.sum(-1)
    whole = (sums - 1).abs() < _TOLERANCE
    return bool((weights >= 0).all() and whole.any() and (whole | (sums.abs() < _TOLERANCE)).all())
