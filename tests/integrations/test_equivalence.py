"""One training, as a plain loop and under each trainer, says the same; and is the same, tracked or not."""

import numpy as np
import pytest
import torch
from fingerprint import differences, fingerprint
from oracle import one_thread  # noqa: F401
from trainers import (
    Kept,
    Net,
    by_accelerate,
    by_lightning,
    by_loop,
    by_trainer,
    lightning_library,
)

from trackmetrics import Tracker, load_run
from trackmetrics.record import METRIC_KEYS


def tracked_by(trainer, kept):
    """What tracks a training under `trainer`."""
    if "lightning" in trainer:
        lightning_library(trainer)
        from trackmetrics.integrations.lightning import MetricsFileCallback

        return MetricsFileCallback("toy", sinks=[kept])
    if trainer == "transformers":
        pytest.importorskip("transformers", reason="transformers isn't installed")
        from trackmetrics.integrations.transformers import MetricsFileCallback

        return MetricsFileCallback("toy", sinks=[kept])
    pytest.importorskip("accelerate", reason="accelerate isn't installed")
    from trackmetrics.integrations.accelerate import MetricsFileTracker

    return MetricsFileTracker("toy", sinks=[kept])


def train(trainer, own=None, **settings):
    """The same training under `trainer`; give the model."""
    if "lightning" in trainer:
        return by_lightning(lightning_library(trainer), own, **settings)
    return {"transformers": by_trainer, "accelerate": by_accelerate}[trainer](own, **settings)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The record of the plain loop, and what was worked out beside it."""
    kept, notes = Kept(), []
    with Tracker("toy", sinks=[kept], output_dir=tmp_path_factory.mktemp("plain")) as run:
        by_loop(run, notes=notes)
    return kept.record, notes


def test_the_plain_loop_says_what_is_worked_out_beside_it(plain):
    """The yardstick itself: loss, accuracies and norm before clipping, by hand."""
    record, notes = plain
    for epoch, expected in zip(record.epochs, notes, strict=True):
        found = [getattr(epoch, key) for key in METRIC_KEYS]
        assert found == pytest.approx(expected, rel=1e-6)
    assert any(norm > 0.5 for *_, norm in notes), "nothing is clipped"
    assert len({epoch.dev_accuracy for epoch in record.epochs}) == 3, "nothing is learnt"
    assert len(record.final_inference.attention_weights) == 1


@pytest.mark.parametrize("trainer", ["lightning", "pytorch_lightning", "transformers", "accelerate"])
def test_each_trainer_gives_the_same_record(trainer, plain):
    """Epochs but for their times and what is logged, final results and final inference are the plain loop's."""
    kept, (expected, _) = Kept(), plain
    train(trainer, tracked_by(trainer, kept))
    found = kept.record
    assert [epoch.epoch for epoch in found.epochs] == [1, 2, 3]
    for epoch, own in zip(found.epochs, expected.epochs, strict=True):
        for key in METRIC_KEYS:
            assert getattr(epoch, key) == pytest.approx(getattr(own, key), rel=1e-6), key
    assert found.final_results.train_accuracy == expected.final_results.train_accuracy
    assert found.final_results.dev_accuracy == expected.final_results.dev_accuracy
    assert found.final_results.total_time_seconds == found.epochs[-1].elapsed_seconds
    assert found.final_inference.example_input == expected.final_inference.example_input
    for name in ("log_probs", "attention_weights"):
        own, theirs = (getattr(record.final_inference, name) for record in (found, expected))
        np.testing.assert_allclose(own, theirs, rtol=1e-5, atol=1e-7)
    assert "warnings" not in found.extensions
    assert found.extensions["status"]["state"] == "completed"
    training = found.metadata.hyperparameters.training
    assert [training[name] for name in ("num_epochs", "batch_size", "learning_rate")] == [3, 8, 0.3]
    assert training["optimizer"]["momentum"] == 0.9
    assert found.metadata.hyperparameters.model["class"] == "Net"
    file = load_run("output/toy_training_metrics.json")
    assert [epoch.metrics for epoch in file.epochs] == [epoch.metrics for epoch in found.epochs]
    assert file.epochs[0].train_loss == round(found.epochs[0].train_loss, 4)


@pytest.mark.parametrize("trainer", ["lightning", "pytorch_lightning", "transformers", "accelerate"])
def test_the_training_is_the_same_with_us_and_without(trainer):
    """Parameters, buffers, modes and random streams, bit for bit, with dropout and shuffled batches."""
    found = []
    for own in (None, tracked_by(trainer, Kept())):
        torch.manual_seed(7)
        net = train(trainer, own, net=Net(dropout=0.2), shuffle=True)
        found.append(fingerprint(net=net))
    assert differences(*found) == []
    assert Net().head.weight.tolist() != net.head.weight.tolist()
