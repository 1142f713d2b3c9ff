"""The user's metrics that are objects, such as torchmetrics': fed with what is observed, computed, begun anew.

Whatever has `update(outputs, targets)`, `compute()` and `reset()` is one; no library of them is imported.
"""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from ..plain import to_plain
from .criteria import Call
from .events import heard_by
from .guard import instrument_failed
from .metric_states import can_be_joined, packed_state, value_of
from .outcomes import Outcome, of_call
from .pairing import PairingError
from .random_streams import restoring_streams
from .readback import Coming

_BATCHES = 32  # batches that wait to be fed together, and the bytes that they may take
_BYTES = 2**20
_LATE_BYTES = 2**26  # the same where it isn't known yet how many of their targets count
_LONGEST = 300  # characters of an error of a metric's own


class MetricObjects:
    """A run's own copies of the user's metrics: first for an epoch's training, then for its dev set.

    A metric that fails is left alone until the next `restart`. Nothing of what a metric does is heard by the run, and
    it draws from streams of random numbers of its own.

    >>> class Mean:
    ...     def reset(self): self.values = []
    ...     def update(self, outputs, targets): self.values.append(outputs)
    ...     def compute(self): return torch.cat(self.values).mean()
    >>> metrics = MetricObjects()
    >>> metrics.begin({"mean": Mean()})
    >>> metrics.feed(Outcome(torch.tensor([1.0, 2.0]), torch.zeros(2)))
    >>> metrics.take("train", otherwise="nothing was trained")
    ({'train_mean': 1.5}, {})
    """

    def __init__(self) -> None:
        self._given: dict[str, Any] = {}
        self._copies: dict[str, Any] = {}
        self._uncopied: dict[str, str] = {}  # why there is no copy
        self._devices: dict[str, torch.device] = {}
        self.entries: dict[str, list[str]] = {}  # what follows a metric's name in the record, where that is known
        self._streams: list[Callable[[], object]] = []
        self._faults: dict[str, str] = {}
        self._reason: str | None = None  # why none of them has a value
        self._soft: torch.Tensor | None = None
        self._waiting: deque[tuple[Outcome, Coming | None]] = deque()
        self._bytes = 0
        self._fed = False
        self._states: dict[str, list[str]] = {}  # of other ranks, by name

    @classmethod
    def lost(cls, given: Mapping[str, Any], entries: dict[str, list[str]], reason: str) -> MetricObjects:
        """Metrics none of which has a value."""
        metrics = cls()
        metrics._given, metrics.entries = dict(given), entries
        metrics._uncopied = dict.fromkeys(given, reason)
        metrics._faults = dict(metrics._uncopied)
        return metrics

    def begin(self, given: Mapping[str, Any]) -> None:
        """Measure with these, by name, from here on. The same object under the same name isn't copied again."""
        known = {name: one for name, one in self._copies.items() if given.get(name) is self._given.get(name)}
        self._given, self._copies, self._uncopied = dict(given), known, {}
        self._devices = {name: device for name, device in self._devices.items() if name in known}
        with self._apart():
            for name, metric in given.items():
                if name not in known:
                    try:
                        self._copies[name] = copy.deepcopy(metric)
                    except Exception as error:
                        self._uncopied[name] = f"it can't be copied ({_told(error)})"
        self.restart()

    def restart(self) -> None:
        """Forget what was fed, and why it had no value."""
        self._faults = dict(self._uncopied)
        self._reason = self._soft = None
        self._waiting.clear()
        self._bytes = 0
        self._fed = False
        self._states = {}
        with self._apart():
            for name, metric in self._copies.items():
                self._spared(name, "reset()", metric.reset)

    def feed_call(self, call: Call) -> None:
        """Feed a criterion call's outputs and targets."""
        try:
            with torch.no_grad(), heard_by(None):
                outcome = of_call(call)
        except Exception as error:
            self.spoil(str(error) if isinstance(error, PairingError) else _told(error))
            return
        self.feed(outcome)

    def feed(self, outcome: Outcome) -> None:
        """Feed one batch: together with others, once it is known how many of its targets count."""
        try:
            counted = outcome.counted
            self._waiting.append((outcome, None if counted is None else Coming(counted.sum())))
            self._bytes += outcome.nbytes
            if len(self._waiting) >= _BATCHES or self._bytes >= _BYTES:
                self._feed_waiting()
        except Exception as error:
            self.spoil(f"feeding it failed with {_told(error)}")

    def _feed_waiting(self, to_the_last: bool = False) -> None:
        """Feed what waits, in its order; unless `to_the_last`, only as far as the device needn't be waited for."""
        if not self._can_feed(to_the_last):
            return
        with self._apart({outcome.outputs.device.type for outcome, _ in self._waiting}):
            while self._can_feed(to_the_last):
                outcome, count = self._waiting.popleft()
                self._bytes -= outcome.nbytes
                left = outcome.left(0 if count is None else count.get())
                if left is not None:
                    self._feed(left)

    def _can_feed(self, to_the_last: bool) -> bool:
        """Whether the first that waits is to be fed: one that isn't there is when too much waits behind it."""
        if not self._waiting:
            return False
        count = self._waiting[0][1]
        too_many = len(self._waiting) > 1 and self._bytes > _LATE_BYTES
        return to_the_last or too_many or count is None or count.there

    def _feed(self, outcome: Outcome) -> None:
        self._fed = True
        if outcome.soft is not None:
            soft = outcome.soft.any()
            self._soft = soft if self._soft is None else soft | self._soft.to(soft.device)
        shapes = f"{list(outcome.outputs.shape)}, {list(outcome.targets.shape)}"
        for name in self._copies:
            if name not in self._faults:
                self._spared(name, f"update() with shapes {shapes}", self._update, name, outcome)

    def _update(self, name: str, outcome: Outcome) -> None:
        metric, device = self._copies[name], outcome.outputs.device
        if self._devices.get(name) != device and hasattr(metric, "to"):
            moved = metric.to(device)
            self._copies[name] = metric = metric if moved is None else moved
        self._devices[name] = device
        versions = outcome.outputs._version, outcome.targets._version
        metric.update(outcome.outputs, outcome.targets)
        if len(self._copies) > 1 and versions != (outcome.outputs._version, outcome.targets._version):
            self.spoil(f"{name!r} overwrites what each of them is fed")

    @property
    def fed(self) -> bool:
        """Whether there was anything to feed."""
        return self._fed or bool(self._waiting)

    def spoil(self, reason: str) -> None:
        """None of them has a right value, until they begin anew."""
        self._reason = self._reason or reason

    def failed(self, error: Exception) -> None:
        """What feeds them is broken, by a fault of ours."""
        self.spoil(instrument_failed(error))

    @property
    def spoilt(self) -> bool:
        """Whether none of them has a right value."""
        return self._reason is not None

    def bring(self) -> dict[str, Any]:
        """Give, as plain data, what another rank needs to compute with what was fed here: `join` takes it."""
        self._settle()
        states: dict[str, str | None] = {}
        with self._apart():
            for name, metric in self._copies.items():
                if self._fed and self._reason is None and name not in self._faults:
                    try:
                        states[name] = packed_state(metric) if can_be_joined(metric) else None
                    except ValueError as error:
                        self._faults[name] = str(error)
        return {"names": list(self._given), "states": states, "faults": self._faults, "reason": self._reason}

    def join(self, rank: int, brought: Mapping[str, Any]) -> None:
        """Compute with what another rank has been fed, too."""
        self._settle()
        self._reason = self._reason or (brought["reason"] and f"on rank {rank} {brought['reason']}")
        for name in self._given:
            if name not in brought["names"]:
                self._faults.setdefault(name, f"rank {rank} doesn't measure it")
            elif name in brought["faults"]:
                self._faults.setdefault(name, f"on rank {rank} {brought['faults'][name]}")
        for name, state in brought["states"].items():
            if state is None:
                self._faults.setdefault(name, "its state can't be put together over ranks, as torchmetrics' can")
            else:
                self._states.setdefault(name, []).append(state)

    def _settle(self) -> None:
        """Feed whatever waits."""
        try:
            self._feed_waiting(to_the_last=True)
        except Exception as error:
            self.spoil(f"feeding it failed with {_told(error)}")
        if self._soft is not None and bool(self._soft):
            self.spoil("the targets are probabilities, not classes")

    def take(self, role: str, otherwise: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Compute what the training or the dev set (the `role`) came to, and begin anew.

        Gives values by their names in the record, and by the same names why one is None. Where nothing was fed, that
        is `otherwise`.
        """
        self._settle()
        values: dict[str, Any] = {}
        faults: dict[str, str] = {}
        with self._apart():
            for name in self._given:
                fed = self._fed or name in self._states
                fault = self._reason or self._faults.get(name) or (None if fed else otherwise)
                computed = None if fault else self._spared(name, "compute()", self._compute, name)
                if computed is None:
                    computed = dict.fromkeys(self.entries.get(name, [""]))
                    faults |= {f"{role}_{name}{entry}": fault or self._faults[name] for entry in computed}
                for entry, value in computed.items():
                    key = f"{role}_{name}{entry}"
                    if key in values:
                        value, faults[key] = None, "two metrics give it; give one of them another name"
                    values[key] = value
        self.restart()
        return values, faults

    def absent(self, role: str) -> dict[str, None]:
        """Give what stands in the record where nothing was to be measured."""
        return {f"{role}_{name}{entry}": None for name in self._given for entry in self.entries.get(name, [""])}

    def _compute(self, name: str) -> dict[str, Any]:
        value = value_of(self._copies[name], self._states.get(name, ()))
        several = isinstance(value, Mapping)
        computed = {f"_{key}": to_plain(item) for key, item in value.items()} if several else {"": to_plain(value)}
        self.entries[name] = list(computed)
        return computed

    def _spared(self, name: str, what: str, method: Callable[..., Any], *args: Any) -> Any:
        try:
            return method(*args)
        except Exception as error:
            self._faults[name] = f"its {what} raised {_told(error)}"
            return None

    @contextlib.contextmanager
    def _apart(self, devices: Iterable[str] = ()) -> Iterator[None]:
        """What a metric does is no part of the training: it isn't heard, and draws from streams of its own."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._leave, list(restoring_streams(())))
            for restore in self._streams:
                restore()
            for device in {"cpu", *devices}:
                if torch.amp.is_autocast_available(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(heard_by(None))
            yield

    def _leave(self, theirs: list[Callable[[], object]]) -> None:
        self._streams = list(restoring_streams(()))
        for restore in theirs:
            restore()


def _told(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}".replace("\n", " ")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
