"""What a user's own inference, `finalize`, returned: checked, and made arrays of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .array_types import single_or_double
from .errors import ArgumentError
from .record import FinalInference


def inference_of(result: Any) -> FinalInference:
    """Give what it returned as the record's own. Raises `ArgumentError` for what is none.

    >>> inference_of({"example_input": "ab", "log_probs": None, "attention_weights": []}).example_input
    'ab'
    """
    if isinstance(result, FinalInference):
        result = {name: getattr(result, name) for name in FinalInference.__dataclass_fields__}
    keys = list(FinalInference.__dataclass_fields__)
    if not isinstance(result, Mapping) or set(result) != set(keys):
        shown = sorted(map(str, result)) if isinstance(result, Mapping) else type(result).__name__
        raise ArgumentError(f"finalize returned {shown}; return a FinalInference, or a dict of {', '.join(keys)}")
    if not isinstance(result["example_input"], str):
        raise ArgumentError(f"finalize's example_input is a {type(result['example_input']).__name__}; give a string")
    log_probs = None if result["log_probs"] is None else _array(result["log_probs"], "log_probs", 2)
    return FinalInference(
        result["example_input"], log_probs, _array(result["attention_weights"], "attention_weights", 3)
    )


def _array(value: Any, name: str, dimensions: int) -> Any:
    """What a user's `finalize` gave for a matrix: an array, a tensor, or nested lists of numbers or tensors."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, torch.Tensor) for item in value):
        value = torch.stack([item.detach() for item in value])
    if isinstance(value, torch.Tensor):
        narrow = value.is_floating_point() and value.element_size() < 4  # NumPy has no bfloat16, nor 8 bits
        value = (value.float() if narrow else value).numpy(force=True)
    array = np.asarray(value)
    if array.size == 0:
        return np.zeros((0,) * dimensions, np.float32)
    if array.ndim != dimensions or array.dtype.kind not in "fiub":
        raise ArgumentError(
            f"finalize's {name} is an array of shape {array.shape} and type {array.dtype}; "
            f"give {dimensions} dimensions of numbers"
        )
    return single_or_double(array)
