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
from .data import UnreadableError, take_apart, tensors_in

_KEPT = 8  # batches, of the first and of the last: loaders may be gone through side by side, or far ahead
_ANSWERS = 64  # comparisons that wait on the device
_BACKWARDS = 8  # that may reach no criterion call before it is given up: a penalty, a critic

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
        except (UnreadableError, TypeError, ValueError, RuntimeError):
            return None


class BatchCheck:
    """Compares what a training's first step works on with the batches that were yielded before.

    `targets_changed` and `given_others`, modules by identity, say what came out; they are asked between epochs, so
    that the device need not wait inside one.
    """

    def __init__(self) -> None:
        self._batches: list[_Yielded] | None = []
        self._answers: dict[int, list[_Answer]] = {}  # of each module, whether a batch was what it was given
        self._waiting = 0
        self._found = False
        self._backwards = 0
        self._compared: tuple[torch.Tensor, list[torch.Tensor]] | None = None
        self._regresses = False  # as far as is known: no call had class targets yet
        self._given_others: frozenset[int] = frozenset()
        self._targets_changed = False

    @property
    def awaits_model(self) -> bool:
        """Whether further calls of modules are to be told: no batch was seen to reach one that is trained yet."""
        return bool(self._batches) and not self._found and self._waiting < _ANSWERS

    def batch_yielded(self, batch: Any) -> None:
        """A loader gave the training a batch."""
        yielded = None if self._batches is None else _Yielded.of(batch)
        if self._batches is not None and yielded is not None:
            self._batches = [*self._batches[:_KEPT], *self._batches[_KEPT:][1 - _KEPT :], yielded]

    def module_called(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A module is called: the model or a part of it, unless it has no parameters (a transformation of inputs)."""
        called = list(tensors_in([args, kwargs]))
        parameters = list(module.parameters())
        if not called or not all(map(_is_plain, called)) or not parameters:
            return
        answers = [answer for batch in self._batches or () for answer in _handed_on(batch, called, kwargs)]
        if answers:
            self._answers.setdefault(id(module), []).extend(answer for answer in answers if answer is not False)
            self._waiting += sum(isinstance(answer, torch.Tensor) for answer in answers)
            trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)
            self._found |= trained and any(answer is True for answer in answers)

    def step_taken(self, call: Call | None) -> bool:
        """A backward of the training is over, and reached a criterion call, or none that is known.

        Says whether that was enough: the call has targets that an evaluation could judge, or it is in vain to wait.
        Meanwhile a regression's first targets are compared, which only metrics of the user's are fed with.
        """
        judged = call if call is not None and call.has_accuracy else None
        self._backwards += 1
        yielded = [batch.target for batch in self._batches or [] if batch.target is not None]
        first = not self._regresses and self._compared is None
        if yielded and call is not None and (judged is not None or first):
            self._compared = call.target.clone(), yielded
        self._regresses = judged is None and (self._regresses or call is not None)
        if judged is None and self._backwards < _BACKWARDS:
            return False
        self._batches = None
        if judged is None and not self._regresses:
            self._answers = {}
        return True

    def targets_changed(self) -> bool:
        """Whether the call's targets were none of those yielded, nor a part of them; fetched once."""
        if self._compared is not None:
            used, yielded = self._compared
            self._compared = None
            self._targets_changed = not any(_holds(target, used) for target in yielded)
        return self._targets_changed

    def given_others(self) -> frozenset[int]:
        """The modules that were called, where none was with the inputs of any of the batches; fetched once."""
        if self._answers and (self._batches is None or self._regresses):
            answers, self._answers = self._answers, {}
            self._given_others = frozenset(key for key, own in answers.items() if not any(map(bool, own)))
        return self._given_others


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds numbers: a transformation's, or one that a tracer made up, has none to compare."""
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.device.type != "meta"
    return plain and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _handed_on(batch: _Yielded, called: list[torch.Tensor], kwargs: Mapping[str, Any]) -> Iterator[_Answer]:
    """Whether a batch's main input is among what a module was called with; by its name, if it has one.

    A mask or a state that the loop adds of its own says nothing against it.
    """
    main = _main_input(batch.inputs)
    if main is None:
        return
    name, tensor = main
    if name in kwargs:
        called = list(tensors_in(kwargs[name]))
    changed = version_of(tensor) != batch.versions[id(tensor)]  # the loop has written to the batch itself
    yield from (not changed and _same(tensor, other) for other in called)


def _main_input(inputs: Any) -> tuple[str, torch.Tensor] | None:
    """The largest of the inputs, and its name, if they are named: a mask is only ever as large, and is none."""
    named = inputs.items() if isinstance(inputs, Mapping) else [("", inputs)]
    tensors = [(name, tensor) for name, value in named for tensor in tensors_in(value)]
    return max(tensors, key=lambda item: ("mask" not in item[0], item[1].numel()), default=None)


def _same(tensor: torch.Tensor, other: torch.Tensor) -> _Answer:
    """Whether one has the other's first row or last, wherever they are, and however an example is shaped.

    A batch may be trained on in parts, in another order, or joined with others.
    """
    if other is tensor:
        return True
    if tensor.layout is not torch.strided or other.layout is not torch.strided or not tensor.ndim:
        return False
    if tensor.data_ptr() == other.data_ptr() and tensor.numel() == other.numel():
        return True
    if not (tensor.numel() and other.numel()):
        return False
    if other.ndim and other[0].numel() == tensor[0].numel():
        rows = other.detach()[[0, -1]]
    elif tensor.shape[1:] == other.shape:  # each example by itself
        rows = other.detach()[None]
    else:
        return False
    own = tensor.detach().to(rows.device, non_blocking=True)
    if rows.is_floating_point():
        own = own.to(rows.dtype)
    own, rows = own.reshape(len(own), 1, -1), rows.reshape(1, len(rows), -1)
    return ((own == rows) | (rows != rows)).all(2).any()


def _holds(target: torch.Tensor, used: torch.Tensor) -> bool:
    """Whether the values used are the target's own: all of it, its beginning, a chunk of it, or it and more."""
    values = used.reshape(-1).double().cpu()
    own = target.reshape(-1).double().cpu()
    length = len(values)
    if length > 1 and len(own) % length == 0:
        return bool((own.view(-1, length) == values).all(1).any())
    shared = min(len(own), length)
    return torch.equal(own[:shared], values[:shared])
