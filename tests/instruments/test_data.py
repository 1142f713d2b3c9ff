"""Reading data: each example once, in order, and nothing of the user's moved on."""

import copy
import itertools
import multiprocessing
import random

import numpy as np
import pytest
import torch
from data_kinds import (
    COUNT,
    INPUTS,
    PAIRS,
    READABLE,
    TARGETS,
    UNREADABLE,
    Labelled,
    Numbered,
    Picking,
    SelfStream,
    join_feeders,
)
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader

from trackmetrics.instruments.data import (
    ExamplesSource,
    UnreadableError,
    collate,
    open_source,
    take_apart,
    to_device,
)
from trackmetrics.instruments.undisturbed import undisturbed


@pytest.fixture(autouse=True)
def no_feeder_left():
    """A loader's thread that is about to end is not taken for one of ours."""
    yield
    join_feeders()


def _apart(data):
    """Every example or batch that the data gives, taken apart."""
    source = open_source(data)
    items = source if isinstance(source, ExamplesSource) else source.batches()
    return [take_apart(item) for item in items]


def _numbers(inputs):
    inputs = inputs["input_ids"] if isinstance(inputs, dict) else inputs
    return inputs.reshape(-1).tolist()


readable = pytest.mark.parametrize(("make", "expected"), READABLE.values(), ids=READABLE.keys())


@readable
def test_each_example_comes_once_in_order_with_its_target(make, expected):
    """However a set shuffles, drops, draws or batches, reading gives each of its examples once, in index order."""
    apart = _apart(make())
    assert [number for parts in apart for number in _numbers(parts.inputs)] == expected
    assert [number for parts in apart for number in parts.target.reshape(-1).tolist()] == [n % 3 for n in expected]


@readable
def test_reading_again_gives_the_same(make, expected):
    """A set that was read can be read again: nothing is used up."""
    data = make()
    first = [_numbers(parts.inputs) for parts in _apart(data)]
    assert [_numbers(parts.inputs) for parts in _apart(data)] == first


@readable
def test_first_example_is_the_first_in_order(make, expected):
    """The first example is the one at the first index, also where the loader shuffles."""
    source = open_source(make())
    if isinstance(source, ExamplesSource):
        parts = take_apart(source.first())
    else:
        raw, batch = source.first()
        assert _numbers(take_apart(raw).inputs)[0] == expected[0]
        parts = take_apart(batch)
        assert parts.inputs["input_ids"].ndim == 1 if parts.keywords else parts.inputs.ndim == source.batched
    assert _numbers(parts.inputs) == expected[:1]
    assert parts.target.reshape(-1).tolist() == [expected[0] % 3]


@pytest.mark.parametrize(("make", "reason"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_cant_be_read_says_why(make, reason):
    """Streams, iterators and what is no set at all are refused with the reason, without hanging."""
    with pytest.raises(UnreadableError, match=reason):
        open_source(make())


@pytest.mark.parametrize(
    "make",
    [lambda: iter(PAIRS), lambda: (pair for pair in PAIRS), lambda: itertools.cycle(PAIRS), SelfStream],
    ids=["iterator", "generator", "endless", "stream"],
)
def test_a_refused_stream_has_lost_nothing(make):
    """An iterator that was refused still gives its first element."""
    stream = make()
    with pytest.raises(UnreadableError):
        open_source(stream)
    assert next(stream) is PAIRS[0]


def _states(loader):
    return (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
        None if loader.generator is None else loader.generator.get_state().tolist(),
    )


def _noisy(pairs):
    random.random()
    np.random.rand()
    torch.rand(1)
    return torch.utils.data.default_collate(pairs)


@pytest.mark.parametrize(
    "settings",
    [
        {"shuffle": True},
        {"shuffle": True, "generator": torch.Generator()},
        {"sampler": Picking(range(COUNT))},
        {"collate_fn": _noisy},
        {"num_workers": 2, "shuffle": True, "generator": torch.Generator()},
    ],
    ids=["shuffle", "own generator", "own sampler", "noisy collate", "workers"],
)
def test_a_loader_goes_on_as_if_it_had_not_been_read(settings):
    """After reading, every random stream is as before, and so is the order of the user's next pass."""
    loader = DataLoader(Numbered(), batch_size=4, **settings)
    before = _states(loader)
    with undisturbed(None, loader):
        assert len(_apart(loader)) == 3
    assert _states(loader) == before
    if isinstance(loader.sampler, Picking):
        assert loader.sampler.passes == 0
        assert loader.sampler.picks == list(range(COUNT))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_under_way_is_not_disturbed(workers):
    """Reading a loader in the middle of the user's own pass over it changes nothing that is still to come."""

    def two_passes(read_between):
        generator = torch.Generator().manual_seed(3)
        loader = DataLoader(Numbered(), 2, shuffle=True, generator=generator, num_workers=workers)
        under_way = iter(loader)
        seen = [next(under_way)]
        if read_between:
            with undisturbed(None, loader):
                _apart(loader)
        seen += [*under_way, *loader]
        return [number for inputs, _ in seen for number in inputs.tolist()]

    assert two_passes(True) == two_passes(False)


def test_batches_are_collated_by_the_loaders_own_function():
    """What a loader's `collate_fn` makes of its examples is what reading gives."""
    make, _ = READABLE["a collate function of one's own"]
    apart = _apart(make())
    assert [parts.labels for parts in apart] == ["labels"] * 3
    assert [parts.inputs["input_ids"].tolist() for parts in apart] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def _number_worker(worker):
    torch.utils.data.get_worker_info().dataset.worker = worker + 100


class _SaysWorker(Numbered):
    worker = 0

    def __getitem__(self, index):
        return torch.tensor(index), torch.tensor(self.worker)


def test_workers_begin_as_the_user_says_and_end_with_the_pass():
    """The loader's `worker_init_fn` runs in the reading's workers, and none of them stays, also after an error."""
    loader = DataLoader(_SaysWorker(), batch_size=5, num_workers=2, worker_init_fn=_number_worker)
    assert [parts.target.tolist() for parts in _apart(loader)] == [[100] * 5, [101] * 5]

    def broken():
        for _ in open_source(loader).batches():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert multiprocessing.active_children() == []


def test_a_custom_samplers_copy_shares_the_dataset():
    """Asking a copy of a user's sampler copies no dataset."""

    class Uncopied(Numbered):
        def __deepcopy__(self, memo):
            raise AssertionError("the dataset was copied")

    dataset = Uncopied()
    sampler = Picking([4, 1])
    sampler.data_source = dataset
    assert _numbers(_apart(DataLoader(dataset, sampler=sampler))[1].inputs) == [4]


@pytest.mark.parametrize(
    ("item", "inputs", "target", "labels"),
    [
        ((1, 2), 1, 2, None),
        ([torch.tensor(1), 2], 1, 2, None),
        ({"x": [1, 2], "labels": 2}, {"x": [1, 2]}, 2, "labels"),
        ({"x": 1, "label": 2, "id": "a"}, {"x": 1, "id": "a"}, 2, "label"),
        ({"x": 1, "target": 2}, {"x": 1}, 2, "target"),
        (Labelled(torch.tensor(1), torch.tensor(2)), 1, 2, None),
        ((np.array([1.5]), np.int64(2)), [1.5], 2, None),
        (("text", 2), "text", 2, None),
    ],
)
def test_examples_come_apart(item, inputs, target, labels):
    """Pairs, dicts with labels and objects with tensors give inputs, target and the labels' name."""
    parts = take_apart(item)
    found = copy.copy(parts.inputs)
    if isinstance(found, dict):
        found = {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in found.items()}
    assert (found.tolist() if isinstance(found, torch.Tensor) else found) == inputs
    assert (parts.target.tolist(), parts.labels, parts.keywords) == (target, labels, labels is not None)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ((1, 2, 3), "tuple of 3"),
        (INPUTS, "Tensor"),
        ({"x": 1}, "labels, label"),
        ((1, "cat"), "target of type str"),
        ((1, {"box": 1}), "target of type dict"),
    ],
)
def test_what_is_no_example_says_why(item, reason):
    """What doesn't come apart without guessing is refused, with what it is."""
    with pytest.raises(UnreadableError, match=reason):
        take_apart(item)


def test_collating_adds_one_dimension():
    """Joined examples stand in a new first dimension, one alone too; the labels' name stays."""
    joined = collate([{"x": INPUTS, "labels": TARGETS}, {"x": INPUTS + 1, "labels": TARGETS}])
    assert torch.equal(joined.inputs["x"], torch.stack([INPUTS, INPUTS + 1]))
    assert torch.equal(joined.target, torch.stack([TARGETS, TARGETS]))
    assert joined.labels == "labels"
    assert collate([PAIRS[3]]).inputs.shape == (1,)


def test_moving_to_a_device_keeps_the_nest():
    """Tuples stay tuples, lists lists, dicts dicts, packed sequences packed, and what has no device stays itself."""
    moved = to_device({"a": (INPUTS, ["text", TARGETS]), "p": pack_sequence([INPUTS])}, torch.device("meta"))
    assert isinstance(moved["a"], tuple)
    assert moved["a"][0].is_meta
    assert moved["a"][1][0] == "text"
    assert moved["a"][1][1].is_meta
    assert isinstance(moved["p"], PackedSequence)
    assert moved["p"].data.is_meta
