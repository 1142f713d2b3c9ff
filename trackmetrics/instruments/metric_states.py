"""The states of metrics that know of several processes, as torchmetrics' do: taken on one rank, joined on another.

Such a metric hands each tensor of its state to a function that gives those of all ranks. It is given one that needs no
collective, so that a rank that fails or doesn't come leaves nobody waiting in one.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch

from .packing import LARGEST, packed, unpacked

Gather: TypeAlias = Callable[..., "list[torch.Tensor]"]


def can_be_joined(metric: Any) -> bool:
    """Whether a metric puts its state together over processes before it computes."""
    parts = _parts(metric)
    return bool(parts) and all(getattr(part, "sync_on_compute", True) for part in parts)


def packed_state(metric: Any) -> str:
    """Give a metric's state as text. Raises `ValueError` for one that is too large."""
    own: list[torch.Tensor] = []

    def gather(tensor: torch.Tensor, group: Any = None) -> list[torch.Tensor]:
        own.append(tensor)
        return [tensor]

    with _gathering(metric, gather), warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        metric.compute()  # what this rank has by itself may be too little: only the state counts
    size = sum(tensor.nbytes for tensor in own)
    if size > LARGEST:
        raise ValueError(
            f"its state takes {size / 1e6:.0f} MB on a rank, of which {LARGEST / 1e6:.0f} go to the first one; "
            "one that keeps counts (torchmetrics' thresholds=) is small"
        )
    return packed(own)


def value_of(metric: Any, others: Sequence[str]) -> Any:
    """Compute a metric's value of its own state and the packed ones of other ranks; of its own alone without any."""
    if not _parts(metric):
        return metric.compute()
    states = [unpacked(text) for text in others]

    def gather(tensor: torch.Tensor, group: Any = None) -> list[torch.Tensor]:
        return [tensor, *(state.pop(0).to(tensor.device) for state in states)]

    with _gathering(metric, gather):
        value = metric.compute()
    if any(states):
        raise ValueError("the ranks' states differ in their number of tensors")
    return value


def _parts(metric: Any) -> list[Any]:
    parts = metric.modules() if isinstance(metric, torch.nn.Module) else [metric]
    return [part for part in parts if hasattr(part, "distributed_available_fn")]


@contextlib.contextmanager
def _gathering(metric: Any, gather: Gather) -> Iterator[None]:
    """While this lasts a metric gathers by this function, whether or not there is a process group."""
    parts = _parts(metric)
    before = [(part.dist_sync_fn, part.distributed_available_fn) for part in parts]
    for part in parts:
        part.dist_sync_fn, part.distributed_available_fn = gather, lambda: True
    try:
        yield
    finally:
        for part, (function, available) in zip(parts, before, strict=True):
            part.dist_sync_fn, part.distributed_available_fn = function, available
