"""Reading numbers from the device without waiting for it: asked for now, there a moment later."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

_MOST = 8  # numbers at once


class Readback:
    """Has the latest numbers that came from the device.

    On a CPU they are there at once; CUDA copies them while it works on. Other devices can't be asked whether a copy
    has arrived, and are asked for none.

    >>> Readback().latest("cpu", lambda: {"loss": torch.tensor(0.5)})
    {'loss': 0.5}
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """What came, or is on its way, is of no use any more."""
        self._numbers: dict[str, float] = {}
        self._asked: list[str] = []
        self._host: torch.Tensor | None = None  # memory that the device copies to by itself
        self._arrived: torch.cuda.Event | None = None

    def latest(self, device: str, work_out: Callable[[], Mapping[str, torch.Tensor | None]]) -> Mapping[str, float]:
        """Give what has come, and ask for what `work_out` gives, unless some is on its way.

        `device` is the type of device that it is on; what is None, or elsewhere, is left out.
        """
        if device == "cpu":
            self._numbers = {name: float(number.numpy()) for name, number in _those_on(device, work_out()).items()}
        elif device == "cuda":
            self._receive()
            if self._arrived is None and not torch.cuda.is_current_stream_capturing():
                self._ask(_those_on(device, work_out()))
        return self._numbers

    def _receive(self) -> None:
        if self._arrived is not None and self._host is not None and self._arrived.query():
            self._arrived = None
            self._numbers = dict(zip(self._asked, self._host.tolist(), strict=False))

    def _ask(self, numbers: Mapping[str, torch.Tensor]) -> None:
        if not numbers:
            return
        first = next(iter(numbers.values()))
        together = torch.stack([number.to(first.device, torch.float64) for number in numbers.values()])
        if self._host is None:
            self._host = torch.empty(_MOST, dtype=torch.float64, device="cpu", pin_memory=True)
        with torch.cuda.device(together.device):
            self._host[: len(numbers)].copy_(together, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        self._asked = list(numbers)


class Coming:
    """One whole number that is on its way from its device, which isn't waited for until `get`.

    >>> number = Coming(torch.tensor(3))
    >>> number.there, number.get()
    (True, 3)
    """

    def __init__(self, number: torch.Tensor) -> None:
        self._number = number
        self._arrived: torch.cuda.Event | None = None
        if number.device.type == "cuda":
            with torch.cuda.device(number.device):
                host = torch.empty(number.shape, dtype=number.dtype, device="cpu", pin_memory=True)
                self._number = host.copy_(number, non_blocking=True)
                self._arrived = torch.cuda.Event()
                self._arrived.record()

    @property
    def there(self) -> bool:
        """Whether to `get` it takes no waiting, as far as that can be known."""
        return self._number.device.type == "cpu" if self._arrived is None else self._arrived.query()

    def get(self) -> int:
        """Give the number, waiting for it if need be."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return int(self._number)


def _those_on(device: str, numbers: Mapping[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    return {name: number for name, number in numbers.items() if number is not None and number.device.type == device}
