"""Progress: a readable line an epoch, on a terminal or where it was asked for, and never an error."""

import io
import sys
import time
from pathlib import Path

import pytest

from trackmetrics.live.progress import Progress
from trackmetrics.record import EpochRecord, FinalResults, Metadata, RunRecord

PATH = Path("output/t_training_metrics.json")
EPOCH = EpochRecord(3, 0.41234, 0.9, 1.0, 12.00006, 61.26, {"perplexity": 1.5})


def a_run(results):
    return RunRecord(Metadata("t", "2026-01-30T22:08:22Z"), (EPOCH,), results)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


class Gone(io.StringIO):
    """A stream whose other end is gone."""

    def write(self, text):
        raise BrokenPipeError

    def isatty(self):
        raise OSError


class Bare:
    """The least that some programs put in the place of standard error: no flush, no isatty."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


def shown(progress=True, stream=None, epochs=(), results=None, done=False):
    """The text that a run leaves on a stream."""
    stream = io.StringIO() if stream is None else stream
    lines = Progress(progress, time.monotonic, stream)
    for epoch in epochs:
        lines.epoch_done(epoch)
    if done:
        lines.run_done(a_run(results), PATH)
    return stream.getvalue()


def test_an_epoch_is_one_line():
    """Number, loss, both accuracies, gradient norm and seconds, in columns."""
    assert shown(epochs=[EPOCH]) == (
        "epoch   3  loss 0.4123  train accuracy 0.9000  dev accuracy 1.0000  gradient norm 12.0001  61.3 s\n"
    )


def test_epochs_stand_under_each_other():
    """Up to 999 epochs the columns begin at the same place."""
    first, last = shown(epochs=[EpochRecord(1, 0.5, 0.5, 0.5, 0.5), EpochRecord(999, 0.5, 0.5, 0.5, 0.5)]).splitlines()
    assert first.index("loss") == last.index("loss")


def test_what_is_null_is_a_dash():
    """A value that could not be had leaves its column, with a dash."""
    assert shown(epochs=[EpochRecord(1, train_loss=0.5, elapsed_seconds=0.04)]) == (
        "epoch   1  loss 0.5000  train accuracy -  dev accuracy -  gradient norm -  0.0 s\n"
    )


def test_a_zero_is_a_number():
    """Nothing right is shown as 0, not as a value that is missing, in an epoch and at the end."""
    assert shown(epochs=[EpochRecord(1, 0.0, 0.0, 0.0, 0.0, 0.0)]) == (
        "epoch   1  loss 0.0000  train accuracy 0.0000  dev accuracy 0.0000  gradient norm 0.0000  0.0 s\n"
    )
    assert shown(done=True, results=FinalResults(0.0, None, 0.0)).startswith(
        "final      train accuracy 0.0000  0.0 s\n"
    )


def test_what_is_not_finite_is_shown_as_it_is():
    """A loss that became NaN is not hidden."""
    assert shown(epochs=[EpochRecord(1, float("nan"), 0.5, 0.5, float("inf"), 1.0)]) == (
        "epoch   1  loss nan  train accuracy 0.5000  dev accuracy 0.5000  gradient norm inf  1.0 s\n"
    )


def test_the_end_shows_the_results_and_the_file():
    """Final accuracies, the total time, and where the file is."""
    assert shown(done=True, results=FinalResults(0.99634, 0.995, 417.129)) == (
        f"final      train accuracy 0.9963  dev accuracy 0.9950  417.1 s\nmetrics in {PATH}\n"
    )


def test_the_end_without_results_shows_the_file():
    """A run without final results names its file; accuracies that are null are left out."""
    assert shown(done=True, results=None) == f"metrics in {PATH}\n"
    assert shown(done=True, results=FinalResults(None, None, 5.0)) == f"final      5.0 s\nmetrics in {PATH}\n"


@pytest.mark.parametrize(
    ("progress", "stream", "lines"),
    [
        ("auto", io.StringIO, 0),
        ("auto", Terminal, 3),
        (True, io.StringIO, 3),
        (True, Terminal, 3),
        (False, io.StringIO, 0),
        (False, Terminal, 0),
    ],
)
def test_lines_are_shown_where_they_are_wanted(progress, stream, lines):
    """`"auto"` shows them on a terminal only, True and False everywhere and nowhere."""
    text = shown(progress, stream(), [EPOCH], FinalResults(1.0, 1.0, 1.0), done=True)
    assert len(text.splitlines()) == lines


@pytest.mark.parametrize("progress", ["auto", True, False])
@pytest.mark.parametrize("kind", ["closed", "gone", "bare", "none"])
def test_a_stream_that_fails_stops_nothing(monkeypatch, progress, kind):
    """Standard error closed, gone, replaced by something poorer, or missing as under pythonw: nothing is raised."""
    stream = {"closed": io.StringIO(), "gone": Gone(), "bare": Bare(), "none": None}[kind]
    if kind == "closed":
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    lines = Progress(progress, time.monotonic)
    lines.epoch_done(EPOCH)
    lines.run_done(a_run(None), PATH)
    assert kind != "bare" or stream.text.startswith("epoch   3") == (progress is True)


def test_a_stream_closed_meanwhile_stops_nothing():
    """Lines after the stream was closed are lost, and that is all."""
    stream = Terminal()
    lines = Progress("auto", time.monotonic, stream)
    lines.epoch_done(EPOCH)
    stream.close()
    lines.epoch_done(EPOCH)
    assert stream.closed


def test_a_path_that_the_stream_cannot_encode_stops_nothing():
    """An ASCII stream and a path with an accent: that line is lost, and nothing is raised."""
    raw = io.BytesIO()
    lines = Progress(True, time.monotonic, io.TextIOWrapper(raw, encoding="ascii"))
    lines.run_done(a_run(None), Path("é.json"))
    lines.epoch_done(EPOCH)
    assert raw.getvalue().startswith(b"epoch   3")


def test_standard_error_is_the_stream(capsys):
    """Lines go to standard error as it is when the run starts, never to standard output."""
    Progress(True, time.monotonic).epoch_done(EPOCH)
    captured = capsys.readouterr()
    assert captured.err.startswith("epoch   3  loss 0.4123")
    assert captured.out == ""
