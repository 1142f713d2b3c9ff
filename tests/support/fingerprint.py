"""Every number of a training at one moment, by name, so that two trainings can be compared to the last bit."""

import hashlib
import random
import types
from collections import deque

import numpy as np
import torch
from torch.utils.hooks import RemovableHandle


def fingerprint(**parts):
    """A digest of each part, module by module, and of the global random streams."""
    found = {}
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            found |= {f"{name}.{inner}": _digest(vars(module)) for inner, module in part.named_modules()}
        else:
            found[name] = _digest(part)
    streams = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    return found | {f"the stream of {name}": _digest(state) for name, state in streams.items()}


def differences(one, other):
    """The names of the parts that differ."""
    return [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]


def _digest(value):
    total = hashlib.sha256()
    for piece in _pieces(value, set()):
        total.update(piece)
    return total.hexdigest()[:16]


def _pieces(value, above):
    """A value as bytes, piece by piece; what it holds, where it holds anything."""
    if id(value) in above:
        yield b"cycle"
        return
    above = above | {id(value)}
    if isinstance(value, RemovableHandle):  # hooks are numbered through the process
        return
    yield type(value).__qualname__.encode()
    if isinstance(value, torch.Tensor):
        if not torch.nn.parameter.is_lazy(value):
            yield f"{value.dtype} {tuple(value.shape)} {value.requires_grad}".encode()
            dense = value.detach().to_dense() if value.is_sparse else value.detach()
            yield dense.resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            yield from _pieces(value.grad if value.is_leaf else None, above)
    elif isinstance(value, np.ndarray):
        yield value.tobytes()
    elif isinstance(value, (torch.Generator, np.random.RandomState)):
        yield from _pieces(value.get_state(), above)
    elif isinstance(value, np.random.Generator):
        yield repr(value.bit_generator.state).encode()
    elif isinstance(value, random.Random):
        yield repr(value.getstate()).encode()
    elif isinstance(value, torch.optim.Optimizer):
        yield from _pieces(value.state_dict(), above)
    elif isinstance(value, torch.nn.Module):
        yield from _pieces(vars(value), above)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield b"" if isinstance(key, int) else repr(key).encode()
            yield from _pieces(item, above)
    elif isinstance(value, (list, tuple, deque)):
        for item in value:
            yield from _pieces(item, above)
    elif isinstance(value, (bool, int, float, str, bytes, set, torch.dtype, type(None))):
        yield repr(value).encode()
    elif not isinstance(value, (type, types.FunctionType, types.MethodType, types.ModuleType)):
        for name in ("__dict__", *getattr(type(value), "__slots__", ())):
            yield from _pieces(getattr(value, name, None), above)
