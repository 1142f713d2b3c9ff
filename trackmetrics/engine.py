"""The engine of a live run: it holds the file, the instruments and the record, and brings them together each epoch."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from types import FrameType
from typing import Any

from .assessment import Assessment
from .environment import describe_environment, describe_process
from .errors import shown
from .instruments.events import listening
from .instruments.gradient_norm import MEANING
from .instruments.said_values import SaidValues
from .instruments.training import Training
from .metrics_file import MetricsFile
from .notices import Notices
from .options import Options
from .progress import ProgressLines
from .record import EpochRecord, Hyperparameters, Metadata, RunRecord

_PER_EPOCH = "a function that is called once an epoch stays undecorated: decorate the one with the loop"


@dataclass(frozen=True)
class Clock:
    """Where the time comes from: seconds that never fall, and the date. Tests put their own in its place."""

    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(timezone.utc)


class Engine:
    """One live run, between entering and leaving; nothing of it stays afterwards but its `record`.

    Entering takes the file (`OutputError`, `PathInUseError`) and begins to listen.
    """

    clock = Clock()

    def __init__(self, options: Options, arguments: Mapping[str, Any]) -> None:
        timestamp = self.clock.now().astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.record = RunRecord(Metadata(options.task, timestamp))
        self.file = MetricsFile(options.folder, options.file_part)
        self._options = options
        self._notices = Notices()
        self._training = Training(functools.partial(_instrument_failed, self._notices))
        self._assessment = Assessment(options, self._training, self._notices, arguments, self.clock.monotonic)
        self._progress = ProgressLines(options.progress)
        self._summaries: list[dict[str, Any]] = []
        self._saving_seconds = 0.0
        self._started = self.clock.monotonic()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Hold the file and listen to the training, and let go of both at the end, whatever happens."""
        with self.file:
            try:
                with listening(self._training):
                    yield
            finally:
                self._training.release()

    @property
    def completed_steps(self) -> int:
        """How many training steps are over since the run began."""
        return self._training.completed_steps

    def tell_steps(self, on_steps: Callable[[], None] | None) -> None:
        """Call `on_steps` between two training steps, whenever at least one more is complete; None for nobody."""
        self._training.on_steps = on_steps

    @property
    def watch(self) -> Callable[[Any], None]:
        """Say which model is trained."""
        return self._assessment.watch

    # Epochs

    def epoch_begins(self) -> None:
        """Observe the training from here on."""
        with self._spared("seed"):
            self._assessment.epoch_begins()
        self._training.active = True

    def epoch_abandoned(self) -> None:
        """Drop what was observed since the epoch began."""
        self._training.active = False
        self._training.take()

    def epoch_ends(self, values: SaidValues, frame: FrameType | None) -> None:
        """Add the epoch's record and save; `frame` is the user's, in whose scope model and data are looked for."""
        self._training.active = False
        number = len(self.record.epochs) + 1
        own, metrics, summary = self._assessment.assess(number, values, frame)
        self._add(EpochRecord(number, **own, elapsed_seconds=self._elapsed(), metrics=metrics), summary)
        with self._spared("saving"):
            self._save({"state": "running"})
        with self._spared("progress"):
            self._progress.epoch_done(self.record.epochs[-1])

    def epoch_lost(self, number: int, error: Exception) -> None:
        """A fault of ours cost the epoch of this number: its record is an empty one, unless it stands already."""
        self.say_fault("the epoch's record", error)
        with self._spared("the epoch's observation"):
            self.epoch_abandoned()
        if len(self.record.epochs) < number:
            self._add(EpochRecord(number, elapsed_seconds=self._elapsed()), {})

    def _add(self, epoch: EpochRecord, summary: Mapping[str, Any]) -> None:
        self.record = replace(self.record, epochs=(*self.record.epochs, epoch))
        self._summaries.append({"epoch": epoch.epoch, **summary})

    # The end

    def failed(self, error: BaseException) -> None:
        """An exception ends the run: say so in the file, if it has an epoch; else the earlier file stays."""
        if self.record.epochs:
            self._save(_ended_by(error))

    def completed(self, returned: Any) -> None:
        """Add the final results and the final inference; `returned` is what the decorated function gave back."""
        epochs = self.record.epochs
        if not epochs:
            self._notices.say(
                "epochs", f"no epoch was tracked: wrap each epoch's body in `with tracker.epoch():`; {_PER_EPOCH}"
            )
        try:
            seconds = epochs[-1].elapsed_seconds if epochs else self._elapsed()
            results, inference = self._assessment.conclude(returned, seconds)
            self.record = replace(self.record, final_results=results, final_inference=inference)
        except Exception as error:
            self.say_fault("final_results and final_inference", error)
        except BaseException as error:
            self.failed(error)  # Ctrl+C while the final results are worked out
            raise
        with self._spared("the run before"):
            if len(epochs) == 1 and self._assessment.trained_before(str(self.file.path)):
                self._notices.say("runs", f"this run of one epoch trained the model of the run before it; {_PER_EPOCH}")
        with self._spared("saving"):
            self._save({"state": "completed"})
        with self._spared("progress"):
            self._progress.run_done(self.record, self.file.path)

    # Saving

    def _save(self, status: dict[str, Any]) -> None:
        """Bring the record up to date and write it; a disk that refuses costs this save, not the training."""
        began = self.clock.monotonic()
        metadata = replace(self.record.metadata, device=None, hyperparameters=Hyperparameters())
        with self._spared("metadata.device and metadata.hyperparameters"):
            model, training = self._assessment.hyperparameters(len(self.record.epochs))
            hyperparameters = Hyperparameters(model, training)
            metadata = replace(metadata, device=self._assessment.device, hyperparameters=hyperparameters)
        self.record = replace(self.record, metadata=metadata)
        if self._options.extensions:
            extensions: dict[str, Any] = {"status": status}
            with self._spared("extensions"):
                extensions = self._extensions(status)
            self.record = replace(self.record, extensions=extensions)
        try:
            self.file.write(self.record)
        except Exception as error:
            self._notices.say(
                "saving",
                f"{self.file.path} could not be written ({error}); the last good file stays, training goes on, "
                "and the next epoch tries again",
            )
        self._saving_seconds += self.clock.monotonic() - began

    def _extensions(self, status: dict[str, Any]) -> dict[str, Any]:
        counts = ("steps", "skipped_steps", "non_finite_steps")
        norms: dict[str, Any] = {"meaning": MEANING}
        for key in counts:
            known = [summary[key] for summary in self._summaries if key in summary]
            norms[key] = sum(known) if len(known) == len(self._summaries) else None
        if self._training.measured_at_step:
            norms["measured"] = "at the optimizer's step where gradients were set by hand"
        described: dict[str, Any] = {
            "status": {**status, **describe_process()},
            "environment": describe_environment(self._assessment.device_name),
            "gradient_norm": {**norms, "epochs": list(self._summaries)},
            "attention": self._assessment.attention,
            "seconds": {**self._assessment.seconds, "saving": self._saving_seconds},
            "warnings": self._notices.messages,
        }
        return {key: value for key, value in described.items() if value}

    # What goes wrong

    def _elapsed(self) -> float:
        return self.clock.monotonic() - self._started

    @contextlib.contextmanager
    def _spared(self, what: str) -> Iterator[None]:
        """A fault of ours in this block costs `what`, never the training."""
        try:
            yield
        except Exception as error:
            self.say_fault(what, error)

    def say_fault(self, what: str, error: Exception) -> None:
        """A fault of ours cost `what`."""
        self._notices.say(what, f"{what} could not be had: {error!r}")


def _instrument_failed(notices: Notices, name: str, error: Exception) -> None:
    notices.say(name, f"{name} could not be had from here on: the instrument failed with {error!r}")


def _ended_by(error: BaseException) -> dict[str, Any]:
    """The status of a run that an exception ended: an interruption unless it is an error."""
    state = "failed" if isinstance(error, Exception) else "interrupted"
    try:
        message = str(error)
    except Exception:  # the user's own __str__; their exception must not be replaced by ours
        message = shown(error)
    return {"state": state, "error": {"type": type(error).__name__, "message": message}}
