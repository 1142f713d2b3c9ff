"""How ranks meet in a store: all take the same, or none takes anything, however late one of them is."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.distributed import HashStore

from trackmetrics.meetings import Meetings, RanksApartError

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")


class Run:
    """The ranks of one run, each in a thread of its own."""

    def __init__(self, size, limit=5.0, here=None):
        self.store = HashStore()
        self.ranks = [Meetings(self.store, rank, size, limit) for rank in range(size)]
        for _ in range(size if here is None else here):
            Meetings.come(self.store)

    def each(self, act):
        """What `act` of a rank's number and its meetings gives on each; an error's text where they don't meet."""

        def told(rank):
            try:
                return act(rank, self.ranks[rank])
            except RanksApartError as error:
                return error.why

        with ThreadPoolExecutor(len(self.ranks)) as threads:
            return list(threads.map(told, range(len(self.ranks))))

    def meet(self, name, late=(), seconds=0.0):
        """They all meet; those that are `late` come after the seconds."""

        def act(rank, meetings):
            time.sleep(seconds if rank in late else 0)
            return meetings.meet(name, rank, list)

        return self.each(act)


def test_each_takes_what_all_brought():
    """In the ranks' order; the store keeps nothing but the last meeting."""
    run = Run(4)
    assert run.meet("0/1/training") == [[0, 1, 2, 3]] * 4
    entries = run.store.num_keys()
    for epoch in range(2, 20):
        assert run.meet(f"0/{epoch}/training") == [[0, 1, 2, 3]] * 4
    assert run.store.num_keys() == entries


@pytest.mark.parametrize("late", [0, 1, 2])
def test_one_that_is_late_costs_one_meeting(late):
    """All say the same, also the late one, without a wait of its own; they meet again afterwards."""
    run = Run(3, limit=0.2)
    why = "only 2 of 3 ranks came to the end of the epoch within 0 seconds"
    assert run.meet("0/1/training", late=[late], seconds=0.6) == [why] * 3
    assert run.meet("0/2/training") == [[0, 1, 2]] * 3
    assert run.meet("0/3/training") == [[0, 1, 2]] * 3


def test_nobody_waits_again_for_one_that_has_not_come_yet():
    """Until it has come to what it missed."""
    run = Run(2, limit=0.5)
    back = threading.Event()

    def first(meetings):
        with pytest.raises(RanksApartError, match="only 1 of 2 ranks came"):
            meetings.meet("0/1/training", 0, list)
        began = time.monotonic()
        for epoch in range(2, 5):
            with pytest.raises(RanksApartError, match="only 1 of 2 ranks came"):
                meetings.meet(f"0/{epoch}/training", 0, list)
        assert time.monotonic() - began < 0.4
        back.set()
        return meetings.meet("0/5/training", 0, list)

    def second(meetings):
        back.wait(10)
        for epoch in range(1, 5):
            with pytest.raises(RanksApartError, match="only 1 of 2 ranks came"):
                meetings.meet(f"0/{epoch}/training", 1, list)
        return meetings.meet("0/5/training", 1, list)

    def act(rank, meetings):
        return second(meetings) if rank else first(meetings)

    found = run.each(act)
    # The first may have come to the fifth before the second was back at the fourth: then neither has it.
    assert found[0] == found[1]
    assert run.meet("0/6/training") == [[0, 1]] * 2


def test_a_meeting_at_the_very_limit_is_one_for_all_or_for_none():
    """Whoever is first to say how it ended has said so for all."""
    outcomes = set()
    for epoch in range(60):
        run = Run(2, limit=0.02)
        found = run.meet(f"0/{epoch}/training", late=[1], seconds=0.02 + 0.0003 * epoch)
        assert found[0] == found[1]
        outcomes.add(type(found[0]))
    assert outcomes == {list, str}


def test_one_that_is_not_in_the_run():
    """The others say so, after the shorter of the two limits."""
    run = Run(2, limit=0.2, here=1)
    why = "only 1 of 2 ranks track this training; decorate it on each"
    assert run.meet("0/1/training", late=[1], seconds=0.6) == [why] * 2


@pytest.mark.parametrize("scope", ["", "0/", "0/1/"])
def test_one_that_leaves_is_not_waited_for(scope):
    """Of the run, of a loop, of an epoch; the meetings of another scope go on."""
    run = Run(2)
    run.ranks[1].leave(scope, "has left")
    began = time.monotonic()
    with pytest.raises(RanksApartError, match=r"^rank 1 has left$"):
        run.ranks[0].meet("0/1/training", 0, list)
    assert time.monotonic() - began < 1
    if scope:
        assert run.meet("1/1/training") == [[0, 1]] * 2


def test_one_that_was_late_and_then_left_is_waited_for_in_the_next():
    """It won't come to the meeting that it missed, and nobody needs it to."""
    run = Run(2, limit=0.2)
    with pytest.raises(RanksApartError, match="only 1 of 2 ranks came"):
        run.ranks[0].meet("0/1/training", 0, list)
    run.ranks[1].leave("0/1/", "has left")
    assert run.meet("0/2/training") == [[0, 1]] * 2


def test_what_cannot_be_put_together_is_said_by_all():
    """The fault is ours or the user's; nobody waits for the limit."""

    def combine(brought):
        raise KeyError("loss")

    run = Run(2)
    found = run.each(lambda rank, meetings: meetings.meet("0/1/training", rank, combine))
    assert found == ["what the ranks brought can't be put together (KeyError('loss'))"] * 2
    assert run.meet("0/2/training") == [[0, 1]] * 2


def test_figures_of_another_meeting_are_not_put_together():
    """A rank that gave this one up may have brought those of the next one already."""
    run = Run(2)
    run.store.set("figures/1", '["0/2/training", 1]')
    run.store.add("0/1/training/came", 1)
    with pytest.raises(RanksApartError, match="a rank didn't wait"):
        run.ranks[0].meet("0/1/training", 0, list)


def test_what_the_first_tells_the_others_hear():
    """Now or later; it isn't waited for without end."""
    run = Run(3, limit=0.5)

    def act(rank, meetings):
        if rank:
            return meetings.hear("earlier")
        time.sleep(0.1)
        return meetings.tell("earlier", {"epochs": 3})

    assert run.each(act) == [None, {"epochs": 3}, {"epochs": 3}]
    with pytest.raises(RanksApartError, match="rank 0 didn't tell of more"):
        run.ranks[1].hear("more")
