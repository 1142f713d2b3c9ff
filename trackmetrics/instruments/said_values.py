"""What the user says of an epoch outright: values by name, or batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ..errors import ArgumentError, shown
from ..plain import MAX_DEPTH, NotPlainError, is_number, to_plain
from ..record import METRIC_KEYS, RESERVED_EPOCH_KEYS
from .epoch_means import DeviceMean
from .figures import Share
from .guard import instrument_failed

_IGNORED = -100  # the target that torch's criteria ignore by default


class SaidValues:
    """Collects what `epoch.log` and `epoch.update` are given; tensors stay on their device until `take`.

    After `take`, `faults` says, by name, which value could not be used, and why. `names` are the values spoken for.
    """

    def __init__(self) -> None:
        self.faults: dict[str, str] = {}
        self.names: set[str] = set()
        self._logged: dict[str, Any] = {}
        self._refused: dict[str, str] = {}  # what update() couldn't read, unless it is logged by name
        self._loss: DeviceMean | None = None
        self._accuracy: DeviceMean | None = None

    def log(self, values: Mapping[str, Any]) -> None:
        """Take values by name; the last one said under a name counts."""
        for name in values:
            if name in RESERVED_EPOCH_KEYS:
                raise ArgumentError(f"log({name}=...) collides with a key that the run itself fills in; choose another")
        values = {to_plain(name): value for name, value in values.items()}  # without lone surrogates
        self.names.update(values)
        for name, value in values.items():
            self.faults.pop(name, None)
            self._logged[name] = self._plain(name, value, _kept)

    def update(self, loss: Any, output: Any, target: Any) -> None:
        """Take one batch's mean loss, and its outputs with their targets; what can't be read becomes a fault."""
        if output is not None and target is None:
            raise ArgumentError("update(output=...) came without target=; give both, or only loss=")
        given = {"train_loss": loss, "train_accuracy": output}
        self.names.update(name for name, value in given.items() if value is not None)
        classes = None if target is None else _tensor(target)
        counted = None if classes is None else _counted(classes)
        if loss is not None:
            self._add_loss(loss, 1 if counted is None else counted.sum())
        if output is not None:
            self._judge(output, target, classes, counted)

    def spoil(self, names: Iterable[str], error: Exception) -> None:
        """A fault of ours cost what the user says under these names."""
        for name in names:
            self._logged[name] = None
            self.faults[name] = instrument_failed(error)

    def _add_loss(self, loss: Any, targets: torch.Tensor | int) -> None:
        value = _tensor(loss)
        if value is None or value.numel() != 1 or value.is_complex():
            self._refused["train_loss"] = f"update() was given the loss {_described(loss)}; give one number"
            return
        self._loss = self._loss or DeviceMean()
        self._loss.add(value.reshape(()).clone(), targets)

    def _judge(self, output: Any, target: Any, classes: torch.Tensor | None, counted: torch.Tensor | None) -> None:
        scores = _tensor(output)
        if scores is not None and classes is not None and counted is not None and not classes.is_floating_point():
            for dimension in (scores.ndim - 1, 1):
                if 0 <= dimension < scores.ndim and _without(scores.shape, dimension) == classes.shape:
                    right = (scores.argmax(dimension) == classes.to(scores.device)) & counted.to(scores.device)
                    self._accuracy = self._accuracy or DeviceMean()
                    self._accuracy.add_sum(right.sum(), counted.sum())
                    return
        self._refused["train_accuracy"] = (
            f"update() was given the output {_described(output)} for the target {_described(target)}; "
            "give class indices of the output's shape without its classes"
        )

    def shares(self) -> dict[str, Share]:
        """Fetch the means of what was said batch by batch, once."""
        means = {"train_loss": self._loss, "train_accuracy": self._accuracy}
        self._loss = self._accuracy = None
        return {name: mean.take() for name, mean in means.items() if mean is not None}

    def take(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fetch what was said: the record's own values, and those under other names."""
        said: dict[str, Any] = {name: share.mean for name, share in self.shares().items()}
        for name, fault in self._refused.items():
            if name not in self._logged:
                said[name], self.faults[name] = None, fault
        for name, value in self._logged.items():
            said[name] = self._plain(name, value, to_plain)
        own = {name: self._number(name, said.pop(name)) for name in METRIC_KEYS if name in said}
        return own, said

    def _plain(self, name: str, value: Any, make: Callable[[Any], Any]) -> Any:
        try:
            return make(value)
        except NotPlainError as error:
            self.faults[name] = f"log({name}=...) was given {error}; give a number, or plain data"
            return None

    def _number(self, name: str, value: Any) -> float | None:
        if value is None or is_number(value):
            return None if value is None else float(value)
        self.faults[name] = f"log({name}=...) was given {shown(value)}; give one number"
        return None


def _kept(value: Any, depth: int = 0) -> Any:
    """Plain data, but for tensors: copies of these, which stay on their device."""
    if isinstance(value, torch.Tensor):
        try:
            return value.detach().clone()
        except Exception:  # of a type that torch can't copy; nor can it be read, as `to_plain` says
            return to_plain(value)
    if depth < MAX_DEPTH and type(value) in (list, tuple):
        return [_kept(item, depth + 1) for item in value]
    if depth < MAX_DEPTH and type(value) is dict:
        return {key: _kept(item, depth + 1) for key, item in value.items()}
    return to_plain(value)


def _tensor(value: Any) -> torch.Tensor | None:
    """A tensor of the values, numbers of Python's in float64; None where they make none."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    try:
        return torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    except (TypeError, ValueError, RuntimeError):
        return None


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"of shape {tuple(value.shape)} and {value.dtype}"
    return shown(value)


def _without(shape: torch.Size, dimension: int) -> torch.Size:
    return torch.Size([*shape[:dimension], *shape[dimension + 1 :]])


def _counted(target: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(target, dtype=torch.bool) if target.is_floating_point() else target != _IGNORED
