"""What a batch came to, in the form that metrics take: outputs, and the targets beside them.

One form for the training's criterion calls and for an evaluation's batches, so that a metric's two values compare.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .criteria import Call
from .pairing import Pairing, PairingError, are_log_probs, are_probabilities
from .tally import counted_in

_SOFT = "the targets are probabilities, not classes"


class Outcome(NamedTuple):
    """Tensors of our own: nobody minds what a metric does to them.

    Classes: `outputs` are their probabilities, `[N, C]` or `[N, C, ...]`, `targets` are indices without the `C`.
    Binary: the probability of each element, and 0 or 1. Anything else: as the criterion was given them. `counted` says
    which targets count, one after the other, None where all do; `soft` which targets of a binary criterion are neither
    0 nor 1.
    """

    outputs: torch.Tensor
    targets: torch.Tensor
    counted: torch.Tensor | None = None
    soft: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        return sum(part.nbytes for part in self if part is not None)

    def left(self, count: int) -> Outcome | None:
        """Without the targets that don't count, one after the other; the same where all do, None where none does.

        `count` is how many do: known before, the device isn't waited for.
        """
        if self.counted is None or count == len(self.counted):
            return self._replace(counted=None) if self.targets.numel() else None
        if not count:
            return None
        chosen = self.counted.to(torch.uint8).argsort(descending=True, stable=True)[:count]
        outputs = self.outputs
        if outputs.ndim == self.targets.ndim + 1:
            outputs = outputs.movedim(1, -1).reshape(len(self.counted), -1)
        else:
            outputs = outputs.reshape(-1)
        soft = None if self.soft is None else self.soft.reshape(-1)[chosen]
        return Outcome(outputs[chosen], self.targets.reshape(-1)[chosen], None, soft)


def of_call(call: Call) -> Outcome:
    """What a criterion call was given. Raises `PairingError` where it has no outputs and targets of these kinds."""
    kind, function = call.criterion.kind, call.criterion.function
    if call.criterion.positions[:2] != ("input", "target"):
        raise PairingError(f"{function} has no outputs with a target each")
    if call.soft:
        raise PairingError(_SOFT)
    outputs, targets, counted = call.input, call.target, counted_in(call)
    if kind == "classes":
        if outputs.ndim == 1:
            outputs, targets = outputs[None], targets.reshape(1)
        return Outcome(_widened(outputs).softmax(1), targets.clone(), counted)
    if call.reduction == "none" and call.factor is not None and (counted is None or len(counted) != targets.numel()):
        raise PairingError(f"which targets of {function} count isn't known with this shape and reduction='none'")
    return _of_numbers(outputs, targets, counted, kind, call.criterion.threshold)


def of_output(output: torch.Tensor, target: torch.Tensor, pairing: Pairing) -> Outcome:
    """What a model's output is beside a set's target, in the shape in which the training's criterion was given them.

    Raises `PairingError` where they can't be paired.
    """
    if pairing.targets_changed:
        raise PairingError("the loop's targets are not those that its loader yields: it changes them on the way")
    dimensions, target = pairing.target_dimensions, target.to(output.device)
    if pairing.kind == "classes":
        if pairing.soft:
            raise PairingError(_SOFT)
        scores = _widened(pairing.with_classes_last(output, target))
        if pairing.function != "nll_loss" or not are_probabilities(scores) or are_log_probs(scores):
            scores = scores.softmax(-1)
        shape = _shape(scores.shape[:-1], dimensions)
        scores, target = scores.reshape(*shape, pairing.classes), target.reshape(shape)
        return Outcome(scores.movedim(-1, 1).clone(), target.clone(), (target != pairing.ignore_index).reshape(-1))
    if pairing.kind != "rows":
        if output.numel() != target.numel():
            raise PairingError(f"an output of shape {tuple(output.shape)} for a target of shape {tuple(target.shape)}")
        likely = output.shape if output.ndim == dimensions else target.shape
        output, target = output.reshape(_shape(likely, dimensions)), target.reshape(_shape(likely, dimensions))
    elif target.ndim < dimensions:
        output, target = output[None], target[None]
    return _of_numbers(output, target, None, pairing.kind, pairing.threshold)


def _of_numbers(
    outputs: torch.Tensor, targets: torch.Tensor, counted: torch.Tensor | None, kind: str, threshold: float
) -> Outcome:
    """Of a batch of logits that all lie between 0 and 1, no metric can tell that they are none: give probabilities."""
    outputs = _widened(outputs)
    if outputs.ndim == 0:
        outputs, targets = outputs.reshape(1), targets.reshape(1)
    if kind != "binary":
        return Outcome(outputs.clone(), _widened(targets).clone(), counted)
    positive = targets > 0.5
    probabilities = outputs.clone() if threshold else outputs.sigmoid()
    return Outcome(probabilities, positive.long(), counted, targets != positive)


def _shape(shape: torch.Size, dimensions: int) -> tuple[int, ...]:
    """A set's own shape as the training's criterion had it: flattened, or with a batch dimension."""
    if dimensions <= 1:
        return (shape.numel(),)
    return (1, *shape) if len(shape) == dimensions - 1 else tuple(shape)


def _widened(values: torch.Tensor) -> torch.Tensor:
    """Half types in float32, which gives every value as it is."""
    return values.float() if values.is_floating_point() and values.element_size() < 4 else values
