"""What calls of a criterion say: loss a target, how many targets, and how many of them were predicted right.

A criterion's value is always taken as its `mean` reduction would give it, so that the reduction that a training
uses changes nothing in the figures.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch

from .criteria import Call, class_dimension


class Tally(NamedTuple):
    """What some calls say, each: tensors of shape `[calls]` on their device.

    `values` are the losses a target, `targets` how many targets there are, `correct` how many of them were predicted
    right, None where the kind has no accuracy, and `soft` how many are no classes, None where none can be. `even`
    says whether each target that counts has the same share in the loss; None where the criterion sees to that.
    """

    values: torch.Tensor
    targets: torch.Tensor
    correct: torch.Tensor | None
    soft: torch.Tensor | None
    even: torch.Tensor | None

    def of(self, index: int) -> Tally:
        """What one of the calls says."""
        return Tally(*(None if part is None else part[index : index + 1] for part in self))  # type: ignore[arg-type]


def likeness(call: Call) -> Hashable:
    """What calls have in common that are tallied together; of some a tally can take only one."""
    settings = tuple(id(value) if isinstance(value, torch.Tensor) else value for value in call.arguments)
    if call.reduction == "none" or (call.reduction == "sum" and call.argument("weight") is not None):
        return id(call)
    scores, target = call.input, call.target
    return call.criterion.name, settings, call.classes, scores.dtype, target.dtype, scores.device, target.device


def tally(calls: Sequence[Call], *, judge: bool = True) -> Tally:
    """Tally calls of one likeness; without `judge` not how many were predicted right, which is most of the work.

    With reduction `none`, a target whose result got no gradient (a masked one) is not counted. A call all of whose
    targets are ignored has the value NaN, a mean over nothing.
    """
    first = calls[0]
    lengths = [_number_of_targets(call) for call in calls]
    target = _joined([call.target for call in calls]) if first.has_accuracy and not first.soft else None
    counted = _counted(first, target)
    targets = numbers(lengths, first.result.device) if counted is None else _sums(counted, lengths)
    values = _values(calls, target, counted, targets)
    even = _even(first, counted)
    if target is None:
        return Tally(
            values, targets, torch.zeros_like(targets) if first.soft else None, targets if first.soft else None, even
        )
    if not judge:
        return Tally(values, targets, None, None, even)
    right, soft = _judged(calls, target)
    correct = _sums(right if counted is None else right & counted, lengths)
    return Tally(values, targets, correct, None if soft is None else _sums(soft, lengths), even)


def counted_in(call: Call) -> torch.Tensor | None:
    """Which targets of one call count, one after the other; None where all do, as of soft targets."""
    return _counted(call, call.target.reshape(-1) if call.has_accuracy and not call.soft else None)


def _number_of_targets(call: Call) -> int:
    """How many targets a call has, before any is left out."""
    if call.criterion.kind == "rows":
        return call.input.shape[call.criterion.rows] if call.input.ndim > call.criterion.rows else 1
    if call.criterion.kind == "classes":
        return call.input.numel() // max(1, call.classes)
    return call.input.numel()


def _counted(call: Call, target: torch.Tensor | None) -> torch.Tensor | None:
    """Which targets count, one after the other; None where all do."""
    counted = None
    if target is not None and call.criterion.kind == "classes":
        counted = target != call.argument("ignore_index", -100)
    if call.reduction == "none" and call.factor is not None and call.factor.shape == call.result.shape:
        entered = (call.factor != 0).reshape(-1)
        counted = entered if counted is None or counted.shape != entered.shape else counted & entered
    return counted


def _even(call: Call, counted: torch.Tensor | None) -> torch.Tensor | None:
    """Whether the targets of an unreduced call that count all got one gradient, as a mask gives them."""
    if call.reduction != "none" or call.factor is None or counted is None:
        return None
    factor = call.factor.reshape(-1)
    if factor.shape != counted.shape:
        return None
    least = torch.where(counted, factor, torch.inf).min()
    most = torch.where(counted, factor, -torch.inf).max()
    return (least >= most).reshape(1)


def _values(
    calls: Sequence[Call], target: torch.Tensor | None, counted: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """The loss a target of each call."""
    first = calls[0]
    if first.reduction == "mean":
        return _joined([call.result for call in calls])
    if first.reduction == "sum":
        totals = wide(_joined([call.result for call in calls]))
    else:
        result = wide(first.result.reshape(-1))
        totals = (result if counted is None else torch.where(counted, result, 0)).sum().reshape(1)
    weight = first.argument("weight")
    if weight is not None and target is not None and counted is not None and first.criterion.kind == "classes":
        indices = target.clamp(0, weight.numel() - 1)  # ignored targets may lie outside
        targets = (weight.detach()[indices] * counted).sum()
    return torch.div(totals, targets)


def _judged(calls: Sequence[Call], target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Which targets were predicted right, and which are no classes; None where they all are."""
    first = calls[0]
    if first.criterion.kind == "classes":
        return _predicted(calls) == target, None
    positive = target > 0.5
    return (_joined([call.input for call in calls]) > first.criterion.threshold) == positive, target != positive


def _predicted(calls: Sequence[Call]) -> torch.Tensor:
    if len(calls) == 1:
        scores = calls[0].input
        return scores.argmax(class_dimension(scores.ndim)).reshape(-1)
    rows = [call.input.movedim(class_dimension(call.input.ndim), -1).reshape(-1, call.classes) for call in calls]
    return torch.cat(rows).argmax(1)


def numbers(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """Python's numbers on a device, which isn't waited for: filled in rather than copied."""
    if len(set(values)) == 1:
        return torch.full((len(values),), values[0], device=device)
    return torch.cat([torch.full((1,), value, device=device) for value in values])


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The elements of all of them, one after the other."""
    return tensors[0].reshape(-1) if len(tensors) == 1 else torch.cat([tensor.reshape(-1) for tensor in tensors])


def _sums(counted: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """How many count in each stretch."""
    if len(set(lengths)) == 1:
        return counted.view(len(lengths), -1).sum(1)
    return torch.stack([stretch.sum() for stretch in counted.split(list(lengths))])


def wide(values: torch.Tensor) -> torch.Tensor:
    """In float32, or in float64 where they are that."""
    return values if values.dtype is torch.float64 else values.float()
