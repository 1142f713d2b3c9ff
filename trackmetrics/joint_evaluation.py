"""A set evaluated by all ranks of a run: which one and how they agree on, what each counted is added up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .instruments.data import UnreadableError
from .instruments.discovery import Found
from .instruments.division import (
    Division,
    Plan,
    agree,
    agreed,
    collective,
    computes_together,
    offer_of_any,
    offer_of_set,
    total,
)
from .instruments.figures import Share
from .instruments.lent_buffers import borrowing, lend, marks_of_buffers
from .instruments.pairing import PairingError
from .ranks import Ranks

_MEND = "give `evaluate=`, a function of model and data"
_MEND_OF_USERS = "have `evaluate=` return the accuracy, where each rank has a part of the set that of all parts"

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
    `called` it is a function of the user's: of one set the first rank's value counts, of parts all give the same one.
    `obstacle` is what keeps this rank from it. Raises `NotEvaluatedError`, and `RanksApartError` if ranks don't meet.
    """
    remaining, faults, attempt = list(candidates), list[str](), 0
    while True:  # the first rank says when there is nothing more to try
        offer = {
            "why": obstacle,
            "sets": [{"name": found.name, **_offer(ranks, found.data, called)} for found in remaining],
            "buffers": marks_of_buffers(model) if ranks.size > 1 and not called else [],
            "collective": collective(model),
            "one_batch": computes_together(model),
            "targets": targets,
            "called": called,
        }
        plan = Plan(*ranks.exchange(f"{about} {attempt}", offer, agree))
        if plan.why is not None:
            if obstacle is not None:
                raise NotEvaluatedError(plan.why)
            raise NotEvaluatedError("; ".join(filter(None, [*faults, plan.why])), _MEND_OF_USERS if called else _MEND)
        found = remaining[plan.chosen] if plan.chosen < len(remaining) else None
        lent = None
        if plan.lent:
            lent = ranks.exchange(f"{about} {attempt} buffers", _lent(ranks, model, plan), lambda brought: brought[0])
        held = borrowing(model, plan.lent, lent) if lent and model is not None else contextlib.nullcontext()
        outcome = _outcome(found, plan.division(ranks.rank, ranks.size), held, count, plan.targets)
        result = ranks.exchange(f"{about} {attempt} counted", outcome, agreed if plan.how == "each" else total)
        if "fault" not in result:
            return result["mean"], found or Found("None", None, "")
        if found is not None:
            faults.append(f"{found.name!r} can't be evaluated ({result['fault']})")
            del remaining[plan.chosen]
        attempt += 1


def _offer(ranks: Ranks, data: Any, called: bool) -> Mapping[str, Any]:
    if ranks.size == 1:  # then nothing has to be known of it beforehand
        return {"mark": "", "length": None}
    return offer_of_any(data) if called else offer_of_set(data)


def _lent(ranks: Ranks, model: torch.nn.Module | None, plan: Plan) -> str | None:
    """What rank 0 lends to the others: replicas with batch norms have running statistics of their own."""
    return lend(model, plan.lent) if ranks.rank == 0 and model is not None else None


def _outcome(
    found: Found | None,
    division: Division | None,
    held: contextlib.AbstractContextManager[None],
    count: Count,
    targets: int,
) -> dict[str, Any]:
    if found is None or division is None:
        return {"share": Share()}
    try:
        with held:
            return {"share": count(found.data, division, targets)}
    except Exception as error:
        return {"fault": reason_of(error)}


def reason_of(error: Exception) -> str:
    """Say why a model can't be run on data, in one line."""
    if isinstance(error, (UnreadableError, PairingError)):
        return str(error)
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
