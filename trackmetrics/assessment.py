"""What a run's figures are: finds model and data where the user's program has them, and works out each value.

A value that can't be had is null, and is said once, with the line that would supply it.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import numpy as np
import torch

from .array_types import single_or_double
from .errors import ArgumentError
from .instruments import evaluation, final_inference, hyperparameters
from .instruments.data import UnreadableError
from .instruments.discovery import DEV_ROLES, Found, Scope, find_data, find_model, model_in, smallest_owner, unwrapped
from .instruments.events import heard_by
from .instruments.gradient_norm import NormSummary
from .instruments.metric_objects import MetricObjects
from .instruments.pairing import PairingError
from .instruments.said_values import SaidValues
from .instruments.training import Observation, Training
from .instruments.undisturbed import undisturbed
from .notices import Notices
from .options import Options
from .record import METRIC_KEYS, FinalInference, FinalResults
from .users_metrics import UsersMetrics

_EPOCH_ARGUMENTS = ("num_epochs", "epochs", "n_epochs", "max_epochs", "num_train_epochs")
_last_path: weakref.WeakKeyDictionary[torch.nn.Module, str] = weakref.WeakKeyDictionary()
_WATCH = "name it with `tracker.watch(model)`"


class Assessment:
    """Works out one run's values; holds model and data only while the run lives.

    `seconds` is what evaluation and inference took, `attention` the manifest of the maps in the final inference,
    `users_metrics` what the user gave as `metrics=`.
    """

    def __init__(
        self,
        options: Options,
        training: Training,
        notices: Notices,
        arguments: Mapping[str, Any],
        clock: Callable[[], float],
    ) -> None:
        self.seconds = {"evaluation": 0.0, "inference": 0.0}
        self.attention: dict[str, Any] | None = None
        self._options = options
        self._training = training
        self._notices = notices
        self._arguments = arguments
        self._clock = clock
        self._watched: torch.nn.Module | None = None
        self._model: torch.nn.Module | None = None
        self._device: torch.device | None = None
        self._train = _given("train", options.train)
        self._dev = _given("dev", options.dev)
        self.users_metrics = UsersMetrics(options.metrics, training, notices)
        self._schedulers: list[Any] = []
        self._namespaces: dict[str, Any] = {}
        self._seed: int | None = None

    def watch(self, model: torch.nn.Module) -> None:
        """The user says which model is trained."""
        if not isinstance(model, torch.nn.Module):
            raise ArgumentError(f"watch() was given a {type(model).__name__}; give the torch.nn.Module that is trained")
        self._watched = model

    def epoch_begins(self) -> None:
        """Note the seed, before anything of the first epoch is drawn."""
        if self._seed is None:
            self._seed = torch.initial_seed()

    # An epoch

    def assess(
        self, number: int, values: SaidValues, frame: FrameType | None
    ) -> tuple[dict[str, float | None], dict[str, Any], dict[str, Any]]:
        """Give an epoch's own values, those the user logged under other names, and its gradient norms in summary."""
        observation = self._observed()
        scope = Scope()
        with self._spared("model and data"):
            scope = Scope.of(self._arguments, frame)
        with self._spared("the model"):
            self._look_for_model(scope)
        with self._spared("the data"):
            self._look_for_data(scope)
        with self._spared("the parsed arguments"):
            self._namespaces = hyperparameters.spread(scope.parsed_arguments())
        said, metrics = self._said(values)
        measured: dict[str, Any] = {}
        wanted: MetricObjects | None = None
        with self._spared("metrics="):
            measured |= self.users_metrics.of_training(metrics)
            wanted = self.users_metrics.wanted(number % self._options.evaluate_every == 0, metrics)
        found = {
            "train_loss": observation.loss,
            "train_accuracy": observation.accuracy,
            "gradient_norm": observation.norm.mean,
        }
        if "dev_accuracy" not in said:
            with self._spared("your own evaluation"):
                found["dev_accuracy"] = self._evaluated_by_user(observation)
            if found.get("dev_accuracy") is None and number % self._options.evaluate_every == 0:
                with self._spared("dev_accuracy"):
                    found["dev_accuracy"] = self._dev_accuracy(wanted)
        with self._spared("metrics="):
            measured |= self.users_metrics.of_dev(wanted, metrics, self._feed_with_dev)
        own = {key: said[key] if key in said else found.get(key) for key in METRIC_KEYS}
        with self._spared("what is missing"):
            self._say_what_is_missing(own, said, observation)
        for name, fault in values.faults.items():
            self._notices.say(f"log {name}", f"{name} is null: {fault}")
        return own, {**measured, **metrics}, _summary(observation.norm) if observation.norm_fault is None else {}

    def _observed(self) -> Observation:
        try:
            return self._training.take()
        except Exception as error:
            self._training.failed("take", error)  # what it has counted would go into the next epoch
            fault = self._training.metrics_fault
            return Observation(None, None, NormSummary(), fault, fault, fault, None)

    def _said(self, values: SaidValues) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            return values.take()
        except Exception as error:
            values.spoil(values.names, error)
            return {key: None for key in METRIC_KEYS if key in values.names}, {}

    def _look_for_model(self, scope: Scope) -> None:
        trained = self._training.trained()
        model = self._watched or find_model(scope, trained)
        if model is not None:
            self._model = model
        parameter = next(iter(self._model.parameters() if self._model is not None else trained), None)
        if parameter is not None:
            self._device = parameter.device
        schedulers = hyperparameters.find_schedulers(scope.layers(), self._training.optimizers())
        self._schedulers = schedulers or self._schedulers

    def _look_for_data(self, scope: Scope) -> None:
        if self._options.train is None:
            self._train = find_data(scope, ("train",)) or self._train
        if self._options.dev is None:
            self._dev = find_data(scope, DEV_ROLES) or self._dev or self._last_resort(scope)

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

    def _say_what_is_missing(
        self, own: Mapping[str, float | None], said: Mapping[str, Any], observation: Observation
    ) -> None:
        nothing_trained = "no backward was seen in the epoch"
        no_accuracy = self._training.pairing is not None and not self._training.pairing.has_accuracy
        nothing_finite = "no step has a finite norm" if observation.norm.steps else nothing_trained
        by_hand = (
            "no optimizer stepped, and gradients of torch.autograd.grad that the loop applies itself can't be seen"
        )
        owners = self._training.owners()
        idle = f"the optimizer of what is trained ({', '.join(owners)}) never stepped" if owners else by_hand
        unseen = nothing_finite if observation.norm.steps else idle
        reasons = {
            "train_loss": observation.loss_fault or nothing_trained,
            "train_accuracy": observation.accuracy_fault or ("" if no_accuracy else nothing_trained),
            "gradient_norm": observation.norm_fault or (unseen if observation.loss is not None else nothing_finite),
        }
        mends = {
            "train_loss": "say it with `epoch.update(loss=loss, target=target)`",
            "train_accuracy": "say it with `epoch.update(output=output, target=target)`",
            "gradient_norm": "say it with `epoch.log(gradient_norm=norm)`",
        }
        for key, reason in reasons.items():
            if own[key] is None and key not in said and reason:
                self._notices.say(key, f"{key} is null: {reason}; {mends[key]}")

    # Evaluation

    def _evaluated_by_user(self, observation: Observation) -> float | None:
        """The accuracy over the dev set, where the epoch's body has evaluated it; `evaluate=` says more than that."""
        evaluations = observation.evaluations
        if evaluations is None or self._options.evaluate is not None or self._model is None or not self._dev:
            return None
        began = self._clock()
        accuracy = None
        with self._spared("your own evaluation of the dev set"):
            accuracy = evaluations.accuracy(self._model, self._dev[0].data, self._training.pairing)
        self.seconds["evaluation"] += self._clock() - began
        return accuracy

    def _dev_accuracy(self, metrics: MetricObjects | None = None) -> float | None:
        return self._accuracy("dev_accuracy", "dev", self._dev, metrics)

    def _accuracy(
        self, key: str, role: str, candidates: list[Found], metrics: MetricObjects | None = None
    ) -> float | None:
        """The accuracy over the first of the sets that can be evaluated; None, said once, where none can.

        `metrics` of the user's are fed with the set meanwhile.
        """
        pairing = self._training.pairing
        evaluate = self._options.evaluate
        if evaluate is None and pairing is not None and not pairing.has_accuracy:
            return None  # regression: there is nothing to say
        mend = "give `evaluate=`, a function of model and data"
        if self._model is None:
            self._notices.say(key, f"{key} is null: {self._why_no_model()}; {_WATCH}")
            return None
        if evaluate is None and pairing is None:
            self._notices.say(key, f"{key} is null: {self._training.why_unpaired}; {mend}")
            return None
        if not candidates and (evaluate is None or role == "train"):
            named = "train, train_loader" if role == "train" else "dev, val_loader"
            self._notices.say(
                key,
                f"{key} is null: no {role} set was found in the function's parameters, its locals or the globals "
                f"by a name such as {named}; give `{role}=`",
            )
            return None
        began = self._clock()
        try:
            return self._first_accuracy(key, candidates, mend, metrics)
        finally:
            self.seconds["evaluation"] += self._clock() - began

    def _first_accuracy(
        self, key: str, candidates: list[Found], mend: str, metrics: MetricObjects | None
    ) -> float | None:
        faults = []
        for found in candidates or [Found("None", None, "")]:
            try:
                value = self._accuracy_over(found.data, metrics)
            except Exception as error:
                faults.append(f"{found.name!r} can't be evaluated ({_reason(error)})")
                continue
            candidates[:] = [found] if candidates else []
            return value
        self._notices.say(key, f"{key} is null: {'; '.join(faults)}; {mend}")
        if metrics is not None:
            metrics.spoil("; ".join(faults))
        return None

    def _accuracy_over(self, data: Any, metrics: MetricObjects | None) -> float | None:
        assert self._model is not None
        evaluate, pairing = self._options.evaluate, self._training.pairing
        if evaluate is None:
            assert pairing is not None
            return evaluation.accuracy(self._model, data, pairing, metrics)
        with undisturbed(self._model, data, evaluate), heard_by(None):
            return float(evaluate(self._model, data))

    def _why_no_model(self) -> str:
        if not self._training.trained():
            return "no parameter was trained, so the model isn't known"
        return "no single module in reach owns everything that was trained"

    def _feed_with_dev(self, metrics: MetricObjects) -> None:
        """Go through the dev set for the user's metrics alone."""
        pairing = self._training.pairing
        if self._options.evaluate is not None:
            metrics.spoil("evaluate= takes the place of the pass that would feed it")
        elif self._model is None:
            metrics.spoil(f"{self._why_no_model()}; {_WATCH}")
        elif pairing is None or not self._dev:
            metrics.spoil(self._training.why_unpaired if pairing is None else "no dev set was found; give `dev=`")
        else:
            began = self._clock()
            faults = []
            for found in self._dev:
                try:
                    evaluation.accuracy(self._model, found.data, pairing, metrics)
                    break
                except Exception as error:
                    faults.append(f"{found.name!r} can't be evaluated ({_reason(error)})")
            else:
                metrics.spoil("; ".join(faults))
            self.seconds["evaluation"] += self._clock() - began

    # The end

    def conclude(self, returned: Any, seconds: float) -> tuple[FinalResults, FinalInference | None]:
        """The final accuracies with the final weights, and the final inference."""
        with self._spared("the model"):
            self._model = self._final_model(returned)
        if not self._train and not self._dev:  # no epoch has looked
            with self._spared("the data"):
                self._look_for_data(Scope(self._arguments))
        train = dev = inference = None
        if self._options.final_train_accuracy:
            with self._spared("final_results.train_accuracy"):
                train = self._accuracy("final_results.train_accuracy", "train", self._train)
        with self._spared("final_results.dev_accuracy"):
            dev = self._dev_accuracy()
        began = self._clock()
        with self._spared("final_inference"):
            inference = self._final_inference()
        self.seconds["inference"] = self._clock() - began
        return FinalResults(train, dev, seconds), inference

    def trained_before(self, path: str) -> bool:
        """Whether the last run that wrote to `path` trained this very model; remembers this one."""
        if self._model is None:
            return False
        before = _last_path.get(self._model)
        _last_path[self._model] = path
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
        if self._model is None:
            return candidates[0] if len(candidates) == 1 else None
        trained_type = type(unwrapped(self._model))
        reloaded = [model for model in candidates if type(unwrapped(model)) is trained_type]
        return reloaded[0] if len(reloaded) == 1 else self._model

    def _final_inference(self) -> FinalInference | None:
        key = "final_inference"
        if self._model is None:
            self._notices.say(key, f"{key} is null: {self._why_no_model()}; {_WATCH}")
            return None
        finalize = self._options.finalize
        fault = self._training.metrics_fault
        if finalize is None and self._training.pairing is None and fault is not None:
            self._notices.say(key, f"{key} is null: {fault}; give `finalize=`, a function of model and example")
            return None
        faults = []
        for found in self._example_sources():
            try:
                return self._infer(found) if finalize is None else self._finalized(finalize, found)
            except Exception as error:
                faults.append(f"{found.name!r}: {_reason(error)}")
        reason = "; ".join(faults) or "no dev set was found"
        self._notices.say(
            key,
            f"{key} is null: the first dev example can't be run through the model ({reason}); "
            "give `example=`, or `finalize=`, a function of model and example",
        )
        return None

    def _example_sources(self) -> list[Found]:
        example = self._options.example
        return self._dev if example is None else [Found("example", example, "example")]

    def _example(self, found: Found) -> final_inference.Example:
        assert self._model is not None
        pairing = self._training.pairing
        if found.role == "example":
            return final_inference.named_example(self._model, found.data, pairing)
        return final_inference.first_example(self._model, found.data, pairing)

    def _infer(self, found: Found) -> FinalInference:
        assert self._model is not None
        example = self._example(found)
        inference, attention = final_inference.infer(
            self._model, example, self._training.pairing, self._options.describe, self._options.attention
        )
        self.attention = attention.described
        if attention.fault is not None:
            what = "may lack layers" if len(inference.attention_weights) else "is []"
            self._notices.say(
                "attention_weights",
                f"final_inference.attention_weights {what}: {attention.fault}; "
                "give `finalize=`, a function of model and example",
            )
        return inference

    def _finalized(self, finalize: Callable[[Any, Any], Any], found: Found) -> FinalInference:
        assert self._model is not None
        raw = found.data if found.role == "example" else final_inference.raw_example(found.data)
        with undisturbed(self._model, found.data, finalize), heard_by(None):
            result = finalize(self._model, raw)
        return _as_inference(result)

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
        model = {} if self._model is None else hyperparameters.of_model(self._model, self._training.constructed)
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
        data = {id(found.data) for found in (*self._train, *self._dev)}
        own = {name: value for name, value in self._arguments.items() if id(value) not in data}
        return {**self._namespaces, **hyperparameters.spread(own)}

    def _batch_size(self) -> int | None:
        sizes = [getattr(found.data, "batch_size", None) for found in self._train]
        return next((size for size in sizes if isinstance(size, int)), None)

    @contextlib.contextmanager
    def _spared(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._notices.say(what, f"{what} could not be had: {error!r}")


def _given(role: str, data: Any) -> list[Found]:
    return [] if data is None else [Found(role, data, role)]


def _planned(arguments: Mapping[str, Any]) -> int | None:
    return next((arguments[name] for name in _EPOCH_ARGUMENTS if isinstance(arguments.get(name), int)), None)


def _reason(error: Exception) -> str:
    if isinstance(error, (UnreadableError, PairingError)):
        return str(error)
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _summary(norm: NormSummary) -> dict[str, Any]:
    return {
        "min": norm.min,
        "median": norm.median,
        "max": norm.max,
        "steps": norm.steps,
        "skipped_steps": norm.skipped_steps,
        "non_finite_steps": norm.non_finite_steps,
    }


def _as_inference(result: Any) -> FinalInference:
    """What a user's `finalize` returned, checked."""
    if isinstance(result, FinalInference):
        result = {name: getattr(result, name) for name in FinalInference.__dataclass_fields__}
    keys = list(FinalInference.__dataclass_fields__)
    if not isinstance(result, Mapping) or set(result) != set(keys):
        shown = sorted(map(str, result)) if isinstance(result, Mapping) else type(result).__name__
        raise ArgumentError(f"finalize returned {shown}; return a FinalInference, or a dict of {', '.join(keys)}")
    if not isinstance(result["example_input"], str):
        raise ArgumentError(f"finalize's example_input is a {type(result['example_input']).__name__}; give a string")
    log_probs = None if result["log_probs"] is None else _array(result["log_probs"], "log_probs", 2)
    return FinalInference(
        result["example_input"], log_probs, _array(result["attention_weights"], "attention_weights", 3)
    )


def _array(value: Any, name: str, dimensions: int) -> Any:
    """What a user's `finalize` gave for a matrix: an array, a tensor, or nested lists of numbers or tensors."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, torch.Tensor) for item in value):
        value = torch.stack([item.detach() for item in value])
    if isinstance(value, torch.Tensor):
        narrow = value.is_floating_point() and value.element_size() < 4  # NumPy has no bfloat16, nor 8 bits
        value = (value.float() if narrow else value).numpy(force=True)
    array = np.asarray(value)
    if array.size == 0:
        return np.zeros((0,) * dimensions, np.float32)
    if array.ndim != dimensions or array.dtype.kind not in "fiub":
        raise ArgumentError(
            f"finalize's {name} is an array of shape {array.shape} and type {array.dtype}; "
            f"give {dimensions} dimensions of numbers"
        )
    return single_or_double(array)
