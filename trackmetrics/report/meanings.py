"""What each number on the page means."""

from __future__ import annotations

from collections.abc import Sequence

from ..extensions import part
from ..record import RunRecord
from ..wording import visible

_NORM = "the L2 norm of the gradient that one training step applies, before clipping; the mean over the epoch's steps"
_MEANINGS = {
    "Training loss": "the mean of the loss per target over the epoch, while the model was learning: each step's loss "
    "is weighted by the number of targets that it averages over",
    "Train accuracy": "by epoch the share of targets that the model, as it stood at that step, predicted right; among "
    "the final results the share over the full training set, with the final weights",
    "Dev accuracy": "the share of the dev set's targets that the model predicts right, after the epoch's last step; "
    "among the final results with the final weights",
    "Gradient norm": _NORM,
    "Seconds an epoch": "from one epoch's record to the next, evaluation included; the first from the start of the run",
    "Log-probability": "the natural logarithm of the probability that the model gives a class: 0 is certain, −0.7 even "
    "odds",
    "Unsure": "another class is at least half as probable as the predicted one",
    "Attention weight": "the share of a token's attention, read along a row, that goes to each token; a row sums to 1, "
    "or to 0 where everything is masked, unless the model mixes its heads afterwards",
    "Check": "the largest difference between the weights times the values and what the attention itself gave; 0 is "
    "exact",
    "Non-finite steps": "training steps whose gradient norm is NaN or infinite; the mean leaves them out",
    "Skipped steps": "steps that the gradient scaler of mixed precision left out",
}


def meanings(runs: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Give the meanings of each number; of the gradient norm those that the files themselves give.

    >>> meanings([])["Unsure"]
    ['another class is at least half as probable as the predicted one']
    """
    said = [part(run.extensions, "gradient_norm").get("meaning") for run in runs]
    norms = list(dict.fromkeys(visible(meaning, 1000) for meaning in said if meaning))
    return {term: [meaning] for term, meaning in _MEANINGS.items()} | {"Gradient norm": norms or [_NORM]}
