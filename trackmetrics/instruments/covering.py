"""Which of the criterion calls that were made are over a set: all its examples, each once.

Two things show it. A loader that was gone through says which examples it gives, and which batch it gave before a
call. Where the examples are gone through without a loader, their targets lie in memory where the calls' targets lay.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils.data import BatchSampler, IterableDataset, RandomSampler, SequentialSampler, SubsetRandomSampler

from .data import BatchesSource, ExamplesSource, LoaderSource, Source, take_apart
from .pairing import Pairing


class Place(NamedTuple):
    """Where in memory a tensor lies."""

    device: str
    begin: int
    end: int

    @staticmethod
    def of(tensor: torch.Tensor | None) -> Place | None:
        """None for a tensor that has nothing in it, or gaps."""
        if tensor is None or tensor.numel() == 0 or not tensor.is_contiguous():
            return None
        begin = tensor.data_ptr()
        return Place(str(tensor.device), begin, begin + tensor.numel() * tensor.element_size())


class Sample(NamedTuple):
    """A call's first scores, a row a prediction; the batch that a loader gave for it; the type that autocast had."""

    scores: torch.Tensor
    batch: Any
    autocast: torch.dtype | None


@dataclass
class Judged:
    """A criterion call that no backward reached, and what it says.

    `batch` is the number of its batch in the loader's pass. `clear` says that its targets are classes and that
    nothing was overwritten, `yielded` that they are its batch's own, `shifted` that they are these moved by one
    position, as a language model has them that computes its loss inside.
    """

    pairing: Pairing
    place: Place | None
    batch: int
    sample: Sample | None
    correct: int = 0
    targets: int = 0
    clear: bool = False
    yielded: bool = False
    shifted: bool = False


@dataclass
class Pass:
    """A loader gone through from its first batch: how much it gave, and what was judged after each batch."""

    dataset: Any
    sampler: Any
    workers: int
    makes_batches: bool
    batches: int = 0
    examples: int = 0
    judged: list[Judged] = field(default_factory=list)

    @staticmethod
    def begun_by(iterator: Any) -> Pass:
        """A pass of a `DataLoader`'s iterator, by what that says of itself."""
        return Pass(iterator._dataset, iterator._index_sampler, iterator._num_workers, iterator._auto_collation)

    def is_of(self, source: Source) -> bool:
        """Whether it may be one over the source's examples, some of them or all."""
        dataset, indices = _examples_of(source)
        if dataset is None or self.dataset is not dataset:
            return False
        visited = None if indices is None else _visited(self.sampler)
        return visited is None or _same_examples(visited, indices)

    def covers(self, source: Source) -> bool:
        """Whether it certainly gave each of the source's examples once, and each batch was judged once."""
        if [judged.batch for judged in self.judged] != list(range(1, self.batches + 1)):
            return False
        dataset, indices = _examples_of(source)
        if indices is None:  # workers might each give a stream's examples
            return self.workers == 0 and self.examples == len(dataset)
        return _visited(self.sampler) is not None and self.batches == len(self.sampler)


class Covering(NamedTuple):
    """The calls over a set, and what some of them were made of.

    `samples` gives a call, the first of its scores that counts, and the batch, if it was `by_loader`, or the example.
    """

    judged: list[Judged]
    samples: Iterator[tuple[Judged, int, Any]]
    by_loader: bool


def covering(source: Source, judged: list[Judged], passes: list[Pass]) -> Covering | None:
    """The calls that cover the source's examples; None where they aren't covered, or more than once."""
    own = [one for one in passes if one.judged and one.is_of(source)]
    inside = {id(call) for one in own for call in one.judged}
    others = [call for call in judged if call.place is not None and id(call) not in inside]
    held = _HeldTargets.of(source, others)
    if held is not None:
        return None if own else held.covered()
    if len(own) != 1 or not own[0].covers(source):
        return None
    calls = own[0].judged
    samples = ((call, 0, call.sample.batch) for call in calls if call.sample is not None)
    return Covering(calls, samples, by_loader=True)


# Loaders


def _examples_of(source: Source) -> tuple[Any, Sequence[Any] | None]:
    """The dataset, and the indices that are meant; no indices for a stream, no dataset where there is none."""
    if isinstance(source, LoaderSource):
        return source.loader.dataset, source.indices
    if isinstance(source, ExamplesSource):
        stream = isinstance(source.examples, IterableDataset)
        return source.examples, None if stream else range(len(source.examples))
    return None, None


def _visited(sampler: Any) -> Sequence[Any] | None:
    """The indices that a whole pass of a sampler gives, each once; None where that isn't certain."""
    if type(sampler) is BatchSampler:
        visited = _visited(sampler.sampler)
        drops = sampler.drop_last and visited is not None and len(visited) % sampler.batch_size != 0
        return None if drops else visited
    if type(sampler) is SequentialSampler:
        return range(len(sampler.data_source))
    if type(sampler) is RandomSampler:
        whole = not sampler.replacement and sampler.num_samples == len(sampler.data_source)
        return range(len(sampler.data_source)) if whole else None
    if type(sampler) is SubsetRandomSampler:
        return list(sampler.indices)
    return sampler if type(sampler) in (list, tuple, range) else None


def _same_examples(visited: Sequence[Any], indices: Sequence[Any] | None) -> bool:
    if isinstance(visited, range) and isinstance(indices, range):
        return visited == indices
    return indices is not None and sorted(visited) == sorted(indices)


# Memory


class _HeldTargets:
    """The targets of a source that holds them in memory, beside the calls that had some of them."""

    def __init__(self, fetch: Callable[[int], Any], places: list[Place], calls: list[Judged]) -> None:
        self._fetch = fetch
        self._places = places
        self._calls = calls

    @staticmethod
    def of(source: Source, calls: list[Judged]) -> _HeldTargets | None:
        """None where no call had a target that the source holds."""
        fetch, count = _fetching(source)
        if not calls or not count or not _touching([*_held(fetch, range(1))], calls):
            return None
        places = _held(fetch, range(count))
        return _HeldTargets(fetch, places, _touching(places, calls))

    def covered(self) -> Covering | None:
        """The calls, if they had each target once."""
        whole = _joined(self._places)
        if whole is None or whole != _joined([call.place for call in self._calls if call.place is not None]):
            return None
        return Covering(self._calls, self._samples(), by_loader=False)

    def _samples(self) -> Iterator[tuple[Judged, int, Any]]:
        """For each call that was sampled the examples whose targets it had, as far as its scores reach."""
        order = sorted(range(len(self._places)), key=self._places.__getitem__)
        places = [self._places[index] for index in order]
        for call in self._calls:
            if call.sample is None or call.place is None:
                continue
            bytes_each = (call.place.end - call.place.begin) // call.pairing.targets
            for number in range(bisect_left(places, call.place[:2]), len(places)):
                place = places[number]
                at = (place.begin - call.place.begin) // bytes_each
                if place.end > call.place.end or place.device != call.place.device or at >= len(call.sample.scores):
                    break
                yield call, at, self._fetch(order[number])


def _fetching(source: Source) -> tuple[Callable[[int], Any], int]:
    """How an example is had by its number, and how many there are; none where fetching one isn't possible."""
    if isinstance(source, ExamplesSource) and not isinstance(source.examples, IterableDataset):
        return source.examples.__getitem__, len(source.examples)
    if isinstance(source, LoaderSource) and source.indices is not None and source.loader.batch_sampler:
        dataset, indices = source.loader.dataset, source.indices
        return lambda number: dataset[indices[number]], len(indices)
    if isinstance(source, BatchesSource) and isinstance(source.loader, list):
        return source.loader.__getitem__, len(source.loader)
    return lambda number: None, 0


def _held(fetch: Callable[[int], Any], numbers: range) -> list[Place]:
    """Where the examples' targets lie; nothing where some of them are made anew each time.

    Both tensors of each are held at once: one that was let go of may have given its memory to the next.
    """
    try:
        once = [take_apart(fetch(number)).target for number in numbers]
        again = [take_apart(fetch(number)).target for number in numbers]
    except Exception:  # whatever such examples are, a pass over them has the same trouble, and says so
        return []
    places = [place for place in map(Place.of, once) if place is not None]
    return places if places == list(map(Place.of, again)) else []


def _touching(places: list[Place], calls: list[Judged]) -> list[Judged]:
    """The calls whose targets share memory with one of the places."""
    ordered = sorted(places)

    def touches(place: Place | None) -> bool:
        if place is None:
            return False
        after = bisect_left(ordered, (place.device, place.end))
        return after > 0 and ordered[after - 1].device == place.device and ordered[after - 1].end > place.begin

    return [call for call in calls if touches(call.place)]


def _joined(places: list[Place]) -> list[Place] | None:
    """The places with neighbours made one; None where some overlap."""
    joined: list[Place] = []
    for place in sorted(places):
        last = joined[-1] if joined else None
        if last is None or last.device != place.device or last.end < place.begin:
            joined.append(place)
        elif last.end > place.begin:
            return None
        else:
            joined[-1] = Place(place.device, last.begin, place.end)
    return joined
