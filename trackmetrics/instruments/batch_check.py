"""Whether a training works on the batches that its loader yields, or on others that the loop makes of them.

A loop that normalises inputs before it calls the model, shifts labels, or cuts a sequence before its criterion, does
something that an evaluation over the set can't repeat: its accuracy would be of something else.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from .criteria import Call, version_of
from .data import Parts, UnreadableError, take_apart, tensors_in

_KEPT = 8  # batches of one step: loaders may be gone through side by side

_Answer = bool | torch.Tensor  # one that stays on its device until it is needed


class _Yielded(NamedTuple):
    """A batch as a loader gave it, taken apart; None where that can't be. `versions` are those of its input tensors."""

    parts: Parts | None
    versions: dict[int, int]

    @staticmethod
    def of(batch: Any) -> _Yielded:
        try:
            parts = take_apart(batch)
        except UnreadableError:
            return _Yielded(None, {})
        return _Yielded(parts, {id(tensor): version_of(tensor) for tensor in tensors_in(parts.inputs)})


class BatchCheck:
    """Compares the first call of a model and of a criterion in a training with the batches that were yielded before.

    What is kept of them is compared by `targets_changed` and `inputs_changed`, between epochs, so that the device need
    not wait inside one.
    """

    def __init__(self) -> None:
        self._batches: list[_Yielded] | None = []
        self._handed_on: list[list[_Answer]] | None = None  # for each batch, whether each of its inputs was
        self._compared: tuple[torch.Tensor, list[torch.Tensor]] | None = None
        self._inputs_changed = self._targets_changed = False

    @property
    def awaits_model(self) -> bool:
        """Whether the next call of a module that is trained is to be told."""
        return bool(self._batches) and self._handed_on is None

    def batch_yielded(self, batch: Any) -> None:
        """A loader gave the training a batch."""
        if self._batches is not None:
            self._batches = [*self._batches, _Yielded.of(batch)][-_KEPT:]

    def module_called(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A module is called: the model, unless it has nothing to train (a transformation of the inputs)."""
        if self._batches and any(parameter.requires_grad for parameter in module.parameters()):
            asked = [(batch.parts.inputs, batch.versions) for batch in self._batches if batch.parts is not None]
            self._handed_on = [list(_handed_on(inputs, versions, args, kwargs)) for inputs, versions in asked]

    def call_reached(self, call: Call) -> None:
        """A backward reached a criterion call; only the first one is looked at."""
        if self._batches is None:
            return
        batches, self._batches = self._batches, None
        if call.criterion.kind not in ("classes", "binary"):
            return
        targets = [batch.parts.target for batch in batches if batch.parts is not None]
        yielded = [target.detach().clone() for target in targets if target is not None]
        if yielded:
            self._compared = call.target.clone(), yielded

    def targets_changed(self) -> bool:
        """Whether the call's targets were none of those yielded, nor the first of them; fetched once."""
        if self._compared is not None:
            used, yielded = self._compared
            self._compared = None
            self._targets_changed = not any(_begins_with(target, used) for target in yielded)
        return self._targets_changed

    def inputs_changed(self) -> bool:
        """Whether the model was called with the inputs of none of the batches; fetched once."""
        if self._handed_on:
            self._inputs_changed = not any(all(map(bool, answers)) for answers in self._handed_on)
            self._handed_on = []
        return self._inputs_changed


def _handed_on(
    inputs: Any, versions: Mapping[int, int], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[_Answer]:
    """Whether each input of a batch is among what a model was called with; of a dict's, those that it was called with.

    A mask or a state that the loop adds of its own says nothing against it.
    """
    called = list(tensors_in([args, kwargs]))
    if not isinstance(inputs, Mapping):
        for tensor in tensors_in(inputs):
            yield _among(tensor, versions[id(tensor)], called)
        return
    named = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    for name in named.keys() & kwargs.keys():
        yield _among(named[name], versions[id(named[name])], list(tensors_in(kwargs[name])))
    if called and not named.keys() & kwargs.keys():
        yield _any(_among(tensor, versions[id(tensor)], called) for tensor in named.values())


def _among(tensor: torch.Tensor, version: int, called: list[torch.Tensor]) -> _Answer:
    if version_of(tensor) != version:  # the loop has changed the batch itself
        return False
    return _any(_same(tensor, other) for other in called)


def _any(answers: Iterator[_Answer]) -> _Answer:
    given = list(answers)
    if True in [answer for answer in given if isinstance(answer, bool)]:
        return True
    open_ = [answer for answer in given if isinstance(answer, torch.Tensor)]
    return functools.reduce(lambda one, other: one | other.to(one.device), open_) if open_ else False


def _same(tensor: torch.Tensor, other: torch.Tensor) -> _Answer:
    """Whether one begins with the other, wherever they are and of whatever type: a batch may be trained in parts."""
    if tensor is other:
        return True
    if tensor.ndim != other.ndim or tensor.shape[1:] != other.shape[1:] or tensor.layout != other.layout:
        return False
    if tensor.ndim:
        length = min(len(tensor), len(other))
        tensor, other = tensor[:length], other[:length]
    other = other.detach()
    converted = tensor.detach().to(other.device, other.dtype, non_blocking=True)
    return ((converted == other) | (other != other)).all()


def _begins_with(target: torch.Tensor, used: torch.Tensor) -> bool:
    """Whether the values used are the target's own: all of it, or a first chunk of a batch that is trained in parts."""
    values = used.reshape(-1).double().cpu()
    return torch.equal(target.reshape(-1)[: values.numel()].double().cpu(), values)
