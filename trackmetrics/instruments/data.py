"""Reading a data set once, in order, without moving it on: loaders, datasets, lists.

Nothing here trains or evaluates; a source gives batches as the training saw them, and the first example.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
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

    def batches(self) -> Iterator[Any]:
        """Every example once, in order, in batches of the loader's size; by its own number of workers.

        A loader of its own is built for that, so the user's draws nothing and its workers go on undisturbed.
        """
        own = self.loader
        settings: dict[str, Any] = {
            "collate_fn": own.collate_fn,
            "num_workers": own.num_workers,
            "worker_init_fn": own.worker_init_fn,
            "generator": torch.Generator().manual_seed(0),
        }
        if own.num_workers:
            settings |= {"multiprocessing_context": own.multiprocessing_context, "timeout": own.timeout}
        if self.indices is None:
            stream = iter(DataLoader(own.dataset, batch_size=own.batch_size, drop_last=own.drop_last, **settings))
            return (batch for batch, _ in zip(stream, range(len(own))))
        if own.batch_size is None and own.batch_sampler is None:
            return iter(DataLoader(own.dataset, batch_size=None, sampler=self.indices, **settings))
        return iter(DataLoader(own.dataset, batch_size=self.batch_size, sampler=self.indices, **settings))

    @property
    def batch_size(self) -> int:
        """The loader's batch size, or its own batch sampler's."""
        return self.loader.batch_size or getattr(self.loader.batch_sampler, "batch_size", None) or 1

    def first(self) -> tuple[Any, Any]:
        """The first example as the dataset holds it, and as a batch of one."""
        if self.indices is None or len(self.indices) == 0:
            raise UnreadableError("it is a stream, which has no first example to go back to")
        example = self.loader.dataset[self.indices[0]]
        batched = self.loader.batch_size is not None or self.loader.batch_sampler is not None
        return example, self.loader.collate_fn([example] if batched else example)


@dataclass(frozen=True)
class ExamplesSource:
    """A dataset or list of single examples."""

    examples: Any

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Any]:
        return (self.examples[index] for index in range(len(self.examples)))


@dataclass(frozen=True)
class BatchesSource:
    """A sized iterable that gives batches, and can be gone through again: a loader that isn't torch's."""

    loader: Any

    def batches(self) -> Iterator[Any]:
        """Its batches, once, no more of them than it says it has."""
        return (batch for batch, _ in zip(self.loader, range(len(self.loader))))

    def first(self) -> tuple[Any, Any]:
        """The first example, cut from the first batch; such a loader has no single examples."""
        for batch in self.batches():
            alone = _first_of_batch(batch)
            return alone, alone
        raise UnreadableError("it is empty")


Source = LoaderSource | ExamplesSource | BatchesSource


def open_source(data: Any) -> Source:
    """Say how `data` is to be read. Raises `UnreadableError` with the reason where it isn't."""
    if isinstance(data, DataLoader):
        return LoaderSource(data, _indices(data))
    if hasattr(data, "__next__"):
        raise UnreadableError("it is an iterator, which reading would use up")
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        raise UnreadableError(f"it is a stream without a length ({type(data).__name__})")
    if _is_pair_of_columns(data):
        return BatchesSource([tuple(data)])
    if len(data) == 0:
        raise UnreadableError("it is empty")
    if isinstance(data, (str, bytes, Mapping, torch.Tensor)):
        raise UnreadableError(f"a {type(data).__name__} is no set of (input, target) examples")
    if hasattr(data, "__getitem__"):
        return ExamplesSource(data)
    if hasattr(data, "__iter__"):
        return BatchesSource(data)
    raise UnreadableError(f"a {type(data).__name__} can neither be indexed nor gone through")


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
    if isinstance(dataset, IterableDataset):
        try:
            len(loader)
        except TypeError:
            raise UnreadableError("it is a stream without a length (its dataset is an IterableDataset)") from None
        return None
    sampler: Any = loader.sampler
    if loader.batch_size is None and isinstance(sampler, BatchSampler):  # batches indexed at once by the dataset
        raise UnreadableError("its sampler gives whole batches to the dataset")
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        sampler = getattr(loader.batch_sampler, "sampler", None) or loader.batch_sampler
    if isinstance(sampler, SubsetRandomSampler):
        return list(sampler.indices)
    whole = (SequentialSampler, RandomSampler, WeightedRandomSampler, DistributedSampler)
    if not isinstance(sampler, whole) and isinstance(sampler, Sampler) and sampler is not loader.batch_sampler:
        return _own_order(sampler, loader)
    return range(_length(dataset))


def _own_order(sampler: Any, loader: DataLoader[Any]) -> Sequence[Any]:
    """The examples that a sampler of the user's own picks, sorted, each once; a copy is asked, not the sampler."""
    try:
        picked = [index for index, _ in zip(copy.deepcopy(sampler), range(len(sampler)))]
        return sorted(set(picked))
    except Exception:
        raise UnreadableError(f"its sampler ({type(sampler).__name__}) can't be copied and counted") from None


def _length(dataset: Dataset[Any]) -> int:
    try:
        return len(dataset)  # type: ignore[arg-type]
    except TypeError:
        raise UnreadableError(f"its dataset ({type(dataset).__name__}) has no length") from None


def take_apart(item: Any) -> Parts:
    """Split an example or batch into inputs and target.

    Known are (input, target) pairs, mappings with `labels` (or `label`, `target`, `targets`, `y`), and objects
    with `input_tensor` and `output_tensor`. Raises `UnreadableError` for anything else.
    """
    if isinstance(item, Mapping):
        key = next((key for key in TARGET_KEYS if key in item), None)
        if key is None:
            raise UnreadableError(f"a dict with the keys {sorted(map(str, item))} has none of {', '.join(TARGET_KEYS)}")
        inputs = {str(name): _tensors(value) for name, value in item.items() if name != key}
        return Parts(inputs, _tensor(item[key]), keywords=True, labels=key)
    if hasattr(item, "input_tensor") and hasattr(item, "output_tensor"):
        return Parts(_tensors(item.input_tensor), _tensor(item.output_tensor))
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return Parts(_tensors(item[0]), _tensor(item[1]))
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
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_device(item, device) for item in value]
    return value


def _tensor(value: Any) -> torch.Tensor:
    """A target as a tensor. Raises `UnreadableError` where it is none."""
    try:
        return value if isinstance(value, torch.Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise UnreadableError(f"a target of type {type(value).__name__} is no tensor") from None


def _tensors(value: Any) -> Any:
    """Inputs as they are, arrays and numbers as tensors."""
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
