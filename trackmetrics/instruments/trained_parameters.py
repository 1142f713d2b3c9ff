"""Which parameters are trained, by which optimizers, and whether a backward has just brought gradients for them.

A hook on each parameter says whose gradient arrives. A parameter whose gradient has arrived once is known to be
trained; its hook has said all it can and is taken off, but for one of those that first came together: that one tells
of every later backward, at the cost of a single hook.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.autograd.graph import GradientEdge
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from .fully_sharded import sharded

_MANY = 16  # optimizers in the process; beyond, those that train nothing here aren't looked at each time


Root = torch.Tensor | GradientEdge  # what a backward may be called on


class TrainedParameters:
    """Follows the parameters of optimizers; where none owns what is trained, the leaves of the graphs.

    Call `prepare` before a backward and `arrived` (or `forget_arrived`) after it. `release` removes every hook.
    """

    def __init__(self) -> None:
        self._optimizers: dict[int, weakref.ref[torch.optim.Optimizer]] = {}
        self._strangers: set[int] = set()
        self._hooks: dict[int, tuple[weakref.ref[torch.Tensor], RemovableHandle]] = {}
        self._trained: dict[int, weakref.ref[torch.Tensor]] = {}
        self._gone: list[weakref.ref[torch.Tensor]] = []
        self._arrived: list[torch.Tensor] = []
        self._leaves: list[torch.Tensor] | None = None
        self._looked_around = False
        self._an_owner: weakref.ref[torch.optim.Optimizer] | None = None
        self._last: tuple[weakref.ref[torch.Tensor], int] | None = None
        self._state: list[int] = []
        # What the optimizers held when it was last looked at; nothing there is to be looked at again while it's so.
        self._owned: list[int] | None = None
        self._frozen = False
        self._all_trained = False

    def add_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Follow the parameters of `optimizer` from now on, those it is given later included."""
        key = id(optimizer)
        known = self._optimizers.get(key)
        if known is None or known() is not optimizer:
            self._optimizers[key] = weakref.ref(optimizer)
            self._owned = None
        if self._strangers:
            self._strangers.discard(key)

    # Before a backward

    def prepare(self, roots: Iterable[Root], inputs: Sequence[torch.Tensor] | None = None, alone: bool = True) -> None:
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
        if self._owned is None:
            self._look_at(self._parameters())
        self._arrived.clear()
        self._leaves = None if alone and inputs is None else list(inputs or ())
        if inputs is not None:
            for parameter in inputs:
                self._hook(parameter)
        elif self._leaves is not None or self._an_owner is None or self._an_owner() is None:
            self._prepare_leaves(roots)

    def prepare_inner(self, roots: Iterable[Root]) -> None:
        """Do the same for a backward inside the one under way: reentrant checkpointing hides its leaves until then."""
        if self._leaves is not None or self._an_owner is None or self._an_owner() is None:
            self._prepare_leaves(roots)

    def _prepare_leaves(self, roots: Iterable[Root]) -> None:
        leaves = _leaves(roots)
        for leaf in leaves:
            self._hook(leaf)
        if self._leaves is not None:
            self._leaves.extend(leaves)

    def _parameters(self) -> list[torch.Tensor]:
        """What the optimizers own, but for those that have long trained nothing here."""
        parameters: list[torch.Tensor] = []
        for key, reference in self._optimizers.items():
            optimizer = None if key in self._strangers else reference()
            for group in getattr(optimizer, "param_groups", ()):
                parameters.extend(group["params"])
        return parameters

    def _look_at(self, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        """Hook what is new among the optimizers' parameters, or no longer frozen; give those."""
        fresh = [parameter for parameter in parameters if self._hook(parameter)]
        self._owned = list(map(id, parameters))
        self._frozen = any(key not in self._trained and key not in self._hooks for key in self._owned)
        self._all_trained = sorted(self._owned) == sorted(self._trained)
        return fresh

    def _hook(self, parameter: torch.Tensor) -> bool:
        """Hook a parameter that wasn't known; say whether that was so."""
        key = id(parameter)
        if key in self._trained or key in self._hooks or not parameter.requires_grad or not parameter.is_leaf:
            return False
        if is_lazy(parameter):
            return False
        self._put_hook(parameter)
        return True

    def _put_hook(self, parameter: torch.Tensor) -> None:
        # A built-in method as the hook: the engine calls it once a parameter, and it costs next to nothing.
        handle = parameter.register_post_accumulate_grad_hook(self._arrived.append)
        self._hooks[id(parameter)] = (weakref.ref(parameter, self._gone.append), handle)

    def _forget_gone(self) -> None:
        """Parameters that are no more make place: a new one may have the identity of an old one."""
        self._gone.clear()
        self._hooks = {key: hook for key, hook in self._hooks.items() if hook[0]() is not None}
        self._trained = {key: trained for key, trained in self._trained.items() if trained() is not None}
        self._owned = None

    # After a backward

    def arrived(self, roots: Iterable[Root]) -> list[torch.Tensor]:
        """All that is trained, if the backward from `roots` that has just ended brought a gradient for any of it."""
        owned = self._parameters()
        if self._frozen or list(map(id, owned)) != self._owned:
            # It came, or was unfrozen, between the last backward and this one: no hook of ours told of it.
            self._arrived.extend(self._look_at(owned))
        arrived = self._arrived
        if self._leaves is not None:
            hooked = set(map(id, arrived))
            arrived = [leaf for leaf in self._leaves if id(leaf) in self._trained or id(leaf) in hooked]
            self._leaves = None
        elif not arrived:  # a part of what is trained that none of the remaining hooks stands for
            arrived = [leaf for leaf in _leaves(roots) if id(leaf) in self._trained]
            if arrived and id(arrived[0]) not in self._hooks:
                self._put_hook(arrived[0])
        fresh = []
        last = None
        for parameter in arrived:
            if parameter.grad is not None:
                last = parameter
                if id(parameter) not in self._trained:
                    fresh.append(parameter)
        self._last = None if last is None else (weakref.ref(last), last._version)
        if fresh:
            self._learn(fresh, owned)
        self._arrived.clear()
        if last is None:
            return []
        return owned if self._all_trained else self.trained()

    def _learn(self, arrived: list[torch.Tensor], owned: list[torch.Tensor]) -> None:
        """These have brought their first gradient; reentrant checkpointing names some of them twice."""
        for parameter in arrived:
            self._trained[id(parameter)] = weakref.ref(parameter, self._gone.append)
        order = {id(parameter): place for place, parameter in enumerate(owned)}  # an optimizer finds its own together
        self._trained = dict(sorted(self._trained.items(), key=lambda item: order.get(item[0], len(order))))
        for parameter in arrived[1:]:
            hook = None if parameter is arrived[0] else self._hooks.pop(id(parameter), None)
            if hook is not None:
                _remove(parameter, hook[1])
        self._look_at(owned)
        if len(self._optimizers) > _MANY:
            self._strangers = {key for key, reference in self._optimizers.items() if not self._trains(reference())}
            self._owned = None

    def _trains(self, optimizer: torch.optim.Optimizer | None) -> bool:
        """Whether an optimizer owns something of what is trained."""
        return optimizer is not None and any(id(item) in self._trained for item in parameters_of(optimizer))

    def updated(self) -> bool:
        """Whether an optimizer has stepped since `arrived`: what is trained has changed, and the optimizer's state."""
        parameter = None if self._last is None else self._last[0]()
        if parameter is None or self._last is None or parameter._version == self._last[1]:
            return False
        before, self._state = self._state, self._state_of(parameter)
        return self._state != before

    def _state_of(self, parameter: torch.Tensor) -> list[int]:
        """The versions of what optimizers keep for a parameter."""
        optimizers = [optimizer for reference in self._optimizers.values() if (optimizer := reference()) is not None]
        kept = [optimizer.state.get(parameter, {}) for optimizer in optimizers]
        return [value._version for state in kept for value in state.values() if isinstance(value, torch.Tensor)]

    def forget(self, keys: Iterable[int]) -> None:
        """What got a gradient under these identities isn't trained."""
        for key in keys:
            self._trained.pop(key, None)
        self._owned = None

    def forget_arrived(self) -> None:
        """The backward that has ended doesn't count."""
        self._arrived.clear()
        self._leaves = None

    # What is trained

    def trained(self) -> list[torch.Tensor]:
        """The parameters that have received a gradient so far and are still alive."""
        return [parameter for reference in self._trained.values() if (parameter := reference()) is not None]

    def owners(self) -> list[str]:
        """The names of the optimizers that own something of what is trained."""
        alive = (reference() for reference in self._optimizers.values())
        return [type(optimizer).__name__ for optimizer in alive if optimizer is not None and self._trains(optimizer)]

    def has_optimizer(self) -> bool:
        """Whether some optimizer owns something of what is trained."""
        if self._an_owner is None or self._an_owner() is None:
            owners = (reference for reference in self._optimizers.values() if self._trains(reference()))
            self._an_owner = next(owners, None)
        return self._an_owner is not None

    def release(self) -> None:
        """Remove every hook and drop every reference."""
        for reference, handle in self._hooks.values():
            parameter = reference()
            if parameter is not None:
                _remove(parameter, handle)
        self.__init__()  # type: ignore[misc]


def _remove(parameter: torch.Tensor, handle: RemovableHandle) -> None:
    handle.remove()
    holder: Any = parameter
    if not holder._post_accumulate_grad_hooks:
        holder._post_accumulate_grad_hooks = None  # an empty collection still costs a call in every backward


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Every parameter of every group, in order."""
    parameters: list[torch.Tensor] = []
    for group in getattr(optimizer, "param_groups", ()):  # a wrapper that is an optimizer in name may have none
        parameters.extend(group["params"])
    return parameters


def _subclasses(kind: type) -> list[type]:
    """A class and all that is derived from it."""
    derived: list[type] = kind.__subclasses__()
    return [kind, *(inner for child in derived for inner in _subclasses(child))]


def _leaves(roots: Iterable[Root]) -> list[torch.Tensor]:
    """The tensors that a backward from `roots` would accumulate gradients into.

    Beside parameters, any other leaf is an input that wants its gradient, and is left out. A gathered parameter's
    gradient goes on to its shards.
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
    return sharded([leaf for leaf in leaves if isinstance(leaf, torch.nn.Parameter)] or leaves)
