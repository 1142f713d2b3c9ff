"""The attention of a final inference: the stack of the main stream's maps, and an account of all maps there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .attention_capture import watched
from .attention_maps import AttentionMap, stackable
from .returned_attention import returned_maps

Detail = Literal["mean", "heads", False]
_ONE = (1,)  # a final inference is of one example


class InferenceAttention(NamedTuple):
    """`weights` is `[num_layers, seq_len, seq_len]`; `described` stands in the file's extensions."""

    weights: npt.NDArray[Any]
    described: dict[str, Any]
    fault: str | None


def attention_of(
    model: torch.nn.Module, forward: Callable[[Any], Any], inputs: Any, plain: Any, length: int | None, detail: Detail
) -> InferenceAttention:
    """The attention in `forward`, which calls `model` on one example's `inputs`; `plain` is what it gave before.

    Maps of `length` make the stack, where there are some. With the detail `heads` each head's are kept too. Where
    watching fails, the maps that the model returned are taken, and `fault` says why.
    """
    if detail is False:
        return InferenceAttention(_stack([]), {}, None)
    keep: Callable[[AttentionMap], AttentionMap] = _each_head if detail == "heads" else _heads_averaged
    unseen: list[str] = []
    fault = None
    try:
        maps, unseen = watched(model, forward, inputs, plain, _ONE, keep)
    except Exception as error:
        maps = [keep(item) for item in returned_maps(plain)]
        fault = str(error).strip().partition("\n")[0] or type(error).__name__
    if unseen:
        fault = f"no weights can be had of {', '.join(dict.fromkeys(unseen))}"
    layers = stackable(maps, length)
    described: dict[str, Any] = {"maps": [_entry(item, layers) for item in maps]}
    if fault is not None:
        described["fault"] = fault
    heads = {item.weights.shape[1] for item in layers}
    if detail == "heads" and len(heads) == 1:
        described["heads"] = np.stack([_array(item.weights[0]) for item in layers])
    return InferenceAttention(_stack(layers), described if maps or fault else {}, fault)


def _heads_averaged(item: AttentionMap) -> AttentionMap:
    return _each_head(item.averaged())


def _each_head(item: AttentionMap) -> AttentionMap:
    return replace(item, weights=item.weights.cpu())


def _stack(layers: list[AttentionMap]) -> npt.NDArray[Any]:
    if not layers:
        return np.zeros((0, 0, 0), np.float32)
    return np.stack([_array(item.weights[0].mean(0)) for item in layers])


def _entry(item: AttentionMap, layers: list[AttentionMap]) -> dict[str, Any]:
    """What the file says of a map: at which place of the stack it stands, or its weights, where it isn't in there."""
    batch, heads, queries, keys = item.weights.shape
    entry: dict[str, Any] = {"name": item.name, "kind": item.kind, "shape": [batch, item.heads or heads, queries, keys]}
    entry |= {"source": item.source, "check": item.check}
    for index, layer in enumerate(layers):
        if layer is item:
            return entry | {"layer": index}
    weights = item.weights if len(item.weights) > 1 else item.weights[0]
    return entry | {"weights": _array(weights.squeeze(-3))}


def _array(weights: torch.Tensor) -> npt.NDArray[Any]:
    return weights.detach().numpy()
