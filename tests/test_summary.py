"""A run in few words, and what differs between runs."""

import math
from pathlib import Path

from a_run_to_look_at import a_run

from trackmetrics.record import Hyperparameters, Metadata, RunRecord
from trackmetrics.run_files import RunFile
from trackmetrics.run_state import state_of
from trackmetrics.summary import described, differing_hyperparameters, hyperparameters, summarize


def a_file(run, path="a.json"):
    return RunFile(Path(path), run, state_of(run, path))


def of(**training):
    return RunRecord(Metadata("t", "2026-01-01T00:00:00Z", None, Hyperparameters({}, training)))


def test_a_summary_has_the_best_and_the_last():
    """Which run, its state, the best and the last of each metric with their epochs, its results."""
    assert summarize(a_file(a_run(losses=(0.5, 0.25, 0.75)), "out/a.json")) == {
        "file": "out/a.json",
        "task": "counting",
        "timestamp": "2026-01-30T22:08:22Z",
        "device": "cpu",
        "state": "completed",
        "detail": "",
        "epochs": 3,
        "elapsed_seconds": 4.5,
        "best": {
            "train_loss": {"epoch": 2, "value": 0.25},
            "train_accuracy": {"epoch": 3, "value": 0.375},
            "dev_accuracy": {"epoch": 3, "value": 0.5},
            "perplexity": {"epoch": 2, "value": 2.0**0.25},
        },
        "last": {
            "train_loss": {"epoch": 3, "value": 0.75},
            "train_accuracy": {"epoch": 3, "value": 0.375},
            "dev_accuracy": {"epoch": 3, "value": 0.5},
            "gradient_norm": {"epoch": 3, "value": 2 / 3},
            "perplexity": {"epoch": 3, "value": 2.0**0.75},
        },
        "final_results": {"train_accuracy": 0.5, "dev_accuracy": 0.625, "total_time_seconds": 4.5},
    }


def test_a_run_without_epochs_has_a_summary():
    """Nothing best, nothing last, no time."""
    found = summarize(a_file(RunRecord(Metadata("t", "2026-01-01T00:00:00Z"))))
    assert (found["best"], found["last"], found["elapsed_seconds"], found["final_results"]) == ({}, {}, None, None)
    assert found["state"] == "unknown"


def test_a_description_adds_hyperparameters_and_predictions():
    """By dotted names; a prediction a token."""
    found = described(a_file(a_run()))
    assert found["hyperparameters"] == {
        "model.class": "Transformer",
        "model.layers": 2,
        "training.learning_rate": 0.1,
        "training.adam.eps": 0,
    }
    assert [item["predicted"] for item in found["predictions"]] == [0, 1, 2, 0]
    assert described(a_file(a_run(state="running")))["predictions"] == []


def test_what_differs_is_given_of_each_run():
    """Values, types and what isn't there at all; NaN is no other NaN; nested ones by their dotted names."""
    same = {"seed": 0, "rate": math.nan, "list": [1, {"a": 2}], "empty": {}}
    runs = [
        of(**same, adam={"lr": 0.1, "eps": 1}),
        of(**same, adam={"lr": 0.2, "eps": 1}),
        of(**same, adam={"eps": 1.0}),
    ]
    assert differing_hyperparameters(*runs) == {
        "training.adam.lr": [0.1, 0.2, None],
        "training.adam.eps": [1, 1, 1.0],
    }  # fmt: skip
    assert differing_hyperparameters(of(a=None), of()) == {"training.a": [None, None]}
    assert differing_hyperparameters(runs[0]) == differing_hyperparameters() == {}
    assert hyperparameters(of(empty={}, a={"b": {"c": 1}})) == {"training.empty": {}, "training.a.b.c": 1}
