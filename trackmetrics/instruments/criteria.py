"""Which loss functions are known, and what a call of one says: its kind, its targets, what was predicted right.

A criterion's value is always taken as its `mean` reduction would give it, so that the reduction that a training
uses changes nothing in the figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

_REDUCTIONS = ("none", "mean", "sum")


@dataclass(frozen=True)
class Criterion:
    """One loss function at its lowest level.

    `kind` says what a target is: `classes` (an index, predicted by the largest score), `binary` (0 or 1, predicted
    by a threshold, element by element), `elements` (a number; no accuracy), `rows` (a distribution; no accuracy).
    `positions` gives the place of each of its arguments.

    A value is a mean over the targets; only `kl_div`'s `mean`, which is one over the elements of its distributions,
    and its `batchmean` each stay what they are.
    """

    name: str
    function: str
    owner: Any
    kind: str
    positions: tuple[str, ...]
    threshold: float = 0.0

    def bound(self, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Any, ...]:
        """The arguments of a call in the order of `positions`; one that wasn't given is None."""
        if not keywords:
            return args
        return (*args, *(keywords.get(name) for name in self.positions[len(args) :]))


_nn = torch._C._nn
CRITERIA = (
    Criterion(
        "cross_entropy_loss", "cross_entropy", _nn, "classes",
        ("input", "target", "weight", "reduction", "ignore_index", "label_smoothing"),
    ),
    Criterion("nll_loss_nd", "nll_loss", _nn, "classes", ("input", "target", "weight", "reduction", "ignore_index")),
    Criterion(
        "binary_cross_entropy", "binary_cross_entropy", _nn, "binary",
        ("input", "target", "weight", "reduction"), threshold=0.5,
    ),
    Criterion(
        "binary_cross_entropy_with_logits", "binary_cross_entropy_with_logits", torch, "binary",
        ("input", "target", "weight", "pos_weight", "reduction"),
    ),
    Criterion("mse_loss", "mse_loss", _nn, "elements", ("input", "target", "reduction")),
    Criterion("l1_loss", "l1_loss", _nn, "elements", ("input", "target", "reduction")),
    Criterion("smooth_l1_loss", "smooth_l1_loss", _nn, "elements", ("input", "target", "reduction", "beta")),
    Criterion("huber_loss", "huber_loss", _nn, "elements", ("input", "target", "reduction", "delta")),
    Criterion("soft_margin_loss", "soft_margin_loss", _nn, "elements", ("input", "target", "reduction")),
    Criterion(
        "poisson_nll_loss", "poisson_nll_loss", torch, "elements",
        ("input", "target", "log_input", "full", "eps", "reduction"),
    ),
    Criterion(
        "hinge_embedding_loss", "hinge_embedding_loss", torch, "elements",
        ("input", "target", "margin", "reduction"),
    ),
    Criterion("kl_div", "kl_div", torch, "rows", ("input", "target", "reduction")),
)  # fmt: skip


class Call:
    """One call of a criterion in a training: what settling it needs, free of the graph.

    `arguments` stand in the order of the criterion's `positions`. The result is copied: a loop may go on to change
    it in place (`loss /= k`, `loss += penalty`). `factor` is the gradient that a backward handed to the result;
    `settled` what a listener makes of the call, once.
    """

    __slots__ = ("arguments", "criterion", "factor", "input", "result", "settled", "target", "versions")

    def __init__(self, criterion: Criterion, arguments: tuple[Any, ...], result: torch.Tensor) -> None:
        self.criterion = criterion
        self.arguments = arguments[2:]
        self.input: torch.Tensor = arguments[0].detach()
        self.target: torch.Tensor = arguments[1].detach()
        self.result = result.detach().clone()
        self.factor: torch.Tensor | None = None
        self.settled: Any = None
        self.versions = (_version(self.input), _version(self.target))

    def argument(self, name: str, default: Any = None) -> Any:
        """The argument `name` after input and target, as it was passed."""
        index = self.criterion.positions.index(name) - 2 if name in self.criterion.positions else -1
        value = self.arguments[index] if 0 <= index < len(self.arguments) else None
        return default if value is None else value

    @property
    def settings(self) -> dict[str, Any]:
        """The criterion's name and its settings by name: every argument but tensors."""
        named = zip(self.criterion.positions[2:], self.arguments)
        plain: dict[str, Any] = {key: value for key, value in named if isinstance(value, (bool, int, float))}
        if "reduction" in plain:
            plain["reduction"] = self.reduction
        return {"name": self.criterion.function, **plain}

    @property
    def reduction(self) -> str:
        """`none`, `mean` or `sum`."""
        return _REDUCTIONS[self.argument("reduction", 1)]

    def overwritten(self) -> bool:
        """Whether input or target changed since the call: a buffer that the user fills again."""
        return (_version(self.input), _version(self.target)) != self.versions

    def release(self) -> None:
        """Let go of the tensors: a loop may keep its losses, and with them whatever is hooked to them."""
        self.input = self.target = self.result = torch.empty(0)
        self.factor = None
        self.arguments = ()


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # made under `inference_mode`: it counts no versions


class Tally(NamedTuple):
    """What one call says: loss a target, how many targets, how many right, how many of those targets were soft.

    Each is a tensor without dimensions on the call's device, or a number; `correct` is None where the kind has no
    accuracy.
    """

    value: torch.Tensor
    targets: torch.Tensor | int
    correct: torch.Tensor | None
    soft: torch.Tensor | int


def tally(call: Call) -> Tally:
    """Settle a call: the value as its `mean` reduction would give it, and its predictions against its targets.

    With reduction `none`, a target whose result got no gradient (a masked one) is not counted. A call all of whose
    targets are ignored has the value NaN, a mean over nothing.
    """
    counted = _counted(call)
    result = call.result if call.result.dtype is torch.float64 else call.result.float()
    if call.reduction == "mean":
        value = result
    else:
        total = result if counted is None or call.reduction == "sum" else torch.where(counted, result, 0)
        value = total.sum() / _normaliser(call, counted)
    targets: torch.Tensor | int = _number_of_targets(call) if counted is None else counted.sum()
    correct, soft = _judged(call, counted)
    return Tally(value, targets, correct, soft)


def _hard(call: Call) -> bool:
    return call.criterion.kind == "classes" and not call.target.is_floating_point()


def _counted(call: Call) -> torch.Tensor | None:
    """Which targets count, as a mask of the target's shape; None where all do."""
    counted = call.target != call.argument("ignore_index", -100) if _hard(call) else None
    if call.reduction == "none" and call.factor is not None and call.factor.shape == call.result.shape:
        entered = call.factor != 0
        counted = entered if counted is None or counted.shape != entered.shape else counted & entered
    return counted


def _number_of_targets(call: Call) -> int:
    if call.criterion.kind == "rows":
        return call.input.shape[0] if call.input.ndim else 1
    if call.criterion.kind == "classes":  # soft targets: a distribution for each prediction
        return call.input.numel() // max(1, call.input.shape[class_dimension(call.input)])
    return call.input.numel()


def _normaliser(call: Call, counted: torch.Tensor | None) -> torch.Tensor | int:
    """What the `mean` reduction divides by: the targets, or the sum of their class weights."""
    weight = call.argument("weight")
    if _hard(call) and weight is not None and counted is not None:
        indices = call.target.clamp(0, weight.numel() - 1)  # ignored targets may lie outside
        weights: torch.Tensor = weight.detach()[indices] * counted
        return weights.sum()
    return _number_of_targets(call) if counted is None else counted.sum()


def _judged(call: Call, counted: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | int]:
    if _hard(call):
        right = call.input.argmax(class_dimension(call.input)) == call.target
        return (right if counted is None else right & counted).sum(), 0
    if call.criterion.kind == "classes":
        return torch.zeros((), dtype=torch.int64, device=call.input.device), 1
    if call.criterion.kind == "binary":
        positive = call.target > 0.5
        right = (call.input > call.criterion.threshold) == positive
        soft = (call.target != positive).sum()
        return (right if counted is None else right & counted).sum(), soft
    return None, 0


def class_dimension(scores: torch.Tensor) -> int:
    """Where `cross_entropy` and `nll_loss` have their classes: dimension 1, or 0 for a single prediction."""
    return 1 if scores.ndim > 1 else 0
