"""How far a run is: counts, rates and times, by a clock that is set by hand."""

import pytest

from trackmetrics.live.pace import Pace
from trackmetrics.live.status_line import Style, status_line


@pytest.fixture
def pace(clock):
    return Pace(lambda: clock.seconds)


def test_the_first_epoch_has_no_total(pace, clock):
    """Steps are counted, and it isn't guessed how many there will be."""
    pace.epoch_begins(1, 10)
    clock.advance(2)
    status = pace.status(8)
    assert (status.epoch, status.epochs, status.done, status.total, status.seconds_left) == (1, 10, 8, None, None)
    assert status.rate == 4


def test_later_epochs_are_as_long_as_the_one_before(pace, clock):
    """That is an estimate; an epoch that goes beyond it has no total any more."""
    pace.epoch_begins(1, None)
    pace.epoch_ends(20)
    pace.epoch_begins(2, None)
    clock.advance(1)
    status = pace.status(5)
    assert (status.total, status.estimated, status.fraction, status.seconds_left) == (20, True, 0.25, 3)
    assert pace.status(21).total is None


def test_a_loop_over_batches_takes_the_steps_place(pace, clock):
    """Its length is known; of several the innermost is shown, and when it is over the one around it."""
    pace.epoch_begins(1, None)
    outer = pace.loop_begins(10)
    outer.done = 4
    clock.advance(2)
    assert (pace.status(3).unit, pace.status(3).done, pace.status(3).total) == ("batch", 4, 10)
    assert not pace.status(3).estimated
    inner = pace.loop_begins(None)
    assert (pace.status(3).done, pace.status(3).total) == (0, None)
    pace.loop_ends(inner)
    assert pace.status(3).total == 10
    pace.loop_ends(outer)
    assert pace.status(3).unit == "step"


def test_what_an_epoch_takes_is_the_mean_of_those_before(pace, clock):
    """From beginning to beginning, so that evaluation and saving count; the first epoch is judged by how far it is."""
    pace.epoch_begins(1, 4)
    loop = pace.loop_begins(10)
    loop.done = 5
    clock.advance(5)
    assert pace.status(5).seconds_left == 5 + 3 * 10
    pace.loop_ends(loop)
    clock.advance(7)
    pace.epoch_ends(10)
    pace.epoch_begins(2, 4)
    clock.advance(2)
    assert pace.status(1).seconds_left == 10 + 2 * 12
    clock.advance(100)
    assert pace.status(2).seconds_left == 2 * 12


def test_a_run_that_goes_on_counts_its_own_epochs(pace, clock):
    """Resumed after epoch 6 of 10: four are left, each as long as this run's are."""
    for number in (7, 8):
        pace.epoch_begins(number, 10)
        clock.advance(3)
        pace.epoch_ends(5)
    pace.epoch_begins(9, 10)
    assert pace.status(0).seconds_left == 3 + 3


def test_more_epochs_than_planned_have_no_end(pace, clock):
    """What was said of their number wasn't meant so."""
    pace.epoch_begins(11, 10)
    clock.advance(1)
    assert (pace.status(5).epochs, pace.status(5).seconds_left) == (None, None)


def test_the_rate_is_that_of_the_last_moments(pace, clock):
    """Some twenty looks back, not the epoch's mean: what it is now is seen."""
    pace.epoch_begins(1, None)
    for steps in range(1, 41):
        clock.advance(0.25)
        pace.status(steps * 5)
    for steps in range(1, 41):
        clock.advance(0.25)
        last = pace.status(200 + steps)
    assert last.rate == 4


def test_a_clock_that_stands_still_divides_by_nothing(pace):
    """Several looks in one moment: no rate."""
    pace.epoch_begins(1, 3)
    assert pace.status(3).rate is None
    assert pace.status(5).rate is None


def test_each_width_has_a_line_that_fits(pace, clock):
    """Down to a single letter, in Unicode and ASCII; a wider one never says less."""
    pace.epoch_begins(1, 120)
    pace.epoch_ends(123_456)
    pace.epoch_begins(2, 120)
    clock.advance(1000)
    status = pace.status(12_345, 1234567.0, float("nan"))
    for style in (Style(), Style(unicode=False)):
        parts = 0
        for width in range(1, 200):
            line = status_line(status, width, style)
            assert len(line) <= width
            assert line.isascii() or style.unicode
            if width > 12:
                assert len(line.split("  ")) >= parts - 1
                parts = len(line.split("  "))
        assert parts == 7 + 1  # the bar stands between the others


def test_slow_steps_say_how_long_each_takes(pace, clock):
    """Below one a second."""
    pace.epoch_begins(1, None)
    clock.advance(10)
    assert status_line(pace.status(4), 80, Style()) == "epoch 1  step 4  2.5 s each"
