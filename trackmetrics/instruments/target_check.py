"""Whether a training is judged by the targets that its loader yields, or by others that the loop makes of them.

A loop that shifts labels, or cuts a sequence before its criterion, does something that an evaluation over the set
can't repeat: its accuracy would be of something else.
"""

from __future__ import annotations

from typing import Any

import torch

from .criteria import Call
from .data import UnreadableError, take_apart

_KEPT = 8  # batches of one step: loaders may be gone through side by side


class TargetCheck:
    """Compares the first criterion call of a training with the batches that were yielded before it.

    What is kept of both is compared by `changed`, between epochs, so that the device need not wait inside one.
    """

    def __init__(self) -> None:
        self._batches: list[Any] | None = []
        self._compared: tuple[torch.Tensor, list[torch.Tensor]] | None = None
        self._changed = False

    def batch_yielded(self, batch: Any) -> None:
        """A loader gave the training a batch."""
        if self._batches is not None:
            self._batches = [*self._batches, batch][-_KEPT:]

    def call_reached(self, call: Call) -> None:
        """A backward reached a criterion call; only the first one is looked at."""
        if self._batches is None:
            return
        batches, self._batches = self._batches, None
        if call.criterion.kind not in ("classes", "binary"):
            return
        yielded = [target for target in map(_target_of, batches) if target is not None]
        if yielded:
            self._compared = call.target.clone(), [target.detach().clone() for target in yielded]

    def changed(self) -> bool:
        """Whether the call's targets were none of those yielded, nor the first of them; fetched once."""
        if self._compared is not None:
            used, yielded = self._compared
            self._compared = None
            self._changed = not any(_begins_with(target, used) for target in yielded)
        return self._changed


def _target_of(batch: Any) -> torch.Tensor | None:
    try:
        return take_apart(batch).target
    except UnreadableError:
        return None


def _begins_with(target: torch.Tensor, used: torch.Tensor) -> bool:
    """Whether the values used are the target's own: all of it, or a first chunk of a batch that is trained in parts."""
    values = used.reshape(-1).double().cpu()
    return torch.equal(target.reshape(-1)[: values.numel()].double().cpu(), values)
