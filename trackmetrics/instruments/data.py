"""Reading a data set once, in order, without moving it on: loaders, datasets, lists.

Nothing here trains or evaluates; a source gives batches as the training saw them, and the first example.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler

TARGET_KEYS = ("labels", "label", "targets", "target", "y")


class UnreadableError(Exception):
    """Data that can't be read without using it up, guessing, or never ending."""


class Parts(NamedTuple):
    """An example or batch taken apart: what the model is given, and what it is to predict.

    `keywords` says that `inputs` are keyword arguments; then `labels` names the target's key.
    """

    inputs: Any
    target: torch.Tensor | None
    keywords: bool = False
    labels: str | None = None


@dataclass(frozen=True)
class LoaderSource:
    """A loader whose batches come as its training saw them, collated by its own `collate_fn`."""

    loader: DataLoader[Any]
    indices: Sequence[Any] | None

    def batches(self, rank: int = 0, ranks: int = 1) -> Iterator[Any]:
        """Every example once, in order, in batches of the loader's size; by its own number of workers.

        Of several `ranks` each has every so many of the batches, from its own `rank` on. A loader of its own is built
        for that, so the user's draws nothing and its workers go on undisturbed.
        """
        own = self.loader
        settings: dict[str, Any] = {
            "batch_size": self.batch_size,
            "collate_fn": own.collate_fn,
            "generator": torch.Generator().manual_seed(0),
        }
        if self.indices is None:  # in this process: workers would each read all of it, or each a part of their own
            return itertools.islice(DataLoader(_Bounded(own.dataset), **settings), rank, None, ranks)
        if own.num_workers:
            settings |= {
                "num_workers": own.num_workers,
                "worker_init_fn": own.worker_init_fn,
                "multiprocessing_context": own.multiprocessing_context,
                "timeout": own.timeout,
            }
        if self._in_bulk:
            size = cast(BatchSampler, own.sampler).batch_size
            starts = range(rank * size, len(self.indices), ranks * size)
            settings["sampler"] = [list(self.indices[at : at + size]) for at in starts]
        else:
            settings["sampler"] = _every(self.indices, self.batch_size or 1, rank, ranks)
        return iter(DataLoader(own.dataset, **settings))

    @property
    def number_of_batches(self) -> int:
        """How many batches there are, where the examples' indices are known."""
        assert self.indices is not None
        size = cast(BatchSampler, self.loader.sampler).batch_size if self._in_bulk else self.batch_size or 1
        return math.ceil(len(self.indices) / size)

    @property
    def batched(self) -> bool:
        """Whether what the loader gives has a batch dimension; else it hands single examples on."""
        return self.loader.batch_sampler is not None or self._in_bulk

    @property
    def _in_bulk(self) -> bool:
        """Whether the dataset is asked for whole batches, which nothing joins."""
        return self.loader.batch_sampler is None and isinstance(self.loader.sampler, BatchSampler)

    @property
    def batch_size(self) -> int | None:
        """The loader's batch size, or its own batch sampler's; None where it makes no batches."""
        if self.loader.batch_sampler is None:
            return None
        return self.loader.batch_size or getattr(self.loader.batch_sampler, "batch_size", None) or 1

    def first(self) -> tuple[Any, Any]:
        """The first example as the dataset holds it, and as a batch of one."""
        dataset: Any = self.loader.dataset
        if self.indices is None:
            example = next(iter(dataset))
        elif len(self.indices) == 0:
            raise UnreadableError("it is empty")
        else:
            example = dataset[[self.indices[0]] if self._in_bulk else self.indices[0]]
        joined = self.loader.batch_sampler is not None
        return example, self.loader.collate_fn([example] if joined else example)


class _Bounded(IterableDataset[Any]):
    """A sized stream, no further than its length."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.stream), len(self.stream))


@dataclass(frozen=True)
class ExamplesSource:
    """A dataset or list of single examples."""

    examples: Any

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.examples, IterableDataset):
            return iter(_Bounded(self.examples))
        return (self.examples[index] for index in range(len(self.examples)))

    def first(self) -> Any:
        """The first example."""
        return next(iter(self))

    @property
    def indexed(self) -> bool:
        """Whether each example can be asked for by itself."""
        return not isinstance(self.examples, IterableDataset)

    def groups(self, size: int, rank: int = 0, ranks: int = 1) -> Iterator[list[Any]]:
        """The examples in groups of `size`; of several `ranks` each has every so many of the groups."""
        if self.indexed:
            own = _every(range(len(self.examples)), size, rank, ranks)
            yield from _grouped((self.examples[index] for index in own), size)
        else:
            yield from itertools.islice(_grouped(iter(self), size), rank, None, ranks)


@dataclass(frozen=True)
class BatchesSource:
    """A sized iterable that gives batches, and can be gone through again: a loader that isn't torch's."""

    loader: Any
    batched = True

    def batches(self, rank: int = 0, ranks: int = 1) -> Iterator[Any]:
        """Its batches, once, no more of them than it says it has; of several `ranks` each has every so many."""
        return itertools.islice(iter(self.loader), rank, len(self.loader), ranks)

    def first(self) -> tuple[Any, Any]:
        """The first example, cut from the first batch; such a loader has no single examples."""
        for batch in self.batches():
            alone = _first_of_batch(batch)
            return alone, alone
        raise UnreadableError("it is empty")


Source = LoaderSource | ExamplesSource | BatchesSource


def _every(indices: Sequence[Any], size: int, rank: int, ranks: int) -> Sequence[Any]:
    """Of groups of `size` neighbours every `ranks`-th, from the `rank`-th on."""
    if ranks == 1:
        return indices
    starts = range(rank * size, len(indices), ranks * size)
    return [index for start in starts for index in indices[start : start + size]]


def _grouped(examples: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while group := list(itertools.islice(examples, size)):
        yield group


def open_source(data: Any) -> Source:
    """Say how `data` is to be read. Raises `UnreadableError` with the reason where it isn't."""
    if isinstance(data, DataLoader):
        return LoaderSource(data, _indices(data))
    _check_stream(data)
    if not hasattr(data, "__len__"):
        raise UnreadableError(f"it is a stream without a length ({type(data).__name__})")
    if _is_pair_of_columns(data):
        return BatchesSource([tuple(data)])
    if len(data) == 0:
        raise UnreadableError("it is empty")
    if isinstance(data, (str, bytes, Mapping, torch.Tensor)):
        raise UnreadableError(f"a {type(data).__name__} is no set of (input, target) examples")
    if hasattr(data, "__getitem__") or isinstance(data, IterableDataset):
        return ExamplesSource(data)
    if hasattr(data, "__iter__"):
        return BatchesSource(data)
    raise UnreadableError(f"a {type(data).__name__} can neither be indexed nor gone through")


def _check_stream(data: Any) -> None:
    """Raise `UnreadableError` for an iterator, and for a stream dataset that is one or has no length."""
    if hasattr(data, "__next__"):
        raise UnreadableError("it is an iterator, which reading would use up")
    if isinstance(data, IterableDataset):
        _length(data)
        if iter(data) is iter(data):
            raise UnreadableError("it is a stream that can be read once, which reading would use up")


def _is_pair_of_columns(data: Any) -> bool:
    """Two tensors of equally many rows, inputs and targets: a training on the whole set at once."""
    return (
        isinstance(data, (tuple, list))
        and len(data) == 2
        and all(isinstance(column, torch.Tensor) and column.ndim > 0 for column in data)
        and data[0].shape[0] == data[1].shape[0]
    )


def _indices(loader: DataLoader[Any]) -> Sequence[Any] | None:
    """Which examples the loader is about, in the order of their indices; None for a sized stream."""
    dataset = loader.dataset
    _check_stream(dataset)
    if isinstance(dataset, IterableDataset):
        return None
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    in_batches = sampler is loader.batch_sampler
    if in_batches or isinstance(sampler, BatchSampler):
        sampler = getattr(sampler, "batch_sampler", sampler)  # of which accelerate gives each process a part
        drawn_from = getattr(sampler, "sampler", None)
        in_batches &= drawn_from is None
        sampler = drawn_from or sampler
    if isinstance(sampler, SubsetRandomSampler):
        return list(sampler.indices)
    whole = (SequentialSampler, RandomSampler, WeightedRandomSampler, DistributedSampler)
    if isinstance(sampler, whole) or hasattr(sampler, "num_replicas"):
        return range(_length(dataset))
    return _picked(sampler, dataset, in_batches)


def drawn(loader: Any) -> list[Any] | None:
    """Which examples a loader gives in this process, sorted, as often as it does; None where it doesn't say."""
    sampler = getattr(loader, "batch_sampler", None) or getattr(loader, "sampler", None)
    if sampler is None or isinstance(loader.dataset, IterableDataset):
        return None
    in_batches = sampler is loader.batch_sampler
    asked = copy.deepcopy(sampler, {id(loader.dataset): loader.dataset})
    items = itertools.islice(iter(asked), len(asked))
    return sorted(itertools.chain.from_iterable(items) if in_batches else items)


def _picked(sampler: Any, dataset: Any, in_batches: bool) -> Sequence[Any]:
    """The examples that a sampler of the user's own picks, sorted, each once, none dropped for a last batch.

    A copy of it is asked, which shares only the dataset. One that draws as many as there are, some of them twice,
    draws from the whole set with replacement.
    """
    try:
        asked = copy.deepcopy(sampler, {id(dataset): dataset})
        if getattr(asked, "drop_last", False):
            asked.drop_last = False
        drawn = itertools.islice(iter(asked), len(asked))
        picked = list(itertools.chain.from_iterable(drawn) if in_batches else drawn)
        each = sorted(set(picked))
    except Exception:
        raise UnreadableError(f"its sampler ({type(sampler).__name__}) can't be copied and counted") from None
    return range(_length(dataset)) if len(each) < len(picked) >= _length(dataset) else each


def _length(dataset: Any) -> int:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        raise UnreadableError(f"it is a stream without a length ({type(dataset).__name__})") from None


def take_apart(item: Any) -> Parts:
    """Split an example or batch into inputs and target.

    Known are (input, target) pairs, mappings with `labels` (or `label`, `target`, `targets`, `y`), and objects
    with `input_tensor` and `output_tensor`. Raises `UnreadableError` for anything else.
    """
    if isinstance(item, Mapping):
        key = next((key for key in TARGET_KEYS if key in item), None)
        if key is None:
            raise UnreadableError(f"a dict with the keys {sorted(map(str, item))} has none of {', '.join(TARGET_KEYS)}")
        inputs = {name: value for name, value in item.items() if name != key}
        return Parts(to_tensors(inputs), _tensor(item[key]), keywords=True, labels=key)
    if hasattr(item, "input_tensor") and hasattr(item, "output_tensor"):
        return Parts(to_tensors(item.input_tensor), _tensor(item.output_tensor))
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return Parts(to_tensors(item[0]), _tensor(item[1]))
    shape = f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, (tuple, list)) else "")
    raise UnreadableError(f"{shape} is no (input, target) pair, no dict with labels, no object with input_tensor")


def collate(examples: list[Any]) -> Parts:
    """Join single examples into one batch, as a default loader would; one example gets a batch dimension."""
    apart = [take_apart(example) for example in examples]
    first = apart[0]
    joined = default_collate([(parts.inputs, parts.target) for parts in apart])
    return first._replace(inputs=joined[0], target=joined[1])


def to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor of a nest of tuples, lists and dicts."""
    if hasattr(value, "to"):  # a tensor, a packed sequence, a batch of another library
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(item, device) for item in value))
    if isinstance(value, (tuple, list)):
        return (tuple if isinstance(value, tuple) else list)(to_device(item, device) for item in value)
    return value


def copied(value: Any) -> Any:
    """The same nest with tensors of its own, at any depth where it can be copied; what is given twice stays one."""
    memo: dict[int, Any] = {}
    twins: dict[Any, torch.Tensor] = {}
    for tensor in tensors_in(value):
        key: Any = id(tensor)
        if tensor.layout is torch.strided and not tensor.is_nested and tensor.numel():
            key = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        memo[id(tensor)] = twins.setdefault(key, tensor.detach().clone())
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # an iterator, say, that can be gone through once only
        return value


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor of a nest of tuples, lists and dicts; any other iterable can be read once, and is the user's."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


def _tensor(value: Any) -> torch.Tensor:
    """A target as a tensor. Raises `UnreadableError` where it is none."""
    try:
        return value if isinstance(value, torch.Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise UnreadableError(f"a target of type {type(value).__name__} is no tensor") from None


def to_tensors(value: Any) -> Any:
    """Inputs as they are, but arrays and lists of numbers as tensors; a dict's values likewise."""
    if isinstance(value, Mapping):
        return {str(name): to_tensors(item) for name, item in value.items()}
    if hasattr(value, "__array__") and not isinstance(value, torch.Tensor):
        return torch.as_tensor(value)
    if isinstance(value, list) and value and all(isinstance(item, (int, float)) for item in value):
        return torch.as_tensor(value)
    return value


def _first_of_batch(batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch[:1]
    if isinstance(batch, Mapping):
        return {key: _first_of_batch(item) for key, item in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [_first_of_batch(item) for item in batch]
    return batch
