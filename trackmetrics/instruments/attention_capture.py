"""Attention maps out of any model, as it is: one forward of it is watched, operator by operator.

Below every way to write an attention lie the same few operators. Either a product of queries and keys becomes shares
that are multiplied by values, or one operator does all of that; see `lineage` and `attention_kernels`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import AttentionError
from .attention_kernels import as_kernel, kernel_weights, native_weights, tolerance, wide
from .attention_maps import AttentionMap, rows_are_shares
from .compiling import as_written
from .data import copied, tensors_in
from .discovery import unwrapped
from .events import heard_by
from .lineage import PRODUCTS, Lineage, Origin, Product, runs_over_features
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
    forward = functools.partial(_call, unwrapped(model), args, kwargs)
    with undisturbed(model), heard_by(None), as_written():
        plain = forward()
    capture = watched(model, forward, plain, _sizes((args, kwargs)))
    if capture.unseen:
        raise AttentionError(f"no weights can be had of {', '.join(capture.unseen)}")
    return capture.maps


def _call(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    own_args, own_kwargs = copied((args, kwargs))  # a forward may write to its inputs
    return model(*own_args, **own_kwargs)


def watched(
    model: torch.nn.Module,
    forward: Callable[[], Any],
    plain: Any,
    batch: tuple[int, ...],
    keep: Keep = lambda item: item,
) -> Capture:
    """Run `forward`, which calls `model`, and watch it attend; `plain` is what it gave before.

    `batch` are the sizes that the batch dimension may have. `keep` says what of a map is kept: it is applied as soon
    as the map is known, so that no more than one layer's heads are held at a time.
    """
    watcher, output = _watch(model, forward, batch, keep)
    if not watcher.records:
        with _spelled_out(model) as other:
            if other:
                watcher, output = _watch(model, forward, batch, keep)
    _hold_against(output, plain)
    maps = _named(_kinds(_joined_heads(watcher.records), keep))
    returned = [keep(item) for item in returned_maps(plain, batch)]
    return Capture(_with_returned(maps, returned), watcher.unseen)


def _watch(
    model: torch.nn.Module, forward: Callable[[], Any], batch: tuple[int, ...], keep: Keep
) -> tuple[_Watcher, Any]:
    """One watched forward, and what it gave."""
    root = getattr(model, "original_name", type(unwrapped(model)).__name__)
    names = {id(module): name for name, module in reversed(list(unwrapped(model).named_modules()))}
    names[id(unwrapped(model))] = root
    watcher = _Watcher(root, batch, keep, _held_by(unwrapped(model)))
    with _one_at_a_time, undisturbed(model), heard_by(None), as_written(), contextlib.ExitStack() as watching:
        watching.enter_context(watcher.naming(unwrapped(model), names))
        watching.enter_context(_SlowPath(watcher))
        watching.enter_context(watcher)
        output = forward()
    if watcher.fault is not None:
        raise watcher.fault
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


@dataclass(frozen=True)
class _Record:
    """A map with what tells its kind: where its queries and keys come from; `headless` that it has one head only."""

    map: AttentionMap
    query: Origin | None
    key: Origin | None
    headless: bool


class _SlowPath(TorchFunctionMode):
    """Torch's modules leave their fast path, in which whole layers are one operator, wherever such a mode is active."""

    def __init__(self, watcher: _Watcher) -> None:
        super().__init__()
        self._watcher = watcher

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.multi_head_attention_forward:
            return func(*args, **(kwargs or {}))
        with self._watcher.attending(heads=args[4]):
            return func(*args, **(kwargs or {}))


class _Watcher(TorchDispatchMode):
    """Sees every operator of a forward, and keeps the weights of those that attend."""

    supports_higher_order_operators = True

    def __init__(self, root: str, batch: tuple[int, ...], keep: Keep, constants: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._root = root
        self.records: list[_Record] = []
        self.unseen: list[str] = []
        self.fault: Exception | None = None
        self.heads: int | None = None
        self._batch = batch
        self._lengths: set[int] = set()
        self._keep = keep
        self._lineage = Lineage(constants)
        self._inside: list[str] = []
        self._thread = threading.get_ident()
        self._recorded: dict[int, tuple[Any, int]] = {}  # of each product, how many numbers of it were recorded

    # Where in the model

    @contextlib.contextmanager
    def naming(self, model: torch.nn.Module, names: dict[int, str]) -> Iterator[None]:
        """Know in which module each operator is called."""

        def enter(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            if threading.get_ident() != self._thread:
                return
            if not self._inside:
                self._begin((args, kwargs))
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
    def attending(self, heads: int) -> Iterator[None]:
        """In this block an attention of so many heads is worked out."""
        before, self.heads, self._lineage.attending = self.heads, heads, True
        try:
            yield
        finally:
            self.heads, self._lineage.attending = before, False

    @property
    def _name(self) -> str:
        return self._inside[-1] if self._inside else self._root

    def _begin(self, inputs: Any) -> None:
        for tensor in _all_tensors(inputs):
            if tensor.ndim < 4:  # no image
                self._lengths.update(tensor.shape[:-1] if tensor.is_floating_point() else tensor.shape)

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
            own_values = self._lineage.of(values)
            if own_values is None or own_values.product is not None or self._is_recorded(origin.product, weights):
                continue
            shares = wide(weights.mT if turned else weights)
            check = None
            before = None if rows_are_shares(shares) else _softened(shares, origin, turned)
            if before is not None and origin.dropped and before.shape == shares.shape:
                shares = before
            elif before is None and not rows_are_shares(shares):
                continue
            elif name in ("mm", "bmm", "mv"):
                own = wide(values.mT if turned and values.ndim > 1 else values)
                given = wide(output.mT if turned and output.ndim > 1 else output)
                check = float((shares @ own - given).abs().max())
            self._record(origin.product, weights)
            query, key = origin.product.left, origin.product.right
            if turned:
                query, key = key, query
            over_features = runs_over_features(self._lineage.of(values), -1 if turned else -2)
            if origin.joined_from is not None:
                apart = (shares.mT if turned else shares).reshape(origin.joined_from)
                shares = apart.mT if turned else apart
            self._keep_map(shares, "observed", check, (query, key), over_features)
            self._lineage.begin(output, after=query)
            return
        self._lineage.follow(name, args, {}, output)

    def _is_recorded(self, product: Product, weights: torch.Tensor) -> bool:
        """Whether weights are made of a product whose own were recorded: of these, penalties and rollouts are made."""
        _, numbers = self._recorded.get(id(product), (product, 0))
        return numbers > 0 and numbers + weights.numel() > product.size

    def _record(self, product: Product, weights: torch.Tensor) -> None:
        _, numbers = self._recorded.get(id(product), (product, 0))
        self._recorded[id(product)] = product, numbers + weights.numel()

    def _kernel(self, name: str, operator: Any, args: Any, kwargs: Any, outcome: Any) -> None:
        with torch.autocast(_device_of(args), enabled=False):
            native = native_weights(operator, args, kwargs) if hasattr(operator, "_schema") else None
            kernel = as_kernel(operator, args, kwargs) if native is None else None
            found = None if kernel is None else kernel_weights(kernel, outcome)
        if native is not None:
            query = self._lineage.of(args[0])
            key = self._lineage.of(args[1]) if isinstance(args[1], torch.Tensor) else query
            self._keep_map(wide(native), "native", None, (query, key), over_features=False)
        elif kernel is not None and found is not None:
            query, key, value = map(self._lineage.of, (kernel.query, kernel.key, kernel.value))
            over_features = runs_over_features(value, -2) and kernel.value.shape[-2] == found.weights.shape[-1]
            self._keep_map(found.weights, found.source, found.check, (query, key), over_features)
        else:
            if kernel is not None:
                self.unseen.append(f"{operator.name()} in {self._name}")
            self._lineage.follow(name, args, kwargs, outcome)
            return
        for output in tree_leaves(outcome):
            if isinstance(output, torch.Tensor):
                self._lineage.begin(output, after=query)

    # Maps

    def _keep_map(
        self,
        weights: torch.Tensor,
        source: str,
        check: float | None,
        origins: tuple[Origin | None, Origin | None],
        over_features: bool,
    ) -> None:
        queries, keys = weights.shape[-2:]
        arranged, headless, windows = self._arranged(weights)
        same = self._lineage.same_tokens(*origins, square=queries == keys)
        kind = "feature" if over_features else "self" if same else "cross"
        if kind == "self" and windows:
            kind = "window"
        record = AttentionMap(self._name, kind, arranged, source, check)
        self.records.append(_Record(self._keep(record), *origins, headless))

    def _arranged(self, weights: torch.Tensor) -> tuple[torch.Tensor, bool, bool]:
        """Weights as `[batch, heads, query, key]`; whether they have no dimension of heads, and one of windows."""
        *leading, queries, keys = weights.shape
        total = math.prod(leading)
        if self.heads is not None and total % self.heads == 0:
            batch = total // self.heads
        elif len(leading) > 2 and leading[0] in self._batch and queries in self._lengths:  # heads in groups
            batch = leading[0]
        elif len(leading) > 1:
            batch = math.prod(leading[:-1])
        else:
            likely = sorted(self._batch, key=lambda size: size == queries)  # the length may be one of them
            batch = next((size for size in likely if total % size == 0), 1)
        headless = self.heads is None and len(leading) < 2 and total == batch
        windows = batch not in self._batch or (len(leading) > 2 and queries not in self._lengths)
        return weights.reshape(batch, -1, queries, keys), headless, windows


def _softened(found: torch.Tensor, origin: Origin, turned: bool) -> torch.Tensor | None:
    """The shares that weights were made of, which don't sum to 1: by a dropout, mixed heads, a difference of two."""
    if origin.shares is None:
        return None
    before = wide(origin.shares)
    if origin.shares.numel() == found.numel():
        before = before.reshape(found.mT.shape if turned else found.shape)
    before = before.mT if turned else before
    return before if before.shape[-2:] == found.shape[-2:] and rows_are_shares(before) else None


def _some_dropped(found: torch.Tensor, before: torch.Tensor) -> bool:
    """Whether weights are shares of which some were dropped, and the others scaled."""
    if found.shape != before.shape:
        return False
    factors = (found / before)[found != 0]
    return factors.numel() > 0 and bool(factors.max() - factors.min() < 1e-3)


def _joined_heads(records: list[_Record]) -> list[_Record]:
    """Heads that were worked out one by one, of the same tokens, are one map."""
    joined: list[_Record] = []
    for record in records:
        last = joined[-1] if joined else None
        if last is not None and last.headless and record.headless and _are_heads(last, record):
            weights = torch.cat([last.map.weights, record.map.weights], 1)
            checks = [check for check in (last.map.check, record.map.check) if check is not None]
            common = _common_path(last.map.name, record.map.name)
            whole = replace(last.map, name=common, weights=weights, check=max(checks, default=None), heads=None)
            joined[-1] = replace(last, map=whole)
        else:
            joined.append(record)
    return joined


def _are_heads(one: _Record, other: _Record) -> bool:
    if one.query is None or other.query is None or one.key is None or other.key is None:
        return False
    return (
        one.map.kind == other.map.kind
        and one.map.weights.shape[-2:] == other.map.weights.shape[-2:]
        and (one.query.sources, one.key.sources) == (other.query.sources, other.key.sources)
    )


def _common_path(one: str, other: str) -> str:
    parts = []
    for left, right in zip(one.split("."), other.split(".")):
        if left != right:
            break
        parts.append(left)
    return ".".join(parts)


def _kinds(records: list[_Record], keep: Keep) -> list[AttentionMap]:
    """The maps; those of an encoder, whose tokens a decoder attends to, are told apart."""
    crossing = [record for record in records if record.map.kind == "cross" and record.key and record.query]
    attended = {record.key.stream for record in crossing if record.key}
    attending = {record.query.stream for record in crossing if record.query}
    maps = []
    for record in records:
        item = keep(record.map) if record.headless else record.map
        stream = None if record.query is None else record.query.stream
        alone = stream in attended and (stream not in attending or _is_encoders(item.name))
        maps.append(replace(item, kind="encoder") if item.kind == "self" and alone else item)
    return maps


def _is_encoders(name: str) -> bool:
    return "encoder" in name and "decoder" not in name


def _held_by(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """The tensors that a model holds itself: parameters, buffers, and what its modules keep as attributes."""
    yield from (*model.parameters(), *model.buffers())
    for module in model.modules():
        yield from tensors_in([value for name, value in vars(module).items() if not name.startswith("__")])


def _named(maps: list[AttentionMap]) -> list[AttentionMap]:
    """Each map with a name of its own."""
    times: Counter[str] = Counter()
    named = []
    for item in maps:
        times[item.name] += 1
        named.append(item if times[item.name] == 1 else replace(item, name=f"{item.name}#{times[item.name]}"))
    return named


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
    """The sizes that the batch dimension of a model's inputs may have: their first one, or the second."""
    for tensor in _all_tensors(inputs):
        if tensor.ndim < 2 or (tensor.ndim == 2 and tensor.is_floating_point()):
            return (1,)
        return tuple(tensor.shape[: 2 if tensor.ndim == 3 else 1])
    return (1,)


def _device_of(args: Any) -> str:
    return next((item.device.type for item in tree_leaves(args) if isinstance(item, torch.Tensor)), "cpu")
