"""Training loss and accuracy, from the criterion calls that a backward reached.

A hook on each criterion's result tells training from evaluation: it fires only if a backward gets there. Figures
stay on the device, and are fetched once an epoch.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from .criteria import Call, Criterion, Tally, tally
from .pairing import Pairing
from .reaching import ReachHooks
from .target_check import TargetCheck

_FOLD = 256  # figures that wait as separate tensors before they become one sum


class DeviceMean:
    """A weighted mean whose parts stay on their device until `take`.

    >>> mean = DeviceMean()
    >>> mean.add(torch.tensor(1.0), 1); mean.add(torch.tensor(4.0), 2)
    >>> mean.take()
    3.0
    """

    def __init__(self) -> None:
        self._means: list[tuple[torch.Tensor, torch.Tensor | int]] = []
        self._sums: list[torch.Tensor] = []
        self._weights: list[torch.Tensor] = []
        self._whole_weight = 0

    def add(self, value: torch.Tensor, weight: torch.Tensor | int) -> None:
        """Count `value`, a mean over `weight` things; over nothing, where a mean is NaN, it weighs nothing."""
        self._means.append((value, weight))
        if len(self._means) >= _FOLD:
            self._fold()

    def add_sum(self, total: torch.Tensor, weight: torch.Tensor | int) -> None:
        """Count a sum over `weight` things."""
        self._sums.append(total)
        if isinstance(weight, torch.Tensor):
            self._weights.append(weight)
        else:
            self._whole_weight += weight
        if len(self._sums) >= _FOLD:
            self._fold()

    def _fold(self) -> None:
        weighed: dict[int, list[torch.Tensor]] = {}  # by numbers of Python's, which are never sent to the device
        for value, weight in self._means:
            if isinstance(weight, int):
                weighed.setdefault(weight, []).append(value)
        for weight, values in weighed.items():
            if weight > 0:
                self._sums.append(_total(values) * weight)
                self._whole_weight += weight * len(values)
        pairs = [(value, weight) for value, weight in self._means if isinstance(weight, torch.Tensor)]
        if pairs:
            joined = _joined([value for value, _ in pairs])
            weights = _joined([weight for _, weight in pairs], joined.device)
            self._sums.append(torch.where(weights > 0, joined * weights, 0).sum())
            self._weights.append(weights.sum())
        self._means = []
        self._sums = [_total(self._sums)] if self._sums else []
        self._weights = [_total(self._weights)] if self._weights else []

    def take(self) -> float | None:
        """Fetch the mean, and begin anew; None where nothing was counted."""
        self._fold()
        weight = self._whole_weight + sum(map(float, self._weights))
        total = sum(map(float, self._sums))
        self.__init__()  # type: ignore[misc]
        return total / weight if weight else None


def _joined(parts: list[torch.Tensor], device: torch.device | None = None) -> torch.Tensor:
    """Single numbers as one tensor of the widest type, on their device."""
    device = device or parts[0].device
    widest = torch.float32 if device.type == "mps" else torch.float64
    return torch.cat([part.reshape(1).to(device, widest) for part in parts])


def _total(parts: list[torch.Tensor]) -> torch.Tensor:
    return _joined(parts).sum()


class _Settled(NamedTuple):
    """What stays of a call when it is settled, free of everything of a batch's size.

    Calls of one `likeness` measure the same thing: one criterion, one number of classes. `output` and `target` say
    where in memory the call's outputs and targets lay.
    """

    tally: Tally
    likeness: tuple[str, int]
    output: tuple[int, torch.Size]
    target: tuple[int, torch.Size]


@dataclass
class _Backward:
    """What one backward says: the calls it reached, and the value that it was called on, if that is one number."""

    calls: dict[Call, _Settled]
    scalar: torch.Tensor | None

    @property
    def joined(self) -> bool:
        """Whether it reached calls that have outputs and targets of their own, each.

        Forwards that are joined into one backward have; two heads judged by one target, or one output judged by a
        mixture of two, haven't.
        """
        return bool(self.calls) and _apart(list(self.calls.values()))

    @property
    def judged(self) -> list[Call] | None:
        """The calls from which accuracy follows; None where that isn't clear."""
        judged = [call for call, settled in self.calls.items() if settled.tally.correct is not None]
        if len(judged) < 2 or (self.joined and _alike([self.calls[call] for call in judged])):
            return judged
        return None


class TrainingMetrics:
    """Collects an epoch's training loss and accuracy.

    Both are fetched with `take`; `loss_fault` and `accuracy_fault` say, where one is missing, why. `pairing` is how
    the last training call paired output with target.
    """

    def __init__(self) -> None:
        self.pairing: Pairing | None = None
        self.criterion: dict[str, Any] | None = None
        self._learned: tuple[Any, ...] | None = None
        self._results = ReachHooks()
        self._target_check = TargetCheck()
        self._reached: dict[Call, None] = {}
        self._in_backward = False
        self._any_backward = False
        self._differentiated: list[_Backward] = []
        self._backwards: list[_Backward] = []
        self._begin()

    def _begin(self) -> None:
        self._loss = DeviceMean()
        self._accuracy = DeviceMean()
        self._soft: list[torch.Tensor] = []
        self.loss_fault: str | None = None
        self.accuracy_fault: str | None = None

    # What happens in a step

    def batch_yielded(self, batch: Any) -> None:
        """A loader gave the training a batch."""
        self._target_check.batch_yielded(batch)

    def criterion_called(self, criterion: Criterion, arguments: tuple[Any, ...], result: torch.Tensor) -> None:
        """Follow a call whose result a backward may reach."""
        if not self._in_backward:
            self.settle_differentiated()
        if result.requires_grad:
            self._results.add(result, functools.partial(self._reach, Call(criterion, arguments, result)))

    def _reach(self, call: Call, gradient: torch.Tensor) -> None:
        if call.reduction == "none":
            call.factor = gradient.detach()
        self._reached[call] = None

    def backward_begins(self) -> None:
        """Forget what `torch.autograd.grad` reached: the step has a backward of its own."""
        self._reached.clear()
        self._differentiated.clear()
        self._in_backward = True

    def backward_ended(self, roots: tuple[torch.Tensor, ...], scale: torch.Tensor | None, counts: bool) -> None:
        """Settle the calls that the backward from `roots` reached, unless it doesn't count."""
        self._results.check()
        self._in_backward = False
        self._any_backward |= counts
        if counts:
            self._backwards.append(self._settle(_scalar(roots, scale)))
        self._reached.clear()

    def settle_differentiated(self) -> None:
        """Settle what `torch.autograd.grad` reached: its gradients may be the step's, set by hand."""
        self._results.check()
        if self._reached and not self._backwards:
            self._differentiated.append(self._settle(None))
        self._reached.clear()

    def _settle(self, scalar: torch.Tensor | None) -> _Backward:
        fresh = [call for call in self._reached if call.settled is None]
        for call in fresh:
            if call.overwritten():
                self.accuracy_fault = "the outputs or targets were overwritten before the backward ended"
            call.settled = _settled(call)
        backward = _Backward({call: call.settled for call in self._reached}, scalar)
        judged = backward.judged
        chosen = list(self._reached) if judged == [] else judged or []  # of several heads, none is the model's output
        if chosen and chosen[0] in fresh:
            self._learn(chosen[0])
            self._target_check.call_reached(chosen[0])
        for call in fresh:
            call.release()
        return backward

    def _learn(self, call: Call) -> None:
        likeness = call.criterion, call.input.shape, call.target.shape
        if likeness != self._learned:
            self._learned = likeness
            self.pairing = Pairing.of(call)
            self.criterion = call.settings

    def end_step(self) -> None:
        """Add the step's figures to the epoch's."""
        self.settle_differentiated()
        backwards = self._backwards or self._differentiated
        self._backwards, self._differentiated = [], []
        if backwards:
            self._add_loss(backwards)
            self._add_accuracy(backwards)

    def _add_loss(self, backwards: list[_Backward]) -> None:
        calls = {call: settled for backward in backwards for call, settled in backward.calls.items()}
        if all(backward.joined for backward in backwards) and _alike(list(calls.values())):
            for settled in calls.values():
                self._loss.add(settled.tally.value, settled.tally.targets)
            return
        scalars = [backward.scalar for backward in backwards if backward.scalar is not None]
        if len(scalars) < len(backwards):
            self.loss_fault = "several losses were differentiated together, or one that is no scalar"
            return
        firsts = [next(iter(backward.calls.values())).tally.targets for backward in backwards if backward.calls]
        self._loss.add(functools.reduce(torch.add, scalars), functools.reduce(operator.add, firsts) if firsts else 1)

    def _add_accuracy(self, backwards: list[_Backward]) -> None:
        if not any(backward.calls for backward in backwards):
            self.accuracy_fault = "the loss is no criterion of torch.nn.functional that has class targets"
        judged: dict[Call, _Settled] = {}
        for backward in backwards:
            if backward.judged is None:
                self.accuracy_fault = "several criterion calls with class targets fed one backward"
                return
            judged |= {call: backward.calls[call] for call in backward.judged}
        for settled in judged.values():
            self._add_judged(settled.tally)

    def _add_judged(self, tallied: Tally) -> None:
        assert tallied.correct is not None
        self._accuracy.add_sum(tallied.correct, tallied.targets)
        if isinstance(tallied.soft, torch.Tensor):
            self._soft.append(tallied.soft)
        elif tallied.soft:
            self.accuracy_fault = "the targets are probabilities, not classes"
        if len(self._soft) >= _FOLD:
            self._soft = [_total(self._soft)]

    # What comes out

    def take(self) -> tuple[float | None, float | None]:
        """Fetch the epoch's loss and accuracy from the device, once, and begin a new epoch."""
        if self._any_backward:  # then `torch.autograd.grad` after the last step was no training
            self._reached.clear()
            self._differentiated.clear()
        self._any_backward = False
        self.end_step()  # micro-batches that no optimizer step has followed yet were trained on all the same
        loss = self._loss.take()
        accuracy = self._accuracy.take()
        if self._soft and float(_total(self._soft)) > 0:
            self.accuracy_fault = "the targets are probabilities, not classes"
        if self.pairing is not None and self._target_check.changed():
            self.pairing = replace(self.pairing, targets_changed=True)
        faults = self.loss_fault, self.accuracy_fault
        self._begin()
        self.loss_fault, self.accuracy_fault = faults
        return (None if faults[0] else loss), (None if faults[1] else accuracy)

    def release(self) -> None:
        """Remove every hook and drop every reference."""
        self._results.remove()
        self.__init__()  # type: ignore[misc]


def _scalar(roots: tuple[torch.Tensor, ...], scale: torch.Tensor | None) -> torch.Tensor | None:
    """The value that `backward` was called on, less the gradient scaler's factor."""
    if len(roots) != 1 or roots[0].numel() != 1:
        return None
    value = roots[0].detach().reshape(())
    value = value if value.dtype is torch.float64 else value.float()
    return value.clone() if scale is None else value / scale.to(value.device)


def _settled(call: Call) -> _Settled:
    scores, target = call.input, call.target
    classes = scores.shape[1] if scores.ndim > 1 and call.criterion.kind == "classes" else 0
    return _Settled(
        tally(call),
        (call.criterion.name, classes),
        (scores.data_ptr(), scores.shape),
        (target.data_ptr(), target.shape),
    )


def _alike(calls: list[_Settled]) -> bool:
    return len({call.likeness for call in calls}) == 1


def _apart(calls: list[_Settled]) -> bool:
    return len({call.output for call in calls}) == len({call.target for call in calls}) == len(calls)
