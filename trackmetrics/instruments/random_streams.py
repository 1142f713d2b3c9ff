"""Random streams, put back to where they stood: the global ones, and those of generators that a program holds."""

from __future__ import annotations

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

from .objects import attributes_of, is_users, named_by

_REACH = 4096  # how many objects are looked through for generators, the nearest first
_HOLDS_NONE = (str, bytes, int, float, complex, torch.Tensor, np.ndarray, type(None))


def restoring_streams(used: Iterable[Any]) -> Iterator[Callable[[], object]]:
    """What puts back, when called, the global streams and each generator that the objects in `used` hold or name.

    Global are the streams of Python, NumPy, torch and each initialised device.
    """
    yield functools.partial(random.setstate, random.getstate())
    yield functools.partial(np.random.set_state, np.random.get_state(legacy=False))
    yield functools.partial(torch.set_rng_state, torch.get_rng_state())
    for module in _device_modules():
        yield functools.partial(module.set_rng_state, module.get_rng_state())
    if torch.cuda.is_initialized():
        yield functools.partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    for generator in _generators(used):
        yield _restoring_generator(generator)


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
        return functools.partial(generator.set_state, generator.get_state(legacy=False))
    bits = generator.bit_generator
    return functools.partial(setattr, bits, "state", copy.deepcopy(bits.state))


def _generators(roots: Iterable[Any]) -> list[Any]:
    """Every random generator that the roots hold or name: in attributes, lists, dicts, classes, functions, globals."""
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
            waiting.extend(_within(item))
    return found


def _within(item: Any) -> Iterator[Any]:
    """What an object holds, a function names, a class defines."""
    if isinstance(item, (list, tuple)):
        yield from item[:16]  # transforms; a long list is examples
    elif isinstance(item, dict):
        yield from itertools.islice(item.values(), 16)
    elif isinstance(item, torch.nn.Module):
        for module in item.modules():
            yield type(module)
            yield from (value for name, value in vars(module).items() if name not in ("_parameters", "_buffers"))
    elif isinstance(item, types.FunctionType):
        yield from named_by(item)
    elif isinstance(item, types.MethodType):
        yield from (item.__self__, item.__func__)
    elif isinstance(item, (staticmethod, classmethod)):
        yield item.__func__
    elif isinstance(item, property):
        yield item.fget
    elif isinstance(item, functools.partial):
        yield from (item.func, *item.args, *item.keywords.values())
    elif isinstance(item, type):
        if is_users(item):
            yield from (*vars(item).values(), *item.__bases__)
    elif not isinstance(item, types.ModuleType):
        yield type(item)
        yield from attributes_of(item).values()
