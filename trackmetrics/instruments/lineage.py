"""Where the tensors of a forward come from, followed from operator to operator.

What attention is made of is known by that: scores are a product of two activations, queries and keys have sources, and
an axis runs over tokens or over features.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "mv": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "addbmm": (1, 2)}
_EMBEDDINGS = ("embedding", "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
_CONVOLUTIONS = ("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution")
_SOFTMAXES = ("_softmax", "_safe_softmax")
_SOFTENING = (*_SOFTMAXES, "_log_softmax", "exp", "exp2")
_DROPOUTS = ("native_dropout", "bernoulli", "bernoulli_", "_fused_dropout")
_VIEWS = ("view", "_unsafe_view", "_reshape_alias")
_RESHAPING = {
    *_VIEWS, "expand", "flip", "index_select", "permute", "repeat", "roll", "select", "slice", "split",
    "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze",
}  # fmt: skip


class Product(NamedTuple):
    """Two activations that were multiplied, and how many numbers that gave."""

    left: Origin
    right: Origin
    size: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an activation comes from.

    `sources` are the inputs, embeddings and attentions that it was made of; `stream` is the first of them, which a
    residual stream keeps through all its layers. `product` names the two activations whose product it is, however
    scaled, masked or normalised since. `joined_from` is the shape before its leading dimensions were joined into
    one, `shares` what a softmax made of the product; `softened` says that it went through an exponential, `dropped`
    that some of it was dropped at random. `features` numbers the features along whichever of its axes
    they lie, where that is known; of a product the pairs that it is made of.
    """

    sources: frozenset[int]
    stream: int
    product: Product | None = None
    joined_from: torch.Size | None = None
    shares: torch.Tensor | None = None
    features: torch.Tensor | None = None
    softened: bool = False
    dropped: bool = False


_NOWHERE = Origin(frozenset(), -1)


class Lineage:
    """The origins of the activations of one forward. What is made of parameters and constants alone has none.

    `constants` are what the model holds: parameters, buffers, tensors in attributes. A tensor that no operator made
    and that is none of them came with the inputs, whatever it came in.
    """

    def __init__(self, constants: Iterable[torch.Tensor] = ()) -> None:
        self._origins: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._made: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # of constants alone
        self._constants = {tensor.untyped_storage().data_ptr() for tensor in constants if _has_memory(tensor)}
        self._count = itertools.count()
        self.attending = False  # inside a function that is known to attend: a parameter may be its query
        self._attentions: set[int] = set()

    def of(self, tensor: Any) -> Origin | None:
        """The origin of a tensor, if it is an activation."""
        if not isinstance(tensor, torch.Tensor):
            return None
        if tensor not in self._origins and tensor not in self._made and self._came_with_inputs(tensor):
            self.begin(tensor)
        origin: Origin | None = self._origins.get(tensor)
        return origin

    def _came_with_inputs(self, tensor: torch.Tensor) -> bool:
        some = _has_memory(tensor) and tensor.ndim > 0 and tensor.numel() > 0
        return some and tensor.untyped_storage().data_ptr() not in self._constants

    def begin(self, tensor: torch.Tensor, after: Origin | None = None) -> None:
        """A new source: an input, an embedding, or what an attention gave, in the stream of its query."""
        number = next(self._count)
        if after is not None:
            self._attentions.add(number)
        self._origins[tensor] = Origin(frozenset([number]), number if after is None else after.stream)

    def same_tokens(self, query: Origin | None, key: Origin | None, square: bool) -> bool:
        """Whether queries and keys are made of the same tokens; where an origin is unknown, the lengths tell.

        One may have been given something beside them, such as positions, but not what an attention gave.
        """
        if query is None or key is None:
            return square and query is key
        beside = query.sources ^ key.sources
        nested = query.sources <= key.sources or key.sources <= query.sources
        return not beside or (square and nested and beside.isdisjoint(self._attentions))

    def follow(self, name: str, args: Sequence[Any], kwargs: dict[str, Any], outcome: Any) -> None:
        """An operator was called: `name` is its own, without overload."""
        outputs = [item for item in tree_leaves(outcome) if isinstance(item, torch.Tensor)]
        written = name == "lift_fresh"  # a tensor made of numbers that stand in the program
        operands = [] if written else [item for item in _operands(args, kwargs) if self.of(item) is not None]
        if not operands:
            for output in outputs:
                self._made[output] = True
        elif name in _EMBEDDINGS:
            self.begin(outputs[0])
            self._origins[outputs[0]] = _with_features(self._origins[outputs[0]], outputs[0], -1)
        elif name.rstrip("_") in PRODUCTS:
            self._multiplied(name.rstrip("_"), args, outputs[0])
        elif name == "copy_":
            self._copied(args[0], args[1])
        else:
            self._derived(name, args, operands, outputs)

    def _multiplied(self, name: str, args: Sequence[Any], output: torch.Tensor) -> None:
        left, right = (self.of(args[place]) for place in PRODUCTS[name])
        if self.attending and name in ("bmm", "baddbmm"):
            left, right = left or _NOWHERE, right or _NOWHERE
        if left is not None and right is not None:
            sources = left.sources | right.sources
            self._origins[output] = _with_pairs(
                Origin(sources, left.stream, product=Product(left, right, output.numel())), output
            )
        elif left is not None and _mixes_maps(left, -1):  # a layer over heads
            pairs = left.features.select(-1, 0).unsqueeze(-1).expand(output.shape)  # type: ignore[union-attr]
            self._origins[output] = replace(left, features=pairs, joined_from=None)
        elif left is not None:  # by a weight: a linear layer
            self._origins[output] = _with_features(Origin(left.sources, left.stream), output, -1)
        elif right is not None:
            self._origins[output] = _with_features(Origin(right.sources, right.stream), output, -2)

    def _copied(self, target: torch.Tensor, value: Any) -> None:
        origin = self.of(value)
        if origin is not None:
            self._origins[target] = replace(origin, features=None)
            if target._base is not None and self.of(target._base) is None:  # a part of a buffer that is being filled
                self._origins[target._base] = replace(origin, features=None, joined_from=None, shares=None)

    def _derived(
        self, name: str, args: Sequence[Any], operands: list[torch.Tensor], outputs: list[torch.Tensor]
    ) -> None:
        origins = [origin for item in operands if (origin := self.of(item)) is not None]
        first, origin = operands[0], origins[0]
        products = [item.product for item in origins if item.product is not None]
        products.sort(key=lambda product: product.left.sources != product.right.sources)  # contents before positions
        shares = [item.shares for item in origins if item.shares is not None]
        origin = Origin(
            frozenset().union(*(item.sources for item in origins)),
            origin.stream,
            products[0] if products else None,
            shares=shares[0] if shares else None,
            softened=name in _SOFTENING or any(item.softened for item in origins if item.product is not None),
            dropped=name in _DROPOUTS or any(item.dropped for item in origins if item.product is not None),
        )
        features = self._features(name, args, first, origins[0], outputs)
        for output, own in zip(outputs, features):
            if name in _CONVOLUTIONS and _mixes_maps(origins[0], 1) and output.shape[2:] == first.shape[2:]:
                pairs = origins[0].features.narrow(1, 0, 1).expand(output.shape)  # type: ignore[union-attr]
                self._origins[output] = replace(origin, features=pairs)
                continue
            if name in _CONVOLUTIONS:
                self._origins[output] = _with_features(Origin(origin.sources, origin.stream), output, 1)
                continue
            softened = output if name in _SOFTMAXES and origin.product is not None else origin.shares
            joined = _joined_from(name, args, first, origins[0], output)
            self._origins[output] = replace(origin, features=own, joined_from=joined, shares=softened)

    def _features(
        self, name: str, args: Sequence[Any], first: torch.Tensor, origin: Origin, outputs: list[torch.Tensor]
    ) -> list[torch.Tensor | None]:
        """The numbers of the features in what came out."""
        own = origin.features
        if own is None:
            return [None] * len(outputs)
        if name in _RESHAPING and args and args[0] is first:
            again = torch.reshape if name in _VIEWS else getattr(torch.ops.aten, name)
            reshaped = again(own, *args[1:2] if name in _VIEWS else args[1:])
            return [reshaped] if isinstance(reshaped, torch.Tensor) else list(reshaped)
        if name == "cat":
            parts = [self.of(item) for item in args[0]]
            numbered = [None if part is None else part.features for part in parts]
            known = [item for item in numbered if item is not None]
            if len(known) == len(numbered):
                return [torch.cat(known, *args[1:])]
            dimension = args[1] if len(args) > 1 else 0
            return [own.narrow(dimension, 0, 1).expand(outputs[0].shape)] if _constant(own, dimension) else [None]
        return [own if output.shape == own.shape else None for output in outputs]


def _has_memory(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.device.type != "meta" and not tensor.is_nested


def _operands(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    return (item for item in tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor))


def _with_features(origin: Origin, output: torch.Tensor, axis: int) -> Origin:
    """An origin whose features lie along an axis, each with a number of its own; takes no memory to speak of."""
    if output.ndim < abs(axis) + (axis >= 0):
        return origin
    numbers = torch.arange(output.shape[axis], dtype=torch.int32)
    shape = [1] * output.ndim
    shape[axis] = -1
    return replace(origin, features=numbers.view(shape).expand(output.shape))


def _with_pairs(origin: Origin, output: torch.Tensor) -> Origin:
    """A product's origin: each pair of a row of the one factor and a column of the other has a number."""
    if output.ndim < 2:
        return origin
    pairs = torch.arange(output.shape[-2] * output.shape[-1], dtype=torch.int32).view(output.shape[-2:])
    return replace(origin, features=pairs.expand(output.shape))


def _mixes_maps(origin: Origin, axis: int) -> bool:
    """Whether a layer over an axis of a product mixes values of one and the same pair: those of several heads."""
    pairs = origin.features if origin.product is not None else None
    return pairs is not None and pairs.shape[axis] > 1 and _constant(pairs, axis)


def runs_over_features(origin: Origin | None, axis: int) -> bool:
    """Whether an axis of an activation is one of features, not of tokens."""
    features = None if origin is None or origin.product is not None else origin.features
    return features is not None and not _constant(features, axis)


def _constant(features: torch.Tensor, axis: int) -> bool:
    if features.shape[axis] < 2 or features.stride(axis) == 0:
        return True
    return bool((features.select(axis, 0) == features.select(axis, 1)).all())


def _joined_from(
    name: str, args: Sequence[Any], operand: torch.Tensor, origin: Origin, output: torch.Tensor
) -> torch.Size | None:
    """The shape of a product before its leading dimensions were joined, which a batched product wants."""
    if operand.numel() != output.numel():
        return None
    before = operand.shape if origin.joined_from is None else origin.joined_from
    if name in _VIEWS and output.ndim < operand.ndim:
        while len(before) > 2 and before[-1] == 1:  # room that `einsum` makes for the other factor's dimensions
            before = before[:-1]
        fits = output.ndim > 1 and before[-1:] == output.shape[-1:] and output.shape[-2] % before[-2] == 0
        return before if fits else None
    if output.shape == operand.shape:
        return origin.joined_from
    if name in ("transpose", "permute") and origin.joined_from is not None and output.shape == operand.mT.shape:
        return torch.Size([*before[:-2], before[-1], before[-2]])
    return None
