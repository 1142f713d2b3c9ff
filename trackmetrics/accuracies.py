"""The accuracies of a run: over the dev set after its epochs, over both sets at the end."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .instruments import evaluation
from .instruments.discovery import Found
from .instruments.division import Division, collective, without_replication
from .instruments.events import heard_by
from .instruments.figures import Share
from .instruments.metric_objects import MetricObjects
from .instruments.training import Observation, Training
from .instruments.undisturbed import undisturbed
from .joint_evaluation import NotEvaluatedError, evaluate_together
from .meetings import RanksApartError
from .notices import Notices
from .options import Options
from .ranks import Ranks
from .subject import Subject


class Accuracies:
    """Evaluates a run's model, together with the other ranks; what can't be evaluated is null, said once.

    `seconds` is what that took.
    """

    def __init__(
        self,
        options: Options,
        training: Training,
        subject: Subject,
        ranks: Ranks,
        notices: Notices,
        clock: Callable[[], float],
    ) -> None:
        self.seconds = 0.0
        self._options = options
        self._training = training
        self._subject = subject
        self._ranks = ranks
        self._notices = notices
        self._clock = clock

    def by_user(self, observation: Observation) -> float | None:
        """The accuracy over the dev set, where the epoch's body has evaluated it; `evaluate=` says more than that."""
        evaluations, model, dev = observation.evaluations, self._subject.model, self._subject.dev
        if evaluations is None or self._options.evaluate is not None or model is None or not dev:
            return None
        if collective(model):  # the others may have evaluated nothing, and the comparison runs the model
            return None
        began = self._clock()
        accuracy = None
        with self._notices.sparing("your own evaluation of the dev set"):
            accuracy = evaluations.accuracy(without_replication(model), dev[0].data, self._training.pairing)
        self.seconds += self._clock() - began
        return accuracy

    def of_dev(self, metrics: MetricObjects | None = None) -> float | None:
        """Give that over the dev set, with which `metrics` of the user's are fed meanwhile."""
        return self._accuracy("dev_accuracy", "dev", self._subject.dev, metrics)

    def of_train(self) -> float | None:
        """Give that over the whole training set."""
        return self._accuracy("final_results.train_accuracy", "train", self._subject.train)

    def feed_with_dev(self, metrics: MetricObjects) -> None:
        """Go through the dev set for the user's metrics alone; what goes wrong, they know."""
        with contextlib.suppress(Exception):
            self._evaluated("dev_accuracy", "dev", self._subject.dev, metrics)

    def _accuracy(
        self, key: str, role: str, candidates: list[Found], metrics: MetricObjects | None = None
    ) -> float | None:
        """The accuracy over the first of the sets that can be evaluated; None, said once, where none can.

        `metrics` of the user's are fed with the set meanwhile.
        """
        try:
            return self._evaluated(key, role, candidates, metrics)
        except RanksApartError as error:
            self._notices.say_null(f"{key} is", error.why)
        except NotEvaluatedError as error:
            if error.why:
                self._notices.say(key, f"{key} is null: {error}")
        return None

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
                model=self._subject.model,
                targets=0 if pairing is None else pairing.targets,
                called=self._options.evaluate is not None,
            )
        except (RanksApartError, NotEvaluatedError) as error:
            if metrics is not None:
                metrics.spoil(error.why)
            raise
        except Exception as error:
            if metrics is not None:
                metrics.failed(error)
            raise
        finally:
            self.seconds += self._clock() - began
        candidates[:] = [found] if candidates else []
        return accuracy if judges else None

    def _obstacle(self, role: str, candidates: list[Found]) -> str | None:
        """What keeps a set from being evaluated, with the way to mend it."""
        pairing, evaluate = self._training.pairing, self._options.evaluate
        if self._subject.model is None:
            return self._subject.why_no_model
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
        assert self._subject.model is not None
        model = without_replication(self._subject.model)
        evaluate, pairing = self._options.evaluate, self._training.pairing
        if evaluate is None:
            assert pairing is not None
            pairing = replace(pairing, targets=targets)
            share = evaluation.right_predictions(model, data, pairing, division, metrics)
            return share if pairing.has_accuracy else Share(0.0, 1.0)  # the metrics were fed, nothing was judged
        with undisturbed(model, data, evaluate), heard_by(None):
            value = float(evaluate(model, data))
        return Share(value, 1.0) if division.counts else Share()
