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
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

MEANING = (
    "global L2 norm of the gradient that one training step applies: over the parameters its optimizers own, "
    "accumulated over micro-batches, averaged over data-parallel processes, unscaled, before clipping; "
    "mean over the epoch's steps"
)
_FOLD = 1024  # step norms that wait as separate tensors before they become one
_SHORT = 2**10  # elements that a CPU adds up in float32 at a relative error below 1e-6, whatever they are
_LONG = 2**14  # elements from which on float64 costs much, and rows of them cost little
_ROW = 2**9
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
    included: dict[int, torch.Tensor] = field(default_factory=dict)
    inside: list[torch.Tensor] = field(default_factory=list)
    skipped: set[int] = field(default_factory=set)
    found_inf: torch.Tensor | None = None


class GradientNorm:
    """Measures one gradient norm a training step, without making the device wait.

    Call `prepare` before a backward, `measure` after it, `include` when an optimizer steps (or `include_all` where
    there is none), `skip` when a gradient scaler skips an optimizer's step, `end_step` when the step is over, and
    `take` once an epoch. `release` removes every hook.
    `measured_at_step` says that some gradient was seen only when its optimizer stepped: it was set by hand.
    """

    def __init__(self) -> None:
        self._optimizers: dict[int, weakref.ref[torch.optim.Optimizer]] = {}
        self._hooks: dict[int, tuple[weakref.ref[torch.Tensor], RemovableHandle]] = {}
        self._trained: dict[int, weakref.ref[torch.Tensor]] = {}
        self._arrived: list[torch.Tensor] = []
        self._own_leaves: set[int] | None = None
        self._looked_around = False
        self._an_owner: weakref.ref[torch.optim.Optimizer] | None = None
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
            classes = {id(kind) for kind in _subclasses(torch.optim.Optimizer)}
            for optimizer in [item for item in gc.get_objects() if id(type(item)) in classes]:
                self.add_optimizer(optimizer)
        for optimizer in self.optimizers():
            for parameter in parameters_of(optimizer):
                self._hook(parameter)
        self._own_leaves = None if alone else set()
        self._arrived.clear()
        self.prepare_inner(roots)

    def prepare_inner(self, roots: Iterable[torch.Tensor]) -> None:
        """Do the same for a backward inside the one under way: reentrant checkpointing hides its leaves until then."""
        if self._own_leaves is None and self._owner() is not None:
            return
        leaves = _leaves(roots)
        parameters = [leaf for leaf in leaves if isinstance(leaf, torch.nn.Parameter)]
        for leaf in parameters or leaves:  # beside parameters, any other leaf is an input that wants its gradient
            self._hook(leaf)
            if self._own_leaves is not None:
                self._own_leaves.add(id(leaf))

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
        self._step.inside.extend(_norms_by_owner(parameters_of(optimizer), scale).values())

    def has_optimizer(self) -> bool:
        """Whether some optimizer owns something of what is trained."""
        if self._owner() is None:
            for optimizer in self.optimizers():
                if any(id(parameter) in self._trained for parameter in parameters_of(optimizer)):
                    self._an_owner = weakref.ref(optimizer)
        return self._owner() is not None

    def _owner(self) -> torch.optim.Optimizer | None:
        """An optimizer that is known to own something of what is trained."""
        return None if self._an_owner is None else self._an_owner()

    def include(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the gradients of `optimizer`'s parameters into the step, each parameter once.

        A gradient that no backward brought, set by hand, is measured now: it may have been clipped already.
        """
        step = self._step
        unmeasured = []
        for parameter in parameters_of(optimizer):
            if parameter.grad is None:
                continue
            norm = step.norms.get(id(parameter))
            if norm is not None:
                step.included[id(parameter)] = norm
            elif id(parameter) not in step.included:
                unmeasured.append(parameter)
        if unmeasured:
            self.measured_at_step = True
            step.included.update(_norms_by_owner(unmeasured, getattr(optimizer, "grad_scale", None)))
        found_inf = getattr(optimizer, "found_inf", None)
        if isinstance(found_inf, torch.Tensor):  # a fused optimizer, which skips the step in its own kernel
            step.found_inf = found_inf.detach().clone()

    def include_all(self) -> None:
        """Count every measured gradient into the step: a training without an optimizer."""
        self._step.included = dict(self._step.norms)

    def skip(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave the gradients of `optimizer`'s parameters out of the step: its gradient scaler skipped it."""
        self._step.skipped.update(id(parameter) for parameter in parameters_of(optimizer))

    @property
    def included(self) -> bool:
        """Whether the step in the making has a gradient that was applied."""
        return bool(self._step.included or self._step.inside)

    def complete(self) -> bool:
        """Whether all that was measured for the step is accounted for, so that no further optimizer is due."""
        step = self._step
        accounted = step.included.keys() | step.skipped if step.skipped else step.included.keys()
        return self.measured and step.norms.keys() <= accounted

    def end_step(self) -> bool:
        """Close the step; say whether it was one: it applied a gradient."""
        step, self._step = self._step, _Step()
        applied = [*step.included.values(), *step.inside]
        if not applied:
            self._skipped += bool(step.skipped)
            return False
        total = _root_of_squares(applied)
        if step.found_inf is not None:
            total = torch.where(step.found_inf.to(total.device) > 0, torch.full_like(total, _SKIPPED), total)
        self._totals.append(total.reshape(1))
        if len(self._totals) >= _FOLD:
            self._totals = [torch.cat([item.to(total.device) for item in self._totals])]
        return True

    # An epoch

    def take(self) -> NormSummary:
        """Fetch the epoch's norms from the device, once, and begin a new epoch."""
        totals, self._totals = self._totals, []
        skipped, self._skipped = self._skipped, 0
        norms = torch.cat([total.to(totals[0].device) for total in totals]).tolist() if totals else []
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
    it); a sparse gradient's repeated indices are added up first. A CPU adds up one float after the other, which
    loses a thousandth over ten million: all but short gradients are summed in float64 there, long ones in rows.
    """
    norms: list[torch.Tensor | None] = [None] * len(grads)
    alike: dict[tuple[torch.dtype, torch.device, torch.dtype | None], list[int]] = {}
    with torch.no_grad():
        for index, grad in enumerate(grads):
            if type(grad) not in (torch.Tensor, torch.nn.Parameter) or grad.layout is not torch.strided:
                norms[index] = _norm_of_one(grad)
                continue
            wide, length = _wide(grad.dtype, grad.device), grad.numel()
            if length > _SHORT and grad.device.type == "cpu":
                if length > _LONG:
                    norms[index] = _norm_in_rows(grad)
                    continue
                wide = None if grad.is_complex() else torch.float64
            alike.setdefault((grad.dtype, grad.device, wide), []).append(index)
        for (_, _, wide), indices in alike.items():
            taken = torch._foreach_norm([grads[index] for index in indices], 2, dtype=wide)
            for index, norm in zip(indices, taken):
                norms[index] = norm
    return [norm for norm in norms if norm is not None]


def _root_of_squares(norms: list[torch.Tensor]) -> torch.Tensor:
    device = norms[0].device
    alike: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for norm in norms:
        alike.setdefault((norm.dtype, norm.device), []).append(norm)
    parts = [torch.stack(group).to(device, _widest(device)) for group in alike.values()]
    total: torch.Tensor = torch.linalg.vector_norm(torch.cat(parts))
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


def _norm_in_rows(grad: torch.Tensor) -> torch.Tensor:
    flat = (torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad).reshape(-1)
    whole = flat.numel() // _ROW * _ROW
    wide = _wide(flat.dtype, flat.device)
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1, dtype=wide)
    rest = torch.linalg.vector_norm(flat[whole:], dtype=wide)
    norm: torch.Tensor = torch.linalg.vector_norm(torch.cat((rows, rest.reshape(1))), dtype=torch.float64)
    return norm


def _wide(dtype: torch.dtype, device: torch.device) -> torch.dtype | None:
    if dtype is torch.bfloat16:
        return _widest(device)
    return torch.float32 if dtype is torch.float16 else None


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _subclasses(kind: type) -> list[type]:
    """A class and all that is derived from it."""
    derived: list[type] = kind.__subclasses__()
    return [kind, *(inner for child in derived for inner in _subclasses(child))]


def parameters_of(optimizer: torch.optim.Optimizer) -> Iterable[torch.Tensor]:
    """Every parameter of every group, lazy ones that have no shape yet left out."""
    groups = getattr(optimizer, "param_groups", ())  # a wrapper that is an optimizer in name may have none
    return (parameter for group in groups for parameter in group["params"] if not is_lazy(parameter))


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
