"""Data sets in the forms that PyTorch users have: ten examples, whose input says which of them it is."""

import gc
import random
import threading
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

COUNT = 10
INPUTS = torch.arange(COUNT)
TARGETS = INPUTS % 3
PAIRS = list(zip(INPUTS, TARGETS))


def for_ever(items):
    """Goes round and round; but whoever reads on far beyond any use is stopped."""
    for number in range(100_000):
        yield items[number % len(items)]
    raise AssertionError("an endless set was read on and on")


class Numbered(Dataset):
    """Map-style; `read` lists what was asked of it."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        self.read.append(index)
        return PAIRS[index]


class InBulk(Dataset):
    """Map-style, asked for whole batches."""

    def __len__(self):
        return COUNT

    def __getitem__(self, indices):
        return INPUTS[indices], TARGETS[indices]


class Stream(IterableDataset):
    """A stream without a length."""

    def __iter__(self):
        return iter(PAIRS)


class EndlessStream(IterableDataset):
    """A stream that says a length, and never ends."""

    def __len__(self):
        return COUNT

    def __iter__(self):
        return for_ever(PAIRS)


class OnceStream(IterableDataset):
    """A stream that says a length, and can be read once."""

    def __init__(self):
        self.rest = iter(PAIRS)

    def __len__(self):
        return COUNT

    def __iter__(self):
        return self.rest


class SelfStream(OnceStream):
    """A stream that is its own iterator."""

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.rest)


class ShardedStream(EndlessStream):
    """A stream of which each worker gives its share."""

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        return iter(PAIRS if info is None else PAIRS[info.id :: info.num_workers])


class Picking(Sampler):
    """A sampler of a user's own, which shuffles what it picks by the global streams, and changes as it goes."""

    def __init__(self, picks):
        self.picks = list(picks)
        self.passes = 0

    def __len__(self):
        return len(self.picks)

    def __iter__(self):
        self.passes += 1
        random.shuffle(self.picks)
        return (self.picks[place] for place in torch.randperm(len(self.picks)).tolist())


class Endless(Sampler):
    """Draws for ever: how long a pass is, the loop decides. It says a length, or none."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return for_ever(torch.randperm(self.count).tolist())


class SizedEndless(Endless):
    def __len__(self):
        return self.count


class Uncopied(Picking):
    """A sampler that holds what can't be copied."""

    def __init__(self, picks):
        super().__init__(picks)
        self.source = (pick for pick in picks)


class Replicated(Picking):
    """One process's share, as a distributed sampler of a user's own gives it."""

    num_replicas = 2


class Buckets:
    """A batch sampler of a user's own, which drops what fills no batch."""

    def __init__(self, indices, size, drop_last):
        self.indices, self.size, self.drop_last = list(indices), size, drop_last

    def __len__(self):
        return len(self.indices) // self.size if self.drop_last else -(-len(self.indices) // self.size)

    def __iter__(self):
        random.shuffle(self.indices)
        batches = [self.indices[at : at + self.size] for at in range(0, len(self.indices), self.size)]
        return iter(batches[: len(self)])


class DrawnBuckets(Buckets):
    """Such a batch sampler over another sampler."""

    def __init__(self, sampler, size, drop_last):
        super().__init__(sampler, size, drop_last)
        self.sampler = sampler


class OtherLoader:
    """A loader that isn't torch's: sized, and gone through anew each time, endlessly if one doesn't count."""

    def __len__(self):
        return 3

    def __iter__(self):
        for at in for_ever((0, 4, 8)):
            yield INPUTS[at : at + 4], TARGETS[at : at + 4]


@dataclass
class Labelled:
    """An example with attributes."""

    input_tensor: torch.Tensor
    output_tensor: torch.Tensor
    input: str = ""


def join_feeders():
    """Wait for the threads by which loaders feed their workers: they end a moment after their loader's pass."""
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("QueueFeeder"):
            thread.join(timeout=5)


def as_dicts(pairs):
    """A collate function of a user's own."""
    return {"input_ids": torch.stack([number for number, _ in pairs]), "labels": torch.stack([y for _, y in pairs])}


def _noisy(pairs):
    random.random()
    np.random.rand()
    torch.rand(1)
    return torch.utils.data.default_collate(pairs)


def _loader(**settings):
    return DataLoader(Numbered(), **{"batch_size": 4, **settings})


def _generator():
    return torch.Generator().manual_seed(7)


ALL = list(range(COUNT))
READABLE = {
    "a sequential loader": (lambda: _loader(), ALL),
    "a shuffling loader": (lambda: _loader(shuffle=True, generator=_generator()), ALL),
    "a loader that drops its last batch": (lambda: _loader(shuffle=True, drop_last=True), ALL),
    "a subset sampler": (
        lambda: _loader(sampler=SubsetRandomSampler([7, 2, 5]), batch_size=2, drop_last=True),
        [7, 2, 5],
    ),
    "a subset sampler with generators": (
        lambda: _loader(
            sampler=SubsetRandomSampler([7, 2, 5, 0, 9], generator=_generator()),
            batch_size=2,
            drop_last=True,
            generator=_generator(),
        ),
        [7, 2, 5, 0, 9],
    ),
    "a subset": (
        lambda: DataLoader(Subset(Numbered(), [8, 1, 3]), batch_size=2, drop_last=True, shuffle=True),
        [8, 1, 3],
    ),
    "an endless sampler that says a length": (lambda: _loader(sampler=SizedEndless(COUNT)), ALL),
    "a weighted sampler": (lambda: _loader(sampler=WeightedRandomSampler([1.0] * 10, 6, generator=_generator())), ALL),
    "draws with replacement": (lambda: _loader(sampler=RandomSampler(ALL, replacement=True, num_samples=4)), ALL),
    "a distributed sampler": (lambda: _loader(sampler=DistributedSampler(ALL, num_replicas=2, rank=1)), ALL),
    "a distributed sampler of one's own": (lambda: _loader(sampler=Replicated([1, 3])), ALL),
    "a sampler of one's own": (lambda: _loader(sampler=Picking([8, 0, 4, 2, 6])), [0, 2, 4, 6, 8]),
    "a sampler of one's own with replacement": (lambda: _loader(sampler=Picking([3] * 5 + [1] * 5)), ALL),
    "a list as sampler": (lambda: _loader(sampler=[9, 3]), [3, 9]),
    "a batch sampler of one's own": (lambda: DataLoader(Numbered(), batch_sampler=Buckets(ALL, 4, True)), ALL),
    "a batch sampler over some": (lambda: DataLoader(Numbered(), batch_sampler=Buckets([5, 1], 2, False)), [1, 5]),
    "a batch sampler over a sampler": (
        lambda: DataLoader(Numbered(), batch_sampler=DrawnBuckets(SubsetRandomSampler([6, 1, 8]), 2, True)),
        [6, 1, 8],
    ),
    "lists as batch sampler": (lambda: DataLoader(Numbered(), batch_sampler=[[4, 2], [0]]), [0, 2, 4]),
    "no batches": (lambda: DataLoader(Numbered(), batch_size=None, shuffle=False), ALL),
    "batches by the dataset": (
        lambda: DataLoader(InBulk(), batch_size=None, sampler=BatchSampler(SequentialSampler(ALL), 4, drop_last=True)),
        ALL,
    ),
    "a collate function of one's own": (lambda: _loader(collate_fn=as_dicts), ALL),
    "a collate function that draws": (lambda: _loader(collate_fn=_noisy, shuffle=True), ALL),
    "workers": (lambda: _loader(num_workers=2, shuffle=True), ALL),
    "workers that stay": (
        lambda: _loader(num_workers=2, shuffle=True, persistent_workers=True, generator=_generator()),
        ALL,
    ),
    "a sized stream in a loader": (lambda: DataLoader(EndlessStream(), batch_size=4, drop_last=True), ALL),
    "a sharded stream with workers": (lambda: DataLoader(ShardedStream(), batch_size=4, num_workers=2), ALL),
    "a sized stream": (EndlessStream, ALL),
    "a dataset": (Numbered, ALL),
    "a tensor dataset": (lambda: TensorDataset(INPUTS, TARGETS), ALL),
    "pairs": (lambda: PAIRS, ALL),
    "two columns": (lambda: (INPUTS, TARGETS), ALL),
    "dicts": (lambda: [{"input_ids": number, "labels": target} for number, target in PAIRS], ALL),
    "objects": (lambda: [Labelled(number, target) for number, target in PAIRS], ALL),
    "another library's loader": (OtherLoader, ALL),
}

UNREADABLE = {
    "a generator": (lambda: (pair for pair in PAIRS), "iterator"),
    "an iterator": (lambda: iter(PAIRS), "iterator"),
    "an endless iterator": (lambda: for_ever(PAIRS), "iterator"),
    "a loader's iterator": (lambda: iter(_loader()), "iterator"),
    "an unsized stream": (Stream, "without a length"),
    "an unsized stream in a loader": (lambda: DataLoader(Stream(), batch_size=4), "without a length"),
    "a stream to be read once": (OnceStream, "once"),
    "a stream to be read once in a loader": (lambda: DataLoader(OnceStream(), batch_size=4), "once"),
    "a stream that is its own iterator": (SelfStream, "iterator"),
    "its own iterator in a loader": (lambda: DataLoader(SelfStream(), batch_size=4), "iterator"),
    "an unsized iterable": (lambda: type("Unsized", (), {"__iter__": lambda self: iter(PAIRS)})(), "without a length"),
    "an endless loader": (
        lambda: type("Endless", (), {"__iter__": lambda self: for_ever(PAIRS)})(),
        "without a length",
    ),
    "an endless sampler": (lambda: _loader(sampler=Endless(COUNT)), "can't be copied and counted"),
    "a sampler that can't be copied": (lambda: _loader(sampler=Uncopied([1, 2])), "can't be copied"),
    "an empty list": (list, "empty"),
    "a text": (lambda: "abc", "str"),
    "a dict": (lambda: {"a": 1}, "dict"),
    "a tensor": (lambda: INPUTS, "Tensor"),
    "a number": (lambda: 3, "without a length"),
    "a bag without order": (lambda: type("Bag", (), {"__len__": lambda self: 3})(), "neither"),
}
REFUSED = ("an empty list", "a text", "a dict", "a tensor", "a number", "a bag without order")  # no sets at all
