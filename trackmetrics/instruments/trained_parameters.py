"""Which parameters are trained, by which optimizers, and whether a backward has just brought gradients for them.

A hook on each parameter says whose gradient arrives. A parameter whose gradient has arrived once is known to be
trained; its hook has said all it can and is taken off, but for one of those that first came together: that one tells
of every later backward, at the cost of a single hook.
"""

from __future__ import annotations

import gc
import operator
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import GradientEdge
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

_MANY = 16  # optimizers in the process; beyond, those that train nothing here are no longer looked at each time
_REQUIRES_GRAD = operator.attrgetter("requires_grad")


Root = torch.Tensor | GradientEdge  # what a backward may be called on


@dataclass
class _Followed:
    """An optimizer, and what its groups held when they were last looked at."""

    optimizer: weakref.ref[torch.optim.Optimizer]
    seen: tuple[list[int], list[bool]] | None = None
    idle: bool = False


class TrainedParameters:
    """Follows the parameters of optimizers; where none owns what is trained, the leaves of the graphs.

    Call `prepare` before a backward and `arrived` (or `forget_arrived`) after it. `release` removes every hook.
    """

    def __init__(self) -> None:
        self._optimizers: dict[int, _Followed] = {}
        self._hooks: dict[int, tuple[weakref.ref[torch.Tensor], RemovableHandle]] = {}
        self._trained: dict[int, weakref.ref[torch.Tensor]] = {}
        self._gone: list[weakref.ref[torch.Tensor]] = []
        self._arrived: list[torch.Tensor] = []
        self._leaves: list[torch.Tensor] | None = None
        self._looked_around = False
        self._an_owner: weakref.ref[torch.optim.Optimizer] | None = None

    def add_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Follow the parameters of `optimizer` from now on, those it is given later included."""
        known = self._optimizers.get(id(optimizer))
        if known is None or known.optimizer() is not optimizer:
            self._optimizers[id(optimizer)] = _Followed(weakref.ref(optimizer))
        else:
            known.idle = False

    # Before a backward

    def prepare(
        self, roots: Iterable[Root], inputs: Sequence[torch.Tensor] | None = None, alone: bool = True
    ) -> None:
        """Hook what the coming backward may bring a gradient for and isn't known yet.

        Optimizers that were built before the run are looked up once; where none owns what is trained, the
        parameters are the leaves of the graph behind `roots`. A backward that is told its `inputs` brings gradients
        for these only. Not `alone`, with other runs in the process, only the graph's leaves count: another thread's
        backward may bring gradients at the same moment.
        """
        if not self._looked_around:
            self._looked_around = True
            classes = {id(kind) for kind in _subclasses(torch.optim.Optimizer)}
            for optimizer in [item for item in gc.get_objects() if id(type(item)) in classes]:
                self.add_optimizer(optimizer)
        if self._gone:
            self._forget_gone()
        for followed in list(self._optimizers.values()):
            if not followed.idle:
                self._follow(followed)
        self._arrived.clear()
        self._leaves = None if alone and inputs is None else list(inputs or ())
        if inputs is None:
            self.prepare_inner(roots)
        else:
            for parameter in inputs:
                self._hook(parameter)

    def prepare_inner(self, roots: Iterable[Root]) -> None:
        """Do the same for a backward inside the one under way: reentrant checkpointing hides its leaves until then."""
        if self._leaves is None and self._owner() is not None:
            return
        leaves = _leaves(roots)
        for leaf in leaves:
            self._hook(leaf)
        if self._leaves is not None:
            self._leaves.extend(leaves)

    def _follow(self, followed: _Followed) -> None:
        optimizer = followed.optimizer()
        if optimizer is None:
            followed.idle = True
            return
        parameters = parameters_of(optimizer)
        seen = list(map(id, parameters)), list(map(_REQUIRES_GRAD, parameters))
        if seen == followed.seen:
            return
        for parameter in parameters:
            self._hook(parameter)
        # A lazy parameter turns into an ordinary one without any of this changing.
        followed.seen = None if any(map(is_lazy, parameters)) else seen
        many = len(self._optimizers) > _MANY
        followed.idle = many and not any(id(parameter) in self._trained for parameter in parameters)

    def _hook(self, parameter: torch.Tensor) -> None:
        key = id(parameter)
        if key in self._trained or key in self._hooks or not parameter.requires_grad or not parameter.is_leaf:
            return
        if not is_lazy(parameter):
            self._put_hook(parameter)

    def _put_hook(self, parameter: torch.Tensor) -> None:
        # A built-in method as the hook: the engine calls it once a parameter, and it costs next to nothing.
        handle = parameter.register_post_accumulate_grad_hook(self._arrived.append)
        self._hooks[id(parameter)] = (weakref.ref(parameter, self._gone.append), handle)

    def _take_hook(self, parameter: torch.Tensor) -> None:
        _, handle = self._hooks.pop(id(parameter))
        _remove(parameter, handle)

    def _forget_gone(self) -> None:
        """Parameters that are no more make place: a new one may have the identity of an old one."""
        self._gone.clear()
        self._hooks = {key: hook for key, hook in self._hooks.items() if hook[0]() is not None}
        self._trained = {key: trained for key, trained in self._trained.items() if trained() is not None}
        for followed in self._optimizers.values():
            followed.seen = None

    # After a backward

    def arrived(self, roots: Iterable[Root]) -> bool:
        """Whether the backward from `roots` that has just ended brought a gradient for anything that is trained."""
        arrived = self._arrived
        if self._leaves is not None:
            hooked = set(map(id, arrived))
            arrived = [leaf for leaf in self._leaves if id(leaf) in self._trained or id(leaf) in hooked]
            self._leaves = None
        elif not arrived:  # a part of what is trained that none of the remaining hooks stands for
            arrived = [leaf for leaf in _leaves(roots) if id(leaf) in self._trained]
            if arrived and id(arrived[0]) not in self._hooks:
                self._put_hook(arrived[0])
        arrived = [parameter for parameter in arrived if parameter.grad is not None]
        self._learn([parameter for parameter in arrived if id(parameter) not in self._trained])
        self._arrived.clear()
        return bool(arrived)

    def _learn(self, arrived: list[torch.Tensor]) -> None:
        """These have brought their first gradient; reentrant checkpointing names some of them twice."""
        for parameter in arrived:
            self._trained[id(parameter)] = weakref.ref(parameter, self._gone.append)
        for parameter in arrived[1:]:
            if parameter is not arrived[0] and id(parameter) in self._hooks:
                self._take_hook(parameter)
        if arrived:
            for followed in self._optimizers.values():
                followed.idle = False

    def forget_arrived(self) -> None:
        """The backward that has ended doesn't count."""
        self._arrived.clear()
        self._leaves = None

    # What is trained

    def trained(self) -> list[torch.Tensor]:
        """The parameters that have received a gradient so far and are still alive."""
        return [parameter for reference in self._trained.values() if (parameter := reference()) is not None]

    def has_optimizer(self) -> bool:
        """Whether some optimizer owns something of what is trained."""
        if self._owner() is None:
            for followed in self._optimizers.values():
                optimizer = followed.optimizer()
                if optimizer is not None and any(id(item) in self._trained for item in parameters_of(optimizer)):
                    self._an_owner = followed.optimizer
        return self._owner() is not None

    def _owner(self) -> torch.optim.Optimizer | None:
        """An optimizer that is known to own something of what is trained."""
        return None if self._an_owner is None else self._an_owner()

    def release(self) -> None:
        """Remove every hook and drop every reference."""
        for reference, handle in self._hooks.values():
            parameter = reference()
            if parameter is not None:
                _remove(parameter, handle)
        self.__init__()  # type: ignore[misc]


def _remove(parameter: torch.Tensor, handle: RemovableHandle) -> None:
    handle.remove()
    if not parameter._post_accumulate_grad_hooks:
        parameter._post_accumulate_grad_hooks = None  # an empty collection still costs a call in every backward


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Every parameter of every group, in order."""
    groups = getattr(optimizer, "param_groups", ())  # a wrapper that is an optimizer in name may have none
    return [parameter for group in groups for parameter in group["params"]]


def _subclasses(kind: type) -> list[type]:
    """A class and all that is derived from it."""
    derived: list[type] = kind.__subclasses__()
    return [kind, *(inner for child in derived for inner in _subclasses(child))]


def _leaves(roots: Iterable[Root]) -> list[torch.Tensor]:
    """The tensors that a backward from `roots` would accumulate gradients into.

    Beside parameters, any other leaf is an input that wants its gradient, and is left out.
    """
    waiting: list[Any] = []
    leaves: list[torch.Tensor] = []
    for root in roots:
        node = root.node if isinstance(root, GradientEdge) else root.grad_fn
        if node is not None:
            waiting.append(node)
        elif isinstance(root, torch.Tensor) and root.requires_grad:
            leaves.append(root)
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return [leaf for leaf in leaves if isinstance(leaf, torch.nn.Parameter)] or leaves
