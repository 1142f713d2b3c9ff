"""The final inference of a run: what its model makes of the first dev example, or of one that the user names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .instruments import final_inference
from .instruments.discovery import Found
from .instruments.division import collective, without_replication
from .instruments.events import heard_by
from .instruments.training import Training
from .instruments.undisturbed import undisturbed
from .joint_evaluation import reason_of
from .meetings import RanksApartError
from .notices import Notices
from .options import Options
from .ranks import Ranks
from .record import FinalInference
from .subject import Subject
from .users_inference import inference_of


class ExampleInference:
    """Runs the model, or the user's `finalize`, on the example; what can't be had is null, said once.

    `attention` is the manifest of the maps in it, `seconds` what it took.
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
        self.attention: dict[str, Any] | None = None
        self.seconds = 0.0
        self._options = options
        self._training = training
        self._subject = subject
        self._ranks = ranks
        self._notices = notices
        self._clock = clock

    def make(self) -> FinalInference | None:
        """Make it, on the ranks whose part in it is needed."""
        began = self._clock()
        inference = None
        with self._notices.sparing("final_inference"):
            if self._takes_part():
                inference = self._final_inference()
        self.seconds = self._clock() - began
        return inference

    def _takes_part(self) -> bool:
        """Whether this rank runs the model on the first dev example: the first one, and all if that takes all."""
        own = [self._subject.model is not None and bool(self._example_sources()), collective(self._subject.model)]
        try:
            able, needed = self._ranks.exchange("final_inference", own, _able)
        except RanksApartError as error:
            if own[1]:
                self._notices.say_null("final_inference is", error.why)
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
        if self._subject.model is None:
            self._notices.say(key, f"{key} is null: {self._subject.why_no_model}")
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
        return self._subject.dev if example is None else [Found("example", example, "example")]

    def _example(self, found: Found) -> final_inference.Example:
        assert self._subject.model is not None
        pairing = self._training.pairing
        if found.role == "example":
            return final_inference.named_example(without_replication(self._subject.model), found.data, pairing)
        return final_inference.first_example(without_replication(self._subject.model), found.data, pairing)

    def _infer(self, found: Found) -> FinalInference:
        assert self._subject.model is not None
        example = self._example(found)
        inference, attention = final_inference.infer(
            without_replication(self._subject.model),
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
        assert self._subject.model is not None
        raw = found.data if found.role == "example" else final_inference.raw_example(found.data)
        model = without_replication(self._subject.model)  # which this rank can run alone
        with undisturbed(model, found.data, finalize), heard_by(None):
            result = finalize(model, raw)
        return inference_of(result)


def _able(ranks: Sequence[Sequence[bool]]) -> list[bool]:
    """Whether all ranks are able to run the model, and whether some say that it takes them all."""
    return [all(able for able, _ in ranks), len(ranks) > 1 and any(needed for _, needed in ranks)]
