"""A set evaluated by all ranks of a run: which one and how they agree on, what each counted is added up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .instruments.data import UnreadableError
from .instruments.discovery import Found
from .instruments.division import Division, Plan, agree, collective, computes_together, offer_of_set, total
from .instruments.figures import Share
from .instruments.pairing import PairingError
from .ranks import Ranks

_MEND = "give `evaluate=`, a function of model and data"

Count = Callable[[Any, Division, int], Share]


class NotEvaluatedError(Exception):
    """No set could be evaluated: `why`, and how to mend it; `why` is empty where there is nothing to say."""

    def __init__(self, why: str, mend: str = "") -> None:
        super().__init__(f"{why}; {mend}" if mend else why)
        self.why = why


def evaluate_together(
    ranks: Ranks,
    about: str,
    candidates: list[Found],
    count: Count,
    *,
    obstacle: str | None,
    model: torch.nn.Module | None,
    targets: int,
    called: bool = False,
) -> tuple[float, Found]:
    """Give the accuracy over the first of the sets that can be evaluated, and that set.

    `count(data, division, targets)` gives this rank's part; `targets` is how many a batch of the training has. With
    `called` it is a function of the user's, of which the first rank's value counts. `obstacle` is what keeps this rank
    from it. Raises `NotEvaluatedError`, and `RanksApartError` where the ranks don't meet.
    """
    remaining, faults, attempt = list(candidates), list[str](), 0
    while True:  # the first rank says when there is nothing more to try
        offer = {
            "why": obstacle,
            "sets": [{"name": found.name, **_offer(ranks, found.data, called)} for found in remaining],
            "collective": collective(model),
            "one_batch": computes_together(model),
            "targets": targets,
            "called": called,
        }
        plan = Plan(*ranks.exchange(f"{about} {attempt}", offer, agree))
        if plan.why is not None:
            if obstacle is not None:
                raise NotEvaluatedError(plan.why)
            raise NotEvaluatedError("; ".join(filter(None, [*faults, plan.why])), _MEND)
        found = remaining[plan.chosen] if plan.chosen < len(remaining) else None
        outcome = _outcome(found, plan.division(ranks.rank, ranks.size), count, plan.targets)
        result = ranks.exchange(f"{about} {attempt} counted", outcome, total)
        if "fault" not in result:
            return result["mean"], found or Found("None", None, "")
        if found is not None:
            faults.append(f"{found.name!r} can't be evaluated ({result['fault']})")
            del remaining[plan.chosen]
        attempt += 1


def _offer(ranks: Ranks, data: Any, called: bool) -> Mapping[str, Any]:
    if called or ranks.size == 1:  # then nothing has to be known of it beforehand
        return {"mark": "", "length": None}
    return offer_of_set(data)


def _outcome(found: Found | None, division: Division | None, count: Count, targets: int) -> dict[str, Any]:
    if found is None or division is None:
        return {"share": Share()}
    try:
        return {"share": count(found.data, division, targets)}
    except Exception as error:
        return {"fault": reason_of(error)}


def reason_of(error: Exception) -> str:
    """Say why a model can't be run on data, in one line."""
    if isinstance(error, (UnreadableError, PairingError)):
        return str(error)
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
