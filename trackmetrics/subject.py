"""What a run trains, and with which data: said by the user, or found in their program."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch

from .errors import ArgumentError
from .instruments import hyperparameters
from .instruments.discovery import DEV_ROLES, Found, Scope, find_data, find_model, model_in, smallest_owner, unwrapped
from .instruments.training import Training
from .notices import Notices
from .options import Options

_EPOCH_ARGUMENTS = ("num_epochs", "epochs", "n_epochs", "max_epochs", "num_train_epochs")

_last_path: weakref.WeakKeyDictionary[torch.nn.Module, str] = weakref.WeakKeyDictionary()


class Subject:
    """One run's model, its data, and their hyperparameters; they are held only while the run lives.

    `train` and `dev` are the sets that may be meant, the first one most likely.
    """

    def __init__(self, options: Options, training: Training, notices: Notices, arguments: Mapping[str, Any]) -> None:
        self.model: torch.nn.Module | None = None
        self.train = _given("train", options.train)
        self.dev = _given("dev", options.dev)
        self._options = options
        self._training = training
        self._notices = notices
        self._arguments = arguments
        self._watched: torch.nn.Module | None = None
        self._device: torch.device | None = None
        self._schedulers: list[Any] = []
        self._namespaces: dict[str, Any] = {}
        self._seed: int | None = None

    def watch(self, model: torch.nn.Module) -> None:
        """The user says which model is trained."""
        if not isinstance(model, torch.nn.Module):
            raise ArgumentError(f"watch() was given a {type(model).__name__}; give the torch.nn.Module that is trained")
        self._watched = model

    def learn(self, arguments: Mapping[str, Any], model: torch.nn.Module | None) -> None:
        """A trainer says what it trains, with which data and settings; the user's `watch` wins over its model."""
        self._arguments = {**self._arguments, **arguments}
        self._watched = self._watched or model

    def epoch_begins(self) -> None:
        """Note the seed, before anything of the first epoch is drawn."""
        if self._seed is None:
            self._seed = torch.initial_seed()

    # Looking

    def look(self, frame: FrameType | None) -> None:
        """Look for model and data where an epoch ends: in the call's arguments, the user's `frame`, its globals."""
        scope = Scope()
        with self._notices.sparing("model and data"):
            scope = Scope.of(self._arguments, frame)
        with self._notices.sparing("the model"):
            self._look_for_model(scope)
        with self._notices.sparing("the data"):
            self._look_for_data(scope)
        with self._notices.sparing("the parsed arguments"):
            self._namespaces = hyperparameters.spread(scope.parsed_arguments())

    def look_at_the_end(self, returned: Any) -> None:
        """Take the model as it stands then; `returned` is what the decorated function gave back."""
        with self._notices.sparing("the model"):
            self.model = self._final_model(returned)
        if not self.train and not self.dev:  # no epoch has looked
            with self._notices.sparing("the data"):
                self._look_for_data(Scope(self._arguments))

    @property
    def why_no_model(self) -> str:
        """Why the model isn't known, where it isn't, and how to mend it."""
        why = "no single module in reach owns everything that was trained"
        if not self._training.trained():
            why = "no parameter was trained, so the model isn't known"
        return f"{why}; name it with `tracker.watch(model)`"

    def _look_for_model(self, scope: Scope) -> None:
        trained = self._training.trained()
        model = self._watched or find_model(scope, trained)
        if model is not None:
            self.model = model
        parameter = next(iter(self.model.parameters() if self.model is not None else trained), None)
        if parameter is not None:
            self._device = parameter.device
        schedulers = hyperparameters.find_schedulers(scope.layers(), self._training.optimizers())
        self._schedulers = schedulers or self._schedulers

    def _look_for_data(self, scope: Scope) -> None:
        if self._options.train is None:
            self.train = find_data(scope, ("train",)) or self.train
        if self._options.dev is None:
            self.dev = find_data(scope, DEV_ROLES) or self.dev or self._last_resort(scope)

    def _last_resort(self, scope: Scope) -> list[Found]:
        """A test set, where there is no other; that is said."""
        found = find_data(scope, ("test",))
        if found:
            self._notices.say(
                "test set",
                f"the dev set is {found[0].name!r}: nothing named dev, val, valid or eval was found; "
                "if that isn't meant, give dev=",
            )
        return found

    def trained_before(self, path: str) -> bool:
        """Whether the last run that wrote to `path` trained this very model; remembers this one."""
        if self.model is None:
            return False
        before = _last_path.get(self.model)
        _last_path[self.model] = path
        return before == path

    def _final_model(self, returned: Any) -> torch.nn.Module | None:
        """The model as it stands at the end: it may have been loaded anew after the last epoch."""
        if self._watched is not None:
            return self._watched
        candidates = model_in(returned)
        trained = {id(parameter) for parameter in self._training.trained()}
        owner = smallest_owner(candidates, trained) if trained else None
        if owner is not None:
            return owner
        if self.model is None:
            return candidates[0] if len(candidates) == 1 else None
        trained_type = type(unwrapped(self.model))
        reloaded = [model for model in candidates if type(unwrapped(model)) is trained_type]
        return reloaded[0] if len(reloaded) == 1 else self.model

    # Hyperparameters

    @property
    def device(self) -> str | None:
        """The type of the device that the model's parameters are on."""
        return None if self._device is None else self._device.type

    @property
    def device_name(self) -> str | None:
        """The accelerator's own name; None on a CPU."""
        if self._device is None or self._device.type != "cuda":
            return None
        return torch.cuda.get_device_name(self._device)

    def hyperparameters(self, epochs_done: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The model's and the training's hyperparameters, as far as they are known by now."""
        model = {} if self.model is None else hyperparameters.of_model(self.model, self._training.constructed)
        arguments = self._plain_arguments()
        planned = _planned(arguments)
        training = {
            **arguments,
            "num_epochs": epochs_done if planned is None else planned,
            "batch_size": self._batch_size() or arguments.get("batch_size"),
            "learning_rate": arguments.get("learning_rate"),
            **{
                name: value
                for name, value in self._training.observed_hyperparameters(self._schedulers).items()
                if value is not None or name not in arguments
            },
            "seed": arguments.get("seed", self._seed),
        }
        given = self._options.given_hyperparameters
        return {**model, **given("model")}, {**training, **given("training")}

    def planned_epochs(self) -> int | None:
        """How many epochs the user means to train, as far as arguments or `hyperparameters=` say."""
        planned = self._options.given_hyperparameters("training").get("num_epochs", _planned(self._plain_arguments()))
        return planned if isinstance(planned, int) and not isinstance(planned, bool) else None

    def _plain_arguments(self) -> dict[str, Any]:
        data = {id(found.data) for found in (*self.train, *self.dev)}
        own = {name: value for name, value in self._arguments.items() if id(value) not in data}
        return {**self._namespaces, **hyperparameters.spread(own)}

    def _batch_size(self) -> int | None:
        data = [found.data for found in self.train]
        samplers = [getattr(loader, "batch_sampler", None) for loader in data]
        sizes = [getattr(item, "batch_size", None) for item in (*data, *samplers)]
        return next((size for size in sizes if isinstance(size, int)), None)


def _given(role: str, data: Any) -> list[Found]:
    return [] if data is None else [Found(role, data, role)]


def _planned(arguments: Mapping[str, Any]) -> int | None:
    return next((arguments[name] for name in _EPOCH_ARGUMENTS if isinstance(arguments.get(name), int)), None)
