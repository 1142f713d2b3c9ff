"""Figures and texts as people read them, whatever they are."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackmetrics.wording import duration, number, trend, visible


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0.0000"),
        (-0.5, "-0.5000"),
        (0.99996, "1.0000"),
        (0.0001, "0.0001"),
        (0.00009, "9e-05"),
        (999999.0, "999999.0000"),
        (1e6, "1e+06"),
        (12345678.0, "1.235e+07"),
        (7, "7"),
        (10**14, "100000000000000"),
        (10**20, "1e+20"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_a_figure_has_four_decimals_or_digits(value, text):
    """Four decimals; four digits where these would say nothing or too much; 15 digits of integers; a dash for none."""
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.99, "1 min 0 s"),
        (60, "1 min 0 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (7325, "2 h 2 min"),
        (200_000, "55 h 33 min"),
        (-2.0, "-2.0 s"),
        (1e300, "1e+300 s"),
        (math.nan, "nan s"),
        (math.inf, "inf s"),
    ],
)
def test_seconds_are_said_as_people_say_them(seconds, text):
    """Seconds, minutes, hours; rounded once, so that no 60 seconds stand beside a minute."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("numbers", "line"),
    [
        ([], ""),
        ([None, math.nan], ""),
        ([3], "▁"),
        ([3, 3, 3], "▁▁▁"),
        ([0, 7, 14], "▁▅█"),
        ([1, math.inf, 0], "█ ▁"),
        ([0, 2, 4, 6, 20, 22], "▁▂█"),  # means of pairs: 1, 5, 21
        ([1.7e308, -1.7e308, 1.7e308], "█▁█"),
    ],
)
def test_a_trend_goes_from_the_least_to_the_greatest(numbers, line):
    """A block each, or for each part's mean where there are more numbers than columns; a gap where there is none."""
    assert trend(numbers, 3) == line


@given(st.lists(st.none() | st.floats() | st.integers(-(10**308), 10**308)), st.integers(1, 20))
def test_any_numbers_have_a_trend(numbers, width):
    """However large, small or few: a line of at most so many columns."""
    line = trend(numbers, width)
    assert len(line) <= width
    assert set(line) <= set(" ▁▂▃▄▅▆▇█")


def test_what_a_terminal_would_obey_is_escaped():
    """Escape sequences, line ends, ways to turn text round, lone surrogates; accents, emoji and brackets stay."""
    assert visible("\x1b[2J\a\r\n\t\u202e\ud800") == "\\x1b[2J\\x07\\r\\n\\t\\u202e\\ud800"
    assert visible("é 中 🙂 [bold]") == "é 中 🙂 [bold]"


def test_a_long_text_is_cut():
    """To 160 letters, the last of them an ellipsis."""
    assert visible("a" * 160) == "a" * 160
    assert visible("a" * 161) == "a" * 159 + "…"
    assert visible(list(range(1000))) == str(list(range(1000)))[:159] + "…"
