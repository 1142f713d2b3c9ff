"""A fault of ours costs its own number, and never the training."""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_norms, one_thread, run_tracked, run_untracked, state_of  # noqa: F401  a fixture
from torch import nn

from trackmetrics.instruments.gradient_norm import GradientNorm
from trackmetrics.instruments.guard import Guard
from trackmetrics.instruments.steps import Steps
from trackmetrics.instruments.trained_parameters import TrainedParameters
from trackmetrics.instruments.training_metrics import TrainingMetrics

pytestmark = pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")


def build():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    return model, torch.optim.Adam(model.parameters(), lr=0.1)


def train(notes, model, optimizer):
    for _ in range(2):
        with notes.epoch():
            for _ in range(3):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(torch.ones(5, 4)), torch.tensor([0, 1, 2, 1, 0]))
                notes.loss(loss, 5)
                loss.backward()
                notes.step(model.parameters())
                optimizer.step()


OF_PARAMETERS = ("add_optimizer", "prepare", "arrived", "trained", "has_optimizer")
OF_NORM = ("measure", "include", "end_step", "take")
OF_METRICS = ("criterion_called", "backward_begins", "backward_ended", "end_step", "take")
OF_STEPS = ("between_backwards", "backward_begins", "backward_ended", "optimizer_steps", "optimizer_stepped")


FAULTS = [
    *((TrainedParameters, name, 1) for name in OF_PARAMETERS),
    *((GradientNorm, name, 1) for name in OF_NORM),
    *((TrainingMetrics, name, 1) for name in OF_METRICS),
    *((Steps, name, 1) for name in OF_STEPS),
    (GradientNorm, "measure", 5),
    (TrainingMetrics, "backward_ended", 5),
    (Steps, "optimizer_stepped", 5),
]


@pytest.mark.parametrize(("kind", "method", "at_call"), FAULTS)
def test_a_fault_costs_its_own_number_alone(monkeypatch, kind, method, at_call):
    """Whatever method fails, at once or later: the training ends bit-identical, and the other numbers are right."""
    notes, parts = run_untracked((build, train))
    original, calls = getattr(kind, method), []

    def fails(*args, **kwargs):
        calls.append(method)
        if len(calls) >= at_call:
            raise ZeroDivisionError("a fault of ours")
        return original(*args, **kwargs)

    monkeypatch.setattr(kind, method, fails)
    tracked = run_tracked((build, train))
    assert state_of(tracked.parts) == state_of(parts)
    assert len(tracked.epochs) == 2
    assert [message for message in tracked.messages if "a fault of ours" in message]
    if kind is TrainingMetrics:
        assert tracked.epochs[-1].train_loss is None
        assert "its instrument failed" in tracked.warned_of("train_loss")[0]
        assert_norms(tracked, notes)
    if kind in (GradientNorm, TrainedParameters):
        assert tracked.epochs[-1].gradient_norm is None
        losses = [epoch.train_loss for epoch in tracked.epochs]
        assert losses == [pytest.approx(expected.loss, rel=1e-6) for expected in notes.epochs]


def test_a_broken_instrument_is_not_called_again():
    """The first exception is told, once; from then on the instrument gives what stands in for it."""
    told, calls = [], []
    spare = Guard("norm", lambda name, error: told.append((name, str(error))))

    def fails(value):
        calls.append(value)
        raise ValueError("no")

    assert spare(lambda value: value, 3) == 3
    assert spare(fails, 1, otherwise="nothing") == "nothing"
    assert spare(fails, 2, otherwise="nothing") == "nothing"
    assert told == [("norm", "no")]
    assert calls == [1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_no_fault(error):
    """Ctrl+C that arrives inside an instrument goes on to the user."""

    def interrupted():
        raise error

    with pytest.raises(error):
        Guard("norm", lambda *_: None)(interrupted)
