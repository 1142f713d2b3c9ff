"""Hyperparameters by themselves: the function's arguments, what was observed, the model's own.

Only plain values are kept; a model or data set among the arguments is left out rather than dragged in by its repr.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import math
import re
import types
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch.optim.lr_scheduler import LRScheduler

from ..plain import NotPlainError, to_plain
from .discovery import is_data, unwrapped
from .fully_sharded import is_fully_sharded
from .objects import locals_of
from .trained_parameters import parameters_of

WITHHELD = "(withheld)"
_ALWAYS_SECRET = re.compile(
    r"passw(or)?d|passphrase|(^|_)pwd($|_)|authorization|secret|credential|api_?key|auth_?token|access_?token"
)
_SECRET = re.compile(r"key|token")
_NO_SECRET = re.compile(
    r"tokeni[sz]|keyword|keyboard|key_?(point|frame|dim|size)|(mon|tur|hoc|whis)key"
    r"|(^|_)(pad|bos|eos|cls|sep|unk|mask|special|start|end|stop|image|label|input|target|sort|group|num|n|max|min|total)"
    r"_?(token|key)s?($|_)"
)
_MAX_ITEMS = 256  # a longer list or dict is data, not a parameter
_MAX_TEXT = 4096  # a longer text is data, too
_MAX_NESTING = 12


def spread(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values among a function's arguments, under their own names; bundles of them are spread out.

    A bundle is a Namespace, a dataclass, a dict, or an object whose attributes are all plain. Data sets are left
    out, also such as are plain lists.

    >>> import argparse
    >>> spread({"args": argparse.Namespace(lr=0.1, api_key="k3y"), "model": object()})
    {'lr': 0.1, 'api_key': '(withheld)'}
    """
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        with contextlib.suppress(Exception):  # an object of the user's own that can't be read
            if not is_data(name, value):
                bundle = None if is_secret(name, value) else _bundle(value)
                values |= plain_values({name: value} if bundle is None else bundle)
    return values


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that are plain, secrets withheld, in their order."""
    return _plain_values(values, 0)


def _plain_values(values: Mapping[str, Any], depth: int) -> dict[str, Any]:
    kept = {}
    for name, value in values.items():
        try:
            kept[to_plain(str(name))] = WITHHELD if is_secret(str(name), value) else _plain(value, depth)
        except Exception:  # it has no plain form, or a class of the user's own can't be read
            continue
    return kept


def _plain(value: Any, depth: int) -> Any:
    """A value as plain data; what is not plain in a bundle inside it is left out. Raises `NotPlainError`."""
    if depth > _MAX_NESTING:
        raise NotPlainError("nested too deep, or a cycle")
    if isinstance(value, Counter):
        return sorted(value.elements())  # a scheduler's milestones
    bundle = _bundle(value) or (value if isinstance(value, Mapping) else None)
    if bundle:
        kept = _plain_values(bundle, depth + 1) if len(bundle) <= _MAX_ITEMS else {}
        if not kept:
            raise NotPlainError("nothing in it is plain")
        return kept
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_plain(item, depth + 1) for item in value] if len(value) <= _MAX_ITEMS else []
        if len(items) < len(value) or sum(map(_size, items)) > _MAX_ITEMS:
            raise NotPlainError("a long list is data")
        return to_plain(value) if isinstance(value, (set, frozenset)) else items
    if isinstance(value, (str, bytes)) and len(value) > _MAX_TEXT:
        raise NotPlainError("a long text is data")
    if _is_array(value):
        raise NotPlainError("an array is data")
    return to_plain(value)


def _is_array(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, np.ndarray)) and math.prod(value.shape) > 1


def _size(plain: Any) -> int:
    if isinstance(plain, dict):
        plain = list(plain.values())
    return sum(map(_size, plain)) if isinstance(plain, list) else 1


def is_secret(name: str, value: Any) -> bool:
    """Whether a name looks like a secret's: a password or credential, a key or token that is text.

    >>> [is_secret(name, "x") for name in ("api_key", "hf_token", "tokenizer", "num_tokens")]
    [True, True, False, False]
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower().replace("-", "_").strip("_")
    if _ALWAYS_SECRET.search(words):
        return value is not None
    return _SECRET.search(words) is not None and _NO_SECRET.search(words) is None and _holds_text(value)


def _holds_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(_holds_text, value))
    return isinstance(value, (str, bytes))


def _bundle(value: Any) -> Mapping[str, Any] | None:
    """The parameters that a value bundles; None where it is no bundle."""
    if isinstance(value, (argparse.Namespace, types.SimpleNamespace)):
        return vars(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {item.name: getattr(value, item.name, None) for item in dataclasses.fields(value)}
        return None if any(isinstance(item, torch.Tensor) for item in fields.values()) else fields
    if isinstance(value, Mapping):
        return value if len(value) <= _MAX_ITEMS and all(isinstance(key, str) for key in value) else None
    if hasattr(value, "to_dict") and hasattr(value, "model_type"):  # a Hugging Face configuration
        return cast("Mapping[str, Any]", value.to_dict())
    if hasattr(value, "__dict__") and vars(value):
        return _plain_object(value)
    return None


def _plain_object(value: Any) -> Mapping[str, Any] | None:
    """A user's own configuration object: one whose attributes are all plain."""
    if callable(value) or isinstance(value, (torch.nn.Module, torch.optim.Optimizer, types.ModuleType)):
        return None
    if type(value).__module__.partition(".")[0] in ("builtins", "torch", "numpy"):
        return None
    if hasattr(value, "__len__") or hasattr(value, "__iter__") or any(map(_is_array, vars(value).values())):
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
            for each in (optimizer, *_wrapped_by(optimizer)):
                self._seen[id(each)] = weakref.ref(each)
            entry = _learning_rate(optimizer), optimizer_settings(optimizer)
            if entry not in self._settings:  # one made anew for each epoch says nothing new
                self._settings.append(entry)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers that have stepped and are still alive."""
        alive = (reference() for reference in self._seen.values())
        return [optimizer for optimizer in alive if optimizer is not None]

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
    """The optimizer's name and settings; `groups` lists what differs from them where parameter groups do.

    `wraps` names an optimizer that it steps itself, and says what differs there; a list where there are several.
    """
    settings = _own_settings(optimizer)
    wrapped = [
        {key: item for key, item in _own_settings(each).items() if key == "name" or item != settings.get(key)}
        for each in _wrapped_by(optimizer)
    ]
    return {**settings, "wraps": one_or_list(wrapped)} if wrapped else settings


def _own_settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
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


def _wrapped_by(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizers that an optimizer holds, of its own parameters or some of them: its step steps them."""
    own = set(map(id, parameters_of(optimizer)))
    found = [optimizer]
    for each in found:
        values = [item for value in vars(each).values() for item in (value if isinstance(value, list) else [value])]
        held = [item for item in values if isinstance(item, torch.optim.Optimizer) and item not in found]
        found += [item for item in held if own.issuperset(map(id, parameters_of(item)))]
    return found[1:]


def scheduler_settings(scheduler: LRScheduler) -> dict[str, Any]:
    """The scheduler's name and its plain settings, without what changes as it goes and what it prints."""
    passing = {"last_epoch", "base_lrs", "num_bad_epochs", "best", "cooldown_counter", "T_cur", "T_i", "mode_worse"}
    left_out = {*passing, "verbose"}  # in torch before 2.7
    own = {key: value for key, value in vars(scheduler).items() if not key.startswith("_") and key not in left_out}
    return {"name": type(scheduler).__name__, **plain_values(own)}


def find_schedulers(
    spaces: Iterable[Mapping[str, Any]], optimizers: Iterable[torch.optim.Optimizer]
) -> list[LRScheduler]:
    """The learning-rate schedulers in reach that drive one of the optimizers."""
    steppers = {id(optimizer) for optimizer in optimizers}
    found: dict[int, LRScheduler] = {}
    for space in spaces:
        for value in space.values():
            value = _wrapped(value, "scheduler")
            if isinstance(value, LRScheduler) and id(_wrapped(value.optimizer, "optimizer")) in steppers:
                found[id(value)] = value
    return list(found.values())


def _wrapped(value: Any, name: str) -> Any:
    """What stands in a wrapper, such as accelerate's, under `name`; a value that is none is given as it is."""
    own = getattr(value, "__dict__", None)
    return own.get(name, value) if isinstance(own, dict) else value


class ConstructorArguments:
    """Remembers, for each module built while it listens, the plain arguments of its constructor."""

    def __init__(self) -> None:
        # By identity: a class's own hash may need what isn't there before its constructor is done.
        self._seen: dict[int, tuple[weakref.ref[torch.nn.Module], dict[str, Any]]] = {}

    def module_built(self, module: torch.nn.Module, frame: types.FrameType) -> None:
        """`nn.Module.__init__` ran, called from `frame`: the constructor, whose locals are still its arguments.

        Where a class's constructor calls its base's, the arguments of both count, the class's own before the base's.
        """
        defined = [vars(kind)["__init__"] for kind in type(module).__mro__ if "__init__" in vars(kind)]
        constructors = {getattr(function, "__code__", None): function for function in map(inspect.unwrap, defined)}
        arguments: dict[str, Any] = {}
        caller: types.FrameType | None = frame
        while caller is not None:
            values = locals_of(caller)
            if _first_argument(caller.f_code, values) is not module:
                break
            constructor = constructors.get(caller.f_code)
            if constructor is not None:
                positional = not arguments  # else the base's constructor has named them
                own = _arguments(constructor, values, positional)
                arguments = own | {name: value for name, value in arguments.items() if name not in own}
            caller = caller.f_back
        key, seen = id(module), self._seen
        seen[key] = weakref.ref(module, lambda _: seen.pop(key, None)), spread(arguments)

    def of(self, module: torch.nn.Module) -> dict[str, Any]:
        """The arguments with which `module` was built, where that was seen."""
        reference, arguments = self._seen.get(id(module), (None, {}))
        return arguments if reference is not None and reference() is module else {}


def _first_argument(code: types.CodeType, values: Mapping[str, Any]) -> Any:
    if code.co_argcount:
        return values.get(code.co_varnames[0])
    if code.co_flags & inspect.CO_VARARGS:  # a wrapper's `*args`, which stands after its keyword-only arguments
        return next(iter(values.get(code.co_varnames[code.co_kwonlyargcount], ())), None)
    return None


def _arguments(constructor: Any, values: Mapping[str, Any], positional: bool) -> dict[str, Any]:
    """The constructor's arguments among the values of its frame."""
    arguments: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(constructor).parameters.items())[1:]:
        if name not in values or (parameter.kind is parameter.VAR_POSITIONAL and not positional):
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= values[name]
        else:
            arguments[name] = values[name]
    return arguments


def of_model(model: torch.nn.Module, constructed: ConstructorArguments) -> dict[str, Any]:
    """Every architecture parameter: `class`, constructor arguments, numbers of parameters.

    Arguments are those seen while it was built, else attributes of the same name, else its `config`.
    """
    model = unwrapped(model)
    parameters = list(model.parameters())
    arguments = constructed.of(model) or _from_attributes(model)
    config = _bundle(getattr(model, "config", None))
    return {
        "class": (type(model).__bases__[-1] if is_fully_sharded(model) else type(model)).__name__,
        **(plain_values(config) if config else {}),
        **arguments,
        "num_parameters": sum(parameter.numel() for parameter in parameters),
        "num_trainable_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    }


def _from_attributes(model: torch.nn.Module) -> dict[str, Any]:
    try:
        names = list(inspect.signature(type(model).__init__).parameters)[1:]
    except (TypeError, ValueError):
        return {}
    own = vars(model)
    return spread({name: own[name] for name in names if name in own})
