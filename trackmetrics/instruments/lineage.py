"""Where the tensors of a forward come from, followed from operator to operator.

What attention is made of is known by that: scores are a product of two activations; queries and keys have sources; each
element of an activation is a feature of a token, and both are numbered.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    *_VIEWS, "expand", "flip", "gather", "index", "index_select", "permute", "repeat", "roll", "select", "slice",
    "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze",
}  # fmt: skip


class Product(NamedTuple):
    """Two activations that were multiplied, how many numbers that gave, and whether features were paired by tokens."""

    left: Origin
    right: Origin
    size: int
    over_features: bool


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Where an activation comes from.

    `sources` are the inputs, embeddings and attentions that it was made of; `stream` is the first of them, which a
    residual stream keeps through all its layers. `tokens` and `features` give each element the numbers of its own.
    `product` names the two activations whose product it is, however scaled, masked or normalised since; `tokens`
    are then those of the left factor, and `others` those of the right one. `shares` is what a softmax made of the
    product; `softened` says that it went through an exponential, `dropped` that some of it was dropped at random.
    """

    sources: frozenset[int]
    stream: int
    tokens: torch.Tensor | None = None
    features: torch.Tensor | None = None
    product: Product | None = None
    others: torch.Tensor | None = None
    shares: torch.Tensor | None = None
    softened: bool = False
    dropped: bool = False

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Origin:
        """The same with all numbers moved to other places."""
        own = (None if item is None else move(item) for item in (self.tokens, self.features, self.others))
        tokens, features, others = own
        return replace(self, tokens=tokens, features=features, others=others)


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
        self._attentions: set[int] = set()
        self._first_tokens = [0]  # of each set of tokens that were numbered together
        self.attending = False  # inside a function that is known to attend: a parameter may be its query

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

    def begin(self, tensor: torch.Tensor) -> None:
        """A new source: an input or an embedding."""
        number = next(self._count)
        self._set(tensor, self.numbered(Origin(frozenset([number]), number), tensor))

    def attended(self, output: torch.Tensor, query: Origin | None, tokens: torch.Tensor | None) -> None:
        """What an attention gave, for these tokens, in the stream of its query."""
        number = next(self._count)
        self._attentions.add(number)
        origin = Origin(frozenset([number]), number if query is None or query is _NOWHERE else query.stream)
        origin = self.numbered(origin, output)
        if tokens is not None and tokens.shape == output.shape and query is not None and query.sources:
            origin = replace(origin, tokens=tokens)
        self._set(output, origin)

    def _set(self, tensor: torch.Tensor, origin: Origin) -> None:
        """This is where a tensor comes from; numbers that don't fit its shape are none of its own."""
        numbers = (origin.tokens, origin.features, origin.others)
        if any(item is not None and item.shape != tensor.shape for item in numbers):
            origin = replace(origin, tokens=None, features=None, others=None)
            origin = origin if origin.product is not None else self.numbered(origin, tensor)
        self._origins[tensor] = origin

    # Tokens

    def numbered(self, origin: Origin, tensor: torch.Tensor, features: int | None = None) -> Origin:
        """Numbers for tokens that are met for the first time; `features` is the axis along which features lie.

        By default it is the last one, of an image and the like the second.
        """
        if tensor.ndim == 0 or tensor.numel() == 0:
            return replace(origin, tokens=None, features=None)
        axis = (1 if tensor.ndim >= 4 else tensor.ndim - 1) if features is None else features % tensor.ndim
        shape = list(tensor.shape)
        width, shape[axis] = shape[axis], 1
        along = [1] * tensor.ndim
        along[axis] = width
        number = tensor.numel() // width
        first = self._first_tokens[-1]
        self._first_tokens.append(first + number)
        tokens = torch.arange(first, first + number).view(shape).expand(tensor.shape)
        return replace(origin, tokens=tokens, features=torch.arange(width).view(along).expand(tensor.shape))

    def numbered_with(self, token: int) -> int:
        """Which set of tokens a token was numbered with."""
        return bisect.bisect_right(self._first_tokens, token)

    def same_tokens(self, query: Origin | None, key: Origin | None, square: bool) -> bool:
        """Whether queries and keys have the same sources; where an origin is unknown, the lengths tell.

        One may have been given something beside them, such as positions, but not what an attention gave.
        """
        if query is None or key is None:
            return square and query is key
        beside = query.sources ^ key.sources
        nested = query.sources <= key.sources or key.sources <= query.sources
        return not beside or (square and nested and beside.isdisjoint(self._attentions))

    # Operators

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
        elif name.rstrip("_") in PRODUCTS:
            self._multiplied(name.rstrip("_"), args, outputs[0])
        elif name == "copy_":
            self._copied(args[0], args[1])
        elif name in _CONVOLUTIONS:
            self._convolved(operands[0], outputs[0])
        else:
            self._derived(name, args, operands, outputs)

    def _multiplied(self, name: str, args: Sequence[Any], output: torch.Tensor) -> None:
        factors = [args[place] for place in PRODUCTS[name]]
        left, right = map(self.of, factors)
        if self.attending and name in ("bmm", "baddbmm"):
            left, right = left or self._of_parameter(factors[0]), right or self._of_parameter(factors[1].mT)
        if left is not None and right is not None:
            over_features = varies(left.tokens, -1) or (output.ndim > 1 and varies(right.tokens, -2))
            product = Product(left, right, output.numel(), over_features)
            origin = Origin(left.sources | right.sources, left.stream, product=product)
            if output.ndim > 1:
                rows = None if left.tokens is None else left.tokens.narrow(-1, 0, 1).expand(output.shape)
                columns = None if right.tokens is None else right.tokens.narrow(-2, 0, 1).expand(output.shape)
                origin = replace(origin, tokens=rows, others=columns)
            self._set(output, origin)
        elif left is not None:
            self._set(output, self._weighed(left, output, -1))
        elif right is not None:
            self._set(output, self._weighed(right, output, -2))

    def _of_parameter(self, factor: torch.Tensor) -> Origin:
        """A query that is a parameter: its tokens are the same in each head and example."""
        numbered = self.numbered(_NOWHERE, factor[:1])
        return numbered.moved(lambda numbers: numbers.expand(factor.shape))

    def _weighed(self, origin: Origin, output: torch.Tensor, axis: int) -> Origin:
        """What a linear layer makes of an activation, summing over an axis of it: over features, most often."""
        tokens = origin.tokens
        if tokens is not None and tokens.ndim == output.ndim and not varies(tokens, axis):
            spread = origin.moved(lambda numbers: numbers.narrow(axis, 0, 1).expand(output.shape))
            if origin.product is not None and not origin.product.over_features and not varies(origin.others, axis):
                return spread  # a layer over heads
            origin = Origin(origin.sources, origin.stream)
            return replace(origin, tokens=spread.tokens, features=_along(output, axis))
        return self.numbered(Origin(origin.sources, origin.stream), output, axis)

    def _convolved(self, image: torch.Tensor, output: torch.Tensor) -> None:
        origin = self._origins[image]
        if output.ndim == image.ndim and output.shape[2:] == image.shape[2:]:
            self._set(output, self._weighed(origin, output, 1))
        else:
            self._set(output, self.numbered(Origin(origin.sources, origin.stream), output, 1))

    def _copied(self, target: torch.Tensor, value: Any) -> None:
        origin = self.of(value)
        if origin is not None:
            if value.shape != target.shape:
                origin = origin.moved(lambda numbers: numbers.expand(target.shape))
            self._set(target, origin)
            if target._base is not None and self.of(target._base) is None:  # a part of a buffer that is being filled
                self._set(target._base, self._filled(origin, target))

    def _filled(self, origin: Origin, part: torch.Tensor) -> Origin:
        """The origin of a buffer of which a part was filled: its other parts hold the like, as far as shapes tell."""
        whole = part._base
        assert whole is not None
        missing = [axis for axis in range(whole.ndim) if whole.stride()[axis] not in part.stride()]
        if len(missing) != whole.ndim - part.ndim or len(missing) > 1:
            return replace(origin, tokens=None, features=None, others=None, shares=None)
        spread = origin.moved(lambda numbers: numbers.unsqueeze(missing[0]).expand(whole.shape) if missing else numbers)
        return replace(spread, shares=None)

    def _derived(
        self, name: str, args: Sequence[Any], operands: list[torch.Tensor], outputs: list[torch.Tensor]
    ) -> None:
        origins = [self._origins[item] for item in operands]
        scores = [item for item in origins if item.product is not None]
        scores.sort(key=lambda item: item.product is None or item.product.left.sources != item.product.right.sources)
        sources = frozenset().union(*(item.sources for item in origins))
        shares = [item.shares for item in scores if item.shares is not None]
        first, of_first = operands[0], origins[0]
        if scores and scores[0] is not of_first and operands[origins.index(scores[0])].shape == outputs[0].shape:
            first, of_first = operands[origins.index(scores[0])], scores[0]  # contents before positions, or masks
        common = Origin(
            sources,
            origins[0].stream,
            product=scores[0].product if scores else None,
            softened=bool(scores) and (name in _SOFTENING or any(item.softened for item in scores)),
            dropped=bool(scores) and (name in _DROPOUTS or any(item.dropped for item in scores)),
        )
        for output, moved in zip(outputs, self._moved(name, args, first, of_first, outputs)):
            softened = output if name in _SOFTMAXES and scores else shares[0] if shares else None
            own = replace(common, tokens=moved.tokens, features=moved.features, others=moved.others, shares=softened)
            self._set(output, own)

    def _moved(
        self, name: str, args: Sequence[Any], first: torch.Tensor, origin: Origin, outputs: list[torch.Tensor]
    ) -> list[Origin]:
        """The numbers of what came out, each in its place."""
        try:
            if name in _RESHAPING and args[0] is first:
                every = [_reshaped(name, args, item) for item in (origin.tokens, origin.features, origin.others)]
                parts: list[list[Any]] = [part or [None] * len(outputs) for part in every]
                return [
                    replace(origin, tokens=tokens, features=features, others=others)
                    for tokens, features, others in zip(*parts)
                ]
            if name in ("cat", "stack"):
                return [self._joined(getattr(torch, name), args, origin)]
        except (RuntimeError, TypeError, IndexError):  # an index on another device, say
            pass
        return [self._kept(first, origin, output) for output in outputs]

    def _kept(self, first: torch.Tensor, origin: Origin, output: torch.Tensor) -> Origin:
        """The numbers of an operand, where it has the shape of what came out, or can be spread to it; else new ones."""
        if first.shape == output.shape:
            return origin
        if output.ndim >= first.ndim and all(
            own in (1, size) for own, size in zip(reversed(first.shape), reversed(output.shape))
        ):
            return origin.moved(lambda numbers: numbers.expand(output.shape))
        axis = None
        if origin.features is not None and output.ndim == first.ndim and origin.product is None:
            axes = [item for item in range(first.ndim) if varies(origin.features, item)]
            axis = axes[0] if len(axes) == 1 and output.shape[axes[0]] == first.shape[axes[0]] else None
        return self.numbered(replace(origin, others=None), output, axis)

    def _joined(self, join: Callable[..., torch.Tensor], args: Sequence[Any], origin: Origin) -> Origin:
        """Tensors one after the other; the model's own tokens have numbers below nought, alike for each example."""
        parts: list[Origin] = []
        axis = next((item for item in reversed(range(args[0][0].ndim)) if varies(origin.features, item)), -1)
        for item in args[0]:
            own = self._origins.get(item)
            if own is None:
                ours = -1 - _along(item, args[1] if len(args) > 1 else 0)
                own = replace(origin, tokens=ours, others=ours, features=_along(item, axis))
            parts.append(own)
        columns = ([part.tokens for part in parts], [part.features for part in parts], [part.others for part in parts])
        tokens, features, others = (
            None if any(item is None for item in column) else join(column, *args[1:]) for column in columns
        )
        return replace(origin, tokens=tokens, features=features, others=others)


def _has_memory(tensor: torch.Tensor) -> bool:
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)  # a shard, say, has none of its own
    return plain and tensor.layout is torch.strided and tensor.device.type != "meta" and not tensor.is_nested


def _operands(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    return (item for item in tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor))


def _along(output: torch.Tensor, axis: int) -> torch.Tensor:
    shape = [1] * output.ndim
    shape[axis] = -1
    return torch.arange(output.shape[axis]).view(shape).expand(output.shape)


def _reshaped(name: str, args: Sequence[Any], numbers: torch.Tensor | None) -> list[torch.Tensor] | None:
    """Numbers put where an operator puts what they number; None where there are none."""
    if numbers is None:
        return None
    if name in _VIEWS:
        return [torch.reshape(numbers, args[1])]
    moved = getattr(torch.ops.aten, name)(numbers, *args[1:])
    return [moved] if isinstance(moved, torch.Tensor) else list(moved)


def varies(numbers: torch.Tensor | None, axis: int) -> bool:
    """Whether numbers differ along an axis."""
    if numbers is None or numbers.ndim < max(axis + 1, -axis) or numbers.shape[axis] < 2 or numbers.stride(axis) == 0:
        return False
    return bool((numbers != numbers.narrow(axis, 0, 1)).any())
