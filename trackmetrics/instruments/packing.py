"""Tensors as text, to go from one rank to another."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import torch

LARGEST = 2**24  # bytes that go at once


def packed(tensors: Sequence[torch.Tensor]) -> str:
    """Give tensors as text.

    >>> unpacked(packed([torch.tensor([1.5, 2.0])]))
    [tensor([1.5000, 2.0000])]
    """
    buffer = io.BytesIO()
    torch.save([tensor.detach().cpu() for tensor in tensors], buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def unpacked(text: str) -> list[torch.Tensor]:
    """Give the tensors of a text, on the CPU."""
    tensors: list[torch.Tensor] = torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)
    return tensors
