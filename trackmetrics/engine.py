"""The engine of a live run: it holds the file, the instruments and the record, and brings them together each epoch."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timezone
from types import FrameType
from typing import Any

from .assessment import Assessment
from .environment import describe_environment, describe_process
from .errors import TrackmetricsError, fault, shown
from .instruments.events import listening
from .instruments.gradient_norm import MEANING
from .instruments.said_values import SaidValues
from .instruments.training import Training
from .instruments.undisturbed import undisturbed
from .live.pace import Loop
from .live.progress import Progress
from .meetings import RanksApartError
from .norm_history import NormHistory
from .notices import Notices
from .options import Options
from .ranks import Ranks
from .record import EpochRecord, Hyperparameters, Metadata, RunRecord
from .resumption import Earlier, hear, read_and_tell
from .sinks.attached import AttachedSinks
from .subject import Subject
from .surroundings import surroundings
from .termination import told_of_termination

_PER_EPOCH = "a function that is called once an epoch stays undecorated: decorate the one with the loop"


class Engine:
    """One live run, between entering and leaving; nothing of it stays afterwards but its `record`.

    Entering takes the file (`OutputError`, `PathInUseError`, `ResumeError`) and begins to listen. Where an earlier run
    is gone on from, ranks but the first are told of it, as soon as there is a process group.
    """

    def __init__(self, options: Options, arguments: Mapping[str, Any]) -> None:
        around = surroundings()
        options = around.allowed(options)
        self._clock = around.clock
        self._timestamp = self._clock.now().astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.record = RunRecord(Metadata(options.task, self._timestamp))
        self.file = around.file(options)
        self._options = options
        self._ranks = ranks = Ranks(options.task)
        self._notices = Notices(lambda: ranks.writes)  # knows no engine: a run that is let go of is gone at once
        self._training = Training(functools.partial(_instrument_failed, self._notices))
        self._subject = Subject(options, self._training, self._notices, arguments)
        self._assessment = Assessment(
            options, self._training, self._subject, ranks, self._notices, self._clock.monotonic
        )
        self._progress = Progress(options.progress, self._clock.monotonic)
        self._sinks = AttachedSinks(options.make_sinks(), str(self.file.path), self._notices)
        self._steps_before = 0  # those of earlier epochs
        self._earlier: Earlier | None = None
        self._hears_of_earlier = bool(options.resumed_after) and not ranks.writes
        self._norms = NormHistory()
        self._saving_seconds = self._sinks_seconds = 0.0
        self._completed = False
        self._started = self._clock.monotonic()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Hold the file and listen to the training, and let go of both at the end, whatever happens."""
        with contextlib.closing(self._progress), self.file if self._ranks.writes else contextlib.nullcontext():
            self._take_up()
            try:
                self._tell_sinks(self._sinks.run_began)
                with told_of_termination(self.terminated), listening(self._training):
                    yield
            finally:
                self._training.release()
                self._end_sinks()

    def _take_up(self) -> None:
        """Go on from an earlier run's record, where that was asked for."""
        if self.file.lock_fault is not None:
            self._notices.say(
                "lock",
                f"{self.file.path} can't be locked ({self.file.lock_fault}): nothing keeps a second run from writing "
                "it; give each run a part= or output_dir= of its own",
            )
        if self._ranks.writes:
            options = self._options
            self._go_on_from(read_and_tell(self._ranks, self.file, options.task, options.resumed_after))
        else:
            self.hear_of_earlier()

    def hear_of_earlier(self) -> None:
        """Go on from what rank 0 has read, if there is a group by now: the file may stand on its machine alone."""
        if self._ranks.writes:
            self._ranks.find_group()  # and tell of it, wherever others may ask
        if not self._hears_of_earlier or self._ranks.size == 1:
            return
        self._hears_of_earlier = False
        try:
            self._go_on_from(hear(self._ranks))
        except RanksApartError as error:
            self._notices.say("resume", f"the run isn't gone on from the earlier one on this rank: {error}")

    def _go_on_from(self, earlier: Earlier | None) -> None:
        if earlier is not None:
            self._earlier = earlier
            self._norms = NormHistory(earlier.norm_summaries)
            self._started -= earlier.elapsed_seconds
            self.record = replace(earlier.record, extensions=None)

    @property
    def _own_epochs(self) -> int:
        """How many epochs of the record are this run's."""
        return len(self.record.epochs) - (len(self._earlier.record.epochs) if self._earlier else 0)

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
        return self._subject.watch

    @property
    def learn(self) -> Callable[[Mapping[str, Any], Any], None]:
        """Know what a trainer knows of its training."""
        return self._subject.learn

    # Epochs

    def epoch_begins(self, steps: int | None = None, metrics: Mapping[str, Any] | None = None) -> None:
        """Observe the training from here on; `steps` is how many the record is to have, where it has no more.

        `metrics` are the user's for this epoch alone.
        """
        with self._notices.sparing("seed"):
            self._subject.epoch_begins()
        with self._notices.sparing("the other ranks"):
            self._ranks.next_stage()
        with self._notices.sparing("metrics="):
            self._assessment.users_metrics.epoch_begins(metrics or {})
        if self._progress.live:
            with self._notices.sparing("progress"):
                self._show_epoch(steps)
        self._training.active = True

    def epoch_abandoned(self, why: str | None = None) -> None:
        """Drop what was observed since the epoch began; `why` it ends on this rank, where others may go on."""
        self._training.active = False
        if why is not None:
            self._ranks.leave_epoch(why)
        self._training.take()

    def loop_left(self) -> None:
        """The loop that is cut by its steps is over on this rank."""
        self._ranks.leave_loop()

    def epoch_ends(self, values: SaidValues, frame: FrameType | None) -> None:
        """Add the epoch's record and save; `frame` is the user's, in whose scope model and data are looked for."""
        self._training.active = False
        self._show_stage("evaluating")
        number = len(self.record.epochs) + 1
        own, metrics, summary = self._assessment.assess(number, values, frame)
        self._add(EpochRecord(number, **own, elapsed_seconds=self._elapsed(), metrics=metrics), summary)
        with self._notices.sparing("saving"):
            self._save({"state": "running"})
        self._tell_sinks(self._sinks.epoch_ended)
        with self._notices.sparing("progress"):
            self._progress.epoch_done(self.record.epochs[-1], self._steps_of_epoch)

    def epoch_lost(self, number: int, error: Exception) -> None:
        """A fault of ours cost the epoch of this number: its record is an empty one, unless it stands already."""
        self._notices.say_fault("the epoch's record", error)
        with self._notices.sparing("the epoch's observation"):
            self.epoch_abandoned(type(error).__name__)
        if len(self.record.epochs) < number:
            self._add(EpochRecord(number, elapsed_seconds=self._elapsed()), {})

    def _add(self, epoch: EpochRecord, summary: Mapping[str, Any]) -> None:
        self._norms.add({"epoch": epoch.epoch, **summary})
        self.record = replace(self.record, epochs=(*self.record.epochs, epoch))

    # What is shown meanwhile

    @property
    def shows_progress(self) -> bool:
        """Whether there is a live line."""
        return self._progress.live

    def progress_made(self) -> None:
        """Draw the live line again if it is time."""
        if self._progress.due():
            self._draw()

    def _draw(self) -> None:
        with self._notices.sparing("progress"):
            self._progress.draw(self._steps_of_epoch, self._training.figures)

    def loop_begins(self, total: int | None) -> Loop:
        """The user begins to go through `total` items."""
        return self._progress.loop_begins(total)

    def loop_ends(self, loop: Loop) -> None:
        """They are done with it."""
        self._progress.loop_ends(loop)

    @property
    def _steps_of_epoch(self) -> int:
        return self._training.completed_steps - self._steps_before

    def _show_epoch(self, steps: int | None) -> None:
        self._steps_before = self._training.completed_steps
        planned = self._subject.planned_epochs() if steps is None else None
        self._progress.epoch_begins(len(self.record.epochs) + 1, planned, steps)
        self._training.due, self._training.on_due = self._progress.due, self._draw

    def _show_stage(self, stage: str) -> None:
        with self._notices.sparing("progress"):
            if self._progress.live:
                self._progress.stage(self._steps_of_epoch, stage)

    # The end

    def failed(self, error: BaseException) -> None:
        """An exception ends the run: say so in the file, if the run has an epoch; else the earlier file stays."""
        self._progress.close()
        self._hears_of_earlier = False  # nobody waits for it now
        self._ranks.leave(type(error).__name__)
        if self._own_epochs:
            self._drop_results()
            try:
                self._save(_ended_by(error))
            except BaseException:  # Ctrl+C once more
                self._save(_ended_by(error))
                raise

    def _drop_results(self) -> None:
        """Results are those of a completed run."""
        self.record = replace(self.record, final_results=None, final_inference=None)

    def terminated(self, signal: str) -> None:
        """A signal ends the process: say so in the file, as for an exception, unless the run has completed."""
        self._progress.close()
        self._hears_of_earlier = False
        if self._own_epochs and not self._completed:
            self._drop_results()
            message = f"the process was told to end by {signal}"
            self._save({"state": "interrupted", "error": {"type": signal, "message": message}}, last=True)
        self.file.release()
        if self._ranks.writes:
            self._sinks.process_ends(self.record)

    def completed(self, returned: Any) -> None:
        """Add the final results and the final inference; `returned` is what the decorated function gave back."""
        with self._notices.sparing("the earlier run"):
            self.hear_of_earlier()
        epochs = self.record.epochs
        if epochs and not self._own_epochs:
            self._ranks.leave("nothing was left to train")
            return  # the earlier file, its results included, stays
        if not epochs:
            self._notices.say(
                "epochs", f"no epoch was tracked: wrap each epoch's body in `with tracker.epoch():`; {_PER_EPOCH}"
            )
        try:
            self._conclude(returned)
        except BaseException as error:
            if not self._completed:
                self.failed(error)  # Ctrl+C while the final results are worked out or saved
            raise
        with self._notices.sparing("progress"):
            self._progress.run_done(self.record, self.file.path)

    def _conclude(self, returned: Any) -> None:
        """Work out the final results and the final inference, and save them."""
        epochs = self.record.epochs
        self._show_stage("final results")
        try:
            seconds = epochs[-1].elapsed_seconds if epochs else self._elapsed()
            results, inference = self._assessment.conclude(returned, seconds)
            self.record = replace(self.record, final_results=results, final_inference=inference)
        except Exception as error:
            self._notices.say_fault("final_results and final_inference", error)
        self._ranks.end()
        with self._notices.sparing("the run before"):
            if len(epochs) == 1 and self._subject.trained_before(str(self.file.path)):
                self._notices.say("runs", f"this run of one epoch trained the model of the run before it; {_PER_EPOCH}")
        with self._notices.sparing("saving"):
            inference = self.record.final_inference
            if not self._save({"state": "completed"}) and inference is not None:  # the largest may be what is too much
                self.record = replace(self.record, final_inference=None)
                self._save({"state": "completed"})
                self.record = replace(self.record, final_inference=inference)
        self._completed = True

    # Saving

    def _save(self, status: dict[str, Any], *, last: bool = False) -> bool:
        """Bring the record up to date and write it; a disk that refuses costs this save, not the training."""
        began = self._clock.monotonic()
        metadata = replace(self.record.metadata, device=None, hyperparameters=Hyperparameters())
        with self._notices.sparing("metadata.device and metadata.hyperparameters"):
            model, training = self._subject.hyperparameters(len(self.record.epochs))
            hyperparameters = Hyperparameters(model, training)
            metadata = replace(metadata, device=self._subject.device, hyperparameters=hyperparameters)
        self.record = replace(self.record, metadata=metadata)
        if self._options.extensions:
            extensions: dict[str, Any] = {"status": status}
            with self._notices.sparing("extensions"):
                extensions = self._extensions(status)
            self.record = replace(self.record, extensions=extensions)
        saved = self._write(last=last)
        self._saving_seconds += self._clock.monotonic() - began
        return saved

    def _write(self, *, last: bool = False) -> bool:
        try:
            if self._ranks.writes:
                self.file.write(self.record, last=last)
        except Exception as error:
            self._notices.say(
                "saving",
                f"{self.file.path} could not be written ({error}); the last good file stays, training goes on, "
                "and the next save tries again",
            )
            return False
        return True

    def _extensions(self, status: dict[str, Any]) -> dict[str, Any]:
        norms: dict[str, Any] = {"meaning": MEANING, **self._norms.described(len(self.record.epochs))}
        if self._training.measured_at_step:
            norms["measured"] = "at the optimizer's step where gradients were set by hand"
        earlier = self._earlier or Earlier(RunRecord(self.record.metadata))
        seconds = Counter(earlier.seconds)
        seconds.update({**self._assessment.seconds, "saving": self._saving_seconds})
        if self._sinks_seconds:
            seconds.update({"sinks": self._sinks_seconds})
        described: dict[str, Any] = {
            **earlier.foreign,
            "status": {**status, **describe_process()},
            "environment": describe_environment(self._subject.device_name, self._ranks.size),
            "gradient_norm": norms,
            "attention": self._assessment.attention,
            "seconds": dict(seconds),
            "warnings": self._warnings,
            "resumed": earlier.resumptions,
        }
        if self._earlier is not None:
            now = self.record.metadata.hyperparameters
            described["resumed"].append(self._earlier.resumption(self._timestamp, now))
        return {key: value for key, value in described.items() if value}

    @property
    def _warnings(self) -> list[str]:
        return [*(self._earlier.warnings if self._earlier else ()), *self._notices.messages]

    # Sinks

    def _end_sinks(self) -> None:
        """Tell the sinks of the end. They are to have the file: where one fails there, it is saved once more."""
        said = self._warnings
        self._tell_sinks(self._sinks.run_ended)
        if self._warnings != said and self.record.extensions is not None:
            self.record = replace(self.record, extensions={**self.record.extensions, "warnings": self._warnings})
            self._write()

    def _tell_sinks(self, tell: Callable[[RunRecord], None]) -> None:
        """Let the sinks know of the record; random streams and torch's modes are put back."""
        if not self._sinks or not self._ranks.writes:
            return
        began = self._clock.monotonic()
        try:
            with undisturbed(None):
                tell(self.record)
        except TrackmetricsError:  # before training
            raise
        except Exception as error:
            self._notices.say_fault("the sinks' copy", error)
        self._sinks_seconds += self._clock.monotonic() - began

    # What goes wrong

    def _elapsed(self) -> float:
        return self._clock.monotonic() - self._started

    def say_fault(self, what: str, error: Exception) -> None:
        """A fault of ours cost `what`."""
        self._notices.say_fault(what, error)


def _instrument_failed(notices: Notices, name: str, error: Exception) -> None:
    notices.say(name, f"{name} could not be had from here on: the instrument failed with {fault(error)}")


def _ended_by(error: BaseException) -> dict[str, Any]:
    """The status of a run that an exception ended: an interruption unless it is an error."""
    state = "failed" if isinstance(error, Exception) else "interrupted"
    try:
        message = str(error)
    except BaseException:  # the user's own __str__; their exception must not be replaced by ours
        message = shown(error)
    return {"state": state, "error": {"type": type(error).__name__, "message": message}}
