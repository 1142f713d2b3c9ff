"""The final example, token by token."""

import numpy as np
import pytest

from trackmetrics.example import predictions, tokens
from trackmetrics.record import FinalInference


@pytest.mark.parametrize(
    ("text", "length", "cut"),
    [
        ("ab a", 4, ["a", "b", " ", "a"]),
        ("the cat  sat", 3, ["the", "cat", "sat"]),
        ("the cat", 4, ["1", "2", "3", "4"]),
        ("", 0, []),
        ("a b", 3, ["a", " ", "b"]),  # characters come first
        ("ab", 1, ["ab"]),
    ],
)
def test_tokens_are_characters_or_words_or_numbers(text, length, cut):
    """Whichever there are as many of as rows."""
    assert tokens(text, length) == cut


def test_a_prediction_is_the_most_probable_class():
    """With its probability; unsure where another has at least half of it, or where a NaN leaves no answer."""
    rows = np.log([[0.9, 0.05, 0.05], [0.2, 0.5, 0.3], [0.5, 0.25, 0.25], [0.51, 0.245, 0.245]])
    found = predictions(FinalInference("abcd", np.vstack([rows, [np.nan, 0, 0]])[:4]))
    assert [(item.token, item.predicted, item.unsure) for item in found] == [
        ("a", 0, False), ("b", 1, True), ("c", 0, True), ("d", 0, False),
    ]  # fmt: skip
    assert found[1].probability == pytest.approx(0.5)
    (lost,) = predictions(FinalInference("a", np.array([[np.nan, 0.0]])))
    assert (lost.predicted, lost.probability, lost.unsure) == (None, None, True)


def test_float32_probabilities_are_not_worse_for_it():
    """A tie in float32 stays one: half and half is unsure, one class alone is sure."""
    half = predictions(FinalInference("a", np.log(np.float32([[0.5, 0.5]]))))[0]
    assert half.unsure
    assert half.probability == pytest.approx(0.5)
    alone = predictions(FinalInference("ab", np.float32([[0.0], [0.0]])))
    assert [(item.predicted, item.probability, item.unsure) for item in alone] == [(0, 1.0, False)] * 2
    masked = predictions(FinalInference("a", np.array([[0.0, -np.inf]])))[0]
    assert (masked.predicted, masked.probability, masked.unsure) == (0, 1.0, False)


def test_one_row_is_of_the_whole_input():
    """A classifier's prediction is named by all of the text; without a distribution there is none."""
    (found,) = predictions(FinalInference("a long text", np.log([[0.25, 0.75]])))
    assert (found.token, found.predicted) == ("a long text", 1)
    assert predictions(FinalInference("a", None)) == []
    assert predictions(FinalInference("", np.zeros((0, 0)))) == []
    for row in ([np.inf, 0.0], [800.0, 0.0], [-np.inf, -np.inf]):
        (found,) = predictions(FinalInference("a", np.array([row])))
        assert (found.predicted, found.probability, found.unsure) == (None, None, True)
    (nothing,) = predictions(FinalInference("a", np.zeros((1, 0))))
    assert nothing.predicted is None
