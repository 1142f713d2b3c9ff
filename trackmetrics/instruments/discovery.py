"""Where model and data stand in the user's program: looked up by what is trained, and by name."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType, ModuleType
from typing import Any

import torch

from ..live.iteration import Counted
from .fully_sharded import sharded
from .objects import locals_of

ROLES = {
    "train": ("train", "training"),
    "dev": ("dev", "development"),
    "val": ("val",),
    "valid": ("valid", "validation"),
    "eval": ("eval", "evaluation"),
    "test": ("test", "testing"),
}
DEV_ROLES = ("dev", "val", "valid", "eval")
_NOUNS = "loaders?|dataloaders?|dl|datasets?|data|ds|sets?|iter|iterator|examples?|exs|batches|splits?|samples?|pairs"
_COLLECTION = re.compile(rf"\w*?(?:{_NOUNS})")


@dataclass(frozen=True)
class Scope:
    """The names in reach of a training: its function's arguments, the entering frame's locals, its globals."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    locals: Mapping[str, Any] = field(default_factory=dict)
    globals: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(arguments: Mapping[str, Any], frame: FrameType | None) -> Scope:
        """What `frame` sees now; the frame itself isn't kept."""
        if frame is None:
            return Scope(arguments)
        return Scope(arguments, locals_of(frame), frame.f_globals)

    def parsed_arguments(self) -> dict[str, Any]:
        """The command line's arguments, where the frame holds them parsed: a `main()` has none of its own."""
        return {name: value for name, value in self.locals.items() if isinstance(value, argparse.Namespace)}

    def near(self) -> Iterator[Mapping[str, Any]]:
        """The name spaces of the training itself; a method's `self` counts with its locals."""
        yield self.arguments
        yield self.locals
        owner = self.locals.get("self")
        if hasattr(owner, "__dict__"):
            yield vars(owner)

    def layers(self) -> Iterator[Mapping[str, Any]]:
        """All name spaces in the order in which they are searched."""
        yield from self.near()
        yield self.globals


@dataclass(frozen=True)
class Found:
    """A data set and the name under which it was found; `role` says which of the names it matched."""

    name: str
    data: Any
    role: str


def find_data(scope: Scope, roles: Iterable[str]) -> list[Found]:
    """The data sets in reach: by where they stand, then by role, then loaders before others, then the plainest name.

    Globals count only where nothing nearer has the role: beside it they are another cell's or another script's.
    """
    roles = tuple(roles)
    near = _data_in(scope.near(), roles)
    return near or _data_in([scope.globals], roles)


def _data_in(spaces: Iterable[Mapping[str, Any]], roles: Iterable[str]) -> list[Found]:
    found: dict[int, Found] = {}
    for space in spaces:
        candidates = list(_with_collections(space))
        for role in roles:
            named = [(name, value) for name, key, value in candidates if _plays(role, key) and looks_like_data(value)]
            named.sort(key=lambda item: (not isinstance(item[1], torch.utils.data.DataLoader), len(item[0])))
            for name, value in named:
                found.setdefault(id(value), Found(name, value, role))
    return list(found.values())


def _with_collections(space: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Each name, the word that tells its role, and its value; also of the entries of dicts such as `dataloaders`."""
    for name, value in space.items():
        value = value.iterable if isinstance(value, Counted) else value
        yield name, name, value
        if isinstance(value, dict) and _COLLECTION.fullmatch(name.lower()):
            yield from ((f"{name}[{key!r}]", key, item) for key, item in value.items() if isinstance(key, str))


def _plays(role: str, name: str) -> bool:
    words = "|".join(ROLES[role])
    pattern = rf"_*(?:(?:{_NOUNS})_+)*(?:{words})(?:_*(?:{_NOUNS}))*_*\d*"
    return re.fullmatch(pattern, name.lower()) is not None


def is_data(name: str, value: Any) -> bool:
    """Whether a value is a data set by its name and by what it is."""
    return any(_plays(role, name) for role in ROLES) and looks_like_data(value)


def looks_like_data(value: Any) -> bool:
    """Whether a value could be a set of examples: something to go through that isn't text, a number or code."""
    if value is None or isinstance(value, (str, bytes, Mapping, torch.Tensor, torch.nn.Module, ModuleType, type)):
        return False
    if isinstance(value, (list, tuple)):
        first = value[0] if value else None
        single_number = isinstance(first, torch.Tensor) and first.ndim == 0  # a history of losses
        return not isinstance(first, (str, bytes, int, float, type(None))) and not single_number
    if callable(value) and not hasattr(value, "__getitem__"):
        return False
    return hasattr(value, "__iter__") or (hasattr(value, "__getitem__") and hasattr(value, "__len__"))


def find_model(scope: Scope, trained: Iterable[torch.Tensor]) -> torch.nn.Module | None:
    """The module in reach that owns what is trained: the smallest that owns all of it.

    Looked for in the arguments, the locals, the globals, and one attribute deep in each; None where no module owns
    all (two models trained together) or nothing was trained yet.
    """
    leaves = {id(parameter) for parameter in trained}
    if not leaves:
        return None
    for space in scope.layers():
        for values in (space.values(), _attributes(space.values())):
            owner = smallest_owner(_modules(values), leaves)
            if owner is not None:
                return owner
    return None


def smallest_owner(modules: Iterable[torch.nn.Module], leaves: set[int]) -> torch.nn.Module | None:
    """Of the modules whose parameters include all `leaves`, the one with the fewest; the first among equals.

    A part is passed over for the whole whose other parameters are frozen, or had a gradient too: a trained head for
    the model that it is the head of.
    """
    owned = [({id(parameter) for parameter in sharded(module.parameters())}, module) for module in modules]
    owners = [(len(parameters), module) for parameters, module in owned if parameters >= leaves]
    if not owners:
        return None
    smallest = min(owners, key=lambda owner: owner[0])[1]
    wholes = [owner for owner in owners if _is_whole_of(smallest, owner[1])]
    return max(wholes, key=lambda owner: owner[0])[1] if wholes else smallest


def _is_whole_of(part: torch.nn.Module, module: torch.nn.Module) -> bool:
    own = {id(parameter) for parameter in sharded(part.parameters())}
    others = [parameter for parameter in sharded(module.parameters()) if id(parameter) not in own]
    holds = any(inner is part for inner in module.modules())
    callable_itself = inspect.getattr_static(type(module), "forward") is not torch.nn.Module.forward
    took_part = all(not parameter.requires_grad or parameter.grad is not None for parameter in others)
    return bool(others) and holds and callable_itself and took_part


def model_in(result: Any) -> list[torch.nn.Module]:
    """The modules that a function's return value is or holds, one level deep."""
    if isinstance(result, torch.nn.Module):
        return [result]
    if isinstance(result, Mapping):
        return list(_modules(result.values()))
    if isinstance(result, (tuple, list)):
        return list(_modules(result))
    return list(_modules(_attributes([result])))


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside wrappers for compiling or for several devices."""
    for name in ("_orig_mod", "module"):
        inner = getattr(model, name, None)
        if isinstance(inner, torch.nn.Module) and type(model).__module__.startswith("torch."):
            return unwrapped(inner)
    return model


def _modules(values: Iterable[Any]) -> Iterator[torch.nn.Module]:
    return (value for value in values if isinstance(value, torch.nn.Module))


def _attributes(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (torch.nn.Module, torch.Tensor, ModuleType, type, Callable)):  # type: ignore[arg-type]
            continue
        if isinstance(value, Mapping):
            yield from value.values()
        elif isinstance(value, (list, tuple)):
            yield from value[:16]
        elif hasattr(value, "__dict__"):
            yield from vars(value).values()
