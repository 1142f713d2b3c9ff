"""Attention maps in what a model returns.

A map is known by what it is, not by where it stands: square, as long as the model's token stream, its rows
non-negative and each summing to 1 (or to 0, where every key is masked).
"""

from __future__ import annotations

from typing import Any

import torch

_TOLERANCE = 1e-2  # half types keep 3 digits


def returned_maps(output: Any, batched: bool) -> torch.Tensor | None:
    """Find the attention maps in a model's output: `[num_layers, seq_len, seq_len]`, heads averaged.

    They stand in `.attentions`, or beside the predictions in a tuple or dict: a list with one map a layer, or one
    tensor. A layer's map is `[seq_len, seq_len]`, or has heads, or a batch dimension of one, or both, in front. A
    single tensor of three dimensions without a batch is read as layers. None where there are no maps.
    """
    for candidate in _candidates(output):
        layers = _layers(candidate, batched)
        if layers is not None:
            return layers
    return None


def _candidates(output: Any) -> list[Any]:
    if isinstance(output, torch.Tensor):
        return []
    named = [getattr(output, name, None) for name in ("attentions", "attention_weights", "attention")]
    if isinstance(output, dict):
        named += [value for key, value in output.items() if "attn" in str(key) or "attention" in str(key)]
    beside = list(output[1:]) if isinstance(output, (tuple, list)) else []
    return [candidate for candidate in named + beside if candidate is not None]


def _layers(candidate: Any, batched: bool) -> torch.Tensor | None:
    if isinstance(candidate, torch.Tensor):
        if candidate.ndim < 2:
            return None
        if candidate.ndim == 2 or (batched and candidate.ndim in (3, 4) and candidate.shape[0] == 1):
            candidate = [candidate]
    if not isinstance(candidate, (list, tuple, torch.Tensor)) or len(candidate) == 0:
        return None
    maps = [_one_map(layer, batched) for layer in candidate]
    found = [layer for layer in maps if layer is not None]
    if len(found) < len(maps) or len({layer.shape for layer in found}) != 1:
        return None
    return torch.stack(found)


def _one_map(layer: Any, batched: bool) -> torch.Tensor | None:
    """One layer's map, heads averaged, of the first example in the batch."""
    if not isinstance(layer, torch.Tensor) or not layer.is_floating_point() or not 2 <= layer.ndim <= 4:
        return None
    if layer.shape[-1] != layer.shape[-2]:
        return None
    weights = layer.detach().float()
    if weights.ndim == 4 or (weights.ndim == 3 and batched and weights.shape[0] == 1):
        weights = weights[0]
    if weights.ndim == 3:
        weights = weights.mean(0)
    sums = weights.sum(-1)
    rows_are_shares = ((sums - 1).abs() < _TOLERANCE) | (sums.abs() < _TOLERANCE)
    return weights if bool((weights >= 0).all()) and bool(rows_are_shares.all()) else None
