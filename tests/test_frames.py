"""Epochs as columns and data frames, and in other programs' formats."""

import csv
import dataclasses
import io
import math
import struct
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from a_run_to_look_at import a_run
from any_record import records
from hypothesis import given, settings

from trackmetrics import extras
from trackmetrics.errors import ArgumentError, MetricsFileError, MissingExtraError
from trackmetrics.export import to_csv, to_parquet, to_tensorboard
from trackmetrics.frames import columns, to_frame
from trackmetrics.record import EpochRecord, Metadata, RunRecord

NAN = math.nan
NAMES = ["epoch", "train_loss", "train_accuracy", "dev_accuracy", "gradient_norm", "perplexity", "elapsed_seconds"]


def logged(*values, timestamp="2026-01-01T00:00:00Z"):
    """A run that logged these under the name `x`, one an epoch."""
    epochs = (EpochRecord(number, metrics={"x": value}) for number, value in enumerate(values, 1))
    return RunRecord(Metadata("t", timestamp), tuple(epochs))


def test_columns_stand_as_keys_do_in_the_file():
    """The number, the format's metrics, those logged, the time; a value an epoch."""
    table = columns(a_run())
    assert list(table) == NAMES
    assert table["train_loss"] == [0.8, 0.4, 0.2]
    assert table["elapsed_seconds"] == [1.5, 3.0, 4.5]
    assert columns(a_run(losses=(), state="running")) == {name: [] for name in NAMES if name != "perplexity"}


@pytest.mark.parametrize(
    ("values", "column"),
    [
        ([1, None, 3], [1, None, 3]),
        ([1, 2.5, None], [1.0, 2.5, None]),
        ([True, False], [True, False]),
        (["a", None], ["a", None]),
        ([[1, 2], {"a": NAN}], ["[1, 2]", '{"a": null}']),
        ([1, "a", True], ["1", "a", "true"]),
        ([True, 1], ["true", "1"]),
        ([2**63, 1], [str(2**63), "1"]),
        ([None, None], [None, None]),
    ],
)
def test_a_column_has_one_type(values, column):
    """Integers among floats become floats; whatever else doesn't fit together becomes text."""
    found = columns(logged(*values))["x"]
    assert found == column
    assert list(map(type, found)) == list(map(type, column))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_frame_has_a_row_an_epoch(library):
    """Of either library, with the same columns and values."""
    module = pytest.importorskip(library)
    frame = to_frame(a_run(), library)
    assert isinstance(frame, module.DataFrame)
    assert list(frame.columns) == NAMES
    assert frame.shape == (3, 7)
    assert list(frame["train_loss"]) == [0.8, 0.4, 0.2]
    assert list(frame["epoch"]) == [1, 2, 3]


@pytest.mark.parametrize("library", ["pandas", "polars"])
@settings(deadline=None, max_examples=50)
@given(record=records)
def test_any_run_has_a_frame(library, record):
    """Whatever was logged, in whatever order of types."""
    pytest.importorskip(library)
    assert to_frame(record, library).shape[0] == len(record.epochs)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_the_library_that_is_imported_is_taken(library):
    """A script that works with one of the two gets its frames."""
    pytest.importorskip(library)
    code = (
        f"import sys, {library}; from trackmetrics.frames import to_frame; from trackmetrics.record import *; "
        f"frame = to_frame(RunRecord(Metadata('t', ''))); sys.exit(not isinstance(frame, {library}.DataFrame))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_library_that_is_missing_is_named(monkeypatch):
    """With the line that installs it; another name is refused."""
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        to_frame(a_run(), "polars")
    assert str(caught.value) == "polars isn't installed; pip install 'trackmetrics[frames]'"
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.delitem(sys.modules, "pandas")
    with pytest.raises(MissingExtraError) as caught:
        to_frame(a_run())
    assert str(caught.value) == "neither pandas nor polars is installed; pip install 'trackmetrics[frames]'"
    with pytest.raises(ArgumentError, match="library is 'dask'; give 'pandas' or 'polars'"):
        to_frame(a_run(), "dask")


def test_csv_is_read_back():
    """By another reader: a heading, a line an epoch, each number bit for bit, nothing for null."""
    run = a_run(losses=(1 / 3, NAN, math.inf))
    rows = list(csv.DictReader(io.StringIO(to_csv(run).decode(), newline="")))
    assert list(rows[0]) == NAMES
    assert [float(row["train_loss"]) for row in rows][::2] == [1 / 3, math.inf]
    assert rows[1]["train_loss"] == "nan"
    nothing = list(csv.DictReader(io.StringIO(to_csv(logged('a "b",\nc', None)).decode(), newline="")))
    assert [row["x"] for row in nothing] == ['a "b",\nc', ""]
    assert nothing[0]["train_loss"] == ""


@pytest.mark.parametrize("writer", ["polars", "pandas"])
def test_parquet_is_read_back(monkeypatch, writer):
    """By pyarrow, whichever library wrote it: columns, types, nulls."""
    parquet = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip(writer)
    monkeypatch.setattr(extras, "installed", lambda name: name in (writer, "pyarrow"))
    monkeypatch.delitem(sys.modules, "polars" if writer == "pandas" else "pandas", raising=False)
    table = parquet.read_table(io.BytesIO(to_parquet(a_run(losses=(0.5, 0.25))))).to_pydict()
    assert list(table) == NAMES
    assert table["train_loss"] == [0.5, 0.25]
    assert table["epoch"] == [1, 2]


def read_events(folder):
    """The event file's records by its own format: length, checksum, data, checksum; parsed by TensorBoard's types."""
    event_pb2 = pytest.importorskip("tensorboard.compat.proto.event_pb2")
    (file,) = Path(folder).iterdir()
    data, events = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_tensorboard_has_each_value_at_its_epoch_and_time(tmp_path):
    """Scalars by name and epoch, at the time at which the epoch ended; the hyperparameters before them."""
    pytest.importorskip("tensorboard")
    to_tensorboard(a_run(losses=(0.5, NAN)), tmp_path / "log")
    began = datetime(2026, 1, 30, 22, 8, 22, tzinfo=timezone.utc).timestamp()
    values = [
        (value.tag, event.step, event.wall_time - began, value.simple_value)
        for event in read_events(tmp_path / "log")
        for value in event.summary.value
        if not value.tag.startswith("_hparams_")
    ]
    assert [value for value in values if value[0] == "dev_accuracy"] == [
        ("dev_accuracy", 1, 1.5, 0.25),
        ("dev_accuracy", 2, 3.0, 0.375),
    ]
    assert sorted({value[0] for value in values}) == sorted(NAMES[1:-1])
    losses = [value[3] for value in values if value[0] == "train_loss"]
    np.testing.assert_array_equal(losses, [0.5, NAN])


def test_an_epoch_after_a_resumption_has_that_parts_time(tmp_path):
    """The time between two parts of a run is there; what a later resumption dropped doesn't count."""
    pytest.importorskip("tensorboard")
    run = a_run(losses=(0.5, 0.4, 0.3, 0.2))
    resumed = [
        {"after_epoch": 3, "timestamp": "2026-01-30T22:30:00Z"},
        {"after_epoch": 1, "timestamp": "2026-01-30T23:08:22Z"},
        {"after_epoch": 3, "timestamp": "2026-01-31T22:08:22Z"},
        {"after_epoch": "4", "timestamp": None},
    ]
    to_tensorboard(dataclasses.replace(run, extensions={"resumed": resumed}), tmp_path / "log")
    began = datetime(2026, 1, 30, 22, 8, 22, tzinfo=timezone.utc).timestamp()
    times = {event.step: event.wall_time - began for event in read_events(tmp_path / "log") if event.step}
    assert times == {1: 1.5, 2: 3600 + 1.5, 3: 3600 + 3.0, 4: 24 * 3600 + 1.5}


def test_tensorboard_reads_it(tmp_path):
    """TensorBoard's own reader, without torch: the scalars, and the hyperparameters by their dotted names."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    to_tensorboard(a_run(), tmp_path / "log")
    found = accumulators.EventAccumulator(str(tmp_path / "log"))
    found.Reload()
    assert [(event.step, round(event.value, 6)) for event in found.Scalars("train_loss")] == [
        (1, 0.8),
        (2, 0.4),
        (3, 0.2),
    ]
    assert b"training.learning_rate" in found.summary_metadata["_hparams_/session_start_info"].plugin_data.content


def test_a_folder_with_events_is_refused(tmp_path):
    """A second export would show each point twice."""
    pytest.importorskip("tensorboard")
    to_tensorboard(a_run(), tmp_path / "log")
    with pytest.raises(ArgumentError) as caught:
        to_tensorboard(a_run(), tmp_path / "log")
    assert str(caught.value) == (
        f"{tmp_path / 'log'} holds TensorBoard's events already; remove them, or give another --output"
    )


@pytest.mark.parametrize("timestamp", ["", "yesterday", "9999-99-99T00:00:00Z"])
def test_events_need_a_date(tmp_path, timestamp):
    """A forged timestamp is named."""
    pytest.importorskip("tensorboard")
    with pytest.raises(MetricsFileError, match=f"metadata.timestamp is '{timestamp}', which is no date"):
        to_tensorboard(logged(1.0, timestamp=timestamp), tmp_path / "log")
    assert not (tmp_path / "log").exists()
