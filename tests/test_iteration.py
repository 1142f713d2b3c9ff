"""`tracker.progress(loader)`: the loader's own batches, and a bar over them where there is a live line."""

import gc
import itertools
import random
import weakref

import pytest
import torch
import torch.nn.functional as F
import toy

from trackmetrics import Tracker, TrackmetricsError, tracker
from trackmetrics.live.iteration import Counted
from trackmetrics.live.pace import Loop

pytestmark = pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")


class Follower:
    """Follows every iteration, and notes what it is told."""

    shows_progress = True

    def __init__(self):
        self.loops = []
        self.open = []
        self.told = 0

    def loop_begins(self, total):
        self.loops.append(Loop(total))
        self.open.append(self.loops[-1])
        return self.loops[-1]

    def loop_ends(self, loop):
        self.open.remove(loop)

    def progress_made(self):
        self.told += 1


def counted(iterable, follower):
    return Counted(iterable, lambda: follower)


@pytest.fixture(params=["followed", "not followed"])
def follower(request):
    return Follower() if request.param == "followed" else None


def test_the_same_objects_in_the_same_order(follower):
    """Whether anybody follows or not, each time it is gone through."""
    items = [object() for _ in range(5)]
    through = counted(items, follower)
    for _ in range(2):
        assert all(map(lambda one, other: one is other, through, items))
        assert len(list(through)) == 5
    assert follower is None or follower.open == []


def test_a_length_is_passed_on(follower):
    """And where there is none the error is the iterable's own; what has none is gone through all the same."""
    assert len(counted([1, 2, 3], follower)) == 3
    endless = counted(itertools.count(), follower)
    with pytest.raises(TypeError, match=r"itertools\.count"):
        len(endless)
    assert list(itertools.islice(endless, 3)) == [0, 1, 2]


def test_what_is_done_with_is_counted():
    """An item is done with when the next one is asked for."""
    follower = Follower()
    seen = [follower.loops[0].done for _ in counted("abc", follower)]
    assert seen == [0, 1, 2]
    assert (follower.loops[0].done, follower.loops[0].total, follower.told) == (3, 3, 3)
    list(counted(iter("abc"), follower))
    assert follower.loops[1].total is None


def test_a_loop_that_is_left_is_over_at_once():
    """By `break`, by an exception, by a `return` from inside."""
    follower = Follower()
    for _ in counted("abc", follower):
        break
    assert follower.open == []
    with pytest.raises(ArithmeticError):
        for _ in counted("abc", follower):
            raise ArithmeticError
    assert follower.open == []
    assert (lambda: next(iter(counted("abc", follower))))() == "a"
    assert follower.open == []


def test_an_iterables_own_error_comes_through():
    """As it is, and the loop is over."""

    def fails():
        yield 1
        raise ArithmeticError("the user's own")

    follower = Follower()
    with pytest.raises(ArithmeticError, match="the user's own"):
        list(counted(fails(), follower))
    assert follower.open == []


def test_of_nested_loops_the_innermost_is_last():
    """And when it is over, the one around it is."""
    follower = Follower()
    opened = []
    for _ in counted("ab", follower):
        for _ in counted("cd", follower):
            opened.append(len(follower.open))
        opened.append(len(follower.open))
    assert opened == [2, 2, 1, 2, 2, 1]


def test_a_batch_that_the_loop_lets_go_of_is_freed(follower):
    """Nothing of ours holds an item while the loop works with it."""
    references = []
    for item in counted((torch.zeros(3) for _ in range(3)), follower):
        references.append(weakref.ref(item))
        del item
        gc.collect()
        assert references[-1]() is None


def test_a_loader_draws_its_seed_when_it_is_asked_for_its_iterator(follower):
    """Not later: what the loop draws in between would be other numbers."""

    def drawn(batches):
        torch.manual_seed(0)
        iterator = iter(batches)
        between = torch.rand(2)
        return between, torch.cat([features for features, _ in iterator]), torch.rand(2), random.random()

    state = random.getstate()
    through = drawn(counted(toy.loader(24, shuffle=True), follower))
    random.setstate(state)
    bare = drawn(toy.loader(24, shuffle=True))
    assert all(map(torch.equal, through[:3], bare[:3]))
    assert through[3] == bare[3]


def test_outside_a_run_it_says_so():
    """As `tracker.epoch()` does; so does that of a run that is over."""
    with pytest.raises(TrackmetricsError, match=r"tracker\.progress was used outside a run"):
        tracker.progress([1])
    with Tracker("t", train=[], dev=[]) as run:
        through = run.progress([1, 2])
    with pytest.raises(TrackmetricsError, match=r"progress\(\) was called on a run that is ended"):
        run.progress([1])
    assert list(through) == [1, 2]


def test_turned_off_it_is_the_iterable(monkeypatch):
    """`TRACKMETRICS_DISABLED=1`: it is gone through, and that is all."""
    monkeypatch.setenv("TRACKMETRICS_DISABLED", "1")
    items = [1, 2, 3]
    with Tracker("t"):
        assert type(iter(tracker.progress(items))) is type(iter(items))


@pytest.mark.parametrize("progress", [True, False])
@pytest.mark.parametrize("bound", ["in the loop", "to the loader's own name"])
def test_data_are_found_behind_it(progress, bound):
    """The sets are known by their names, in the loop and bound to their names again: the accuracies are there."""
    net = toy.model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    train_loader, dev_loader = toy.loader(48), toy.loader(8, seed=1)
    with Tracker("t", progress=progress) as run:
        if bound != "in the loop":
            train_loader, dev_loader = tracker.progress(train_loader), tracker.progress(dev_loader)
        for _ in range(2):
            with run.epoch():
                for features, classes in tracker.progress(train_loader) if bound == "in the loop" else train_loader:
                    optimizer.zero_grad()
                    F.cross_entropy(net(features), classes).backward()
                    optimizer.step()
    assert run.record.final_results.train_accuracy == toy.accuracy(net, train_loader)
    assert run.record.final_results.dev_accuracy == toy.accuracy(net, dev_loader)
    assert run.record.metadata.hyperparameters.training["batch_size"] == 8
