"""An epoch's mean loss and accuracy: summed on the device, some steps at a time, and fetched once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch

from .criteria import Call
from .figures import Share
from .tally import Tally, likeness, numbers, tally

_FOLD = 256  # figures that wait as separate tensors before they become one sum
_CALLS = 256  # calls that wait to be tallied together, and the bytes that they may keep
_BYTES = 2**20


class DeviceMean:
    """A weighted mean whose parts stay on their device until `take`.

    >>> mean = DeviceMean()
    >>> mean.add(torch.tensor(1.0), 1); mean.add(torch.tensor(4.0), 2)
    >>> mean.take()
    Share(total=9.0, weight=3.0)
    """

    def __init__(self) -> None:
        self._means: list[tuple[torch.Tensor, torch.Tensor | int]] = []
        self._sums: list[torch.Tensor] = []
        self._weights: list[torch.Tensor] = []
        self._whole_weight = 0

    def add(self, value: torch.Tensor, weight: torch.Tensor | int) -> None:
        """Count `value`, a mean over `weight` things; over nothing, where a mean is NaN, it weighs nothing."""
        self._means.append((value, weight))
        if len(self._means) >= _FOLD:
            self._fold()

    def add_means(self, values: torch.Tensor, weights: torch.Tensor) -> None:
        """Count several such values, each with its weight."""
        values, weights = _wide(values), _wide(weights.to(values.device))
        self.add_sum(torch.where(weights > 0, values * weights, 0).sum(), weights.sum())

    def add_sum(self, total: torch.Tensor, weight: torch.Tensor | int) -> None:
        """Count a sum over `weight` things."""
        self._sums.append(total)
        if isinstance(weight, torch.Tensor):
            self._weights.append(weight)
        else:
            self._whole_weight += weight
        if len(self._sums) >= _FOLD:
            self._sums, self._weights = _summed(self._sums), _summed(self._weights)

    def _fold(self) -> None:
        if self._means:
            values = _joined([value for value, _ in self._means])
            weights = [
                weight if isinstance(weight, torch.Tensor) else numbers([weight], values.device)
                for _, weight in self._means
            ]
            self.add_means(values, _joined(weights, values.device))
            self._means = []

    def so_far(self) -> DeviceMean:
        """A copy, which may go on by itself; an empty one where parts are shards, which other processes add up too."""
        copy = DeviceMean()
        parts = [*(value for value, _ in self._means), *self._sums, *self._weights]
        if all(type(part) is torch.Tensor for part in parts):
            copy._means, copy._sums, copy._weights = list(self._means), list(self._sums), list(self._weights)
            copy._whole_weight = self._whole_weight
        return copy

    def on_device(self) -> torch.Tensor | None:
        """The mean, where it is; None where nothing was counted, NaN where that was nothing."""
        self._fold()
        if not self._sums:
            return None
        total = _joined(self._sums).sum()
        weight = _joined(self._weights, total.device).sum() if self._weights else 0
        return total / (weight + self._whole_weight)

    def take(self) -> Share:
        """Fetch what was counted, and begin anew."""
        self._fold()
        weight = self._whole_weight + sum(map(float, _summed(self._weights)))
        total = sum(map(float, _summed(self._sums)))
        self.__init__()  # type: ignore[misc]
        return Share(float(total), float(weight))


def _summed(parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [_joined(parts).sum()] if parts else []


def _joined(parts: Sequence[torch.Tensor], device: torch.device | None = None) -> torch.Tensor:
    """Single numbers as one tensor of the widest type, on their device."""
    device = device or parts[0].device
    return torch.cat([_wide(part.reshape(1).to(device)) for part in parts])


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


class Means(NamedTuple):
    """An epoch's figures. `soft` says that some targets counted were no classes."""

    loss: Share
    accuracy: Share
    soft: bool


class EpochMeans:
    """Loss a target and share predicted right, over the criterion calls of an epoch.

    Calls wait until there are some to tally together; what they keep meanwhile is bounded.
    """

    def __init__(self) -> None:
        self._loss = DeviceMean()
        self._accuracy = DeviceMean()
        self._soft: list[torch.Tensor] = []
        self._waiting: list[tuple[Call, bool, bool]] = []
        self._bytes = 0

    def add(self, call: Call, loss: bool, accuracy: bool) -> None:
        """Count a call: its loss, its predictions, or both."""
        if call.tallied is not None:
            together, index = call.tallied
            self._count(together.of(index), loss, accuracy)
            return
        self._waiting.append((call, loss, accuracy))
        self._bytes += call.input.nbytes + call.target.nbytes + call.result.nbytes
        if len(self._waiting) >= _CALLS or self._bytes >= _BYTES:
            self._tally()

    def add_loss(self, value: torch.Tensor, weight: torch.Tensor | int) -> None:
        """Count a loss that is no single call's, a mean over `weight` targets."""
        self._loss.add(value, weight)

    def _tally(self) -> None:
        alike: dict[tuple[Hashable, bool, bool], list[Call]] = {}
        for call, loss, accuracy in self._waiting:
            alike.setdefault((likeness(call), loss, accuracy), []).append(call)
        self._waiting, self._bytes = [], 0
        for (_, loss, accuracy), calls in alike.items():
            self._count(settle(calls), loss, accuracy)

    def _count(self, tallied: Tally, loss: bool, accuracy: bool) -> None:
        if loss:
            self._loss.add_means(tallied.values, tallied.targets)
        if accuracy and tallied.correct is not None:
            self._accuracy.add_sum(tallied.correct.sum(), tallied.targets.sum())
            if tallied.soft is not None:
                self._soft.append(tallied.soft.sum())
                self._soft = _summed(self._soft) if len(self._soft) >= _FOLD else self._soft

    def loss_so_far(self) -> torch.Tensor | None:
        """The mean loss so far, where it is. It is worked out beside what is counted, of which nothing changes."""
        loss = self._loss.so_far()
        alike: dict[Hashable, list[Call]] = {}
        for call, counts, _ in self._waiting:
            if counts:
                alike.setdefault(likeness(call), []).append(call)
        for calls in alike.values():
            tallied = tally(calls, judge=False)
            loss.add_means(tallied.values, tallied.targets)
        return loss.on_device()

    def take(self) -> Means:
        """Fetch the figures from the device, once, and begin anew."""
        self._tally()
        soft = any(float(total) > 0 for total in _summed(self._soft))
        means = Means(self._loss.take(), self._accuracy.take(), soft)
        self.__init__()  # type: ignore[misc]
        return means


def settle(calls: Sequence[Call]) -> Tally:
    """Tally calls of one likeness, and let go of their tensors; each keeps what it says."""
    tallied = tally(calls)
    for index, call in enumerate(calls):
        call.tallied = tallied, index
        call.release()
    return tallied
