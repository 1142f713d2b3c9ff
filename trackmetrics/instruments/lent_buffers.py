"""The first rank's buffers, lent to the others for an evaluation: what is judged is the model that it holds.

Replicas that normalise by batches have running statistics of their own until their next training forward.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence

import torch

from .packing import LARGEST, packed, unpacked


def marks_of_buffers(model: torch.nn.Module | None) -> list[str]:
    """Tell each buffer from another one, in the model's order; one whose values can't be had has no mark, and stays."""
    return [] if model is None else [_mark(buffer) for buffer in model.buffers()]


def _mark(buffer: torch.Tensor) -> str:
    try:
        values = buffer.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    except Exception:  # of a kind that has no values yet, or no bytes
        return ""
    return hashlib.blake2b(values.tobytes(), digest_size=8).hexdigest()


def differing(marks: Sequence[Sequence[str]]) -> list[int]:
    """Give the numbers of the buffers that aren't the same on all ranks.

    >>> differing([["a", "b"], ["a", "c"]])
    [1]
    """
    return [number for number, each in enumerate(zip(*marks, strict=False)) if len(set(each)) > 1 and all(each)]


def lend(model: torch.nn.Module, numbers: Sequence[int]) -> str | None:
    """Give these buffers of the first rank's model as text; None where they are too large to go."""
    buffers = list(model.buffers())
    own = [buffers[number] for number in numbers]
    return packed(own) if sum(buffer.nbytes for buffer in own) <= LARGEST else None


@contextlib.contextmanager
def borrowing(model: torch.nn.Module, numbers: Sequence[int], text: str) -> Iterator[None]:
    """Have the model hold the first rank's buffers meanwhile, in the places of its own, which nothing is written to."""
    own = list(model.buffers())
    lent = {id(own[number]): value for number, value in zip(numbers, unpacked(text), strict=True)}
    places = [
        (module._buffers, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and id(buffer) in lent
    ]
    try:
        for holder, name, buffer in places:
            holder[name] = lent[id(buffer)].to(buffer.device)
        yield
    finally:
        for holder, name, buffer in places:
            holder[name] = buffer
