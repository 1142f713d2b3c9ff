"""Leaving a training exactly as it was: random streams, module modes, buffers, attributes of modules.

Whatever runs inside `undisturbed` (an evaluation, the final inference) changes no later number of the training.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import random
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

_REACH = 4096  # how many objects are looked through for generators, the nearest first


@contextlib.contextmanager
def undisturbed(model: torch.nn.Module | None, *data: Any) -> Iterator[None]:
    """Put `model` into `eval()` under `no_grad`, and afterwards everything back as it was.

    Put back are: each module's mode, each buffer (its value, and which tensor it is), what a module keeps as plain
    attributes (a hidden state, a counter: which object it is), the global random streams of Python, NumPy, torch
    and each initialised device, and the generators that the model and `data` (loaders, datasets) hold.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(_restoring_streams())
        for generator in _generators((model, *data)):
            stack.callback(_restoring_generator(generator))
        if model is not None:
            stack.callback(_restoring_buffers(model))
            stack.callback(_restoring_modes(model))
            stack.callback(_restoring_attributes(model))
            model.eval()
        stack.enter_context(torch.no_grad())
        yield


def _restoring_streams() -> Callable[[], None]:
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = [(module, module.get_rng_state()) for module in _device_modules()]
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        for module, state in devices:
            module.set_rng_state(state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)

    return restore


def _device_modules() -> list[Any]:
    """Devices beside CUDA that have a stream of their own."""
    modules = []
    if torch.backends.mps.is_available():
        modules.append(torch.mps)
    if hasattr(torch, "xpu") and torch.xpu.is_initialized():
        modules.append(torch.xpu)
    return modules


def _restoring_generator(generator: Any) -> Callable[[], object]:
    if isinstance(generator, torch.Generator):
        return functools.partial(generator.set_state, generator.get_state())
    if isinstance(generator, random.Random):
        return functools.partial(generator.setstate, generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return functools.partial(generator.set_state, generator.get_state())
    bits = generator.bit_generator
    return functools.partial(setattr, bits, "state", copy.deepcopy(bits.state))


def _generators(roots: Iterable[Any]) -> list[Any]:
    """Every random generator that the roots hold, in attributes, lists, dicts and functions' own values."""
    found: list[Any] = []
    seen: set[int] = set()
    waiting = deque(roots)
    while waiting and len(seen) < _REACH:
        item = waiting.popleft()
        if id(item) in seen or isinstance(item, _HOLDS_NONE):
            continue
        seen.add(id(item))
        if isinstance(item, (torch.Generator, random.Random, np.random.RandomState, np.random.Generator)):
            if not isinstance(item, random.SystemRandom):  # it has no state
                found.append(item)
        else:
            waiting.extend(_held(item))
    return found


_HOLDS_NONE = (type, types.ModuleType, str, bytes, int, float, complex, torch.Tensor, np.ndarray, type(None))


def _held(item: Any) -> Iterator[Any]:
    """What an object holds."""
    if isinstance(item, (list, tuple)):
        yield from item[:16]  # transforms; a long list is examples
    elif isinstance(item, dict):
        yield from itertools.islice(item.values(), 16)
    elif isinstance(item, torch.nn.Module):
        for module in item.modules():
            yield from (value for name, value in vars(module).items() if name not in ("_parameters", "_buffers"))
    elif isinstance(item, types.MethodType):
        yield item.__self__
    elif isinstance(item, types.FunctionType):
        yield from item.__defaults__ or ()
        for cell in item.__closure__ or ():
            with contextlib.suppress(ValueError):  # not filled yet
                yield cell.cell_contents
    elif isinstance(item, functools.partial):
        yield from (item.func, *item.args, *item.keywords.values())
    else:
        yield from vars(item).values() if hasattr(item, "__dict__") else ()
        for name in _slots(type(item)):
            yield getattr(item, name, None)


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        yield from (slots,) if isinstance(slots, str) else slots


def _restoring_modes(model: torch.nn.Module) -> Callable[[], None]:
    modes = [(module, module.training) for module in model.modules()]

    def restore() -> None:
        for module, training in modes:
            module.training = training

    return restore


def _restoring_attributes(model: torch.nn.Module) -> Callable[[], None]:
    """Plain attributes of each module, and what collections among them hold; torch's own stand elsewhere."""
    kept = [(module, dict(vars(module))) for module in model.modules()]
    torchs_own = vars(torch.nn.Module())
    collections = [
        (value, copy.copy(value))
        for _, attributes in kept
        for name, value in attributes.items()
        if name not in torchs_own and type(value) in (list, dict, set, deque)
    ]

    def restore() -> None:
        for collection, before in collections:
            _refill(collection, before)
        for module, before in kept:
            now = vars(module)
            for name in [name for name in now if name not in before]:
                del now[name]
            now.update(before)

    return restore


def _refill(collection: Any, before: Any) -> None:
    """Put a collection's own items back into it, if it holds others now."""
    if len(collection) == len(before) and all(one is other for one, other in zip(_items(collection), _items(before))):
        return
    collection.clear()
    collection.update(before) if isinstance(collection, (dict, set)) else collection.extend(before)


def _items(collection: Any) -> Iterator[Any]:
    if isinstance(collection, dict):
        for key, value in collection.items():
            yield from (key, value)
    else:
        yield from collection


def _restoring_buffers(model: torch.nn.Module) -> Callable[[], None]:
    """Copies are kept, and put back only where something changed: an untouched buffer isn't written to."""
    homes = [(module, dict(module._buffers.items())) for module in model.modules()]
    buffers = {id(buffer): buffer for _, named in homes for buffer in named.values() if buffer is not None}
    kept = [(buffer, buffer.detach().clone()) for buffer in buffers.values()]

    def restore() -> None:
        for buffer, value in kept:
            if buffer.shape != value.shape:
                buffer.data = value
            elif not torch.equal(buffer, value):  # its version counter misses what goes through `.data`
                with torch.no_grad():
                    buffer.copy_(value)
        for module, named in homes:
            scripted = isinstance(module, torch.jit.ScriptModule)  # whose buffers can't be exchanged
            if not scripted and not _same_objects(module._buffers, named):
                module._buffers.clear()
                module._buffers.update(named)

    return restore


def _same_objects(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return list(one) == list(other) and all(one[name] is other[name] for name in one)
