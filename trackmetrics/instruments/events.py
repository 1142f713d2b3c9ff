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
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.autograd.graph import GradientEdge
from torch.optim import optimizer as torch_optimizer
from torch.utils.data.dataloader import _BaseDataLoaderIter

from .compiling import anything_to_compile, pass_over_ours
from .criteria import CRITERIA, Criterion
from .trained_parameters import Root


class Listener:
    """What a training does, told as it happens. Each method does nothing unless overridden; none may raise."""

    def criterion_called(self, criterion: Criterion, arguments: tuple[Any, ...], result: torch.Tensor) -> None:
        """A loss function returned `result`; `arguments` are those of its lowest level."""

    def losses_scaled(self, scaled: Any, scale: torch.Tensor) -> None:
        """A gradient scaler gave `scaled`, a loss or several times `scale`: its own tensor, changed later."""

    def differentiates(self) -> None:
        """`torch.autograd.grad` was called: it may reach what a backward would."""

    def backward_begins(self, roots: tuple[Root, ...], inputs: tuple[torch.Tensor, ...] | None, retains: bool) -> None:
        """`backward` was called on `roots`, to bring gradients for `inputs` alone where they are given.

        `retains` says that the graph is kept, for another backward.
        """

    def backward_ended(self, completed: bool) -> None:
        """That backward is over, gradients reduced over processes included; `completed` unless it raised."""

    def optimizer_steps(self, optimizer: torch.optim.Optimizer, takes_closure: bool) -> None:
        """An optimizer is about to step, before any hook of its own."""

    def optimizer_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """That optimizer's step is over."""

    def closure_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """The closure that `optimizer`'s step was given is about to be evaluated."""

    def closure_ended(self, optimizer: torch.optim.Optimizer, completed: bool) -> None:
        """That evaluation is over; `completed` unless it raised."""

    def scaler_steps(self, optimizer: torch.optim.Optimizer) -> None:
        """A gradient scaler's `step` begins; it steps `optimizer` inside, or skips it."""

    def scaler_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """That gradient scaler's `step` is over."""

    def optimizer_built(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer was constructed, copied or unpickled."""

    def batch_yielded(self, batch: Any, number: int, iterator: Any) -> None:
        """An iterator over a `DataLoader` gave a batch, its `number`th, to whoever goes through it."""

    def batches_ended(self, iterator: Any) -> None:
        """An iterator over a `DataLoader` has no more batches; not told of one that looks ahead."""

    def module_called(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """A module is called; say whether further calls are to be told. Told only after `hear_modules`."""
        return False

    def module_built(self, module: torch.nn.Module, frame: FrameType) -> None:
        """`nn.Module.__init__` ran for a module; `frame` is the one that called it."""

    def failed(self, event: str, error: Exception) -> None:
        """Telling of an event failed after all, with a fault of ours that goes no further than here."""


class _Patches:
    """What was patched when the first of the live runs began. Not `live` any more, a patch only passes on.

    That happens where somebody wrapped ours during the run in a way that can't be undone: the next run patches
    anew, and must not hear a call twice.
    """

    def __init__(self) -> None:
        self.live = True
        self.undo: dict[tuple[int, str], Callable[[], None]] = {}  # by owner and name

    def wrap(
        self, owner: Any, name: str, observe: Callable[[_Patches, Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        """Put what `observe` makes of `owner.name` in its place."""
        original = getattr(owner, name)
        observed = functools.update_wrapper(observe(self, original), original)
        setattr(owner, name, observed)
        builtin = torch.jit._builtins._find_builtin(original)
        if builtin is not None:  # what compiles to TorchScript knows torch's own functions by their identity
            torch.jit._builtins._register_builtin(observed, builtin)

        def undo() -> None:
            if builtin is not None:
                torch.jit._builtins._get_builtin_table().pop(id(observed), None)
            now = getattr(owner, name, None)
            if now is observed:
                setattr(owner, name, original)
            else:  # somebody's patch has taken our place, and stays: a user's, or a compiler's that was loaded
                _replace_inside(now, observed, original)

        self.undo[id(owner), name] = undo

    def unwrap(self, owner: Any, name: str) -> None:
        """Put `owner.name` back, where it was wrapped."""
        undo = self.undo.pop((id(owner), name), None)
        if undo is not None:
            undo()

    def hook(self, hooks: Any, hook: Callable[..., Any]) -> None:
        """Have `hook` called with those that torch calls in every optimizer's step.

        It isn't put among them: the compiler looks at what their collection holds, and would compile again what it
        compiled when there were more of them, or fewer. Torch asks for their `values`.
        """
        hooks.values = lambda: [hook, *type(hooks).values(hooks)]
        self.undo[id(hooks), "values"] = functools.partial(vars(hooks).pop, "values", None)

    def remove(self) -> None:
        """Put everything back."""
        self.live = False
        with contextlib.ExitStack() as stack:  # each, though another fails
            for undo in self.undo.values():
                stack.callback(undo)
            self.undo = {}


def _replace_inside(wrapper: Any, observed: Any, original: Any) -> None:
    """Give a wrapper that closes over ours the original in its place."""
    for cell in getattr(wrapper, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # a cell that isn't filled yet
            if cell.cell_contents is observed:
                cell.cell_contents = original


_listener: ContextVar[Listener | None] = ContextVar("trackmetrics_listener", default=None)
_in_backward: list[Listener] = []
_hear_modules: set[Listener] = set()
_lock = threading.Lock()
_live = 0
_patches = _Patches()


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` all that happens in this context (thread or task) until the block ends."""
    _acquire()
    try:
        with heard_by(listener):
            yield
    finally:
        _release(listener)


@contextlib.contextmanager
def heard_by(listener: Listener | None) -> Iterator[None]:
    """Tell `listener`, or nobody, in place of the run's own; so an evaluation never counts as training."""
    before = _listener.get()
    _listener.set(listener)
    try:
        yield
    finally:
        _listener.set(before)


def hear_modules(listener: Listener) -> None:
    """Tell `listener` of the calls of modules in its context, until it has heard enough.

    Every call of every module would be too much: this wraps `Module.__call__` for that while only. Not where there is
    something to compile: the compiler would look into the wrapper, and compile again when it is gone.
    """
    if anything_to_compile():
        return
    with _lock:
        if _patches.live and not _hear_modules:
            _patches.wrap(torch.nn.Module, "__call__", _observe_module_call)
        _hear_modules.add(listener)


def _heard_enough(listener: Listener) -> None:
    with _lock:
        _stop_telling(listener)


def _stop_telling(listener: Listener) -> None:
    _hear_modules.discard(listener)
    if not _hear_modules:
        _patches.unwrap(torch.nn.Module, "__call__")


def live_runs() -> int:
    """How many runs listen in this process at this moment."""
    return _live


def _acquire() -> None:
    global _live, _patches
    with _lock:
        _live += 1
        if _live == 1:
            _patches = _Patches()
            _install(_patches)


def _release(listener: Listener) -> None:
    global _live
    with _lock:
        _live -= 1
        if _live == 0:
            _hear_modules.clear()
            _patches.remove()
        else:
            _stop_telling(listener)


def _install(patches: _Patches) -> None:
    pass_over_ours()
    for criterion in CRITERIA:
        patches.wrap(criterion.owner, criterion.name, functools.partial(_observe_criterion, criterion))
    patches.wrap(torch.autograd, "_engine_run_backward", _observe_differentiation)
    patches.wrap(torch.amp.GradScaler, "scale", _observe_scale)
    patches.wrap(torch.amp.GradScaler, "step", _observe_scaler_step)
    patches.wrap(torch.optim.Optimizer, "__init__", _observe_optimizer_made)
    patches.wrap(torch.optim.Optimizer, "__setstate__", _observe_optimizer_made)
    patches.wrap(torch.nn.Module, "__init__", _observe_module_init)
    patches.wrap(_BaseDataLoaderIter, "__next__", _observe_next_batch)
    patches.hook(torch_optimizer._global_optimizer_pre_hooks, _optimizer_steps)
    patches.hook(torch_optimizer._global_optimizer_post_hooks, _optimizer_stepped)


# In what follows, nothing of ours may raise into the user's program.


def _tell(listener: Listener, event: str, *args: Any) -> None:
    """Tell of an event; those of every step are told without this call around them."""
    try:
        getattr(listener, event)(*args)
    except Exception as error:
        listener.failed(event, error)


def _observe_criterion(criterion: Criterion, patches: _Patches, original: Callable[..., Any]) -> Callable[..., Any]:
    def observed(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        listener = _listener.get() if patches.live else None
        if listener is not None and type(result) is torch.Tensor:  # no fake tensor of a compiler's tracing
            try:
                listener.criterion_called(criterion, criterion.bound(args, kwargs) if kwargs else args, result)
            except Exception as error:
                listener.failed("criterion_called", error)
        return result

    return observed


def _observe_differentiation(patches: _Patches, original: Callable[..., Any]) -> Callable[..., Any]:
    """What `backward` and `torch.autograd.grad` both come down to, by whichever name they were called."""

    def run_backward(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        listener = _listener.get() if patches.live else None
        if listener is None:
            return original(outputs, *args, **kwargs)
        if not kwargs.get("accumulate_grad"):
            _tell(listener, "differentiates")
            return original(outputs, *args, **kwargs)
        try:
            _, retains, _, inputs = args[:4]
            listener.backward_begins(tuple(outputs), _leaves_of(inputs) if inputs else None, bool(retains))
        except Exception as error:
            listener.failed("backward_begins", error)
        _in_backward.append(listener)
        completed = False
        try:
            result = original(outputs, *args, **kwargs)
            completed = True
            return result
        finally:
            _in_backward.remove(listener)
            try:
                listener.backward_ended(completed)
            except Exception as error:
                listener.failed("backward_ended", error)

    return run_backward


def _leaves_of(inputs: Iterable[Root]) -> tuple[torch.Tensor, ...]:
    """The leaves that `backward(inputs=...)` names."""
    leaves = (getattr(item.node, "variable", None) if isinstance(item, GradientEdge) else item for item in inputs)
    return tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))


def _observe_scale(patches: _Patches, original: Callable[..., Any]) -> Callable[..., Any]:
    def scale(self: Any, outputs: Any) -> Any:
        scaled = original(self, outputs)
        listener = _listener.get() if patches.live else None
        if listener is not None and isinstance(getattr(self, "_scale", None), torch.Tensor) and self.is_enabled():
            _tell(listener, "losses_scaled", scaled, self._scale)
        return scaled

    return scale


def _observe_scaler_step(patches: _Patches, original: Callable[..., Any]) -> Callable[..., Any]:
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        listener = _listener.get() if patches.live else None
        if listener is None or not self.is_enabled() or not (args or "optimizer" in kwargs):
            return original(self, *args, **kwargs)
        optimizer = args[0] if args else kwargs["optimizer"]
        _tell(listener, "scaler_steps", optimizer)
        result = original(self, *args, **kwargs)
        _tell(listener, "scaler_stepped", optimizer)
        return result

    return step


def _observe_optimizer_made(patches: _Patches, original: Callable[..., Any]) -> Callable[..., Any]:
    """Constructed, or copied or unpickled."""

    def made(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        listener = _listener.get() if patches.live else None
        if listener is not None:
            _tell(listener, "optimizer_built", self)

    return made


def _observe_next_batch(patches: _Patches, original: Callable[..., Any]) -> Callable[..., Any]:
    ahead: WeakKeyDictionary[Any, tuple[Any, int]] = WeakKeyDictionary()  # what was asked for, and isn't given yet

    def __next__(self: Any) -> Any:
        try:
            batch = original(self)
        except StopIteration:
            listener = _listener.get() if patches.live else None
            if listener is not None:
                try:
                    if self in ahead:
                        listener.batch_yielded(*ahead.pop(self), self)
                    else:
                        listener.batches_ended(self)
                except Exception as error:
                    listener.failed("batches_ended", error)
            raise
        listener = _listener.get() if patches.live else None
        if listener is not None:
            try:
                given: tuple[Any, int] | None = batch, self._num_yielded
                if _looks_ahead(sys._getframe(1)):
                    given, ahead[self] = ahead.get(self), (batch, self._num_yielded)
                if given is not None:
                    listener.batch_yielded(*given, self)
            except Exception as error:
                listener.failed("batch_yielded", error)
        return batch

    return __next__


def _looks_ahead(frame: FrameType) -> bool:
    """Whether a batch is asked for by accelerate's loader: it gives the one before only then, to know the last one."""
    loader = getattr(sys.modules.get("accelerate.data_loader"), "DataLoaderShard", None)
    return loader is not None and frame.f_code is loader.__iter__.__code__


def _observe_module_init(patches: _Patches, original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        listener = _listener.get() if patches.live else None
        if listener is not None:
            _tell(listener, "module_built", self, sys._getframe(1))

    return __init__


def _observe_module_call(patches: _Patches, original: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling() and torch._C._get_tracing_state() is None:
            listener = _listener.get() if patches.live else None
            if listener is not None and listener in _hear_modules:
                try:
                    if not listener.module_called(self, args, kwargs):
                        _heard_enough(listener)
                except Exception as error:
                    listener.failed("module_called", error)
        return original(self, *args, **kwargs)

    return __call__


class _Closure:
    """A closure as the user gave it to an optimizer's step, each evaluation told to the listener."""

    def __init__(self, listener: Listener, optimizer: torch.optim.Optimizer, evaluate: Callable[[], Any]) -> None:
        functools.update_wrapper(self, evaluate)
        self._listener = listener
        self._optimizer = optimizer
        self._evaluate = evaluate

    def __call__(self) -> Any:
        listener = self._listener
        _tell(listener, "closure_begins", self._optimizer)
        completed = False
        try:
            loss = self._evaluate()
            completed = True
            return loss
        finally:
            _tell(listener, "closure_ended", self._optimizer, completed)


def _optimizer_steps(
    optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """A step's arguments are handed to the hook, its optimizer first; what it gives back takes their place."""
    listener = _listener.get()
    try:
        listener = listener or _listener_of_engine_thread()
        if listener is None:
            return None
        if len(args) == 1 and not kwargs:
            listener.optimizer_steps(optimizer, False)
            return None
        closures = [item for item in (*args[1:], *kwargs.values()) if callable(item)]
        listener.optimizer_steps(optimizer, bool(closures))
        if not closures:
            return None
        closure = _Closure(listener, optimizer, closures[0])
        observed = tuple(closure if item is closures[0] else item for item in args)
        return observed, {name: closure if item is closures[0] else item for name, item in kwargs.items()}
    except Exception as error:
        if listener is not None:
            listener.failed("optimizer_steps", error)
        return None


def _optimizer_stepped(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    listener = _listener.get()
    try:
        listener = listener or _listener_of_engine_thread()
        if listener is not None:
            listener.optimizer_stepped(optimizer)
    except Exception as error:
        if listener is not None:
            listener.failed("optimizer_stepped", error)


def _listener_of_engine_thread() -> Listener | None:
    """On a thread of the autograd engine, whoever listens to the backward under way."""
    if len(_in_backward) == 1 and _on_engine_thread():
        return _in_backward[0]
    return None


def _on_engine_thread() -> bool:
    """Whether this thread is none that Python started: a stranger's training in another thread isn't the run's."""
    here = threading.get_ident()
    return all(thread.ident != here or isinstance(thread, threading._DummyThread) for thread in threading.enumerate())
