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
    Binary: the probability of each element, and 0 or 1. Anything else: as the criterion was given them. Targets that
    don't count are left out; the others stand one after the other then. `soft` says whether one of a binary
    criterion's targets was neither 0 nor 1.
    """

    outputs: torch.Tensor
    targets: torch.Tensor
    soft: torch.Tensor | None = None


def of_call(call: Call) -> Outcome | None:
    """What a criterion call was given; None where no target of it counts.

    Raises `PairingError` where it has no outputs and targets of these kinds.
    """
    kind, function = call.criterion.kind, call.criterion.function
    if call.criterion.positions[:2] != ("input", "target"):
        raise PairingError(f"{function} has no outputs with a target each")
    if call.soft:
        raise PairingError(_SOFT)
    outputs, targets, counted = call.input, call.target, counted_in(call)
    if kind == "classes":
        if outputs.ndim == 1:
            outputs, targets = outputs[None], targets.reshape(1)
        return _of_classes(_widened(outputs).softmax(1), targets, counted)
    if counted is None and call.reduction == "none" and call.factor is not None:
        raise PairingError(f"which targets of {function} count isn't known with this shape and reduction='none'")
    if counted is not None and not bool(counted.all()):
        outputs, targets = outputs.reshape(len(counted), -1)[counted], targets.reshape(len(counted), -1)[counted]
        outputs, targets = (part.squeeze(1) if part.shape[1] == 1 else part for part in (outputs, targets))
    return _of_numbers(outputs, targets, kind, call.criterion.threshold) if targets.numel() else None


def of_output(output: torch.Tensor, target: torch.Tensor, pairing: Pairing) -> Outcome | None:
    """What a model's output is beside a set's target, in the shape in which the training's criterion was given them.

    Raises `PairingError` where they can't be paired. None where no target counts.
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
        return _of_classes(scores.movedim(-1, 1), target, (target != pairing.ignore_index).reshape(-1))
    if pairing.kind != "rows":
        if output.numel() != target.numel():
            raise PairingError(f"an output of shape {tuple(output.shape)} for a target of shape {tuple(target.shape)}")
        likely = output.shape if output.ndim == dimensions else target.shape
        output, target = output.reshape(_shape(likely, dimensions)), target.reshape(_shape(likely, dimensions))
    elif target.ndim < dimensions:
        output, target = output[None], target[None]
    return _of_numbers(output, target, pairing.kind, pairing.threshold)


def _of_classes(probabilities: torch.Tensor, targets: torch.Tensor, counted: torch.Tensor | None) -> Outcome | None:
    """Of `[N, C, ...]`, those whose targets count."""
    if counted is None or bool(counted.all()):
        return Outcome(probabilities, targets.clone()) if targets.numel() else None
    rows = probabilities.movedim(1, -1).reshape(len(counted), -1)[counted]
    return Outcome(rows, targets.reshape(-1)[counted]) if len(rows) else None


def _of_numbers(outputs: torch.Tensor, targets: torch.Tensor, kind: str, threshold: float) -> Outcome:
    """Of a batch of logits that all lie between 0 and 1, no metric can tell that they are none: give probabilities."""
    outputs = _widened(outputs)
    if outputs.ndim == 0:
        outputs, targets = outputs.reshape(1), targets.reshape(1)
    if kind != "binary":
        return Outcome(outputs.clone(), _widened(targets).clone())
    positive = targets > 0.5
    return Outcome(outputs.clone() if threshold else outputs.sigmoid(), positive.long(), (targets != positive).any())


def _shape(shape: torch.Size, dimensions: int) -> tuple[int, ...]:
    """A set's own shape as the training's criterion had it: flattened, or with a batch dimension."""
    if dimensions <= 1:
        return (shape.numel(),)
    return (1, *shape) if len(shape) == dimensions - 1 else tuple(shape)


def _widened(values: torch.Tensor) -> torch.Tensor:
    """Half types in float32, which gives every value as it is."""
    return values.float() if values.is_floating_point() and values.element_size() < 4 else values
