"""The gradient norm: measured when a backward has ended, summed over the stepping optimizers' parameters.

A hook on each parameter says whose gradient arrived in a backward; when that backward is over (and with it the
reduction over data-parallel processes) the norm of each gradient is taken, and stays on the device. Which of them
make up the step is decided when optimizers step: clipping that happens in between changes nothing.

References: the sum over all parameters is the global norm of Pascanu, Mikolov and Bengio, "On the difficulty of
training recurrent neural networks" (2013), which `torch.nn.utils.clip_grad_norm_` computes too.
"""

from __future__ import annotations

import gc
import statistics
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch.utils.hooks import RemovableHandle

MEANING = (
    "global L2 norm of the gradient that one training step applies: over the parameters its optimizers own, "
    "accumulated over micro-batches, averaged over data-parallel processes, unscaled, before clipping; "
    "mean over the epoch's steps"
)
_FOLD = 1024  # step norms that wait as separate tensors before they become one
_SKIPPED = -1.0  # stands for a step that a fused optimizer skipped by itself; a norm is never negative


@dataclass(frozen=True)
class NormSummary:
    """An epoch's gradient norms: `mean`, `min`, `median`, `max` over the finite steps, None where there is none."""

    mean: float | None = None
    min: float | None = None
    median: float | None = None
    max: float | None = None
    steps: int = 0
    skipped_steps: int = 0
    non_finite_steps: int = 0


@dataclass
class _Step:
    """The gradients of a step in the making, by the identity of their parameter."""

    norms: dict[int, torch.Tensor] = field(default_factory=dict)
    included: set[int] = field(default_factory=set)
    total: list[torch.Tensor] = field(default_factory=list)
    found_inf: torch.Tensor | None = None


class GradientNorm:
    """Measures one gradient norm a training step, without making the device wait.

    Call `prepare` before a backward, `measure` after it, `include` when an optimizer steps (or `include_all` where
    there is none), `end_step` when the step is over, and `take` once an epoch. `release` removes every hook.
    `measured_at_step` says that some gradient was seen only when its optimizer stepped: it was set by hand.
    """

    def __init__(self) -> None:
        self._optimizers: dict[int, weakref.ref[torch.optim.Optimizer]] = {}
        self._hooks: dict[int, tuple[weakref.ref[torch.Tensor], RemovableHandle]] = {}
        self._trained: dict[int, weakref.ref[torch.Tensor]] = {}
        self._arrived: list[torch.Tensor] = []
        self._own_leaves: set[int] | None = None
        self._looked_around = False
        self._has_optimizer = False
        self._step = _Step()
        self._totals: list[torch.Tensor] = []
        self._skipped = 0
        self.measured_at_step = False

    # What is trained

    def add_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Follow the parameters of `optimizer` from now on, those it is given later included."""
        known = self._optimizers.get(id(optimizer))
        if known is None or known() is not optimizer:
            self._optimizers[id(optimizer)] = weakref.ref(optimizer)

    def prepare(self, roots: Iterable[torch.Tensor], alone: bool = True) -> None:
        """Hook every parameter that the coming backward may bring a gradient for.

        Optimizers that were built before the run are looked up once; where none owns what is trained, the
        parameters are the leaves of the graph behind `roots`. Not `alone`, with other runs in the process, only
        those leaves count: another thread's backward may bring gradients at the same moment.
        """
        if not self._looked_around:
            self._looked_around = True
            for candidate in gc.get_objects():
                if issubclass(type(candidate), torch.optim.Optimizer):
                    self.add_optimizer(candidate)
        for optimizer in self.optimizers():
            for parameter in _parameters(optimizer):
                self._hook(parameter)
        self._own_leaves = None
        if not alone or not self._has_optimizer:
            leaves = _leaves(roots)
            for leaf in leaves:
                self._hook(leaf)
            self._own_leaves = None if alone else {id(leaf) for leaf in leaves}
        self._arrived.clear()

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers known so far that are still alive."""
        alive = (reference() for reference in self._optimizers.values())
        return [optimizer for optimizer in alive if optimizer is not None]

    def trained(self) -> list[torch.Tensor]:
        """The parameters that have received a gradient so far and are still alive."""
        alive = (reference() for reference in self._trained.values())
        return [parameter for parameter in alive if parameter is not None]

    def _hook(self, parameter: torch.Tensor) -> None:
        hooked = self._hooks.get(id(parameter))
        if (hooked is not None and hooked[0]() is parameter) or not parameter.requires_grad or not parameter.is_leaf:
            return
        # A built-in method as the hook: the engine calls it once a parameter, and it costs next to nothing.
        handle = parameter.register_post_accumulate_grad_hook(self._arrived.append)
        self._hooks[id(parameter)] = (weakref.ref(parameter), handle)

    # One step

    @property
    def measured(self) -> bool:
        """Whether a backward has brought gradients for the step in the making."""
        return bool(self._step.norms)

    def measure(self, scale: torch.Tensor | None = None) -> bool:
        """Take the norm of each trained parameter's gradient, after a backward; say whether any arrived.

        `scale` is the factor by which a gradient scaler multiplied the loss; it is taken out.
        """
        arrived = [item for item in self._arrived if self._own_leaves is None or id(item) in self._own_leaves]
        self._arrived.clear()
        for parameter in arrived:
            known = self._trained.get(id(parameter))
            if known is None or known() is not parameter:
                self._trained[id(parameter)] = weakref.ref(parameter)
        if arrived:
            self._step.norms = _norms_by_owner(self.trained(), scale)
        return bool(arrived)

    def forget_arrived(self) -> None:
        """The backward that has ended doesn't count."""
        self._arrived.clear()

    def measure_inside(self, optimizer: torch.optim.Optimizer, scale: torch.Tensor | None = None) -> None:
        """Take the gradients that `optimizer` is about to use while the backward goes on, and keep their norms."""
        self._step.total.extend(_norms_by_owner(_parameters(optimizer), scale).values())

    def has_optimizer(self) -> bool:
        """Whether some optimizer owns something of what is trained."""
        if not self._has_optimizer:
            owned = {id(parameter) for optimizer in self.optimizers() for parameter in _parameters(optimizer)}
            self._has_optimizer = not owned.isdisjoint(self._trained)
        return self._has_optimizer

    def include(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the gradients of `optimizer`'s parameters into the step, each parameter once.

        A gradient that no backward brought, set by hand, is measured now: it may have been clipped already.
        """
        step = self._step
        unmeasured = []
        for parameter in _parameters(optimizer):
            key = id(parameter)
            if key in step.included or parameter.grad is None:
                continue
            step.included.add(key)
            if key in step.norms:
                step.total.append(step.norms[key])
            else:
                unmeasured.append(parameter)
        if unmeasured:
            self.measured_at_step = True
            step.total.extend(_norms_by_owner(unmeasured, None).values())
        found_inf = getattr(optimizer, "found_inf", None)
        if isinstance(found_inf, torch.Tensor):  # a fused optimizer, which skips the step in its own kernel
            step.found_inf = found_inf.detach().clone()

    def include_all(self) -> None:
        """Count every measured gradient into the step: a training without an optimizer."""
        self._step.total.extend(self._step.norms.values())

    def complete(self) -> bool:
        """Whether the step has all the gradients that were measured for it, so that no further optimizer is due."""
        return self._step.included.issuperset(self._step.norms)

    def skip(self) -> None:
        """Drop the step: its gradient scaler skipped it."""
        self._skipped += 1
        self._step = _Step()

    def end_step(self) -> bool:
        """Close the step; say whether it was one (it had a gradient)."""
        step, self._step = self._step, _Step()
        if not step.total:
            return False
        total = _root_of_squares(step.total)
        if step.found_inf is not None:
            total = torch.where(step.found_inf.to(total.device) > 0, torch.full_like(total, _SKIPPED), total)
        self._totals.append(total.reshape(1))
        if len(self._totals) >= _FOLD:
            self._totals = [torch.cat(self._totals)]
        return True

    # An epoch

    def take(self) -> NormSummary:
        """Fetch the epoch's norms from the device, once, and begin a new epoch."""
        totals, self._totals = self._totals, []
        skipped, self._skipped = self._skipped, 0
        norms = torch.cat([total.cpu() for total in totals]).tolist() if totals else []
        taken = [norm for norm in norms if norm != _SKIPPED]
        finite = [norm for norm in taken if norm < float("inf")]  # NaN isn't
        return NormSummary(
            mean=statistics.fmean(finite) if finite else None,
            min=min(finite, default=None),
            median=statistics.median(finite) if finite else None,
            max=max(finite, default=None),
            steps=len(taken),
            skipped_steps=skipped + len(norms) - len(taken),
            non_finite_steps=len(taken) - len(finite),
        )

    def release(self) -> None:
        """Remove every hook and drop every reference."""
        for _, handle in self._hooks.values():
            handle.remove()
        self.__init__()  # type: ignore[misc]


def _norms_by_owner(parameters: Iterable[torch.Tensor], scale: torch.Tensor | None) -> dict[int, torch.Tensor]:
    """The norm of each parameter's gradient, by the parameter's identity, less the scaler's factor."""
    owned = [(id(parameter), parameter.grad) for parameter in parameters]
    grads = {key: grad for key, grad in owned if grad is not None}
    if not grads:
        return {}
    norms = gradient_norms(list(grads.values()))
    if scale is not None:
        norms = [norm / scale.to(norm.device) for norm in norms]
    return dict(zip(grads, norms))


def gradient_norms(grads: list[torch.Tensor]) -> list[torch.Tensor]:
    """The L2 norm of each gradient, as tensors without dimensions on its device; no gradient is changed.

    Half types are summed in float32 (bfloat16, whose squares overflow even that, in float64 where the device has
    it); a sparse gradient's repeated indices are added up first.
    """
    norms: list[torch.Tensor | None] = [None] * len(grads)
    alike: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    with torch.no_grad():
        for index, grad in enumerate(grads):
            if type(grad) in (torch.Tensor, torch.nn.Parameter) and grad.layout is torch.strided:
                alike.setdefault((grad.dtype, grad.device), []).append(index)
            else:
                norms[index] = _norm_of_one(grad)
        for (dtype, device), indices in alike.items():
            taken = torch._foreach_norm([grads[index] for index in indices], 2, dtype=_wide(dtype, device))
            for index, norm in zip(indices, taken):
                norms[index] = norm
    return [norm for norm in norms if norm is not None]


def _root_of_squares(norms: list[torch.Tensor]) -> torch.Tensor:
    first = norms[0]
    if any(norm.device != first.device or norm.dtype != first.dtype for norm in norms):
        norms = [norm.to(first.device, _widest(first.device)) for norm in norms]
    total: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms), dtype=_widest(first.device))
    return total


def _norm_of_one(grad: torch.Tensor) -> torch.Tensor:
    if grad.is_sparse:
        grad = grad.coalesce().values()
    elif grad.layout is not torch.strided:
        grad = grad.values()
    norm: torch.Tensor = torch.linalg.vector_norm(grad, dtype=_wide(grad.dtype, grad.device))
    if hasattr(norm, "full_tensor"):  # a shard's: summed over its mesh
        norm = norm.full_tensor()
    return norm


def _wide(dtype: torch.dtype, device: torch.device) -> torch.dtype | None:
    if dtype is torch.bfloat16:
        return _widest(device)
    return torch.float32 if dtype is torch.float16 else None


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[torch.Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _leaves(roots: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors that a backward from `roots` would accumulate gradients into."""
    waiting = [root.grad_fn for root in roots if root.grad_fn is not None]
    seen = set(waiting)
    leaves = []
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return leaves
