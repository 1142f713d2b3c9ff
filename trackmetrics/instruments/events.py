"""Where torch is listened to: the only place that patches or hooks anything process-wide.

While at least one run lives, a handful of functions are wrapped, and each call is told to the listener of the
calling context; two runs in two threads, or one inside the other, hear only their own. When the last run ends,
every attribute is what it was.

The criterion functions are wrapped at their lowest level (`torch._C._nn.cross_entropy_loss` rather than
`torch.nn.functional.cross_entropy`): that also sees a function imported by name before the run, and doesn't make
compiled code compile again.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import FrameType
from typing import Any

import torch
from torch.optim import optimizer as torch_optimizer

from .criteria import CRITERIA, Criterion


class Listener:
    """What a training does, told as it happens. Each method does nothing unless overridden; none may raise."""

    def criterion_called(self, criterion: Criterion, arguments: tuple[Any, ...], result: torch.Tensor) -> None:
        """A loss function returned `result`; `arguments` are those of its lowest level."""

    def loss_scaled(self, scale: torch.Tensor) -> None:
        """A gradient scaler multiplied a loss by `scale`, a tensor of its own that it may change later."""

    def backward_begins(self, roots: tuple[torch.Tensor, ...]) -> None:
        """`backward` was called on `roots`."""

    def backward_ended(self, completed: bool) -> None:
        """That backward is over, gradients reduced over processes included; `completed` unless it raised."""

    def optimizer_steps(self, optimizer: torch.optim.Optimizer, takes_closure: bool) -> None:
        """An optimizer is about to step, before any hook of its own."""

    def optimizer_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """That optimizer's step is over."""

    def scaler_steps(self) -> None:
        """A gradient scaler's `step` begins; it steps its optimizer inside, or skips it."""

    def scaler_stepped(self) -> None:
        """That gradient scaler's `step` is over."""

    def optimizer_built(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer was constructed."""

    def module_built(self, module: torch.nn.Module, frame: FrameType) -> None:
        """`nn.Module.__init__` ran for a module; `frame` is the one that called it."""


_listener: ContextVar[Listener | None] = ContextVar("trackmetrics_listener", default=None)
_in_backward: list[Listener] = []
_lock = threading.Lock()
_live = 0
_undo: list[Callable[[], None]] = []


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` all that happens in this context (thread or task) until the block ends."""
    _acquire()
    try:
        with heard_by(listener):
            yield
    finally:
        _release()


@contextlib.contextmanager
def heard_by(listener: Listener | None) -> Iterator[None]:
    """Tell `listener`, or nobody, in place of the run's own; so an evaluation never counts as training."""
    before = _listener.get()
    _listener.set(listener)
    try:
        yield
    finally:
        _listener.set(before)


def live_runs() -> int:
    """How many runs listen in this process at this moment."""
    return _live


def _acquire() -> None:
    global _live
    with _lock:
        _live += 1
        if _live == 1:
            _install()


def _release() -> None:
    global _live
    with _lock:
        _live -= 1
        if _live == 0:
            while _undo:
                _undo.pop()()


def _install() -> None:
    for criterion in CRITERIA:
        _wrap(criterion.owner, criterion.name, functools.partial(_observe_criterion, criterion))
    _wrap(torch.autograd, "backward", _observe_backward)
    _wrap(torch.amp.GradScaler, "scale", _observe_scale)
    _wrap(torch.amp.GradScaler, "step", _observe_scaler_step)
    _wrap(torch.optim.Optimizer, "__init__", _observe_optimizer_init)
    _wrap(torch.nn.Module, "__init__", _observe_module_init)
    _undo.append(torch_optimizer.register_optimizer_step_pre_hook(_optimizer_steps).remove)
    _undo.append(torch_optimizer.register_optimizer_step_post_hook(_optimizer_stepped).remove)


def _wrap(owner: Any, name: str, observe: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(owner, name)
    observed = functools.update_wrapper(observe(original), original)
    setattr(owner, name, observed)

    def undo() -> None:
        # Whoever wrapped ours while we were here keeps theirs; ours then only passes on.
        if getattr(owner, name, None) is observed:
            setattr(owner, name, original)

    _undo.append(undo)


def _observe_criterion(criterion: Criterion, original: Callable[..., Any]) -> Callable[..., Any]:
    def observed(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        listener = _listener.get()
        if listener is not None and type(result) is torch.Tensor:  # no fake tensor of a compiler's tracing
            listener.criterion_called(criterion, args, result)
        return result

    return observed


def _observe_backward(original: Callable[..., Any]) -> Callable[..., Any]:
    def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        listener = _listener.get()
        if listener is None:
            return original(tensors, *args, **kwargs)
        roots = (tensors,) if isinstance(tensors, torch.Tensor) else tensors
        if not isinstance(roots, (tuple, list)):  # an iterator: it can be read once, and the engine wants it
            roots = tensors = tuple(tensors)
        listener.backward_begins(tuple(roots))
        _in_backward.append(listener)
        completed = False
        try:
            result = original(tensors, *args, **kwargs)
            completed = True
            return result
        finally:
            _in_backward.remove(listener)
            listener.backward_ended(completed)

    return backward


def _observe_scale(original: Callable[..., Any]) -> Callable[..., Any]:
    def scale(self: Any, outputs: Any) -> Any:
        scaled = original(self, outputs)
        listener = _listener.get()
        if listener is not None and isinstance(getattr(self, "_scale", None), torch.Tensor) and self.is_enabled():
            listener.loss_scaled(self._scale)
        return scaled

    return scale


def _observe_scaler_step(original: Callable[..., Any]) -> Callable[..., Any]:
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        listener = _listener.get()
        if listener is None or not self.is_enabled():
            return original(self, *args, **kwargs)
        listener.scaler_steps()
        result = original(self, *args, **kwargs)
        listener.scaler_stepped()
        return result

    return step


def _observe_optimizer_init(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        listener = _listener.get()
        if listener is not None:
            listener.optimizer_built(self)

    return __init__


def _observe_module_init(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        listener = _listener.get()
        if listener is not None:
            listener.module_built(self, sys._getframe(1))

    return __init__


def _optimizer_steps(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    listener = _listener_of_step()
    if listener is not None:
        # The hook is handed the step's arguments, its optimizer first.
        listener.optimizer_steps(optimizer, any(callable(arg) for arg in (*args[1:], *kwargs.values())))


def _optimizer_stepped(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    listener = _listener_of_step()
    if listener is not None:
        listener.optimizer_stepped(optimizer)


def _listener_of_step() -> Listener | None:
    """The calling context's, or, on a thread of the autograd engine, that of the backward under way."""
    listener = _listener.get()
    if listener is None and len(_in_backward) == 1:
        return _in_backward[0]
    return listener
