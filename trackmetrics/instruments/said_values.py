"""What the user says of an epoch outright: values by name, or batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import ArgumentError
from ..plain import NotPlainError, to_plain
from ..record import METRIC_KEYS, RESERVED_EPOCH_KEYS
from .training_metrics import DeviceMean

_IGNORED = -100  # the target that torch's criteria ignore by default


class SaidValues:
    """Collects what `epoch.log` and `epoch.update` are given; tensors stay on their device until `take`.

    `faults` says, by name, which value could not be used, and why.
    """

    def __init__(self) -> None:
        self.faults: dict[str, str] = {}
        self._logged: dict[str, Any] = {}
        self._loss: DeviceMean | None = None
        self._accuracy: DeviceMean | None = None

    def log(self, values: Mapping[str, Any]) -> None:
        """Take values by name; the last one said under a name counts."""
        for name in values:
            if name in RESERVED_EPOCH_KEYS:
                raise ArgumentError(f"log({name}=...) collides with a key that the run itself fills in; choose another")
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                self._logged[name] = value.detach().clone()
                continue
            try:
                self._logged[name] = to_plain(value)
            except NotPlainError as error:
                self._logged[name] = None
                self.faults[name] = f"log({name}=...) was given {error}; give a number, or plain data"

    def update(self, loss: Any, output: Any, target: Any) -> None:
        """Take one batch's mean loss, and its outputs with their targets."""
        if output is not None and target is None:
            raise ArgumentError("update(output=...) came without target=; give both, or only loss=")
        counted = None if target is None else _counted(target)
        if loss is not None:
            self._loss = self._loss or DeviceMean()
            self._loss.add(torch.as_tensor(loss).detach().reshape(()), 1 if counted is None else counted.sum())
        if output is not None and counted is not None:
            self._judge(output.detach(), target, counted)

    def _judge(self, output: torch.Tensor, target: torch.Tensor, counted: torch.Tensor) -> None:
        for dimension in (output.ndim - 1, 1):
            shape = [*output.shape[:dimension], *output.shape[dimension + 1 :]]
            if dimension < output.ndim and shape == list(target.shape) and not target.is_floating_point():
                self._accuracy = self._accuracy or DeviceMean()
                right = (output.argmax(dimension) == target) & counted
                self._accuracy.add_sum(right.sum(), counted.sum())
                return
        self.faults["train_accuracy"] = (
            f"update() was given an output of shape {tuple(output.shape)} and a {target.dtype} target of shape "
            f"{tuple(target.shape)}; give class indices of the output's shape without its classes"
        )

    def take(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fetch what was said: the record's own values, and those under other names."""
        said: dict[str, Any] = {}
        if self._loss is not None:
            said["train_loss"] = self._loss.take()
        if self._accuracy is not None:
            said["train_accuracy"] = self._accuracy.take()
        for name, value in self._logged.items():
            said[name] = to_plain(value) if isinstance(value, torch.Tensor) else value
        own = {name: self._number(name, said.pop(name)) for name in METRIC_KEYS if name in said}
        return own, said

    def _number(self, name: str, value: Any) -> float | None:
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            return None if value is None else float(value)
        self.faults[name] = f"log({name}=...) was given {value!r:.60}; give one number"
        return None


def _counted(target: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(target, dtype=torch.bool) if target.is_floating_point() else target != _IGNORED
