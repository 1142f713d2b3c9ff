"""All that a model holds, put back as it was: modes, parameters, buffers, and what its modules keep for themselves.

A forward may change any of it, in `eval()` under `no_grad` too: an embedding with `max_norm` rescales its weight, a
layer merges an adapter into its weight in `eval()`, a recurrent module keeps its hidden state as an attribute.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.parameter import is_lazy

from .objects import attributes_of, is_users

_DEPTH = 4  # how far from its module a value is looked for: in a list, in an object's attribute, ...
_REACH = 4096  # how many collections and objects inside others are looked through
_HOOKS = {name for name, value in vars(torch.nn.Module()).items() if "hook" in name and isinstance(value, dict)}
_COLLECTIONS = (list, dict, set, deque)
_NO_STATE_OF_A_MODEL = (
    torch.optim.Optimizer,
    torch.utils.data.Dataset,
    torch.utils.data.DataLoader,
    torch.utils.data.Sampler,
)


def restoring_state(model: torch.nn.Module) -> Iterator[Callable[[], object]]:
    """What puts back, when called, each thing that the model holds, as it is now.

    Gradients are taken away until then: a backward in between adds nothing to them.
    """
    for thing in _things(model):
        if isinstance(thing, torch.Tensor):
            yield from _restoring_tensor(thing)
        elif isinstance(thing, np.ndarray):
            yield functools.partial(np.copyto, thing, thing.copy())
        elif isinstance(thing, _COLLECTIONS):
            yield functools.partial(_refill, thing, dict(thing) if isinstance(thing, dict) else list(thing))
        elif not isinstance(thing, tuple):
            yield from _restoring_attributes(thing)


def _things(model: torch.nn.Module) -> Iterator[Any]:
    """The model's modules and tensors, and the collections, arrays and user's objects in reach of them, each once."""
    seen: dict[int, Any] = {}
    inner = 0
    waiting: deque[tuple[Any, int]] = deque([(model, 0)])
    while waiting:
        thing, depth = waiting.popleft()
        if id(thing) in seen or not _can_change(thing):
            continue
        seen[id(thing)] = thing
        yield thing
        if isinstance(thing, torch.nn.Module):  # one in a list, which isn't registered, counts too
            depth = 0
        elif not isinstance(thing, torch.Tensor):
            inner += depth > 1
        if depth < _DEPTH and inner < _REACH:
            waiting.extend((value, depth + 1) for value in _within(thing))


def _can_change(thing: Any) -> bool:
    if isinstance(thing, torch.Tensor):
        return not (thing.is_meta or is_lazy(thing))
    if isinstance(thing, (torch.nn.Module, tuple, types.SimpleNamespace, *_COLLECTIONS)):
        return True
    if isinstance(thing, np.ndarray):
        return type(thing) is np.ndarray and thing.flags.writeable
    return is_users(type(thing)) and not isinstance(thing, _NO_STATE_OF_A_MODEL)


def _within(thing: Any) -> Iterable[Any]:
    if isinstance(thing, torch.nn.Module):
        return _within_module(thing)
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, (tuple, *_COLLECTIONS)):
        return list(thing)
    if isinstance(thing, (torch.Tensor, np.ndarray)):
        return ()
    return attributes_of(thing).values()


def _within_module(module: torch.nn.Module) -> Iterator[Any]:
    yield from (*module.parameters(recurse=False), *module.buffers(recurse=False))  # a scripted one has them elsewhere
    yield from module.children()
    for name, value in vars(module).items():
        if name not in _HOOKS:
            yield value
        elif value:
            yield from value.values()


# Tensors


def _restoring_tensor(tensor: torch.Tensor) -> Iterator[Callable[[], object]]:
    if tensor.is_leaf and (tensor.requires_grad or tensor.grad is not None):
        yield functools.partial(_set_grad, tensor, tensor.grad, tensor.requires_grad)
        tensor.grad = None
    if tensor.is_inference() or tensor.layout is not torch.strided:
        return
    with contextlib.suppress(RuntimeError, TypeError):  # a kind of tensor that can't be copied
        part = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # of a shard, this process's own
        if part.device.type == "cpu" and part.is_shared():
            return  # other processes may train it at this moment
        data = part.data
        versions = _unsafe_preserve_version_counter(part)
        yield functools.partial(_write_back, part, data, data.clone())
        yield versions.__exit__  # a graph that saved it finds the very values that it saved


def _set_grad(tensor: torch.Tensor, grad: torch.Tensor | None, required: bool) -> None:
    tensor.requires_grad_(required)
    tensor.grad = grad


def _write_back(tensor: torch.Tensor, data: torch.Tensor, value: torch.Tensor) -> None:
    """Make `data` the tensor's memory again, with `value` in it; what nothing has changed isn't written to."""
    if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape or tensor.stride() != data.stride():
        tensor.data = data
    if not _equal(data, value):
        data.copy_(value)


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    try:
        return torch.equal(one, other)
    except RuntimeError:  # a type of numbers that can't be compared
        return False


# Attributes and collections


def _restoring_attributes(thing: Any) -> Iterator[Callable[[], object]]:
    namespace = getattr(thing, "__dict__", {})
    in_slots = {name: value for name, value in attributes_of(thing).items() if name not in namespace}
    yield functools.partial(_refill, namespace, dict(namespace))
    if in_slots:
        yield functools.partial(_set_slots, thing, in_slots)
    if isinstance(thing, torch.nn.Module) and "training" not in namespace:  # a scripted one
        yield functools.partial(setattr, thing, "training", thing.training)


def _set_slots(thing: Any, before: dict[str, Any]) -> None:
    for name, value in before.items():
        if getattr(thing, name, before) is not value:
            object.__setattr__(thing, name, value)


def _refill(collection: Any, before: Any) -> None:
    """Put a collection's own items back into it, if it holds others now."""
    if len(collection) == len(before) and all(map(operator.is_, _items(collection), _items(before))):
        return
    collection.clear()
    collection.update(before) if isinstance(collection, (dict, set)) else collection.extend(before)


def _items(collection: Any) -> Iterable[Any]:
    return [*collection, *collection.values()] if isinstance(collection, dict) else collection
