"""The final example on the page: each token's prediction, and the log-probabilities as a heatmap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..example import predictions
from ..record import FinalInference
from .figures import long_text, percent, token_label
from .heatmaps import LARGEST, Gallery

_TOKENS = 1000  # that are listed
_CLASSES = 64  # rows of the heatmap


@dataclass(frozen=True)
class Token:
    """What the model predicts of a token, in words; `other` is the next likely class of an unsure one."""

    text: str
    predicted: str
    probability: str
    share: float
    unsure: bool
    other: str


@dataclass(frozen=True)
class Example:
    """The example as it is shown. `heatmap` is the place in the gallery, None where the output is no distribution.

    `notes` say what of it isn't shown.
    """

    text: str
    tokens: list[Token]
    unsure: int
    whole: bool
    heatmap: int | None
    notes: list[str]


def final_example(inference: FinalInference, run: int, gallery: Gallery) -> Example:
    """Give the example of the run at a place among the runs.

    >>> shown = final_example(FinalInference("ab", np.log([[0.9, 0.1], [0.6, 0.4]])), 0, Gallery())
    >>> [(token.text, token.predicted, token.probability, token.other) for token in shown.tokens]
    [('a', '0', '90.0%', ''), ('b', '0', '60.0%', '1 at 40.0%')]
    """
    found = predictions(inference)
    rows = inference.log_probs if inference.log_probs is not None else ()
    listed = [
        Token(
            token_label(item.token),
            "–" if item.predicted is None else str(item.predicted),
            percent(item.probability),
            _share(item.probability),
            item.unsure,
            _other(row, item.predicted) if item.unsure else "",
        )
        for item, row in zip(found[:_TOKENS], rows)
    ]
    notes = [f"The first {_TOKENS} of {len(found)} tokens are listed."] * (len(found) > _TOKENS)
    place = None
    if inference.log_probs is not None:
        place = _heatmap(inference.log_probs, [token_label(item.token) for item in found], run, gallery)
        notes += _left_out(inference.log_probs.shape)
    unsure = sum(item.unsure for item in found)
    return Example(long_text(inference.example_input), listed, unsure, len(found) == 1, place, notes)


def _share(probability: float | None) -> float:
    return 0.0 if probability is None or math.isnan(probability) else min(probability, 1.0)


def _other(row: npt.NDArray[Any], predicted: int | None) -> str:
    if predicted is None or len(row) < 2:
        return ""
    order = np.argsort(-row, kind="stable")
    second = int(next(place for place in order if place != predicted))
    return f"{second} at {percent(math.exp(row[second]))}"


def _heatmap(log_probs: npt.NDArray[Any], names: Sequence[str], run: int, gallery: Gallery) -> int:
    """Hang the log-probabilities up, tokens along the top as they are read; one prediction lies on its side."""
    kept = _likeliest(log_probs)
    classes = [str(number) for number in kept]
    shown = log_probs[:, kept]
    title = "Log-probabilities"
    if len(log_probs) == 1:
        return gallery.add("log_probs", run, title, "", shown, ["input"], classes)
    return gallery.add("log_probs", run, title, "", shown.T, classes, names)


def _likeliest(log_probs: npt.NDArray[Any]) -> list[int]:
    """The classes that have the highest log-probabilities of any token, in their own order."""
    if log_probs.shape[1] <= _CLASSES:
        return list(range(log_probs.shape[1]))
    highest = np.fmax.reduce(log_probs, axis=0)
    return sorted(int(place) for place in np.argsort(-highest, kind="stable")[:_CLASSES])


def _left_out(shape: tuple[int, ...]) -> list[str]:
    notes = []
    if shape[1] > _CLASSES:
        notes.append(f"Of {shape[1]} classes the {_CLASSES} that are likeliest for any token are in the heatmap.")
    if shape[0] > LARGEST:
        notes.append(f"Each column of the heatmap is a block of the {shape[0]} tokens, with its largest values.")
    return notes
