"""What a run's figures are: worked out of what was observed and said, on all ranks, after an epoch and at the end.

A value that can't be had is null, and is said once, with the line that would supply it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

from .accuracies import Accuracies
from .example_inference import ExampleInference
from .instruments.figures import Figures, NormSummary, Share, add, together
from .instruments.metric_objects import MetricObjects
from .instruments.said_values import SaidValues
from .instruments.training import Observation, Training
from .meetings import RanksApartError
from .notices import Notices
from .options import Options
from .ranks import Ranks
from .record import METRIC_KEYS, FinalInference, FinalResults
from .subject import Subject
from .users_metrics import UsersMetrics

_TRAINING_KEYS = ("train_loss", "train_accuracy", "gradient_norm")


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
    """Works out one run's values; `users_metrics` is what the user gave as `metrics=`."""

    def __init__(
        self,
        options: Options,
        training: Training,
        subject: Subject,
        ranks: Ranks,
        notices: Notices,
        clock: Callable[[], float],
    ) -> None:
        self.users_metrics = UsersMetrics(options.metrics, training, ranks, notices)
        self._accuracies = Accuracies(options, training, subject, ranks, notices, clock)
        self._inference = ExampleInference(options, training, subject, ranks, notices, clock)
        self._options = options
        self._training = training
        self._subject = subject
        self._ranks = ranks
        self._notices = notices

    @property
    def seconds(self) -> dict[str, float]:
        """What evaluation and inference took."""
        return {"evaluation": self._accuracies.seconds, "inference": self._inference.seconds}

    @property
    def attention(self) -> dict[str, Any] | None:
        """The manifest of the maps in the final inference."""
        return self._inference.attention

    # An epoch

    def assess(
        self, number: int, values: SaidValues, frame: FrameType | None
    ) -> tuple[dict[str, float | None], dict[str, Any], dict[str, Any]]:
        """Give an epoch's own values, those the user logged under other names, and its gradient norms in summary."""
        observation = self._observed()
        self._subject.look(frame)
        shares, (logged, metrics) = self._shares(values), self._said(values)
        evaluated = None
        if "dev_accuracy" not in logged:
            with self._notices.sparing("your own evaluation"):
                evaluated = self._accuracies.by_user(observation)
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
        with self._notices.sparing("what is missing"):
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
            what = "the epoch's train_loss, train_accuracy, dev_accuracy and gradient_norm are"
            self._notices.say_null(what, error.why)
            figures = Figures(faults=dict.fromkeys(_TRAINING_KEYS, ""))
            return _Joint(figures, offer["said"], measures=offer["measures"])
        return _Joint(**{**joint, "figures": Figures.of(joint["figures"])})

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
            with self._notices.sparing("metrics="):
                measured, wanted = self.users_metrics.of_training(said, joint.evaluates)
        if wanted is not None and self._options.evaluate is not None:
            wanted.spoil("evaluate= takes the place of the pass that would feed it")
        if "dev_accuracy" not in joint.said and accuracy is None and joint.evaluates:
            with self._notices.sparing("dev_accuracy"):
                accuracy = self._accuracies.of_dev(wanted)
        elif wanted is not None and self._options.evaluate is None:
            self._accuracies.feed_with_dev(wanted)
        if joint.measures:
            with self._notices.sparing("metrics="):
                measured = {**measured, **self.users_metrics.of_dev(wanted, said)}
        return accuracy, measured

    # The end

    def conclude(self, returned: Any, seconds: float) -> tuple[FinalResults, FinalInference | None]:
        """The final accuracies with the final weights, and the final inference."""
        self._ranks.next_stage()
        self._subject.look_at_the_end(returned)
        train = dev = None
        if self._options.final_train_accuracy:
            with self._notices.sparing("final_results.train_accuracy"):
                train = self._accuracies.of_train()
        with self._notices.sparing("final_results.dev_accuracy"):
            dev = self._accuracies.of_dev()
        return FinalResults(train, dev, seconds), self._inference.make()


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
