"""Reading numbers from a device without waiting for it; CUDA's part is played by a stand-in."""

import contextlib

import pytest
import torch

from trackmetrics.instruments import readback
from trackmetrics.instruments.readback import Readback


class Event:
    """An event that arrives when the test says so."""

    arrived = False
    recorded = 0

    def record(self):
        Event.recorded += 1

    def query(self):
        return Event.arrived


@pytest.fixture
def cuda(monkeypatch):
    """CUDA, as far as it is asked here; whether a graph is being captured is `cuda.captures`."""
    Event.arrived, Event.recorded = False, 0
    empty = torch.empty

    class Cuda:
        captures = False

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: Cuda.captures)
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **kinds: empty(*shape, **kinds))
    monkeypatch.setattr(
        readback,
        "_those_on",
        lambda device, numbers: {name: number for name, number in numbers.items() if number is not None},
    )
    return Cuda


def numbers(loss, norm=None):
    return lambda: {"loss": torch.tensor(loss), "norm": None if norm is None else torch.tensor(norm)}


def test_on_a_cpu_they_are_there_at_once():
    """Each as it is, those that are None left out."""
    assert Readback().latest("cpu", numbers(0.5)) == {"loss": 0.5}
    assert Readback().latest("cpu", numbers(0.5, 2.0)) == {"loss": 0.5, "norm": 2.0}


def test_on_a_device_they_come_when_they_have_arrived(cuda):
    """Until then the latest that came are given, none at first, and no others are asked for."""
    asked = []
    reads = Readback()

    def work_out():
        asked.append(len(asked) + 1.0)
        return {"loss": torch.tensor(asked[-1]), "norm": torch.tensor(7.0)}

    assert reads.latest("cuda", work_out) == {}
    assert reads.latest("cuda", work_out) == {}
    assert asked == [1.0]
    Event.arrived = True
    assert reads.latest("cuda", work_out) == {"loss": 1.0, "norm": 7.0}
    assert asked == [1.0, 2.0]
    Event.arrived = False
    assert reads.latest("cuda", work_out) == {"loss": 1.0, "norm": 7.0}
    assert Event.recorded == 2


def test_what_an_epoch_asked_for_doesnt_come_in_the_next(cuda):
    """It is forgotten, though it arrives."""
    reads = Readback()
    reads.latest("cuda", numbers(1.0))
    reads.forget()
    Event.arrived = True
    assert reads.latest("cuda", numbers(2.0)) == {}
    assert reads.latest("cuda", numbers(3.0)) == {"loss": 2.0}


def test_a_graph_that_is_captured_gets_no_copy_into_it(cuda):
    """It would be made again with each replay."""
    cuda.captures = True
    reads = Readback()
    assert reads.latest("cuda", lambda: pytest.fail("asked")) == {}
    assert Event.recorded == 0


def test_nothing_to_ask_for_is_not_asked_for(cuda):
    """Before the first step there is no number yet."""
    reads = Readback()
    assert reads.latest("cuda", dict) == {}
    assert Event.recorded == 0


@pytest.mark.parametrize("device", ["mps", "meta", "xpu"])
def test_a_device_that_cannot_be_asked_is_not(device):
    """No copy to such a device is known to go by itself: nothing is worked out for it."""
    assert Readback().latest(device, lambda: pytest.fail("asked")) == {}
