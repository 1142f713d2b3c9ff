"""Whether a training works on the batches that its loader yields, or on others that the loop makes of them.

A loop that normalises inputs before it calls the model, shifts labels, or cuts a sequence before its criterion, does
something that an evaluation over the set can't repeat: its accuracy would be of something else.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from .criteria import Call, version_of
from .data import take_apart, tensors_in

_KEPT = 8  # batches, of the first and of the last: loaders may be gone through side by side, or far ahead
_ANSWERS = 64  # comparisons that wait on the device

_Answer = bool | torch.Tensor  # one that stays on its device until it is needed


class _Yielded(NamedTuple):
    """A batch as a loader gave it: its inputs, with the version of each tensor, and a copy of its targets."""

    inputs: Any
    versions: dict[int, int]
    target: torch.Tensor | None

    @staticmethod
    def of(batch: Any) -> _Yielded | None:
        """None where the batch can't be taken apart: then there is no evaluation to warn of."""
        try:
            with warnings.catch_warnings():  # of arrays that are read-only: the loop's own, and nothing writes to them
                warnings.simplefilter("ignore")
                parts = take_apart(batch)
                versions = {id(tensor): version_of(tensor) for tensor in tensors_in(parts.inputs)}
                return _Yielded(parts.inputs, versions, None if parts.target is None else parts.target.detach().clone())
        except (TypeError, ValueError, RuntimeError):
            return None


class BatchCheck:
    """Compares what a training's first step works on with the batches that were yielded before.

    `targets_changed` and `given_others`, modules by identity, say what came out; they are asked between epochs, so
    that the device need not wait inside one.
    """

    def __init__(self) -> None:
        self._batches: list[_Yielded] | None = []
        self._answers: list[_Answer] = []
        self._compared: tuple[torch.Tensor, list[torch.Tensor]] | None = None
        self._called: set[int] = set()
        self._given_others: frozenset[int] = frozenset()
        self._targets_changed = False

    @property
    def awaits_model(self) -> bool:
        """Whether further calls of modules are to be told: no batch was seen to reach one yet."""
        return bool(self._batches) and True not in map(_certain, self._answers) and len(self._answers) < _ANSWERS

    def batch_yielded(self, batch: Any) -> None:
        """A loader gave the training a batch."""
        yielded = None if self._batches is None else _Yielded.of(batch)
        if self._batches is not None and yielded is not None:
            self._batches = [*self._batches[:_KEPT], *self._batches[_KEPT:][1 - _KEPT :], yielded]

    def module_called(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A module is called: the model or a part of it, unless it has no parameters (a transformation of inputs)."""
        called = list(tensors_in([args, kwargs]))
        if not called or not all(map(_is_plain, called)) or next(module.parameters(), None) is None:
            return
        self._called.add(id(module))
        for batch in self._batches or ():
            self._answers.extend(_handed_on(batch, called, kwargs))

    def step_taken(self, call: Call | None) -> None:
        """The training's first backward is over; it reached a criterion call, or none that is known."""
        batches, self._batches = self._batches or [], None
        if call is None or call.criterion.kind not in ("classes", "binary"):
            self._answers = []
            return
        yielded = [batch.target for batch in batches if batch.target is not None]
        if yielded:
            self._compared = call.target.clone(), yielded

    def targets_changed(self) -> bool:
        """Whether the call's targets were none of those yielded, nor a part of them; fetched once."""
        if self._compared is not None:
            used, yielded = self._compared
            self._compared = None
            self._targets_changed = not any(_holds(target, used) for target in yielded)
        return self._targets_changed

    def given_others(self) -> frozenset[int]:
        """The modules that were called, where none was with the inputs of any of the batches; fetched once."""
        if self._answers and self._batches is None:
            answers, self._answers = self._answers, []
            self._given_others = frozenset() if any(map(bool, answers)) else frozenset(self._called)
        return self._given_others


def _certain(answer: _Answer) -> bool:
    return answer is True


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds numbers: a transformation's, or one that a tracer made up, has none to compare."""
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.device.type != "meta"
    return plain and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _handed_on(batch: _Yielded, called: list[torch.Tensor], kwargs: Mapping[str, Any]) -> Iterator[_Answer]:
    """Whether a batch's main input, its largest, is among what a module was called with; by its name, if it has one.

    A mask or a state that the loop adds of its own says nothing against it.
    """
    inputs = batch.inputs
    by_name = inputs.keys() & kwargs.keys() if isinstance(inputs, Mapping) else set()
    if by_name:
        inputs = [inputs[name] for name in inputs if name in by_name]
        called = list(tensors_in([kwargs[name] for name in by_name]))
    own = list(tensors_in(inputs))
    if own and not isinstance(inputs, Mapping):
        own = [max(own, key=torch.Tensor.numel)]
    for tensor in own:
        changed = version_of(tensor) != batch.versions[id(tensor)]  # the loop has written to the batch itself
        yield from (not changed and _same(tensor, other) for other in called)


def _same(tensor: torch.Tensor, other: torch.Tensor) -> _Answer:
    """Whether one has the other's first row, wherever they are: a batch may be trained in parts, in another order."""
    if tensor.layout is not torch.strided or other.layout is not torch.strided or not other.numel():
        return False
    if tensor.data_ptr() == other.data_ptr() and tensor.numel() == other.numel():
        return True
    if tensor.ndim and tensor.shape[1:] == other.shape[1:] and other.ndim == tensor.ndim:
        row = other.detach()[0]
    elif tensor.ndim and tensor.shape[1:] == other.shape:  # each example by itself
        row = other.detach()
    else:
        return False
    own = tensor.detach().to(row.device, non_blocking=True)
    if row.is_floating_point():
        own = own.to(row.dtype)
    equal = (own == row) | (row != row)
    return equal.reshape(len(own), -1).all(1).any()


def _holds(target: torch.Tensor, used: torch.Tensor) -> bool:
    """Whether the values used are the target's own: all of it, its beginning, or a chunk of it."""
    values = used.reshape(-1).double().cpu()
    own = target.reshape(-1).double().cpu()
    length = len(values)
    if length > 1 and len(own) % length == 0:
        return bool((own.view(-1, length) == values).all(1).any())
    return torch.equal(own[:length], values)
