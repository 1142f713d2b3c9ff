"""The gradient norm: read when a backward has ended, summed over the stepping optimizers' parameters.

When a backward is over (and with it the reduction over data-parallel processes) the gradients of all that is trained
are read, and stay on the device. Which of them make up the step is decided when optimizers step: clipping that
happens in between changes nothing.

References: the sum over all parameters is the global norm of Pascanu, Mikolov and Bengio, "On the difficulty of
training recurrent neural networks" (2013), which `torch.nn.utils.clip_grad_norm_` computes too.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch

from .figures import SKIPPED, Norms
from .gradients import GradientReader, Gradients, global_norm, widest
from .trained_parameters import parameters_of

MEANING = (
    "global L2 norm of the gradient that one training step applies: over the parameters its optimizers own, "
    "accumulated over micro-batches, averaged over data-parallel processes, unscaled, before clipping; "
    "mean over the epoch's steps"
)
_FOLD = 64  # steps whose norms wait to be summed together
_LARGE = 2**12  # numbers from which on a step's are summed at once
_GRAD = operator.attrgetter("grad")
_NONE = id(None)


@dataclass(slots=True)
class _Step:
    """A step in the making: what was read, and the parts of it that are applied.

    `whole` says that all of `read` is applied, `applied` names the parameters otherwise. `others` are norms of what
    wasn't read then: gradients set by hand, those of the parameters in `late`, and those `used_inside` a backward.
    """

    read: Gradients | None = None
    whole: bool = False
    applied: set[int] = field(default_factory=set)
    late: set[int] = field(default_factory=set)
    used_inside: set[int] = field(default_factory=set)
    others: list[torch.Tensor] = field(default_factory=list)
    other_shards: list[torch.Tensor] = field(default_factory=list)
    skipped: set[int] = field(default_factory=set)
    found_inf: torch.Tensor | None = None

    @property
    def norms(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """What the norm of the applied gradient is the root of squares of; apart, this process's shards of it."""
        if self.read is None or not (self.whole or self.applied):
            return self.others, self.other_shards
        keys = None if self.whole else self.applied
        return self.read.norms(keys) + self.others, self.read.shards(keys) + self.other_shards

    def add(self, read: Gradients) -> None:
        """Count what was read by itself."""
        self.others += read.norms()
        self.other_shards += read.shards()


class GradientNorm:
    """Measures one gradient norm a training step, without making the device wait.

    Call `measure` after a backward, `include` when an optimizer steps (or `include_all` where there is none), `skip`
    when a gradient scaler skips an optimizer's step, `end_step` when the step is over, and `take` once an epoch.
    `measured_at_step` says that some gradient was seen only when its optimizer stepped: it was set by hand.
    """

    def __init__(self) -> None:
        self._reader = GradientReader()
        self._step = _Step()
        self._waiting: list[torch.Tensor] = []
        self._totals: list[torch.Tensor] = []
        self._sharded: list[torch.Tensor] = []
        self._skipped = 0
        self.measured_at_step = False

    # One step

    @property
    def measured(self) -> bool:
        """Whether a backward has brought gradients for the step in the making."""
        return self._step.read is not None

    @property
    def used_inside(self) -> set[int]:
        """The parameters whose gradients an optimizer has used while the backward went on."""
        return self._step.used_inside

    def measure(self, parameters: Sequence[torch.Tensor], scale: torch.Tensor | None = None) -> None:
        """Read the gradients of `parameters`, all that are trained, after a backward.

        `scale` is the factor by which a gradient scaler multiplied the loss; it is taken out.
        """
        self._step.read = self._reader.read(parameters, scale)

    def measure_inside(self, optimizer: torch.optim.Optimizer, scale: torch.Tensor | None = None) -> None:
        """Read the gradients that `optimizer` is about to use while the backward goes on."""
        self._step.used_inside.update(map(id, parameters_of(optimizer)))
        self._step.add(GradientReader().read(parameters_of(optimizer), scale))

    def include(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the gradients of `optimizer`'s parameters into the step, each parameter once.

        A gradient that no backward brought, set by hand, is read now: it may have been clipped already.
        """
        step = self._step
        parameters = parameters_of(optimizer)
        keys = set(map(id, parameters))
        if _NONE in map(id, map(_GRAD, parameters)):
            keys = {id(parameter) for parameter in parameters if parameter.grad is not None}
        known: Collection[int] = () if step.read is None else step.read.keys
        if keys == known:
            step.whole = True
        else:
            step.applied |= keys.intersection(known)
            self._include_late(keys.difference(known, step.late), optimizer)
        found_inf = getattr(optimizer, "found_inf", None)
        if isinstance(found_inf, torch.Tensor):  # a fused optimizer, which skips the step in its own kernel
            step.found_inf = found_inf.detach().clone()

    def _include_late(self, keys: set[int], optimizer: torch.optim.Optimizer) -> None:
        if keys:
            self.measured_at_step = True
            self._step.late |= keys
            parameters = [parameter for parameter in parameters_of(optimizer) if id(parameter) in keys]
            self._step.add(GradientReader().read(parameters, getattr(optimizer, "grad_scale", None)))

    def include_all(self) -> None:
        """Count every gradient that was read into the step: a training without an optimizer."""
        self._step.whole = self.measured

    def skip(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave the gradients of `optimizer`'s parameters out of the step: its gradient scaler skipped it."""
        self._step.skipped.update(map(id, parameters_of(optimizer)))

    @property
    def included(self) -> bool:
        """Whether the step in the making has a gradient that was applied."""
        step = self._step
        return step.whole or bool(step.applied or step.others or step.other_shards)

    def complete(self) -> bool:
        """Whether all that was read for the step is accounted for, so that no further optimizer is due."""
        step = self._step
        return step.read is not None and (step.whole or step.applied | step.skipped >= step.read.keys)

    def end_step(self) -> bool:
        """Close the step; say whether it was one: it applied a gradient."""
        step, self._step = self._step, _Step()
        norms, shards = step.norms
        if not norms and not shards:
            self._skipped += bool(step.skipped)
            return False
        if shards:
            self._end_sharded(norms, shards, step.found_inf)
        elif len(norms) == 1 and step.found_inf is None and norms[0].ndim == 1 and norms[0].numel() < _LARGE:
            self._waiting.append(norms[0])
        else:
            total = global_norm(norms)
            self._totals.append(_unless_skipped(total, step.found_inf).reshape(1))
        if len(self._waiting) + len(self._totals) >= _FOLD:
            self._fold()
        return True

    def _end_sharded(
        self, norms: list[torch.Tensor], shards: list[torch.Tensor], found_inf: torch.Tensor | None
    ) -> None:
        """Keep the norms of what is whole and of the shards apart: other processes have the rest of these."""
        own = global_norm(shards)
        whole = _unless_skipped(global_norm(norms).to(own) if norms else torch.zeros_like(own), found_inf)
        self._sharded.append(torch.stack([whole, own]).reshape(1, 2))
        if len(self._sharded) >= _FOLD:
            self._sharded = [torch.cat(self._sharded)]

    def forget_steps(self) -> None:
        """Take back the epoch's steps, but for those that were skipped."""
        self._waiting, self._totals, self._sharded = [], [], []

    def _fold(self) -> None:
        """Make the norms of the steps that wait, and one tensor of all norms so far."""
        self._totals = self._folded()
        self._waiting = []

    def _folded(self) -> list[torch.Tensor]:
        alike: dict[tuple[torch.Size, torch.dtype, torch.device], list[torch.Tensor]] = {}
        for norms in self._waiting:
            alike.setdefault((norms.shape, norms.dtype, norms.device), []).append(norms)
        totals = self._totals + [
            torch.linalg.vector_norm(torch.stack(steps), dim=1, dtype=widest(device))
            for (_, _, device), steps in alike.items()
        ]
        return [torch.cat([total.to(totals[0].device) for total in totals])] if totals else []

    # An epoch

    def mean_so_far(self) -> torch.Tensor | None:
        """The mean over the finite steps so far, where it is, worked out beside what is counted; NaN for none.

        None where there is no step, or where norms are shards, which other processes add up too.
        """
        if self._sharded or not all(type(norms) is torch.Tensor for norms in self._waiting + self._totals):
            return None
        totals = self._folded()
        if not totals:
            return None
        finite = (totals[0] < float("inf")) & (totals[0] != SKIPPED)
        return torch.where(finite, totals[0], 0).sum() / finite.sum()

    def take(self) -> Norms:
        """Fetch the epoch's norms from the device, once, and begin a new epoch."""
        self._fold()
        totals, self._totals = self._totals, []
        sharded, self._sharded = self._sharded, []
        skipped, self._skipped = self._skipped, 0
        return Norms(
            totals[0].tolist() if totals else [],
            [(norm, shards) for norm, shards in torch.cat(sharded).tolist()] if sharded else [],
            skipped,
        )

    def release(self) -> None:
        """Drop every reference."""
        self.__init__()  # type: ignore[misc]


def _unless_skipped(norm: torch.Tensor, found_inf: torch.Tensor | None) -> torch.Tensor:
    """The norm; where a fused optimizer found it infinite and skipped the step, what stands for that."""
    if found_inf is None:
        return norm
    return torch.where(found_inf.to(norm.device) > 0, torch.full_like(norm, SKIPPED), norm)
