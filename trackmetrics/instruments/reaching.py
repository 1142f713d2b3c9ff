"""Being told when a backward reaches a tensor: that is what tells training from evaluation.

The hooks go with their tensors, or with the run, whichever ends first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle, unserializable_hook

_PRUNE = 256  # handles that are kept before those of tensors that are gone are let go


Edge = tuple[Any, int]


class ReachHooks:
    """Hooks on results of the training.

    >>> reached = []
    >>> hooks = ReachHooks()
    >>> loss = torch.ones(2, requires_grad=True).sum()
    >>> hooks.add(loss, edge_of(loss), reached.append)
    >>> loss.backward()
    >>> reached
    [tensor(1.)]
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._limit = _PRUNE
        self._fault: Exception | None = None

    def add(self, result: torch.Tensor, edge: Edge, tell: Callable[[torch.Tensor], None]) -> None:
        """Call `tell` with the gradient whenever a backward reaches `result`; what it raises waits for `check`.

        `edge` is where in the graph it was made; since then it may have been changed in place.
        """
        node, index = edge
        if node is None:
            hook = functools.partial(self._reached, tell)
            unserializable_hook(hook)  # else torch warns where a user saves the loss in a checkpoint
            self._handles.append(result.register_hook(hook))
        else:  # a hook of the node isn't saved with the loss, and costs less
            self._handles.append(node.register_prehook(lambda gradients: self._reached(tell, gradients[index])))
        if len(self._handles) > self._limit:
            self._handles = [handle for handle in self._handles if handle.hooks_dict_ref() is not None]
            self._limit = 2 * len(self._handles) + _PRUNE

    def _reached(self, tell: Callable[[torch.Tensor], None], gradient: torch.Tensor) -> None:
        try:
            tell(gradient)
        except Exception as error:  # the engine would raise it into the user's backward
            self._fault = error

    def check(self) -> None:
        """Raise what was raised when a backward reached a result."""
        if self._fault is not None:
            raise self._fault

    def remove(self) -> None:
        """Remove the hooks from the tensors that are still alive."""
        for handle in self._handles:
            handle.remove()
        self.__init__()  # type: ignore[misc]


def edge_of(result: torch.Tensor) -> Edge:
    """The node of the graph that made a tensor, and which of its outputs it is; no node for a leaf."""
    return result.grad_fn, result.output_nr


def can_be_reached(result: torch.Tensor) -> bool:
    """Whether a backward may come to a result; `torch.func`'s own transformations take no hooks."""
    return result.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(result)
