"""Training loss and accuracy, from the criterion calls that a backward reached.

A hook on each criterion's result tells training from evaluation: it fires only if a backward gets there. Figures
stay on the device, and are fetched once an epoch.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from .criteria import Call, Criterion, Tally, tally
from .pairing import Pairing

_FOLD = 256  # figures that wait as separate tensors before they become one sum


class DeviceMean:
    """A weighted mean whose parts stay on their device until `take`.

    >>> mean = DeviceMean()
    >>> mean.add(torch.tensor(1.0), 1); mean.add(torch.tensor(4.0), 2)
    >>> mean.take()
    3.0
    """

    def __init__(self) -> None:
        self._sums: list[torch.Tensor] = []
        self._weights: list[torch.Tensor] = []
        self._whole_weight = 0

    def add(self, value: torch.Tensor, weight: torch.Tensor | int) -> None:
        """Count `value`, a mean over `weight` things."""
        value = value if value.dtype is torch.float64 else value.float()
        self.add_sum(value * weight, weight)

    def add_sum(self, total: torch.Tensor, weight: torch.Tensor | int) -> None:
        """Count a sum over `weight` things."""
        self._sums.append(total)
        if isinstance(weight, torch.Tensor):
            self._weights.append(weight)
        else:
            self._whole_weight += weight
        if len(self._sums) >= _FOLD:
            self._sums, self._weights = [_total(self._sums)], [_total(self._weights)] if self._weights else []

    def take(self) -> float | None:
        """Fetch the mean, and begin anew; None where nothing was counted."""
        weight = self._whole_weight + (float(_total(self._weights)) if self._weights else 0.0)
        total = float(_total(self._sums)) if self._sums else 0.0
        self.__init__()  # type: ignore[misc]
        return total / weight if weight else None


def _total(parts: list[torch.Tensor]) -> torch.Tensor:
    device = parts[0].device
    parts = [part if part.device == device else part.to(device) for part in parts]
    widest = torch.float32 if device.type == "mps" else torch.float64
    return torch.cat([part.reshape(1).to(widest) for part in parts]).sum()


class TrainingMetrics:
    """Collects an epoch's training loss and accuracy.

    `loss` and `accuracy` are fetched with `take_loss` and `take_accuracy`; `loss_fault` and `accuracy_fault` say,
    where one is missing, why. `pairing` is how the last training call paired output with target.
    """

    def __init__(self) -> None:
        self.pairing: Pairing | None = None
        self.criterion: dict[str, Any] | None = None
        self._learned: tuple[Any, ...] | None = None
        self._reached: list[Call] = []
        self._backwards: list[tuple[list[Call], list[Tally], torch.Tensor | None]] = []
        self._begin()

    def _begin(self) -> None:
        self._loss = DeviceMean()
        self._accuracy = DeviceMean()
        self._soft: list[torch.Tensor] = []
        self.loss_fault: str | None = None
        self.accuracy_fault: str | None = None

    # What happens in a step

    def criterion_called(self, criterion: Criterion, arguments: tuple[Any, ...], result: torch.Tensor) -> None:
        """Follow a call whose result a backward may reach."""
        if result.requires_grad:
            result.register_hook(functools.partial(self._reach, Call(criterion, arguments, result)))

    def _reach(self, call: Call, gradient: torch.Tensor) -> None:
        if call.reduction == "none":
            call.factor = gradient.detach()
        self._reached.append(call)

    def backward_begins(self) -> None:
        """Forget what `torch.autograd.grad` reached: the step has a backward of its own."""
        self._reached.clear()

    def backward_ended(self, roots: tuple[torch.Tensor, ...], scale: torch.Tensor | None, counts: bool) -> None:
        """Settle the calls that the backward from `roots` reached, unless it doesn't count."""
        calls = list(dict.fromkeys(self._reached))
        self._reached.clear()
        if counts:
            self._backwards.append((calls, [tally(call) for call in calls], _scalar(roots, scale)))

    def end_step(self) -> None:
        """Add the step's figures to the epoch's."""
        backwards, self._backwards = self._backwards, []
        if not backwards and self._reached:  # gradients from torch.autograd.grad
            calls = list(dict.fromkeys(self._reached))
            backwards = [(calls, [tally(call) for call in calls], None)]
        self._reached.clear()
        if backwards:
            self._add_loss(backwards)
            self._add_accuracy(backwards)

    def _add_loss(self, backwards: list[tuple[list[Call], list[Tally], torch.Tensor | None]]) -> None:
        calls = [call for reached, _, _ in backwards for call in reached]
        tallies = [tallied for _, found, _ in backwards for tallied in found]
        of_one_kind = len({_likeness(call) for call in calls}) == 1
        if of_one_kind and all(reached and _apart(reached) for reached, _, _ in backwards):
            for tallied in tallies:
                self._loss.add(tallied.value, tallied.targets)
            return
        scalars = [scalar for _, _, scalar in backwards if scalar is not None]
        if len(scalars) < len(backwards):
            self.loss_fault = "several losses were differentiated together, or one that is no scalar"
            return
        self._loss.add(functools.reduce(torch.add, scalars), tallies[0].targets if tallies else 1)

    def _add_accuracy(self, backwards: list[tuple[list[Call], list[Tally], torch.Tensor | None]]) -> None:
        for calls, tallies, _ in backwards:
            judged = [(call, tallied) for call, tallied in zip(calls, tallies) if tallied.correct is not None]
            if not calls:
                self.accuracy_fault = "the loss is no criterion of torch.nn.functional that has class targets"
            if len(judged) > 1 and not (_apart([call for call, _ in judged]) and _alike([call for call, _ in judged])):
                self.accuracy_fault = "several criterion calls with class targets fed one backward"
                judged = []
            for call, tallied in judged or list(zip(calls, tallies))[:1]:
                self._learn(call)
                self._add_judged(call, tallied)

    def _learn(self, call: Call) -> None:
        likeness = call.criterion, call.input.shape, call.target.shape
        if likeness != self._learned:
            self._learned = likeness
            self.pairing = Pairing.of(call)
            self.criterion = call.settings

    def _add_judged(self, call: Call, tallied: Tally) -> None:
        if tallied.correct is None:
            return
        if call.overwritten():
            self.accuracy_fault = "the outputs or targets were overwritten before the backward ended"
            return
        self._accuracy.add_sum(tallied.correct, tallied.targets)
        if isinstance(tallied.soft, torch.Tensor):
            self._soft.append(tallied.soft)
        elif tallied.soft:
            self.accuracy_fault = "the targets are probabilities, not classes"
        if len(self._soft) >= _FOLD:
            self._soft = [_total(self._soft)]

    # What the user hands over, and what comes out

    def take(self) -> tuple[float | None, float | None]:
        """Fetch the epoch's loss and accuracy from the device, once, and begin a new epoch."""
        self.end_step()  # micro-batches that no optimizer step has followed yet were trained on all the same
        loss = self._loss.take()
        accuracy = self._accuracy.take()
        if self._soft and float(_total(self._soft)) > 0:
            self.accuracy_fault = "the targets are probabilities, not classes"
        faults = self.loss_fault, self.accuracy_fault
        self._begin()
        self.loss_fault, self.accuracy_fault = faults
        return (None if faults[0] else loss), (None if faults[1] else accuracy)

    def release(self) -> None:
        """Drop every reference."""
        self.__init__()  # type: ignore[misc]


def _scalar(roots: tuple[torch.Tensor, ...], scale: torch.Tensor | None) -> torch.Tensor | None:
    """The value that `backward` was called on, less the gradient scaler's factor."""
    if len(roots) != 1 or roots[0].numel() != 1:
        return None
    value = roots[0].detach().reshape(())
    return value if scale is None else value / scale.to(value.device)


def _likeness(call: Call) -> tuple[str, int]:
    """Calls that are alike measure the same thing: one criterion, one number of classes."""
    classes = call.input.shape[1] if call.input.ndim > 1 and call.criterion.kind == "classes" else 0
    return call.criterion.name, classes


def _alike(calls: list[Call]) -> bool:
    return len({_likeness(call) for call in calls}) == 1


def _apart(calls: list[Call]) -> bool:
    """Whether several calls judge different targets: forwards joined into one backward, not two heads of one."""
    return len({(call.target.data_ptr(), call.target.shape) for call in calls}) == len(calls)
