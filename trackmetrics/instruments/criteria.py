"""Which loss functions are known, and a call of one as it was made."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

_REDUCTIONS = ("none", "mean", "sum")
_SMALL = 2**16  # bytes of output and target up to which they are copied rather than worked on at once


@dataclass(frozen=True)
class Criterion:
    """One loss function at its lowest level.

    `kind` says what a target is: `classes` (an index, predicted by the largest score), `binary` (0 or 1, predicted
    by a threshold, element by element), `elements` (a number; no accuracy), `rows` (all that a row holds; no
    accuracy), where `rows` says along which dimension of the input these lie.
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
    rows: int = 0

    @functools.cached_property
    def places(self) -> dict[str, int]:
        """Where each argument stands."""
        return {name: place for place, name in enumerate(self.positions)}

    def bound(self, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Any, ...]:
        """The arguments of a call in the order of `positions`; one that wasn't given is None."""
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
    Criterion(
        "multi_margin_loss", "multi_margin_loss", _nn, "rows",
        ("input", "target", "p", "margin", "weight", "reduction"),
    ),
    Criterion("multilabel_margin_loss", "multilabel_margin_loss", _nn, "rows", ("input", "target", "reduction")),
    Criterion(
        "triplet_margin_loss", "triplet_margin_loss", torch, "rows",
        ("anchor", "positive", "negative", "margin", "p", "eps", "swap", "reduction"),
    ),
    Criterion(
        "margin_ranking_loss", "margin_ranking_loss", torch, "rows",
        ("input1", "input2", "target", "margin", "reduction"),
    ),
    Criterion(
        "cosine_embedding_loss", "cosine_embedding_loss", torch, "rows",
        ("input1", "input2", "target", "margin", "reduction"),
    ),
    Criterion(
        "ctc_loss", "ctc_loss", torch, "rows",
        ("log_probs", "targets", "input_lengths", "target_lengths", "blank", "reduction", "zero_infinity"), rows=1,
    ),
)  # fmt: skip


class Made(NamedTuple):
    """A call of a criterion as it was made: its arguments in the order of the criterion's `positions`, its result.

    `value` is a copy of the result, for a loop may go on to change it in place (`loss /= k`); `version` says whether
    that has happened, and `edge` where in the graph the result was made. `versions` are those of output and target.
    """

    criterion: Criterion
    arguments: tuple[Any, ...]
    result: torch.Tensor
    version: int
    value: torch.Tensor
    edge: tuple[Any, int]
    versions: tuple[int, int]

    @staticmethod
    def of(criterion: Criterion, arguments: tuple[Any, ...], result: torch.Tensor) -> Made:
        """Note a call that has just been made."""
        versions = _versions(arguments[0], arguments[1])
        edge = result.grad_fn, result.output_nr
        return Made(criterion, arguments, result, version_of(result), result.detach().clone(), edge, versions)


class Call:
    """One call of a criterion: what counting it needs, free of the graph.

    `reduction` is `none`, `mean` or `sum`; `has_accuracy` says whether targets can be predicted right: those of a
    regression can't. `input_at` and `target_at` say where in memory output and target lie, and their shapes; both are
    the caller's own until `keep`. `factor` is the gradient that a backward handed to the result; `tallied` what the
    call says, once that is worked out.
    """

    __slots__ = (
        "arguments", "criterion", "factor", "has_accuracy", "input", "input_at", "reduction", "result", "result_at",
        "settled", "strides", "tallied", "target", "target_at", "target_dtype", "versions",
    )  # fmt: skip

    def __init__(self, made: Made) -> None:
        criterion, arguments, result, version, value, _, versions = made
        scores, target = arguments[0].detach(), arguments[1].detach()
        self.criterion = criterion
        self.has_accuracy = criterion.kind in ("classes", "binary")
        self.arguments = arguments[2:]
        self.reduction: str = _REDUCTIONS[self.argument("reduction", 1)]
        self.input: torch.Tensor = scores
        self.input_at: tuple[int, torch.Size] = (scores.data_ptr(), scores.shape)
        self.strides: tuple[int, ...] = scores.stride()
        self.target: torch.Tensor = target
        self.target_at: tuple[int, torch.Size] = (target.data_ptr(), target.shape)
        self.target_dtype: torch.dtype = target.dtype
        self.versions = versions
        self.result = value
        self.result_at = (result.data_ptr(), version)
        self.factor: torch.Tensor | None = None
        self.settled = False
        self.tallied: Any = None

    def argument(self, name: str, default: Any = None) -> Any:
        """The argument `name` after input and target, as it was passed."""
        index = self.criterion.places.get(name, 0) - 2
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
    def soft(self) -> bool:
        """Whether each target is a distribution over the classes."""
        return self.criterion.kind == "classes" and self.target_dtype.is_floating_point

    @property
    def classes(self) -> int:
        """How many classes the output scores; 0 where there are none."""
        shape = self.input_at[1]
        return shape[class_dimension(len(shape))] if self.criterion.kind == "classes" and shape else 0

    @property
    def can_wait(self) -> bool:
        """Whether output and target are few enough bytes to keep, and all that counting the call needs."""
        weighted = self.reduction != "mean" and self.argument("weight") is not None
        return not weighted and self.input.nbytes + self.target.nbytes <= _SMALL

    def overwritten(self) -> bool:
        """Whether output or target changed since the call: a buffer that the user fills again."""
        return _versions(self.input, self.target) != self.versions

    def gave(self, roots: Sequence[Any]) -> bool:
        """Whether a backward was called on the call's own result, as it was."""
        root = roots[0]
        return isinstance(root, torch.Tensor) and (root.data_ptr(), root._version) == self.result_at

    def keep(self) -> None:
        """Have copies of output and target, whatever the caller does with them from here on."""
        self.input, self.target = self.input.clone(), self.target.clone()

    def release(self) -> None:
        """Let go of the tensors: a loop may keep its losses, and with them whatever is hooked to them."""
        self.input = self.target = self.result = _NOTHING
        self.factor = None
        self.arguments = tuple(None if isinstance(value, torch.Tensor) else value for value in self.arguments)


_NOTHING = torch.empty(0)


def _versions(output: torch.Tensor, target: torch.Tensor) -> tuple[int, int]:
    try:
        return output._version, target._version
    except RuntimeError:
        return version_of(output), version_of(target)


def version_of(tensor: torch.Tensor) -> int:
    """How often it was written to; 0 for one made under `inference_mode`, which doesn't count."""
    return 0 if tensor.is_inference() else tensor._version


def class_dimension(dimensions: int) -> int:
    """Where `cross_entropy` and `nll_loss` have their classes: dimension 1, or 0 for a single prediction."""
    return 1 if dimensions > 1 else 0
