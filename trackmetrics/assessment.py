"""What a run's figures are: finds model and data where the user's program has them, and works out each value.

A value that can't be had is null, and is said once, with the line that would supply it.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any, NamedTuple

import torch

from .errors import ArgumentError
from .instruments import evaluation, final_inference, hyperparameters
from .instruments.discovery import DEV_ROLES, Found, Scope, find_data, find_model, model_in, smallest_owner, unwrapped
from .instruments.division import Division, collective, without_replication
from .instruments.events import heard_by
from .instruments.figures import Figures, NormSummary, Share, add, together
from .instruments.metric_objects import MetricObjects
from .instruments.said_values import SaidValues
from .instruments.training import Observation, Training
from .instruments.undisturbed import undisturbed
from .joint_evaluation import NotEvaluatedError, evaluate_together, reason_of
from .meetings import RanksApartError
from .notices import Notices
from .options import Options
from .ranks import Ranks
from .record import METRIC_KEYS, FinalInference, FinalResults
from .users_inference import inference_of
from .users_metrics import UsersMetrics

_EPOCH_ARGUMENTS = ("num_epochs", "epochs", "n_epochs", "max_epochs", "num_train_epochs")
_last_path: weakref.WeakKeyDictionary[torch.nn.Module, str] = weakref.WeakKeyDictionary()
_TRAINING_KEYS = ("train_loss", "train_accuracy", "gradient_norm")
_WATCH = "name it with `tracker.watch(model)`"


class _Joint(NamedTuple):
    """What the ranks have together of an epoch's training.

    What the user `said` and `evaluated`; whether it is time that the run `evaluates`, and whether it `measures` with
    the user's metrics.
    """

    figures: Figures
    said: Mapping[str, Any]
    evaluated: float | None = None
    evaluates: bool = False
    measures: bool = False


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
        ranks: Ranks,
        arguments: Mapping[str, Any],
        clock: Callable[[], float],
    ) -> None:
        self.seconds = {"evaluation": 0.0, "inference": 0.0}
        self.attention: dict[str, Any] | None = None
        self._options = options
        self._training = training
        self._notices = notices
        self._ranks = ranks
        self._arguments = arguments
        self._clock = clock
        self._watched: torch.nn.Module | None = None
        self._model: torch.nn.Module | None = None
        self._device: torch.device | None = None
        self._train = _given("train", options.train)
        self._dev = _given("dev", options.dev)
        self.users_metrics = UsersMetrics(options.metrics, training, ranks, notices)
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
        shares, (logged, metrics) = self._shares(values), self._said(values)
        evaluated = None
        if "dev_accuracy" not in logged:
            with self._spared("your own evaluation"):
                evaluated = self._evaluated_by_user(observation)
        offer = {
            "figures": observation.figures.plain(),
            "shares": shares,
            "said": logged,
            "evaluated": evaluated,
            "evaluates": number % self._options.evaluate_every == 0,
            "measures": self.users_metrics.given,
        }
        joint = self._of_all_ranks(offer)
        dev_accuracy, measured = self._evaluated_and_measured(joint, metrics)
        figures = joint.figures
        norm = figures.norms.summary() if "gradient_norm" not in figures.faults else NormSummary()
        found = {
            "train_loss": None if "train_loss" in figures.faults else figures.loss.mean,
            "train_accuracy": None if "train_accuracy" in figures.faults else figures.accuracy.mean,
            "dev_accuracy": dev_accuracy,
            "gradient_norm": norm.mean,
        }
        own = {key: joint.said[key] if key in joint.said else found[key] for key in METRIC_KEYS}
        with self._spared("what is missing"):
            self._say_what_is_missing(own, joint.said, figures.faults, norm.steps)
        for name, fault in values.faults.items():
            self._notices.say(f"log {name}", f"{name} is null: {fault}")
        return own, {**measured, **metrics}, _summary(norm) if "gradient_norm" not in figures.faults else {}

    def _observed(self) -> Observation:
        try:
            return self._training.take()
        except Exception as error:
            self._training.failed("take", error)  # what it has counted would go into the next epoch
            return Observation(Figures(faults=dict.fromkeys(_TRAINING_KEYS, self._training.metrics_fault or "")))

    def _of_all_ranks(self, offer: dict[str, Any]) -> _Joint:
        try:
            joint = self._ranks.exchange("training", offer, _joined)
        except RanksApartError as error:
            self._say_apart("the epoch's train_loss, train_accuracy, dev_accuracy and gradient_norm are", error)
            figures = Figures(faults=dict.fromkeys(_TRAINING_KEYS, ""))
            return _Joint(figures, offer["said"], measures=offer["measures"])
        return _Joint(**{**joint, "figures": Figures.of(joint["figures"])})

    def _say_apart(self, what: str, error: RanksApartError) -> None:
        """The ranks didn't meet: once for each reason, however many values it costs."""
        self._notices.say(f"ranks: {error}", f"{what} null: {error}")

    def _shares(self, values: SaidValues) -> dict[str, Share]:
        try:
            return values.shares()
        except Exception as error:
            values.spoil(("train_loss", "train_accuracy"), error)
            return {}

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
        self, own: Mapping[str, float | None], said: Mapping[str, Any], faults: Mapping[str, str], steps: int
    ) -> None:
        nothing_trained = "no backward was seen in the epoch"
        no_accuracy = self._training.pairing is not None and not self._training.pairing.has_accuracy
        nothing_finite = "no step has a finite norm" if steps else nothing_trained
        by_hand = (
            "no optimizer stepped, and gradients of torch.autograd.grad that the loop applies itself can't be seen"
        )
        owners = self._training.owners()
        idle = f"the optimizer of what is trained ({', '.join(owners)}) never stepped" if owners else by_hand
        unseen = nothing_finite if steps else idle
        reasons = {
            "train_loss": nothing_trained,
            "train_accuracy": "" if no_accuracy else nothing_trained,
            "gradient_norm": unseen if own["train_loss"] is not None else nothing_finite,
            **faults,
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

    def _evaluated_and_measured(self, joint: _Joint, said: Mapping[str, Any]) -> tuple[float | None, dict[str, Any]]:
        """The dev accuracy, and the values of `metrics=`: where both want the dev set, in one pass.

        Of the metrics those that the user has `said` aren't missing.
        """
        accuracy = joint.evaluated
        measured: dict[str, Any] = {}
        wanted: MetricObjects | None = None
        if joint.measures:
            with self._spared("metrics="):
                measured, wanted = self.users_metrics.of_training(said, joint.evaluates)
        if wanted is not None and self._options.evaluate is not None:
            wanted.spoil("evaluate= takes the place of the pass that would feed it")
        if "dev_accuracy" not in joint.said and accuracy is None and joint.evaluates:
            with self._spared("dev_accuracy", wanted):
                accuracy = self._dev_accuracy(wanted)
        elif wanted is not None and self._options.evaluate is None:
            try:
                self._feed_with_dev(wanted)
            except Exception as error:
                wanted.failed(error)
        if joint.measures:
            with self._spared("metrics="):
                measured = {**measured, **self.users_metrics.of_dev(wanted, said)}
        return accuracy, measured

    def _evaluated_by_user(self, observation: Observation) -> float | None:
        """The accuracy over the dev set, where the epoch's body has evaluated it; `evaluate=` says more than that."""
        evaluations = observation.evaluations
        if evaluations is None or self._options.evaluate is not None or self._model is None or not self._dev:
            return None
        if collective(self._model):  # the others may have evaluated nothing, and the comparison runs the model
            return None
        began = self._clock()
        accuracy = None
        with self._spared("your own evaluation of the dev set"):
            model = without_replication(self._model)
            accuracy = evaluations.accuracy(model, self._dev[0].data, self._training.pairing)
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
        try:
            return self._evaluated(key, role, candidates, metrics)
        except RanksApartError as error:
            self._say_apart(f"{key} is", error)
        except NotEvaluatedError as error:
            if error.why:
                self._notices.say(key, f"{key} is null: {error}")
        return None

    def _feed_with_dev(self, metrics: MetricObjects) -> None:
        """Go through the dev set for the user's metrics alone."""
        with contextlib.suppress(RanksApartError, NotEvaluatedError):  # the metrics know
            self._evaluated("dev_accuracy", "dev", self._dev, metrics)

    def _evaluated(
        self, key: str, role: str, candidates: list[Found], metrics: MetricObjects | None = None
    ) -> float | None:
        """The accuracy over the first of the sets that can be evaluated; None of a regression, which has none.

        Raises `NotEvaluatedError` and `RanksApartError`; then `metrics` have no value.
        """
        began = self._clock()
        pairing = self._training.pairing
        judges = pairing is None or pairing.has_accuracy or self._options.evaluate is not None
        try:
            accuracy, found = evaluate_together(
                self._ranks,
                key,
                candidates or [Found("None", None, "")],
                functools.partial(self._count, metrics),
                obstacle=self._obstacle(role, candidates) if judges or metrics is not None else "",
                model=self._model,
                targets=0 if pairing is None else pairing.targets,
                called=self._options.evaluate is not None,
            )
        except (RanksApartError, NotEvaluatedError) as error:
            if metrics is not None:
                metrics.spoil(error.why)
            raise
        finally:
            self.seconds["evaluation"] += self._clock() - began
        candidates[:] = [found] if candidates else []
        return accuracy if judges else None

    def _obstacle(self, role: str, candidates: list[Found]) -> str | None:
        """What keeps a set from being evaluated, with the way to mend it."""
        pairing, evaluate = self._training.pairing, self._options.evaluate
        if self._model is None:
            return f"{self._why_no_model()}; {_WATCH}"
        if evaluate is None and pairing is None:
            return f"{self._training.why_unpaired}; give `evaluate=`, a function of model and data"
        if not candidates and (evaluate is None or role == "train"):
            named = "train, train_loader" if role == "train" else "dev, val_loader"
            return (
                f"no {role} set was found in the function's parameters, its locals or the globals by a name such as "
                f"{named}; give `{role}=`"
            )
        return None

    def _count(self, metrics: MetricObjects | None, data: Any, division: Division, targets: int) -> Share:
        """This rank's part of an accuracy: by the training's pairing, or by the user's function."""
        assert self._model is not None
        model = without_replication(self._model)
        evaluate, pairing = self._options.evaluate, self._training.pairing
        if evaluate is None:
            assert pairing is not None
            pairing = replace(pairing, targets=targets)
            share = evaluation.right_predictions(model, data, pairing, division, metrics)
            return share if pairing.has_accuracy else Share(0.0, 1.0)  # the metrics were fed, nothing was judged
        with undisturbed(model, data, evaluate), heard_by(None):
            value = float(evaluate(model, data))
        return Share(value, 1.0) if division.counts else Share()

    def _why_no_model(self) -> str:
        if not self._training.trained():
            return "no parameter was trained, so the model isn't known"
        return "no single module in reach owns everything that was trained"

    # The end

    def conclude(self, returned: Any, seconds: float) -> tuple[FinalResults, FinalInference | None]:
        """The final accuracies with the final weights, and the final inference."""
        self._ranks.next_stage()
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
            if self._takes_part_in_inference():
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

    def _takes_part_in_inference(self) -> bool:
        """Whether this rank runs the model on the first dev example: the first one, and all if that takes all."""
        own = [self._model is not None and bool(self._example_sources()), collective(self._model)]
        try:
            able, needed = self._ranks.exchange("final_inference", own, _able)
        except RanksApartError as error:
            if own[1]:
                self._say_apart("final_inference is", error)
            return not own[1] and self._ranks.writes
        if needed and not able:
            self._notices.say(
                "final_inference",
                "final_inference is null: the model needs every rank, and not each has it and the example in reach",
            )
            return False
        return needed or self._ranks.writes

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
                faults.append(f"{found.name!r}: {reason_of(error)}")
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
            return final_inference.named_example(without_replication(self._model), found.data, pairing)
        return final_inference.first_example(without_replication(self._model), found.data, pairing)

    def _infer(self, found: Found) -> FinalInference:
        assert self._model is not None
        example = self._example(found)
        inference, attention = final_inference.infer(
            without_replication(self._model),
            example,
            self._training.pairing,
            self._options.describe,
            self._options.attention,
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
        model = without_replication(self._model)  # which this rank can run alone
        with undisturbed(model, found.data, finalize), heard_by(None):
            result = finalize(model, raw)
        return inference_of(result)

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
        data = [found.data for found in self._train]
        samplers = [getattr(loader, "batch_sampler", None) for loader in data]
        sizes = [getattr(item, "batch_size", None) for item in (*data, *samplers)]
        return next((size for size in sizes if isinstance(size, int)), None)

    @contextlib.contextmanager
    def _spared(self, what: str, metrics: MetricObjects | None = None) -> Iterator[None]:
        """A fault of ours costs `what`, and what the user's `metrics` were to be fed with."""
        try:
            yield
        except Exception as error:
            if metrics is not None:
                metrics.failed(error)
            self._notices.say(what, f"{what} could not be had: {error!r}")


def _given(role: str, data: Any) -> list[Found]:
    return [] if data is None else [Found(role, data, role)]


def _planned(arguments: Mapping[str, Any]) -> int | None:
    return next((arguments[name] for name in _EPOCH_ARGUMENTS if isinstance(arguments.get(name), int)), None)


def _able(ranks: Sequence[Sequence[bool]]) -> list[bool]:
    """Whether all ranks are able to run the model, and whether some say that it takes them all."""
    return [all(able for able, _ in ranks), len(ranks) > 1 and any(needed for _, needed in ranks)]


def _joined(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put what the ranks offer of an epoch together; what a user says by name on several counts of the first."""
    shares: dict[str, list[Share]] = {}
    logged: dict[str, Any] = {}
    for offer in ranks:
        for name, share in offer["shares"].items():
            shares.setdefault(name, []).append(share)
        logged = {**offer["said"], **logged}
    evaluated = [offer["evaluated"] for offer in ranks if offer["evaluated"] is not None]
    return {
        "figures": together([offer["figures"] for offer in ranks]),
        "said": {**{name: add(parts).mean for name, parts in shares.items()}, **logged},
        "evaluated": evaluated[0] if len(set(evaluated)) == 1 else None,  # else each may have evaluated its own part
        "evaluates": ranks[0]["evaluates"],
        "measures": ranks[0]["measures"],
    }


def _summary(norm: NormSummary) -> dict[str, Any]:
    return {
        "min": norm.min,
        "median": norm.median,
        "max": norm.max,
        "steps": norm.steps,
        "skipped_steps": norm.skipped_steps,
        "non_finite_steps": norm.non_finite_steps,
    }
