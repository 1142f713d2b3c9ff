"""Reading data: each example once, in order, and nothing of the user's moved on."""

import contextlib
import copy
import functools
import gc
import itertools
import multiprocessing
import random
import threading
import weakref

import numpy as np
import pytest
import torch
from data_kinds import (
    INPUTS,
    PAIRS,
    READABLE,
    REFUSED,
    TARGETS,
    UNREADABLE,
    Labelled,
    Numbered,
    Picking,
    join_feeders,
)
from lookup import Lookup, best, share, table
from oracle import one_thread, tracking  # noqa: F401  a fixture
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset

from trackmetrics.instruments.data import (
    ExamplesSource,
    UnreadableError,
    collate,
    open_source,
    take_apart,
    to_device,
)


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


# In a run


class Table(Lookup):
    """Takes its inputs by place and by keyword."""

    def forward(self, input_ids):
        return super().forward(input_ids)


def _users_pass(data):
    """How a loop goes through a set: on and on where it is an iterator, and no further than three batches."""
    if isinstance(data, tuple):
        return [data]
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return (data[index] for index in range(len(data)))
    return itertools.islice(iter(data), 3)


def _pair(item):
    if isinstance(item, dict):
        return item["input_ids"], item["labels"]
    return (item.input_tensor, item.output_tensor) if isinstance(item, Labelled) else item


def _kept(data):
    """Everything by which the data's next pass could tell that somebody went through it."""
    generators = [getattr(item, "generator", None) for item in (data, getattr(data, "sampler", None))]
    picking = (
        getattr(getattr(data, "sampler", None), "picks", None),
        getattr(getattr(data, "sampler", None), "passes", 0),
    )
    streams = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    return streams, [item and item.get_state().tolist() for item in generators], picking


def _training(data, every, tracked):
    """Train on what is training and dev set at once: what was seen, and what there is then."""
    model = Table(table())
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    seen, tables, closed = [], [], []

    def one_pass():
        for item in _users_pass(data):
            inputs, targets = _pair(item)
            seen.append(inputs.reshape(-1).tolist())
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            tables.append(model.table.detach().clone())

    def passes(epoch):
        for _ in range(3):
            with epoch():
                one_pass()
            closed.append(len(tables))

    run = None
    if not tracked:
        passes(contextlib.nullcontext)
    elif every is None:
        with tracking(train=data, dev=data, final_train_accuracy=True) as run:
            run.run.watch(model)
            passes(run.run.epoch)
    else:
        with tracking(train=data, dev=data, final_train_accuracy=True) as run, run.run.epochs(every=every):
            run.run.watch(model)
            passes(contextlib.nullcontext)
        closed = [*range(every, len(tables), every), len(tables)]
    kept = _kept(data)
    left = [_pair(item)[0].reshape(-1).tolist() for item in _users_pass(data)]
    return (seen, tables[-1].tolist(), kept, left), [tables[at - 1] for at in closed], run


def _in_time(work, seconds=60):
    """What `work` gives, in a thread of its own, which is given up after so many seconds."""
    found = []

    def run():
        try:
            found.append((work(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, f"the training hangs: it isn't over after {seconds} seconds"
    result, error = found[0]
    if error is not None:
        raise error
    return result


def _both(make, every):
    """A training on fresh data, tracked and not, from the same seeds; what comes of the tracked one."""
    results = []
    for tracked in (False, True):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        data = make()
        results.append(_in_time(functools.partial(_training, data, every, tracked)))
    assert results[1][0] == results[0][0]
    return results[1][1:]


@pytest.mark.parametrize("every", [None, 2], ids=["a record an epoch", "a record each two steps"])
@readable
def test_a_run_reads_its_sets_and_moves_nothing_on(make, expected, every):
    """Batches, weights, streams, samplers and what a set still gives are the untracked run's; the accuracies by hand.

    With a record each two steps, the sets are read while the loop is in the middle of its own pass over them.
    """
    tables, tracked = _both(make, every)
    by_hand = [share((best(rows[index].tolist()), index % 3) for index in expected) for rows in tables]
    assert [epoch.dev_accuracy for epoch in tracked.epochs] == pytest.approx(by_hand, abs=1e-12)
    assert tracked.run.record.final_results.train_accuracy == pytest.approx(by_hand[-1], abs=1e-12)


STREAMS = [name for name, (make, _) in UNREADABLE.items() if name not in REFUSED]


@pytest.mark.parametrize("name", STREAMS)
def test_a_run_leaves_alone_what_it_cant_read(name):
    """Endless, or used up by reading: null, said once, and everything left as the loop left it."""
    make, reason = UNREADABLE[name]
    _, tracked = _both(make, None)
    assert [epoch.dev_accuracy for epoch in tracked.epochs] == [None] * 3
    assert tracked.run.record.final_results.train_accuracy is None
    (message,) = tracked.warned_of("dev_accuracy")
    assert reason in message


# A loader whose workers persist takes seconds a worker to end where the garbage collector is what ends it.
@pytest.mark.parametrize("keep", [True, False], ids=["the run kept", "the run dropped"])
def test_a_finished_run_lets_go_of_model_and_data(keep):
    """When the loop has let go of model and sets, they are gone, at once and without the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        train, dev, model = READABLE["a shuffling loader"][0](), PAIRS[:], Table(table())
        gone = [weakref.ref(item) for item in (train, train.dataset, model, model.table)]
        with tracking(train=train, dev=dev, final_train_accuracy=True) as tracked:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            with tracked.run.epoch():
                for inputs, targets in train:
                    optimizer.zero_grad()
                    F.cross_entropy(model(inputs), targets).backward()
                    optimizer.step()
        if not keep:
            del tracked
        del train, model, optimizer, inputs, targets
        assert [reference() for reference in gone] == [None] * len(gone)
    finally:
        gc.enable()
