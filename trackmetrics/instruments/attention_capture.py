"""Attention maps out of any model, as it is: one forward of it is watched, operator by operator.

Below every way to write an attention lie the same few operators. Either a product of queries and keys becomes shares
that are multiplied by values, or one operator does all of that; see `lineage` and `attention_kernels`.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import AttentionError
from .attention_arranged import (
    Arranged,
    Places,
    Record,
    arranged_by_tokens,
    belong_together,
    joined,
    kinds,
    named,
    of_heads,
    spread,
)
from .attention_kernels import as_kernel, kernel_weights, native_weights, tolerance
from .attention_maps import AttentionMap, rows_are_shares, wide
from .compiling import as_written
from .data import copied, tensors_in
from .discovery import unwrapped
from .events import heard_by
from .lineage import PRODUCTS, Lineage, Origin, Product, varies
from .returned_attention import returned_maps
from .undisturbed import undisturbed

Keep = Callable[[AttentionMap], AttentionMap]
_IMPLEMENTATION = "_attn_implementation"
_one_at_a_time = threading.RLock()  # hooks on a model's modules tell every thread's watcher


class Capture(NamedTuple):
    """What a watched forward gave: the maps, and the operators that may have attended unseen."""

    maps: list[AttentionMap]
    unseen: list[str]


def capture_attention(model: torch.nn.Module, *args: Any, **kwargs: Any) -> list[AttentionMap]:
    """Give the attention maps of `model(*args, **kwargs)`, each with all examples and heads, in the order they ran.

    The model is run twice, in `eval()` under `no_grad`: once as it is, and once watched. Neither changes its
    parameters, its modes or the random streams. Raises what the model raises, and `AttentionError` where the watched
    forward gave something else than the plain one, or where an operator attends of which no weights can be had.

    >>> import torch
    >>> from trackmetrics import capture_attention
    >>> encoder = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, batch_first=True), 3)
    >>> maps = capture_attention(encoder, torch.randn(1, 5, 8))
    >>> [(map.name, map.kind, tuple(map.weights.shape)) for map in maps][:2]
    [('layers.0.self_attn', 'self', (1, 2, 5, 5)), ('layers.1.self_attn', 'self', (1, 2, 5, 5))]
    """
    inside, inputs = unwrapped(model), (args, kwargs)
    if any(tensor.is_nested for tensor in _all_tensors(inputs)):
        raise AttentionError("a nested tensor can't be followed; give a padded one, and a mask")

    def forward(own: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        return inside(*own[0], **own[1])

    with undisturbed(model), heard_by(None), as_written():
        plain = forward(copied(inputs))
    capture = watched(model, forward, inputs, plain, _sizes(inputs))
    if capture.unseen:
        raise AttentionError(f"no weights can be had of {', '.join(capture.unseen)}")
    return capture.maps


def watched(
    model: torch.nn.Module,
    forward: Callable[[Any], Any],
    inputs: Any,
    plain: Any,
    batch: tuple[int, ...],
    keep: Keep = lambda item: item,
) -> Capture:
    """Run `forward`, which calls `model`, on a copy of `inputs`, and watch it; `plain` is what it gave before.

    `batch` are the sizes that the batch dimension may have. `keep` says what of a map is kept: it is applied as soon
    as the map is known, so that no more than one layer's heads are held at a time.
    """
    watcher, output = _watch(model, forward, inputs, batch, keep)
    if not watcher.records:
        with _spelled_out(model) as other:
            if other:
                watcher, output = _watch(model, forward, inputs, batch, keep)
    _hold_against(output, plain)
    maps = named(kinds(watcher.records))
    returned = [keep(item) for item in returned_maps(plain, batch)]
    return Capture(_with_returned(maps, returned), watcher.unseen)


def _watch(
    model: torch.nn.Module, forward: Callable[[Any], Any], inputs: Any, batch: tuple[int, ...], keep: Keep
) -> tuple[_Watcher, Any]:
    """One watched forward, and what it gave; it gets inputs of its own to write to."""
    own = copied(inputs)
    root = getattr(model, "original_name", type(unwrapped(model)).__name__)
    names = {id(module): name for name, module in reversed(list(unwrapped(model).named_modules()))}
    names[id(unwrapped(model))] = root
    watcher = _Watcher(root, batch, keep, _held_by(unwrapped(model)))
    with _one_at_a_time, undisturbed(model), heard_by(None), as_written(), contextlib.ExitStack() as watching:
        watching.enter_context(watcher.naming(unwrapped(model), names))
        watching.enter_context(_SlowPath(watcher))
        watching.enter_context(watcher)
        output = forward(own)
    if watcher.fault is not None:
        raise watcher.fault
    watcher.settle()
    return watcher, output


@contextlib.contextmanager
def _spelled_out(model: torch.nn.Module) -> Iterator[bool]:
    """Have a model of Hugging Face's attend in torch's own operators, where it does so in others; say if it does."""
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    others = [item for item in configs.values() if getattr(item, _IMPLEMENTATION, "eager") != "eager"]
    before = [getattr(item, _IMPLEMENTATION) for item in others]
    for item in others:
        setattr(item, _IMPLEMENTATION, "eager")
    try:
        yield bool(others)
    finally:
        for item, implementation in zip(others, before):
            setattr(item, _IMPLEMENTATION, implementation)


class _SlowPath(TorchFunctionMode):
    """Torch's modules leave their fast path, in which whole layers are one operator, wherever such a mode is active."""

    def __init__(self, watcher: _Watcher) -> None:
        super().__init__()
        self._watcher = watcher

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.multi_head_attention_forward:
            return func(*args, **(kwargs or {}))
        with self._watcher.attending():
            return func(*args, **(kwargs or {}))


class _Watcher(TorchDispatchMode):
    """Sees every operator of a forward, and keeps the weights of those that attend."""

    supports_higher_order_operators = True

    def __init__(self, root: str, batch: tuple[int, ...], keep: Keep, constants: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._root = root
        self.records: list[Record] = []
        self.unseen: list[str] = []
        self.fault: Exception | None = None
        self._batch = batch
        self._keep = keep
        self._lineage = Lineage(constants)
        self._inside: list[str] = []
        self._thread = threading.get_ident()
        self._pending: list[Record] = []
        self._recorded: dict[int, tuple[Any, int]] = {}  # of each product, how many numbers of it were recorded

    # Where in the model

    @contextlib.contextmanager
    def naming(self, model: torch.nn.Module, names: dict[int, str]) -> Iterator[None]:
        """Know in which module each operator is called."""

        def enter(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            if threading.get_ident() != self._thread:
                return
            self._inside.append(names.get(id(module), self._root))

        def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() == self._thread:
                del self._inside[-1:]

        with contextlib.ExitStack() as hooks:
            for module in model.modules():
                with contextlib.suppress(RuntimeError):  # a scripted one takes none
                    hooks.callback(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True).remove)
                    hooks.callback(module.register_forward_hook(leave, always_call=True).remove)
            yield

    @contextlib.contextmanager
    def attending(self) -> Iterator[None]:
        """In this block an attention is worked out."""
        self._lineage.attending = True
        try:
            yield
        finally:
            self._lineage.attending = False

    @property
    def _name(self) -> str:
        return self._inside[-1] if self._inside else self._root

    # Operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload) and func is not torch.ops.prim.device.default:
            with self:  # under inference mode, operators come before they are taken apart
                outcome = func.decompose(*args, **kwargs)
            if outcome is not NotImplemented:
                return outcome
        outcome = func(*args, **kwargs)
        if self.fault is None and torch._C._current_graph_task_id() == -1:  # no backward in the forward
            try:
                self._observe(func, args, kwargs, outcome)
            except Exception as error:
                self.fault = error
        return outcome

    def _observe(self, operator: Any, args: Any, kwargs: Any, outcome: Any) -> None:
        name = operator.overloadpacket.__name__ if isinstance(operator, torch._ops.OpOverload) else operator.name()
        if name.rstrip("_") in PRODUCTS:
            self._product(name, args, outcome)
        elif "attention" in name or "attn" in name or "flash" in name or name == "_transformer_encoder_layer_fwd":
            self._kernel(name, operator, args, kwargs, outcome)
        else:
            self._lineage.follow(name, args, kwargs, outcome)

    def _product(self, name: str, args: Any, output: torch.Tensor) -> None:
        left, right = (args[place] for place in PRODUCTS[name.rstrip("_")])
        for weights, values, turned in ((left, right, False), (right, left, True)):
            origin = self._lineage.of(weights)
            if origin is None or origin.product is None or not origin.softened or weights.ndim < 2:
                continue
            of_values = self._lineage.of(values)
            if of_values is None or of_values.product is not None or self._is_recorded(origin.product, weights):
                continue
            product = origin.product
            query, key, rows, columns = product.left, product.right, origin.tokens, origin.others
            given = output
            if turned:
                weights, values, given = weights.mT, values.mT, output.mT
                rows, columns = (None if numbers is None else numbers.mT for numbers in (rows, columns))
            if varies(rows, -1) or varies(columns, -2):  # keys were multiplied by queries
                query, key, rows, columns = key, query, columns, rows
            shares, check = wide(weights), None
            are_shares = rows_are_shares(shares)
            before = None if are_shares else _softened(shares, origin, turned)
            if before is None and not are_shares:
                continue
            if before is not None and origin.dropped and before.shape == shares.shape:
                shares = before
            elif name in ("mm", "bmm", "mv"):
                check = float((shares @ wide(values) - wide(given)).abs().max())
            self._recorded[id(product)] = product, self._recorded.get(id(product), (product, 0))[1] + weights.numel()
            places = Places(rows, columns) if rows is not None and columns is not None else None
            self._keep_map(shares, "observed", check, (query, key), places, product.over_features)
            tokens = None if rows is None else rows.narrow(-1, 0, 1).expand(given.shape)
            self._lineage.attended(output, query, tokens.mT if tokens is not None and turned else tokens)
            return
        self._lineage.follow(name, args, {}, output)

    def _is_recorded(self, product: Product, weights: torch.Tensor) -> bool:
        """Whether weights are made of a product whose own were recorded: of these, penalties and rollouts are made."""
        _, numbers = self._recorded.get(id(product), (product, 0))
        return numbers > 0 and numbers + weights.numel() > product.size

    def _kernel(self, name: str, operator: Any, args: Any, kwargs: Any, outcome: Any) -> None:
        with torch.autocast(_device_of(args), enabled=False):
            native = native_weights(operator, args, kwargs) if hasattr(operator, "_schema") else None
            kernel = as_kernel(operator, args, kwargs) if native is None else None
            found = None if kernel is None else kernel_weights(kernel, outcome)
        outputs = [item for item in tree_leaves(outcome) if isinstance(item, torch.Tensor)]
        if native is not None:
            query = self._lineage.of(args[0])
            key = self._lineage.of(args[1]) if isinstance(args[1], torch.Tensor) else query
            rows, columns = (of_heads(item, native.shape[1], -1) for item in (query, key))
            places = spread(rows, columns, native.shape)
            self._keep_map(wide(native), "native", None, (query, key), places, over_features=False)
            self._lineage.attended(outputs[0], query, None if query is None else query.tokens)
        elif kernel is not None and found is not None:
            query, key = self._lineage.of(kernel.query), self._lineage.of(kernel.key)
            heads = found.weights.shape[1] if found.weights.ndim > 3 else 1
            axis = 2 if found.tokens_first else None
            rows, columns = (of_heads(item, heads, axis) for item in (query, key))
            places = spread(rows, columns, found.weights.shape)
            over_features = any(item is not None and varies(item.tokens, -1) for item in (query, key))
            self._keep_map(found.weights, found.source, found.check, (query, key), places, over_features)
            self._lineage.attended(outputs[0], query, None if query is None else query.tokens)
        else:
            if kernel is not None and kernel.named:
                self.unseen.append(f"{operator.name()} in {self._name}")
            self._lineage.follow(name, args, kwargs, outcome)

    # Maps

    def _keep_map(
        self,
        weights: torch.Tensor,
        source: str,
        check: float | None,
        origins: tuple[Origin | None, Origin | None],
        places: Places | None,
        over_features: bool,
    ) -> None:
        same = self._lineage.same_tokens(*origins, square=weights.shape[-2] == weights.shape[-1])
        arranged = None if places is None or over_features else arranged_by_tokens(weights, places)
        if arranged is None:
            arranged = self._arranged_by_shape(weights)
        elif same and not arranged.columns & arranged.rows:  # of the same stream, but of other tokens of it
            same = False
        kind = "feature" if over_features else "self" if same else "cross"
        if kind == "self" and self._batch and len(arranged.weights) not in self._batch:
            kind = "window"
        item = AttentionMap(self._name, kind, arranged.weights, source, check)
        one_head = arranged.weights.shape[1] == 1
        query, key = (None if origin is None else Origin(origin.sources, origin.stream) for origin in origins)
        self._pending.append(Record(item, query, key, arranged.rows, arranged.columns, one_head))
        if not (len(self._pending) > 1 and belong_together(*self._pending[-2:])):
            self._settle(self._pending[:-1])
            self._pending = self._pending[-1:]

    def _settle(self, parts: list[Record]) -> None:
        """Heads, or parts of the queries, that were worked out one by one are one map."""
        if parts:
            whole = joined(parts)
            self.records.append(replace(whole, map=self._keep(whole.map)))

    def settle(self) -> None:
        """The forward is over."""
        self._settle(self._pending)
        self._pending = []

    def _arranged_by_shape(self, weights: torch.Tensor) -> Arranged:
        """Weights as `[batch, heads, query, key]`, where the tokens aren't known."""
        *leading, queries, keys = weights.shape
        total = math.prod(leading)
        if len(leading) > 1:
            batch = math.prod(leading[:-1])
        else:
            likely = sorted(self._batch, key=lambda size: size == queries)  # the length may be one of them
            batch = next((size for size in likely if total % size == 0), 1)
        return Arranged(weights.reshape(batch, -1, queries, keys), frozenset(), frozenset())


def _softened(found: torch.Tensor, origin: Origin, turned: bool) -> torch.Tensor | None:
    """The shares that weights were made of, which don't sum to 1: by a dropout, mixed heads, a difference of two."""
    if origin.shares is None:
        return None
    before = wide(origin.shares)
    if origin.shares.numel() == found.numel():
        before = before.reshape(found.mT.shape if turned else found.shape)
    before = before.mT if turned else before
    fits = before.shape[-2] == found.shape[-2] and before.shape[-1] >= found.shape[-1]  # a sink is cut off again
    return before if fits and rows_are_shares(before) else None


def _held_by(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """The tensors that a model holds itself: parameters, buffers, and what its modules keep as attributes."""
    yield from (*model.parameters(), *model.buffers())
    for module in model.modules():
        yield from tensors_in([value for name, value in vars(module).items() if not name.startswith("__")])


def _with_returned(maps: list[AttentionMap], returned: list[AttentionMap]) -> list[AttentionMap]:
    """The maps that were watched, unless the model returned one that isn't among them: then its own.

    What has no name may be anything that looks like a map (arcs of a parser, an adjacency): that counts only where
    nothing was watched.
    """
    if maps and not all("." in item.name for item in returned):
        return maps
    means = [item.weights.mean(1) for item in maps]
    for own in (item.weights.mean(1).cpu() for item in returned):
        if not any(own.shape == mean.shape and torch.allclose(own, mean.cpu().to(own), atol=1e-4) for mean in means):
            return returned
    return maps


def _hold_against(output: Any, plain: Any) -> None:
    """Raise `AttentionError` where the watched forward gave something else than the plain one."""
    for one, other in zip(_floating(output), _floating(plain)):
        if one.shape == other.shape and one.numel():
            differences = (wide(one) - wide(other)).abs().nan_to_num(0.0)
            if other.ndim:  # torch's fast path leaves noughts where it was told that there is nothing
                differences = differences[(other != 0).any(-1)]
            apart = float(differences.max()) if differences.numel() else 0.0
            if apart > 10 * tolerance(other):
                raise AttentionError(f"watched, the model gives something else than before: {apart:.3g} apart")


def _floating(output: Any) -> list[torch.Tensor]:
    return [item.detach() for item in tensors_in(output) if item.is_floating_point()]


def _all_tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor of a nest, and of the objects in it: a batch may be of the user's own type."""
    for item in tree_leaves(value):
        if isinstance(item, torch.Tensor):
            yield item
        elif hasattr(item, "__dict__"):
            yield from tensors_in(vars(item))


def _sizes(inputs: Any) -> tuple[int, ...]:
    """The sizes that the batch dimension of a model's inputs may have; none where no input is found."""
    sizes: list[int] = []
    alone: list[int] = []
    for tensor in _all_tensors(inputs):
        if tensor.ndim < 2 or (tensor.ndim == 2 and tensor.is_floating_point()):
            alone = [1]  # one example, without a batch
        whole = tensor.ndim > 3 or tensor.is_floating_point()
        sizes += tensor.shape[:1] if tensor.ndim > 3 else tensor.shape[: tensor.ndim - whole]
    return tuple(dict.fromkeys([*sizes, *alone]))


def _device_of(args: Any) -> str:
    return next((item.device.type for item in tree_leaves(args) if isinstance(item, torch.Tensor)), "cpu")
