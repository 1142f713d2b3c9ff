"""The weights of an attention that one operator works out by itself, and gives no map of.

Either its definition is worked out beside it, or the operator is asked again with one-hot columns as values: attention
is linear in its values, so what comes back are the weights, whatever mask, bias, window or grouping it applies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from .attention_maps import rows_are_shares, wide

_QUERY, _KEY, _VALUE = "query", "key", "value"


class Weights(NamedTuple):
    """Attention weights `[batch, heads, query, key]`, how they were had, and how far they are from what came out.

    `check` is the largest absolute difference between weights times values and the operator's own output;
    `tokens_first` says that queries, keys and values are `[batch, token, heads, width]`.
    """

    weights: torch.Tensor
    source: str
    check: float
    tokens_first: bool


class Kernel(NamedTuple):
    """A call of an operator that takes queries, keys and values; `named` says that it calls them so."""

    operator: Any
    arguments: dict[str, Any]
    named: bool
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


def as_kernel(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Kernel | None:
    """The call, with the first three tensors where none are named as queries, keys and values."""
    schema = getattr(operator, "_schema", None)
    names = [item.name for item in schema.arguments] if schema is not None else _FLEX_NAMES
    arguments = dict(zip(names, args)) | dict(kwargs)
    tensors = {name: item for name, item in arguments.items() if isinstance(item, torch.Tensor)}
    named = [tensors[name] for name in (_QUERY, _KEY, _VALUE) if name in tensors]
    found = named if len(named) == 3 else list(tensors.values())[:3]
    if schema is not None and schema.is_mutable:
        return None  # asked again, it would write again
    if len(found) < 3 or len({item.ndim for item in found}) > 1 or not 3 <= found[0].ndim <= 4:
        return None
    return Kernel(operator, arguments, len(named) == 3, *found)


_FLEX_NAMES = [
    "query", "key", "value", "score_mod", "block_mask", "scale", "kernel_options", "score_mod_other_buffers",
    "mask_mod_other_buffers",
]  # fmt: skip


def kernel_weights(kernel: Kernel, outcome: Any) -> Weights | None:
    """The weights behind what the operator gave; None where none are found that give the same."""
    output = outcome if isinstance(outcome, torch.Tensor) else outcome[0]
    ways: list[tuple[str, Callable[[Kernel], torch.Tensor | None], bool]] = [
        ("recomputed", _recomputed, False),
        ("probed", _probed, False),
        ("probed", _probed_tokens_first, True),
    ]
    for source, way, tokens_first in ways:
        try:
            weights = way(kernel)
        except Exception:  # this operator doesn't take what the way asks of it
            continue
        if weights is None or not rows_are_shares(weights):
            continue
        check = _difference(weights, kernel, output, tokens_first)
        if check <= tolerance(output):
            return Weights(weights, source, check, tokens_first)
    return None


def tolerance(output: torch.Tensor) -> float:
    """How far two ways to work out the same may lie apart in a type."""
    finite = output.detach().abs().nan_to_num(0, 0, 0)
    return math.sqrt(torch.finfo(output.dtype).eps) * max(1.0, float(finite.max()) if finite.numel() else 1.0)


def _recomputed(kernel: Kernel) -> torch.Tensor | None:
    """The definition of `scaled_dot_product_attention`, worked out in float32 or wider."""
    if "scaled_dot_product" not in kernel.operator.name():
        return None
    query, key = wide(kernel.query), wide(kernel.key)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scale = kernel.arguments.get("scale")
    scores: torch.Tensor = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    mask = kernel.arguments.get("attn_mask", kernel.arguments.get("attn_bias"))
    if isinstance(mask, torch.Tensor):
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
    if kernel.arguments.get("is_causal"):
        scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), -math.inf)
    return scores.softmax(-1).nan_to_num(0.0)  # a row that is wholly masked attends to nothing


def _probed(kernel: Kernel) -> torch.Tensor:
    """What the operator makes of one-hot values `[batch, heads, key, column]`."""
    one_hot = torch.eye(kernel.value.shape[-2], dtype=kernel.value.dtype, device=kernel.value.device)
    return _ask(kernel, lambda columns: one_hot[:, columns].expand(*kernel.value.shape[:-1], -1))


def _probed_tokens_first(kernel: Kernel) -> torch.Tensor | None:
    """The same for values `[batch, key, heads, column]`."""
    if kernel.value.ndim != 4:
        return None
    batch, length, heads, _ = kernel.value.shape
    one_hot = torch.eye(length, dtype=kernel.value.dtype, device=kernel.value.device)[None, :, None]
    return _ask(kernel, lambda columns: one_hot[..., columns].expand(batch, -1, heads, -1)).transpose(1, 2)


def _ask(kernel: Kernel, values: Callable[[slice], torch.Tensor]) -> torch.Tensor:
    """The operator's own output for other values: for all keys at once, or for as many as it takes columns."""
    length, width = values(slice(None)).shape[-1], kernel.value.shape[-1]

    def output(columns: slice) -> torch.Tensor:
        one_hot = values(columns)
        missing = width - one_hot.shape[-1]
        if columns.stop is not None and missing:
            one_hot = torch.nn.functional.pad(one_hot, (0, missing))
        outcome = _again(kernel, one_hot.contiguous())
        return wide(outcome if isinstance(outcome, torch.Tensor) else outcome[0])

    try:
        weights = output(slice(None))
        if weights.shape[-1] == length:
            return weights
    except Exception:  # many take values of their keys' width only
        pass
    parts = [output(slice(start, start + width)) for start in range(0, length, width)]
    return torch.cat(parts, -1)[..., :length]


def _again(kernel: Kernel, value: torch.Tensor) -> Any:
    arguments = {name: value if item is kernel.value else item for name, item in kernel.arguments.items()}
    if kernel.value is kernel.key or kernel.value is kernel.query:  # one tensor under several names
        arguments |= {_QUERY: kernel.query, _KEY: kernel.key, _VALUE: value}
    if "dropout_p" in arguments:
        arguments["dropout_p"] = 0.0
    schema = getattr(kernel.operator, "_schema", None)
    if schema is None:
        return kernel.operator(*arguments.values())
    given = [item for item in schema.arguments if item.name in arguments]
    positional = [arguments[item.name] for item in given if not item.kwarg_only]
    return kernel.operator(*positional, **{item.name: arguments[item.name] for item in given if item.kwarg_only})


def _difference(weights: torch.Tensor, kernel: Kernel, output: torch.Tensor, tokens_first: bool) -> float:
    """How far weights times values are from what the operator gave, at most."""
    value, output = wide(kernel.value), wide(output)
    if tokens_first:
        value, output = value.transpose(1, 2), output.transpose(1, 2)
    if value.ndim == 4:
        value = value.repeat_interleave(weights.shape[1] // value.shape[1], 1)
    return float((weights @ value - output.nan_to_num(0.0)).abs().max())


# Whole layers in one operator: what torch's fast path and TorchScript call


def native_weights(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The weights of torch's own multi-head attention in one operator, or of its encoder layer; else None."""
    name = operator.name()
    arguments = dict(zip([item.name for item in operator._schema.arguments], args)) | dict(kwargs)
    if name == "aten::_transformer_encoder_layer_fwd":
        x = arguments["src"]
        if arguments["norm_first"]:
            x = torch.nn.functional.layer_norm(
                x, x.shape[-1:], arguments["norm_weight_1"], arguments["norm_bias_1"], arguments["eps"]
            )
        arguments |= {"query": x, "key": x, "value": x, "num_head": arguments["num_heads"]}
    elif name != "aten::_native_multi_head_attention":
        return None
    names = ("query", "key", "value", "embed_dim", "num_head", "qkv_weight", "qkv_bias", "proj_weight", "proj_bias")
    weights: torch.Tensor = torch.ops.aten._native_multi_head_attention(
        *(arguments[item] for item in names),
        arguments.get("mask"),
        need_weights=True,
        average_attn_weights=False,
        mask_type=arguments.get("mask_type"),
    )[1]
    return weights
