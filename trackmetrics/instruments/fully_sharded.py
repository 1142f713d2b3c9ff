"""FSDP2 (`fully_shard`): which modules it shards, and which of their parameters stand for which.

For a forward and its backward FSDP2 gathers a parameter from its shards, and puts it in their place in the module:
that one is the graph's leaf. What an optimizer owns, and what is given the averaged gradient, are the shards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch


def is_fully_sharded(module: torch.nn.Module) -> bool:
    """Whether FSDP2's `fully_shard` was called on it, which put a class in front of its own."""
    kind: Any = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return kind is not None and isinstance(module, kind)


def shard_again(model: torch.nn.Module) -> None:
    """Have a model whose parameters FSDP2 has gathered hold its shards again, as between two training steps."""
    for module in model.modules():
        if is_fully_sharded(module):
            cast(Any, module).reshard()


def sharded(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The parameters, the shards in place of each that FSDP2 has gathered from them."""
    shards = dict(_gathered())
    return [shards.get(id(parameter), parameter) for parameter in parameters]


def _gathered() -> Iterator[tuple[int, torch.Tensor]]:
    """The identity of each parameter that FSDP2 puts in the shards' place, and the shards; of all models."""
    states = getattr(sys.modules.get("torch.distributed._composable_state"), "_module_state_mapping", {})
    for reference in list(states.values()):
        state = reference()
        groups = getattr(state, "_fsdp_param_groups", None)  # older torch has one group a state
        for group in [getattr(state, "_fsdp_param_group", None)] if groups is None else groups:
            for of_one in getattr(group, "fsdp_params", ()):
                for name in ("_unsharded_param", "_sharded_post_forward_param"):
                    gathered = getattr(of_one, name, None)
                    if gathered is not None:
                        yield id(gathered), of_one.sharded_param
