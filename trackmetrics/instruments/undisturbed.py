"""Leaving a training exactly as it was: random streams, module modes, buffers.

Whatever runs inside `undisturbed` (an evaluation, the final inference) changes no later number of the training.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

_DEPTH = 4  # how deep generators are looked for: loader -> dataset -> transform -> its generator


@contextlib.contextmanager
def undisturbed(model: torch.nn.Module | None, *data: Any) -> Iterator[None]:
    """Put `model` into `eval()` under `no_grad`, and afterwards everything back as it was.

    Put back are: each module's mode, each buffer (its value, and which tensor it is), the global random streams
    of Python, NumPy, torch and each initialised device, and the generators that `data` (loaders, datasets) hold.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(_restoring_streams())
        for generator in _generators(data):
            stack.callback(_restoring_generator(generator))
        if model is not None:
            stack.callback(_restoring_buffers(model))
            stack.callback(_restoring_modes(model))
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


def _generators(data: Iterable[Any]) -> list[Any]:
    """Every random generator that the data holds, a few attributes deep."""
    found: dict[int, Any] = {}
    seen: set[int] = set()
    level = list(data)
    for _ in range(_DEPTH):
        following: list[Any] = []
        for item in level:
            if id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, (torch.Generator, random.Random, np.random.RandomState, np.random.Generator)):
                found[id(item)] = item
            elif isinstance(item, (list, tuple)):
                following.extend(item[:16])  # transforms; a long list is examples
            elif hasattr(item, "__dict__") and not isinstance(item, (type, torch.nn.Module)):
                following.extend(vars(item).values())
        level = following
    return list(found.values())


def _restoring_modes(model: torch.nn.Module) -> Callable[[], None]:
    modes = [(module, module.training) for module in model.modules()]

    def restore() -> None:
        for module, training in modes:
            module.training = training

    return restore


def _restoring_buffers(model: torch.nn.Module) -> Callable[[], None]:
    """Copies are kept, and put back only where something changed: an untouched buffer isn't written to."""
    kept = [
        (module, name, buffer, buffer._version, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]

    def restore() -> None:
        for module, name, buffer, version, value in kept:
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(value)
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer

    return restore
