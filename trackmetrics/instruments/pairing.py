"""How a model's output pairs with its target: as the observed training calls did.

Learned from one criterion call, applied to whole outputs in an evaluation and in the final inference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .criteria import Call, class_dimension
from .discovery import unwrapped


class PairingError(Exception):
    """Output and target that the observed training gives no way to pair."""


@dataclass(frozen=True)
class Pairing:
    """What one training call says about outputs and targets.

    `kind`, `function` and `threshold` are its criterion's; `classes` how many classes it scored, and
    `classes_last` whether they lay next to each other in memory, as a model's output has them before it is
    transposed for the criterion; `targets` how many targets it had, in `target_dimensions` dimensions.
    `targets_changed` says that the loop makes others of those that its loader yields; `given_others` are modules, by
    identity, for which it does so with inputs.
    """

    kind: str
    function: str
    threshold: float
    ignore_index: int
    classes: int
    classes_last: bool
    targets: int
    target_dimensions: int
    soft: bool
    given_others: frozenset[int] = frozenset()
    targets_changed: bool = False

    @staticmethod
    def of(call: Call) -> Pairing:
        """Learn from a training call."""
        dimensions = len(call.strides)
        has_classes = call.criterion.kind == "classes"
        return Pairing(
            kind=call.criterion.kind,
            function=call.criterion.function,
            threshold=call.criterion.threshold,
            ignore_index=call.argument("ignore_index", -100),
            classes=call.classes,
            classes_last=has_classes and call.strides[class_dimension(dimensions)] == 1,
            targets=call.target_at[1].numel(),
            target_dimensions=len(call.target_at[1]),
            soft=call.soft,
        )

    @property
    def has_accuracy(self) -> bool:
        """Whether this kind of training has an accuracy at all: regression has none."""
        return self.kind in ("classes", "binary")

    def check_inputs(self, model: torch.nn.Module) -> None:
        """Raise `PairingError` where a set's inputs, as they are, aren't what a model is trained on."""
        if not self.given_others.isdisjoint((id(model), id(unwrapped(model)))):
            raise PairingError("the loop's inputs are not those that its loader yields: it changes them on the way")

    def judge(self, output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Count the targets predicted right, and the targets that count, as tensors on the output's device.

        Raises `PairingError` where the shapes allow no pairing.
        """
        if self.targets_changed:
            raise PairingError("the loop's targets are not those that its loader yields: it changes them on the way")
        target = target.to(output.device)
        if self.kind == "classes" and not self.soft:
            if target.is_floating_point():
                raise PairingError("the targets are probabilities, not classes")
            target = self._fitting(output, target)
            counted = target != self.ignore_index
            if bool((counted & ((target < 0) | (target >= self.classes))).any()):
                raise PairingError(f"a target is no index of the {self.classes} classes that the training has")
            right = output.argmax(self.class_dimension(output, target.shape)) == target
            return (right & counted).sum(), counted.sum()
        if self.kind == "binary":
            if output.numel() != target.numel():
                raise PairingError(f"an output of shape {_shape(output)} for a target of shape {_shape(target)}")
            target = target.reshape(output.shape)
            positive = target > 0.5
            if bool((target != positive).any()):
                raise PairingError("the targets are probabilities, not classes")
            self._check_probabilities(output)
            right = (output > self.threshold) == positive
            return right.sum(), torch.full_like(right.sum(), right.numel())
        raise PairingError(f"{self.function} has no class targets here")

    def class_dimension(self, output: torch.Tensor, target_shape: torch.Size | None = None) -> int:
        """Which dimension of a model's output holds the classes. Raises `PairingError` where none can."""
        fitting = [
            dimension
            for dimension in range(output.ndim)
            if output.shape[dimension] == self.classes
            and (target_shape is None or _without(output.shape, dimension) == target_shape)
        ]
        if not fitting:
            raise PairingError(
                f"an output of shape {_shape(output)} has no dimension of {self.classes} classes"
                + (f" that leaves the target's shape {tuple(target_shape)}" if target_shape is not None else "")
            )
        return fitting[-1] if self.classes_last else fitting[0] if fitting[0] > 0 or len(fitting) == 1 else fitting[1]

    def _fitting(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The target without a last dimension of one that the output has no place for."""
        if target.ndim == output.ndim and target.shape[-1:] == (1,) and output.ndim > 1:
            return target.squeeze(-1)
        return target

    def log_probs(self, output: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor | None:
        """The output as rows of log-probabilities, `[rows, classes]`; None for a regression.

        `nll_loss` is fed log-probabilities as they are, `cross_entropy` goes through `log_softmax`, a binary
        criterion gives the two columns log(1-p) and log p.
        """
        if self.kind == "classes":
            rows = self.with_classes_last(output, target).reshape(-1, self.classes)
            # A loop may apply log_softmax itself: what nll_loss was fed is then not yet what the model returns.
            return rows if self.function == "nll_loss" and are_log_probs(rows) else rows.log_softmax(-1)
        if self.kind == "binary":
            flat = output.reshape(-1)
            if self.threshold:
                self._check_probabilities(flat)
                return torch.stack((torch.log1p(-flat), torch.log(flat)), -1)
            logsigmoid = torch.nn.functional.logsigmoid
            return torch.stack((logsigmoid(-flat), logsigmoid(flat)), -1)
        return None

    def with_classes_last(self, output: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor:
        """A model's output with its classes in the last dimension."""
        shape = None if target is None or self.soft else self._fitting(output, target).shape
        return output.movedim(self.class_dimension(output, shape), -1)

    def _check_probabilities(self, output: torch.Tensor) -> None:
        if self.threshold and not bool(((output >= 0) & (output <= 1)).all()):
            raise PairingError(f"{self.function} was fed probabilities, and the model's own output is none")


def are_log_probs(rows: torch.Tensor) -> bool:
    """Whether each row's exponentials sum to 1."""
    return _sum_to_one(rows.double().exp())


def are_probabilities(rows: torch.Tensor) -> bool:
    """Whether each row is non-negative and sums to 1."""
    return bool((rows >= 0).all()) and _sum_to_one(rows.double())


def _sum_to_one(rows: torch.Tensor) -> bool:
    # Half types keep 3 digits, and a row has many terms.
    return bool(((rows.sum(-1) - 1).abs() < 1e-2).all())


def _without(shape: torch.Size, dimension: int) -> torch.Size:
    return torch.Size([*shape[:dimension], *shape[dimension + 1 :]])


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
