"""A run in other programs' formats: CSV, Parquet, TensorBoard's event files."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import extras
from .curves import metric_names, points
from .errors import ArgumentError, MetricsFileError, shown
from .extensions import objects
from .frames import columns, to_frame
from .record import RunRecord
from .summary import hyperparameters


def to_csv(run: RunRecord) -> bytes:
    """Give the epochs as CSV (RFC 4180, UTF-8): a heading, a line each, nothing where there is no value.

    NaN and infinities are `nan`, `inf`, `-inf`, which most programs read; a number is the shortest that gives it back.

    >>> from trackmetrics.record import EpochRecord, Metadata
    >>> to_csv(RunRecord(Metadata("demo", "2026-01-01T00:00:00Z"), (EpochRecord(1, 0.5),))).decode().splitlines()
    ['epoch,train_loss,train_accuracy,dev_accuracy,gradient_norm,elapsed_seconds', '1,0.5,,,,0.0']
    """
    table = columns(run)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    return text.getvalue().encode()


def to_parquet(run: RunRecord) -> bytes:
    """Give the epochs as a Parquet file, by polars, or by pandas with pyarrow. Raises `MissingExtraError`."""
    file = io.BytesIO()
    frame = to_frame(run, "polars" if extras.installed("polars") else None)
    if hasattr(frame, "write_parquet"):
        frame.write_parquet(file)
    else:
        extras.load("pyarrow", extra="frames")
        frame.to_parquet(file)
    return file.getvalue()


def to_tensorboard(run: RunRecord, folder: Path) -> None:
    """Write the epochs as scalars, by epoch, and the hyperparameters, to an event file in a folder; without torch.

    Each value has the time at which its epoch ended. Raises `MissingExtraError`, `ArgumentError` where the folder
    holds events already, `MetricsFileError` where the run has no date.
    """
    writer = extras.load("tensorboard.summary.writer.event_file_writer", extra="tensorboard").EventFileWriter
    if any(folder.glob("events.out.tfevents.*")):
        raise ArgumentError(f"{folder} holds TensorBoard's events already; remove them, or give another --output")
    made = list(_events(run))
    events = writer(str(folder))
    try:
        for event in made:
            events.add_event(event)
    finally:
        events.close()


def _events(run: RunRecord) -> Iterable[Any]:
    event = extras.load("tensorboard.compat.proto.event_pb2", extra="tensorboard").Event
    summary = extras.load("tensorboard.compat.proto.summary_pb2", extra="tensorboard").Summary
    hparams = extras.load("tensorboard.plugins.hparams.summary_v2", extra="tensorboard")
    began = _seconds(run.metadata.timestamp, "metadata.timestamp")
    if hyperparameters(run):
        yield event(wall_time=began, step=0, summary=hparams.hparams_pb(_simple(hyperparameters(run))))
    ends = _ends(run)
    for name in metric_names(run):
        for point in points(run, name):
            value = summary.Value(tag=name, simple_value=point.value)
            yield event(wall_time=ends[point.epoch], step=point.epoch, summary=summary(value=[value]))


def _ends(run: RunRecord) -> dict[int, float]:
    """When each epoch ended, in seconds of the clock: the part of the run that it is of went on from its resumption."""
    elapsed = {epoch.epoch: epoch.elapsed_seconds for epoch in run.epochs}
    began = _seconds(run.metadata.timestamp, "metadata.timestamp")
    ends = {epoch: began + seconds for epoch, seconds in elapsed.items()}
    for resumption in objects(run.extensions, "resumed"):
        after = resumption.get("after_epoch")
        if isinstance(after, int):
            began = _seconds(resumption.get("timestamp"), "resumed.timestamp") - elapsed.get(after, 0.0)
            ends |= {epoch: began + seconds for epoch, seconds in elapsed.items() if epoch > after}
    return ends


def _seconds(timestamp: Any, place: str) -> float:
    try:
        return datetime.datetime.fromisoformat(str(timestamp).replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        raise MetricsFileError(f"{place} is {shown(timestamp)}, which is no date") from None


def _simple(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value if isinstance(value, (bool, int, float, str)) else str(value) for name, value in values.items()}
