"""What the user says of an epoch: taken as it is, in whatever numbers it comes."""

import math

import numpy as np
import pytest
import torch

from trackmetrics.errors import ArgumentError
from trackmetrics.instruments.said_values import SaidValues


@pytest.fixture
def said():
    return SaidValues()


def taken(said):
    """The record's own values and the others; nothing was at fault."""
    values = said.take()
    assert said.faults == {}
    return values


# By name


@pytest.mark.parametrize(
    "value",
    [0.1, np.float64(0.1), torch.tensor(0.1, dtype=torch.float64), torch.tensor([0.1], dtype=torch.float64)[0]],
    ids=["float", "NumPy", "tensor", "element"],
)
def test_a_number_of_any_library_is_taken_exactly(said, value):
    """Every digit of a logged number arrives, whichever library it comes from."""
    said.log({"dev_accuracy": value, "perplexity": value})
    assert taken(said) == ({"dev_accuracy": 0.1}, {"perplexity": 0.1})


def test_the_last_value_under_a_name_counts(said):
    """Saying a value again replaces it."""
    said.log({"f1": 0.1})
    said.log({"f1": 0.2, "bleu": 3})
    assert taken(said) == ({}, {"f1": 0.2, "bleu": 3})


def test_a_tensor_is_taken_as_it_stands_and_without_its_graph(said):
    """A tensor that is changed later was said with the value it had."""
    value = torch.tensor(1.5, requires_grad=True)
    said.log({"dev_loss": value * 2})
    running = torch.tensor(4.0)
    said.log({"running": running})
    running.zero_()
    assert taken(said) == ({}, {"dev_loss": 3.0, "running": 4.0})


@pytest.mark.parametrize("name", ["epoch", "elapsed_seconds"])
def test_the_runs_own_keys_are_refused(said, name):
    """`epoch` and `elapsed_seconds` are the run's to say; nothing of the call is taken."""
    with pytest.raises(ArgumentError, match=rf"log\({name}=...\) collides"):
        said.log({"f1": 1, name: 3})
    assert taken(said) == ({}, {})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_kept(said, value):
    """Nothing is masked: NaN and the infinities are said as they are."""
    said.log({"train_loss": value, "dev_loss": torch.tensor(value)})
    own, others = taken(said)
    assert str(own["train_loss"]) == str(others["dev_loss"]) == str(value)


def test_a_value_without_a_plain_form_is_null_and_a_fault(said):
    """What no file can hold is null; the fault names the call; saying it better takes the fault back."""
    said.log({"picture": object()})
    assert said.take() == ({}, {"picture": None})
    assert said.faults["picture"].startswith("log(picture=...) was given a value of type builtins.object")
    said.log({"picture": "cat.png"})
    assert taken(said) == ({}, {"picture": "cat.png"})


@pytest.mark.parametrize("value", ["high", True, [0.5, 0.6], torch.zeros(2)])
def test_a_key_of_the_record_takes_one_number(said, value):
    """Text, a truth value or a list is no accuracy: null, and a fault."""
    said.log({"dev_accuracy": value})
    assert said.take() == ({"dev_accuracy": None}, {})
    assert said.faults["dev_accuracy"].endswith("give one number")


def test_null_may_be_said(said):
    """`None` under a key of the record is what the user means: null, and no fault."""
    said.log({"gradient_norm": None})
    assert taken(said) == ({"gradient_norm": None}, {})


# Batch by batch


def test_losses_are_weighted_by_their_targets(said):
    """A batch's mean loss counts as often as it has targets; those that torch ignores by default don't count."""
    said.update(1.0, None, torch.tensor([0, 1, 2]))
    said.update(5.0, None, torch.tensor([1, -100]))
    assert taken(said)[0] == {"train_loss": (3 * 1.0 + 1 * 5.0) / 4}


def test_losses_without_targets_weigh_the_same(said):
    """With no target said, each call counts once, and Python's numbers keep all their digits."""
    for loss in (0.1, 0.2, np.float64(0.4), 1):
        said.update(loss, None, None)
    assert taken(said)[0]["train_loss"] == pytest.approx(math.fsum((0.1, 0.2, 0.4, 1)) / 4, rel=1e-15)


def test_a_batch_without_a_counted_target_weighs_nothing(said):
    """Its mean loss is NaN, over nothing, and leaves no trace; a NaN over targets stays."""
    said.update(torch.tensor(math.nan), None, torch.tensor([-100]))
    said.update(torch.tensor(2.0), None, torch.tensor([1]))
    assert said.take()[0] == {"train_loss": 2.0}
    said.update(math.nan, None, torch.tensor([1]))
    assert math.isnan(said.take()[0]["train_loss"])


def test_a_loss_tensor_is_taken_as_it_stands(said):
    """A loss that is scaled in place afterwards was said with the value it had, and its graph is let go."""
    loss = torch.tensor(2.0, requires_grad=True) * 3
    said.update(loss, None, None)
    with torch.no_grad():
        loss.zero_()
    assert taken(said)[0] == {"train_loss": 6.0}


@pytest.mark.parametrize(
    ("output", "target", "accuracy"),
    [
        (torch.eye(3), torch.tensor([0, 1, 0]), 2 / 3),
        (torch.eye(3).expand(2, 3, 3), torch.tensor([[0, 1, 2], [0, 0, 0]]), 4 / 6),
        (torch.eye(3)[:, :, None].expand(3, 3, 5), torch.tensor([[0] * 5, [1] * 5, [0] * 5]), 10 / 15),
        (torch.eye(3), torch.tensor([-100, 1, 0]), 1 / 2),
        (torch.tensor([0.1, 0.9]), torch.tensor(1), 1.0),
        ([[0.1, 0.9], [0.8, 0.2]], [1, 1], 1 / 2),
        (np.eye(2), np.array([0, 1]), 1.0),
    ],
    ids=["rows", "classes last", "classes second", "ignored", "one row", "lists", "NumPy"],
)
def test_accuracy_follows_from_outputs_and_targets(said, output, target, accuracy):
    """The share of targets that the largest score predicts, classes last or in dimension 1."""
    said.update(None, output, target)
    assert taken(said)[0] == {"train_accuracy": accuracy}


@pytest.mark.parametrize(
    ("output", "target"),
    [
        (torch.zeros(3, 2), torch.tensor([0, 1])),
        (torch.zeros(3, 2), torch.zeros(3)),
        (torch.zeros(()), torch.tensor(0)),
        ("many", torch.tensor([0])),
        (torch.zeros(1, 2), "many"),
    ],
    ids=["shapes", "probabilities", "no classes", "no output", "no target"],
)
def test_outputs_that_do_not_pair_make_the_accuracy_null(said, output, target):
    """One batch that can't be judged makes the epoch's accuracy null, whatever the others were; never an error."""
    said.update(None, torch.eye(2), torch.tensor([0, 1]))
    said.update(None, output, target)
    assert said.take()[0] == {"train_accuracy": None}
    assert said.faults["train_accuracy"].startswith("update() was given the output ")


@pytest.mark.parametrize("loss", ["low", torch.zeros(2), [1.0, 2.0], object()])
def test_a_loss_that_is_no_number_makes_the_loss_null(said, loss):
    """Never an error in the training: null, and a fault that says what was given."""
    said.update(1.0, None, None)
    said.update(loss, None, None)
    assert said.take()[0] == {"train_loss": None}
    assert said.faults["train_loss"].startswith("update() was given the loss ")
    assert said.faults["train_loss"].endswith("give one number")


def test_outputs_without_targets_are_refused(said):
    """There is nothing to compare with: the call is wrong from the start."""
    with pytest.raises(ArgumentError, match=r"update\(output=...\) came without target="):
        said.update(1.0, torch.eye(2), None)


def test_what_is_logged_wins_over_what_was_updated(said):
    """A value by name takes the place of what the batches gave, faults included."""
    said.update(1.0, torch.eye(2), torch.tensor([0]))
    said.log({"train_loss": 0.5, "train_accuracy": 0.25})
    assert taken(said)[0] == {"train_loss": 0.5, "train_accuracy": 0.25}


def test_nothing_said_is_nothing_taken(said):
    """Where nothing was said, nothing stands in the way of what was observed."""
    assert taken(said) == ({}, {})
