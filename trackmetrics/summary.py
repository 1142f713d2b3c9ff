"""A run in few words: what a list of runs, a comparison and scripts want to know of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .curves import best, last, metric_names
from .example import predictions
from .record import RunRecord
from .run_files import RunFile


def summarize(item: RunFile) -> dict[str, Any]:
    """Say which run it is, what became of it, the best and the last of each metric, and its results.

    Plain data; `best` and `last` hold `{"epoch": ..., "value": ...}` by metric.
    """
    run, state = item.run, item.state
    names = metric_names(run)
    results = run.final_results
    return {
        "file": str(item.path),
        "task": run.metadata.task,
        "timestamp": run.metadata.timestamp,
        "device": run.metadata.device,
        "state": state.name,
        "detail": state.detail,
        "epochs": len(run.epochs),
        "elapsed_seconds": run.epochs[-1].elapsed_seconds if run.epochs else None,
        "best": {name: vars(point) for name in names if (point := best(run, name)) is not None},
        "last": {name: vars(point) for name in names if (point := last(run, name)) is not None},
        "final_results": None if results is None else vars(results),
    }


def described(item: RunFile) -> dict[str, Any]:
    """Give what `summarize` does, the hyperparameters, and what is predicted of the final example."""
    inference = item.run.final_inference
    found = predictions(inference) if inference is not None else []
    return {
        **summarize(item),
        "hyperparameters": hyperparameters(item.run),
        "predictions": [vars(prediction) for prediction in found],
    }


def differing_hyperparameters(*runs: RunRecord) -> dict[str, list[Any]]:
    """Give what isn't the same in all runs: by dotted name the value of each, None where one has none.

    >>> from trackmetrics.record import Hyperparameters, Metadata
    >>> of = lambda rate: RunRecord(Metadata("t", "", None, Hyperparameters({}, {"adam": {"lr": rate}, "seed": 0})))
    >>> differing_hyperparameters(of(0.1), of(0.2))
    {'training.adam.lr': [0.1, 0.2]}
    """
    flat = [hyperparameters(run) for run in runs]
    names = dict.fromkeys(name for values in flat for name in values)
    return {
        name: [values.get(name) for values in flat]
        for name in names
        if len({(name in values, repr(values.get(name))) for values in flat}) > 1
    }


def hyperparameters(run: RunRecord) -> dict[str, Any]:
    """Give a run's hyperparameters by dotted name, those of the model first; a key that has a dot stands in quotes.

    >>> from trackmetrics.record import Metadata, Hyperparameters
    >>> given = Hyperparameters({"class": "Net"}, {"adam": {"lr": 0.1}, "adam.lr": 0.2})
    >>> hyperparameters(RunRecord(Metadata("t", "", None, given)))
    {'model.class': 'Net', 'training.adam.lr': 0.1, 'training."adam.lr"': 0.2}
    """
    given = run.metadata.hyperparameters
    return {**dict(_leaves(given.model, "model")), **dict(_leaves(given.training, "training"))}


def _leaves(values: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    for key, item in values.items():
        own = f"{name}.{_step(key)}"
        if isinstance(item, Mapping) and item:
            yield from _leaves(item, own)
        else:
            yield own, item


def _step(key: str) -> str:
    """A key as a part of a dotted name."""
    return json.dumps(key, ensure_ascii=False) if "." in key or '"' in key else key
