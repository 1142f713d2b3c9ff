"""Leaving a training exactly as it was: whatever runs inside `undisturbed` changes no later number of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from .fully_sharded import shard_again
from .model_state import restoring_state
from .random_streams import restoring_streams


@contextlib.contextmanager
def undisturbed(model: torch.nn.Module | None, *used: Any) -> Iterator[None]:
    """Put `model` into `eval()` under `no_grad`, and afterwards everything back as it was.

    Put back are: each module's mode; each parameter and buffer (its value, its gradient, and which tensor it is);
    what modules keep as plain attributes (a hidden state, a counter), and the values in it; the global random
    streams of Python, NumPy, torch and each initialised device; the generators that the model and what is `used`
    (loaders, datasets, functions) hold or name; torch's grad mode and default dtype.
    """
    with contextlib.ExitStack() as stack:
        for restore in restoring_streams((model, *used)):
            stack.callback(restore)
        if model is not None:
            shard_again(model)
            for restore in restoring_state(model):
                stack.callback(restore)
            stack.callback(shard_again, model)  # else FSDP would go on with what is put back for what it gathered
            with contextlib.suppress(NotImplementedError):  # an exported one is for ever in the mode of its export
                model.eval()
        stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(False)  # an autocast around the epoch keeps the weights of an earlier step
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        stack.enter_context(torch.no_grad())
        yield
