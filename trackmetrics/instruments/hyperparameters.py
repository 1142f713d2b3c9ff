"""Hyperparameters by themselves: the function's arguments, what was observed, the model's own.

Only plain values are kept; a model or data set among the arguments is left out rather than dragged in by its repr.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import re
import types
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch.optim.lr_scheduler import LRScheduler

from ..plain import NotPlainError, to_plain

WITHHELD = "(withheld)"
_SECRET = re.compile(r"(^|_)(api_?keys?|(access|secret|private|auth|ssh|encryption)_?keys?|keys?|tokens?)$")
_ALWAYS_SECRET = re.compile(r"passw(or)?d|secret|credential|api_?key|auth_?token|access_?token")
_MAX_ITEMS = 256  # a longer list is data, not a parameter


def spread(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values among a function's arguments, under their own names; bundles of them are spread out.

    A bundle is a Namespace, a dataclass, a dict, or an object whose attributes are all plain.

    >>> import argparse
    >>> spread({"args": argparse.Namespace(lr=0.1, api_key="k3y"), "model": object()})
    {'lr': 0.1, 'api_key': '(withheld)'}
    """
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        bundle = _bundle(value)
        if bundle is None:
            values |= plain_values({name: value})
        else:
            values |= plain_values(bundle)
    return values


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that are plain, secrets withheld, in their order."""
    kept = {}
    for name, value in values.items():
        if is_secret(str(name), value):
            kept[str(name)] = WITHHELD
            continue
        try:
            plain = _without_secrets(_small(value))
        except NotPlainError:
            continue
        kept[str(name)] = plain
    return kept


def _small(value: Any) -> Any:
    """The plain form of a parameter, which is no data: a tensor of several numbers and a long list are."""
    bundle = _bundle(value) if not isinstance(value, Mapping) else None
    value = value if bundle is None else bundle
    if _holds_data(value):
        raise NotPlainError("tensors and long lists are data")
    return to_plain(value)


def _holds_data(value: Any) -> bool:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return math.prod(value.shape) > 1
    if isinstance(value, Mapping):
        return any(map(_holds_data, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return len(value) > _MAX_ITEMS or any(map(_holds_data, value))
    return False


def _without_secrets(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {key: WITHHELD if is_secret(key, value) else _without_secrets(value) for key, value in plain.items()}
    return [_without_secrets(item) for item in plain] if isinstance(plain, list) else plain


def is_secret(name: str, value: Any) -> bool:
    """Whether a name looks like a secret's: a password or credential, a key or token that is text.

    >>> [is_secret(name, "x") for name in ("api_key", "hf_token", "tokenizer", "num_tokens")]
    [True, True, False, False]
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().strip("_")
    if _ALWAYS_SECRET.search(words):
        return value is not None
    counted = re.match(r"(num|n|max|min|total)_", words)
    return isinstance(value, (str, bytes)) and not counted and _SECRET.search(words) is not None


def _bundle(value: Any) -> Mapping[str, Any] | None:
    """The parameters that a value bundles; None where it is no bundle."""
    if isinstance(value, (argparse.Namespace, types.SimpleNamespace)):
        return vars(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {item.name: getattr(value, item.name, None) for item in dataclasses.fields(value)}
        return None if any(isinstance(item, torch.Tensor) for item in fields.values()) else fields
    if isinstance(value, Mapping):
        return value if all(isinstance(key, str) for key in value) else None
    if hasattr(value, "to_dict") and hasattr(value, "model_type"):  # a Hugging Face configuration
        return cast("Mapping[str, Any]", value.to_dict())
    if hasattr(value, "__dict__") and vars(value) and type(value).__module__ not in ("builtins", "torch"):
        return _plain_object(value)
    return None


def _plain_object(value: Any) -> Mapping[str, Any] | None:
    """A user's own configuration object: one whose attributes are all plain."""
    if callable(value) or isinstance(value, (torch.nn.Module, torch.Tensor, types.ModuleType)):
        return None
    if hasattr(value, "__len__") or hasattr(value, "__iter__"):
        return None
    try:
        to_plain(vars(value))
    except NotPlainError:
        return None
    return dict(vars(value))


class OptimizerSettings:
    """Remembers each optimizer's settings as they stood when it first stepped, before any schedule changed them."""

    def __init__(self) -> None:
        self._seen: dict[int, weakref.ref[torch.optim.Optimizer]] = {}
        self._settings: list[tuple[Any, dict[str, Any]]] = []

    def optimizer_steps(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to step."""
        seen = self._seen.get(id(optimizer))
        if seen is None or seen() is not optimizer:
            self._seen[id(optimizer)] = weakref.ref(optimizer)
            entry = _learning_rate(optimizer), optimizer_settings(optimizer)
            if entry not in self._settings:  # one made anew for each epoch says nothing new
                self._settings.append(entry)

    def observed(self) -> dict[str, Any]:
        """Learning rate and optimizer, `name` and settings; lists of them where there were several."""
        return {
            "learning_rate": one_or_list([rate for rate, _ in self._settings]),
            "optimizer": one_or_list([settings for _, settings in self._settings]),
        }


def one_or_list(items: list[Any]) -> Any:
    """A single item as it is, several as a list, none as None."""
    return items[0] if len(items) == 1 else items or None


def _learning_rate(optimizer: torch.optim.Optimizer) -> Any:
    """The rate that the optimizer was built with; a list where its groups differ."""
    rates = [to_plain(group.get("initial_lr", group.get("lr"))) for group in optimizer.param_groups]
    return rates[0] if all(rate == rates[0] for rate in rates) else rates


def optimizer_settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's name and settings; `groups` lists what differs from them where parameter groups do."""
    groups = [
        plain_values(
            {
                name: group.get("initial_lr", value) if name == "lr" else value
                for name, value in group.items()
                # None leaves the choice to torch; it is no setting
                if value is not None and name not in ("params", "param_names", "initial_lr")
            }
        )
        for group in optimizer.param_groups
    ]
    settings = {"name": type(optimizer).__name__, **groups[0]}
    if any(group != groups[0] for group in groups):
        differing = [{key: item for key, item in group.items() if item != groups[0].get(key)} for group in groups]
        settings["groups"] = differing
    return settings


def scheduler_settings(scheduler: LRScheduler) -> dict[str, Any]:
    """The scheduler's name and its plain settings, without what changes as it goes."""
    passing = {"last_epoch", "base_lrs", "num_bad_epochs", "best", "cooldown_counter"}
    own = {key: value for key, value in vars(scheduler).items() if not key.startswith("_") and key not in passing}
    return {"name": type(scheduler).__name__, **plain_values(own)}


def find_schedulers(
    spaces: Iterable[Mapping[str, Any]], optimizers: Iterable[torch.optim.Optimizer]
) -> list[LRScheduler]:
    """The learning-rate schedulers in reach that drive one of the optimizers."""
    steppers = {id(optimizer) for optimizer in optimizers}
    found: dict[int, LRScheduler] = {}
    for space in spaces:
        for value in space.values():
            if isinstance(value, LRScheduler) and id(value.optimizer) in steppers:
                found[id(value)] = value
    return list(found.values())


class ConstructorArguments:
    """Remembers, for each module built while it listens, the plain arguments of its constructor."""

    def __init__(self) -> None:
        self._seen: weakref.WeakKeyDictionary[torch.nn.Module, dict[str, Any]] = weakref.WeakKeyDictionary()

    def module_built(self, module: torch.nn.Module, frame: types.FrameType) -> None:
        """`nn.Module.__init__` ran, called from `frame`: the constructor, whose locals are still its arguments."""
        constructor = type(module).__init__
        code = getattr(constructor, "__code__", None)
        caller: types.FrameType | None = frame
        while caller is not None and caller.f_code.co_name == "__init__":
            if caller.f_code is code:
                self._seen[module] = self._read(constructor, caller.f_locals)
                return
            caller = caller.f_back

    @staticmethod
    def _read(constructor: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        for name, parameter in list(inspect.signature(constructor).parameters.items())[1:]:
            if name not in values:
                continue
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments |= values[name]
            else:
                arguments[name] = values[name]
        return spread(arguments)

    def of(self, module: torch.nn.Module) -> dict[str, Any]:
        """The arguments with which `module` was built, where that was seen."""
        return self._seen.get(module, {})


def of_model(model: torch.nn.Module, constructed: ConstructorArguments) -> dict[str, Any]:
    """Every architecture parameter: `class`, constructor arguments, numbers of parameters.

    Arguments are those seen while it was built, else attributes of the same name, else its `config`.
    """
    model = unwrapped(model)
    parameters = list(model.parameters())
    arguments = constructed.of(model) or _from_attributes(model)
    config = _bundle(getattr(model, "config", None))
    return {
        "class": type(model).__name__,
        **(plain_values(config) if config else {}),
        **arguments,
        "num_parameters": sum(parameter.numel() for parameter in parameters),
        "num_trainable_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    }


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside wrappers for compiling or for several devices."""
    for name in ("_orig_mod", "module"):
        inner = getattr(model, name, None)
        if isinstance(inner, torch.nn.Module) and type(model).__module__.startswith("torch."):
            return unwrapped(inner)
    return model


def _from_attributes(model: torch.nn.Module) -> dict[str, Any]:
    try:
        names = list(inspect.signature(type(model).__init__).parameters)[1:]
    except (TypeError, ValueError):
        return {}
    own = vars(model)
    return spread({name: own[name] for name in names if name in own})
