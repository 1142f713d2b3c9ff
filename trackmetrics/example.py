"""The final example, token by token: what the model predicts of each, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .record import FinalInference

_UNSURE = 0.5  # of the predicted class's probability, that another one has


@dataclass(frozen=True)
class Prediction:
    """The most probable class of one row of the log-probabilities.

    `unsure` where another class is at least half as probable. `predicted` and `probability` are None where the row
    holds a NaN or an infinite probability, or nothing but zero ones.
    """

    token: str
    predicted: int | None
    probability: float | None
    unsure: bool


def tokens(text: str, length: int) -> list[str]:
    """Cut the example's input into so many tokens: its characters or its words, else their numbers from 1 on.

    >>> tokens("abc", 3), tokens("a bc", 2), tokens("abc", 2)
    (['a', 'b', 'c'], ['a', 'bc'], ['1', '2'])
    """
    for cut in (list(text), text.split()):
        if len(cut) == length:
            return cut
    return [str(number) for number in range(1, length + 1)]


def predictions(inference: FinalInference) -> list[Prediction]:
    """Give the prediction of each row of the log-probabilities; none where the output is no distribution.

    One row is the prediction of the whole input, and so its token is.

    >>> predictions(FinalInference("ab", np.log([[0.9, 0.1], [0.6, 0.4]])))[1]
    Prediction(token='b', predicted=0, probability=0.6, unsure=True)
    """
    if inference.log_probs is None:
        return []
    rows, text = inference.log_probs, inference.example_input
    cut = [text] if len(rows) == 1 else tokens(text, len(rows))
    return [_prediction(token, row) for token, row in zip(cut, rows, strict=True)]


def _prediction(token: str, row: npt.NDArray[Any]) -> Prediction:
    if np.isnan(row).any() or not row.size:
        return Prediction(token, None, None, True)
    with np.errstate(over="ignore"):
        probabilities = np.exp(row.astype(np.float64))
    predicted = int(row.argmax())
    probability = float(probabilities[predicted])
    if not 0 < probability < np.inf:
        return Prediction(token, None, None, True)
    others = np.delete(probabilities, predicted)
    return Prediction(token, predicted, probability, bool((others >= _UNSURE * probability).any()))
