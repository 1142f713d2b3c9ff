"""Notices: each thing is said once, to the line of the user's program, and can't stop a training."""

import sys
import warnings
from pathlib import Path

import pytest

import trackmetrics
from trackmetrics.errors import TrackmetricsWarning
from trackmetrics.notices import Notices


@pytest.fixture
def said():
    """All warnings that a test gives, however often."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def test_a_thing_is_said_once(said):
    """A second message about the same value is dropped; about another value it isn't."""
    notices = Notices()
    notices.say("dev_accuracy", "dev_accuracy is null: no dev set")
    notices.say("dev_accuracy", "dev_accuracy is null: no dev set")
    notices.say("dev_accuracy", "dev_accuracy is null: another reason")
    notices.say("train_loss", "train_loss is null: no backward")
    expected = ["dev_accuracy is null: no dev set", "train_loss is null: no backward"]
    assert [str(warning.message) for warning in said] == expected
    assert {warning.category for warning in said} == {TrackmetricsWarning}
    assert notices.messages == expected


def test_each_run_says_it_anew(said):
    """What one run has said doesn't keep the next from saying it."""
    for _ in range(2):
        Notices().say("train_loss", "train_loss is null")
    assert len(said) == 2


def test_messages_cannot_be_changed_from_outside(said):
    """The list is a copy."""
    notices = Notices()
    notices.say("a", "a is null")
    notices.messages.clear()
    assert notices.messages == ["a is null"]


def test_warnings_made_errors_stop_nothing():
    """Under `-W error` nothing is raised, and the message still goes into the file."""
    notices = Notices()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notices.say("train_loss", "train_loss is null")
    assert notices.messages == ["train_loss is null"]


def test_a_display_that_fails_stops_nothing(monkeypatch):
    """Whatever a program has put in the place of `warnings.showwarning` may raise."""

    def fail(*_args, **_kwargs):
        raise OSError("no terminal")

    notices = Notices()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", fail)
        notices.say("train_loss", "train_loss is null")
    assert notices.messages == ["train_loss is null"]


def test_the_warning_points_at_the_line_that_called(said):
    """Said straight from a program, the warning carries that line."""
    Notices().say("a", "a is null")
    line = sys._getframe().f_lineno - 1
    assert (said[0].filename, said[0].lineno) == (__file__, line)


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_the_warning_points_past_the_packages_own_lines(said, depth):
    """However many of the package's functions lie between, the warning carries the user's line."""
    inside = Path(trackmetrics.__file__).parent / "instruments" / "pretended.py"
    source = "def call(notices, depth):\n    call(notices, depth - 1) if depth else notices.say('a', 'a is null')\n"
    names = {}
    exec(compile(source, str(inside), "exec"), names)
    names["call"](Notices(), depth)
    line = sys._getframe().f_lineno - 1
    assert (said[0].filename, said[0].lineno) == (__file__, line)


def test_the_warning_points_past_a_with_block_of_the_packages_own(said):
    """A fault that one of the package's context managers turns into a notice carries the user's line as well."""
    inside = Path(trackmetrics.__file__).parent / "pretended.py"
    source = """
import contextlib

@contextlib.contextmanager
def spared(notices):
    try:
        yield
    except ValueError:
        notices.say("a", "a is null")

def fail(notices):
    with spared(notices):
        raise ValueError
"""
    names = {}
    exec(compile(source, str(inside), "exec"), names)
    names["fail"](Notices())
    line = sys._getframe().f_lineno - 1
    assert (said[0].filename, said[0].lineno) == (__file__, line)


def test_a_program_whose_folder_begins_like_the_packages_is_the_users(said):
    """`trackmetrics_experiments/train.py`, beside the package, is not the package."""
    beside = Path(str(Path(trackmetrics.__file__).parent) + "_experiments") / "train.py"
    names = {"notices": Notices()}
    exec(compile("\n\nnotices.say('a', 'a is null')\n", str(beside), "exec"), names)
    assert (said[0].filename, said[0].lineno) == (str(beside), 3)
