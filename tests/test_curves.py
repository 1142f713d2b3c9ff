"""Curves: which metrics a run has, their values by epoch, and which is the best."""

import math

import pytest

from trackmetrics.curves import Point, best, better, last, metric_names, points, seconds_an_epoch, values
from trackmetrics.record import EpochRecord, Metadata, RunRecord

NAN = math.nan


def a_run(*epochs):
    return RunRecord(Metadata("t", "2026-01-01T00:00:00Z"), epochs)


def losses(*numbers):
    return a_run(*(EpochRecord(number, loss) for number, loss in enumerate(numbers, 1)))


def test_metrics_are_those_with_a_number():
    """The format's in its order, then what was logged in the order it came; not texts, booleans or nulls alone."""
    run = a_run(
        EpochRecord(1, None, 0.5, metrics={"note": "x", "done": True, "list": [1]}),
        EpochRecord(2, None, None, 0.5, metrics={"z": None, "f1": 1}),
    )
    other = a_run(EpochRecord(1, metrics={"bleu": NAN}))
    assert metric_names(run) == ["train_accuracy", "dev_accuracy", "f1"]
    assert metric_names(run, other) == ["train_accuracy", "dev_accuracy", "f1", "bleu"]
    assert metric_names() == []


def test_values_keep_their_epochs():
    """A value an epoch, None where it isn't a number; points leave those out."""
    run = a_run(
        EpochRecord(1, metrics={"f1": True}), EpochRecord(2, metrics={"f1": 3}), EpochRecord(5, metrics={"f1": "x"})
    )
    assert values(run, "f1") == [None, 3, None]
    assert points(run, "f1") == [Point(2, 3)]
    assert last(run, "f1") == Point(2, 3)
    assert last(run, "train_loss") is None


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("train_loss", "lower"),
        ("devLoss", "lower"),
        ("val/ppl", "lower"),
        ("WER", "lower"),
        ("top5.error", "lower"),
        ("dev_accuracy", "higher"),
        ("macro F1", "higher"),
        ("rouge2", "higher"),
        ("gradient_norm", None),
        ("loss_scale", None),
        ("feature_map_norm", None),
        ("IoU", "higher"),
        ("mIoU", "higher"),
        ("acc1", "higher"),
        ("dev_loss2", "lower"),
        ("learning_rate", None),
        ("lossless", None),
        ("accuracy_loss", None),
        ("", None),
    ],
)
def test_a_names_words_tell_what_is_better(name, direction):
    """By whole words; a name with none of them, or with both kinds, has no best value."""
    assert better(name) == direction


def test_the_best_is_the_first_of_the_best():
    """The least loss, the highest accuracy; of equals the first; NaN and infinities are none."""
    assert best(losses(0.5, 0.25, NAN, 0.25, -math.inf), "train_loss") == Point(2, 0.25)
    assert best(a_run(EpochRecord(1, dev_accuracy=0.5), EpochRecord(2, dev_accuracy=1.0)), "dev_accuracy").epoch == 2
    assert best(losses(NAN), "train_loss") is None
    assert best(a_run(EpochRecord(1, gradient_norm=1.0)), "gradient_norm") is None
    assert last(losses(0.5, 0.25, 0.75), "train_loss") == Point(3, 0.75)


def test_seconds_an_epoch_are_between_records():
    """The first from the run's beginning; none without epochs."""
    run = a_run(EpochRecord(1, elapsed_seconds=1.5), EpochRecord(2, elapsed_seconds=4.0))
    assert seconds_an_epoch(run) == [1.5, 2.5]
    assert seconds_an_epoch(a_run()) == []
