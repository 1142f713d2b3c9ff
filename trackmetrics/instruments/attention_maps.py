"""What an attention map is, and which of a model's maps make one stack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

_TOLERANCE = 1e-2  # half types keep 3 digits


@dataclass(frozen=True)
class AttentionMap:
    """The weights of one attention in one forward.

    `weights` is `[batch, heads, query, key]`, in float32 or wider: for each query the shares of the keys, which sum to
    1, or to 0 where every key is masked, unless the model goes on to mix them.
    `name` is the path of the module that attends; `#2` is added where it does so for the second time.
    `kind` is `self` (queries and keys come from the same tokens), `encoder` (the same, in a model's encoder, beside a
    decoder), `cross` (from two), `window` (over parts of the tokens) or `feature` (over features rather than tokens).
    `source` says how the weights were had: `observed` (as they were multiplied by the values), `recomputed` (by the
    definition, from queries and keys), `probed` (one-hot values through the same operator), `native` (asked of torch's
    own operator) or `returned` (by the model).
    `check` is the largest absolute difference between weights times values and what the attention itself gave; None
    where that can't be had.
    `heads` is how many there were, where `weights` are the mean over them.
    """

    name: str
    kind: str
    weights: torch.Tensor
    source: str
    check: float | None
    heads: int | None = None

    def averaged(self) -> AttentionMap:
        """The mean over heads, `[batch, 1, query, key]`."""
        heads = self.heads or self.weights.shape[1]
        return replace(self, weights=self.weights.mean(1, keepdim=True), heads=heads)

    @property
    def square(self) -> bool:
        """Whether there are as many queries as keys."""
        return self.weights.shape[-1] == self.weights.shape[-2]


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """In float32, or in float64 where it is that."""
    return tensor if tensor.dtype is torch.float64 else tensor.float()


def rows_are_shares(weights: torch.Tensor) -> bool:
    """Whether each row sums to 1, or to 0 where every key is masked; not all of them to 0."""
    if weights.numel() == 0:
        return False
    sums = weights.sum(-1)
    whole = (sums - 1).abs() < _TOLERANCE
    return bool((weights >= 0).all() and whole.any() and (whole | (sums.abs() < _TOLERANCE)).all())


def stackable(maps: Sequence[AttentionMap], length: int | None = None) -> list[AttentionMap]:
    """The maps of a model's main stream of tokens: each from all of its tokens to all of them.

    Of several lengths it is `length`, if there are maps of it, else the one that most have.
    """
    for kind in ("self", "encoder"):
        square = [item for item in maps if item.kind == kind and item.square]
        if square:
            lengths = Counter(item.weights.shape[-1] for item in square)
            chosen = length if length in lengths else lengths.most_common(1)[0][0]
            return [item for item in square if item.weights.shape[-1] == chosen]
    return []
