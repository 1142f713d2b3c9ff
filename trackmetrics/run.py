"""The user's handle on a run: the run itself, its epochs, and `tracker`, the run in progress."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar, Token
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from .errors import ArgumentError, RunStateError, TrackmetricsError
from .live.iteration import Counted
from .options import Options, OptionValues, check_metrics, make_options

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self, Unpack

    from .engine import Engine
    from .instruments.said_values import SaidValues
    from .record import RunRecord

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_current: ContextVar[Tracker | None] = ContextVar("trackmetrics_run", default=None)


class Tracker:
    """One run: from entering to leaving, it observes the training and keeps its metrics file up to date.

    Args:
        task: the task's name; it names the file too, unless `part=` does.
        **options: see `trackmetrics.options.Options`.

    Use it as a context manager around a training that has no function of its own; a decorated function makes one
    for each call. Entering raises `OutputError` where the file can't be written and `PathInUseError` where another
    live run writes it; leaving computes the final results, unless an exception leaves.

    >>> import tempfile
    >>> with Tracker("demo", output_dir=tempfile.mkdtemp()) as run:
    ...     with run.epoch() as epoch:
    ...         epoch.log(train_loss=0.5, train_accuracy=1.0, dev_accuracy=1.0, gradient_norm=0.1)
    >>> run.record.epochs[0].train_loss
    0.5
    """

    def __init__(self, task: str, **options: Unpack[OptionValues]) -> None:
        self._options: Options | None = make_options(task, options)
        self._arguments: Mapping[str, Any] | None = None
        self._returned: Any = None
        self._state = "not begun yet"
        self._engine: Engine | None = None  # while the run lives, unless tracking is disabled
        self._record: RunRecord | None = None
        self._path: str | None = None
        self._open: Epoch | StepEpochs | None = None
        self._stack = contextlib.ExitStack()

    @classmethod
    def _for_call(cls, options: Options, arguments: Mapping[str, Any]) -> Tracker:
        """The run of one call of a decorated function."""
        run = cls(options.task)
        run._options, run._arguments = options, arguments
        return run

    def _returns(self, result: _Result) -> _Result:
        """Note what the decorated function returned: it may be, or hold, the model."""
        self._returned = result
        return result

    # The run

    def __enter__(self) -> Self:
        options = self._options
        if self._state != "not begun yet" or options is None:
            raise RunStateError(f"this run is {self._state}; make a new Tracker for each run")
        if self._arguments is None:
            options.check_without_function()
        with contextlib.ExitStack() as stack:
            if not disabled():
                from .engine import Engine  # this is where torch is imported

                engine = Engine(options, self._arguments or {})
                stack.enter_context(engine.running())
                self._engine, self._path = engine, str(engine.file.path)
            stack.callback(_reset, _current.set(self))
            self._state = "running"
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        engine, returned = self._engine, self._returned
        with _spared(engine, "the end of the run"), self._stack:
            if self._open is not None:  # a trainer's, which its callback wasn't told the end of
                self._open._engine = None
            self._state, self._arguments, self._returned, self._open = "ended", None, None, None
            self._options = None  # lets go of the data and functions among them
            try:
                with _spared(engine, "final_results and final_inference"):
                    if engine is not None and error is not None:
                        engine.failed(error)
                    elif engine is not None:
                        engine.completed(returned)
            finally:
                self._record = None if engine is None else engine.record
                self._engine = None
        if engine is not None:
            self._record = engine.record  # with the warning of a sink that failed at the end
        return False

    @property
    def record(self) -> RunRecord:
        """The run so far at full precision; after the run, all of it. Raises `RunStateError` before it began."""
        record = self._record
        if self._engine is not None:
            with _spared(self._engine, "the earlier run"):
                self._engine.hear_of_earlier()
            record = self._engine.record
        if record is None:
            raise RunStateError(f"this run has no record: it is {self._state}, or tracking is disabled")
        return record

    @property
    def path(self) -> str:
        """The metrics file's absolute path. Raises `RunStateError` before the run began."""
        if self._path is None:
            raise RunStateError(f"this run has no file: it is {self._state}, or tracking is disabled")
        return self._path

    def watch(self, model: torch.nn.Module) -> None:
        """Say which model is trained, where it isn't found by itself (several models, a model out of reach)."""
        self._check_running("watch()")
        if self._engine is not None:
            with _spared(self._engine, "the model"):
                self._engine.watch(model)

    def progress(self, iterable: Iterable[_Item]) -> Counted[_Item]:
        """Go through a loader, or anything else, with a bar on the live line: the same items, in the same order.

        Raises `RunStateError` outside a run.

        >>> import tempfile
        >>> with Tracker("demo", output_dir=tempfile.mkdtemp(), train=[], dev=[]) as run:
        ...     batches = list(run.progress(["first batch", "second batch"]))
        >>> batches
        ['first batch', 'second batch']
        """
        self._check_running("progress()")
        return Counted(iterable, lambda: self._engine)

    # Epochs

    def epoch(self, *, metrics: Mapping[str, Any] | None = None) -> Epoch:
        """Track one epoch: `with tracker.epoch() as epoch:` around its body.

        `metrics` are measured in this epoch beside those of the run; of one name, this epoch's counts. Raises
        `RunStateError` outside a run, and inside another epoch of the same run, and `ArgumentError` for metrics that
        can't be right.
        """
        return Epoch(self, check_metrics(metrics))

    def epochs(self, *, every: int, metrics: Mapping[str, Any] | None = None) -> StepEpochs:
        """Track a loop that counts steps: one record each `every` training steps, and one for a shorter rest.

        `metrics` are measured in each of these records beside those of the run. Raises `ArgumentError` unless `every`
        is a whole number from 1, or for metrics that can't be right, and `RunStateError` as `epoch` does.
        """
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ArgumentError(f"every is {every!r}; give a whole number of training steps, 1 or more")
        return StepEpochs(self, every, check_metrics(metrics))

    def _begin(self, epoch: Epoch | StepEpochs) -> Engine | None:
        self._check_can_begin_epoch()
        self._open = epoch
        return self._engine

    def _check_can_begin_epoch(self) -> None:
        self._check_running("epoch()")
        if self._open is not None:
            raise RunStateError(
                "epoch() was entered inside another epoch of the same run; leave the first one before the next begins"
            )

    def _end(self) -> None:
        self._open = None

    def _learn(self, arguments: Mapping[str, Any], model: torch.nn.Module | None = None) -> None:
        """Know what a trainer knows as if the function's call had these arguments; `watch()` wins over its model."""
        if self._engine is not None:
            self._engine.learn(arguments, model)

    def _say_fault(self, what: str, error: Exception) -> None:
        """A fault of ours cost `what`."""
        if self._engine is not None:
            self._engine.say_fault(what, error)

    def _check_running(self, call: str) -> None:
        if self._state != "running":
            raise RunStateError(f"{call} was called on a run that is {self._state}; call it inside the run")


class _AnyEpoch:
    """What an epoch lets its user say outright, which wins over what is observed; and how it ends."""

    def __init__(self, run: Tracker, metrics: Mapping[str, Any]) -> None:
        self._run = run
        self._metrics = metrics
        self._engine: Engine | None = None
        self._values: SaidValues | None = None
        self._fault: Exception | None = None  # of ours, that costs the record
        self._number = 0

    def log(self, **values: Any) -> None:
        """Say values by name: the record's own (`dev_accuracy=0.9`) or any other (`perplexity=12.3`).

        Tensors and NumPy scalars are taken as numbers, without waiting for the device. Raises `ArgumentError` for
        `epoch` and `elapsed_seconds`, which are the run's to say; a value that is no plain data is null.
        """
        self._say(values, lambda said: said.log(values))

    def update(self, *, loss: Any = None, output: Any = None, target: Any = None) -> None:
        """Say a batch outright: its mean loss, and its outputs with their targets, from which accuracy follows.

        `loss` is a number or a tensor of one element, weighted by the number of targets (1 without `target`).
        `output` has shape `[*, num_classes]` or `[batch, num_classes, *]` for a `target` of class indices `[*]`;
        shapes that don't pair make the accuracy null. Raises `ArgumentError` where `output` comes without `target`.
        """
        names = [name for name, value in (("train_loss", loss), ("train_accuracy", output)) if value is not None]
        self._say(names, lambda said: said.update(loss, output, target))

    def _say(self, names: Iterable[str], say: Callable[[SaidValues], None]) -> None:
        if self._engine is None:
            return
        try:
            say(self._said())
        except TrackmetricsError:
            raise
        except Exception as error:
            with _spared(self._engine, "what the epoch is told"):
                self._said().spoil(names, error)

    def _said(self) -> SaidValues:
        if self._values is None:
            from .instruments.said_values import SaidValues

            self._values = SaidValues()
        return self._values

    def _observe(self, engine: Engine, steps: int | None = None) -> None:
        """Let the engine observe the training for the next record, which is to have so many steps, where it says."""
        with _spared(engine, "the earlier run"):
            engine.hear_of_earlier()
        self._number = len(engine.record.epochs) + 1
        self._fault = None
        try:
            engine.epoch_begins(steps, self._metrics)
        except Exception as error:
            self._fault = error

    def _record(self, engine: Engine, frame: FrameType | None) -> None:
        """Let the engine make the record of what was observed and said."""
        try:
            values, self._values = self._said(), None
            if self._fault is None:
                engine.epoch_ends(values, frame)
        except Exception as error:
            self._fault = error
        if self._fault is not None:
            with _spared(engine, "the epoch's record"):
                engine.epoch_lost(self._number, self._fault)

    def _abandon(self, engine: Engine, error: BaseException | None) -> None:
        """Drop what was observed and said: an `error` ended the epoch, or there was nothing."""
        self._values = None
        with _spared(engine, "the epoch's observation"):
            engine.epoch_abandoned(type(error).__name__ if error is not None else None)


class Epoch(_AnyEpoch):
    """One epoch being tracked, from `tracker.epoch()`."""

    def __enter__(self) -> Self:
        self._engine = self._run._begin(self)
        if self._engine is not None:
            self._observe(self._engine)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self._leave(error, sys._getframe(1))
        return False

    def _leave(self, error: BaseException | None, frame: FrameType | None) -> None:
        """End the epoch: its record is made in the scope of `frame`, unless an exception ended it."""
        engine, self._engine = self._engine, None
        self._run._end()
        if engine is not None and error is not None:
            self._abandon(engine, error)
        elif engine is not None:
            self._record(engine, frame)


class StepEpochs(_AnyEpoch):
    """`tracker.epochs(every=N)`: a record each N training steps, and one for the rest."""

    def __init__(self, run: Tracker, every: int, metrics: Mapping[str, Any]) -> None:
        super().__init__(run, metrics)
        self._size = every
        self._frame: FrameType | None = None
        self._completed = self._begun_at = 0  # steps: so far, and when the record was begun

    def __enter__(self) -> Self:
        self._engine = self._run._begin(self)
        if self._engine is not None:
            self._frame = sys._getframe(1)
            self._observe(self._engine, self._size)
            self._count(self._engine)
            self._begun_at = self._completed
            with _spared(self._engine, "the records of epochs(every=...)"):
                self._engine.tell_steps(self._steps_completed)
        return self

    def _count(self, engine: Engine) -> None:
        try:
            self._completed = engine.completed_steps
        except Exception as error:
            engine.say_fault("the number of steps", error)

    def _steps_completed(self) -> None:
        """Close the record if it has its steps, and begin the next."""
        engine = self._engine
        if engine is None:
            return
        self._count(engine)
        if self._completed - self._begun_at >= self._size:
            self._begun_at = self._completed
            self._record(engine, self._frame)
            self._observe(engine, self._size)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        engine, self._engine = self._engine, None
        frame, self._frame = self._frame, None
        self._run._end()
        if engine is None:
            return False
        with _spared(engine, "the records of epochs(every=...)"):
            engine.tell_steps(None)
        self._count(engine)
        nothing_left = bool(engine.record.epochs) and self._completed == self._begun_at
        if error is not None or nothing_left:
            self._abandon(engine, error)
        else:
            self._record(engine, frame)
        with _spared(engine, "the other ranks"):
            engine.loop_left()
        return False


@contextlib.contextmanager
def _spared(engine: Engine | None, what: str) -> Iterator[None]:
    """A fault of ours in this block costs `what`, never the training; what the user is to be told is raised."""
    try:
        yield
    except TrackmetricsError:
        raise
    except Exception as error:
        if engine is None:
            raise
        engine.say_fault(what, error)


def run_in_progress() -> Tracker | None:
    """Give the run in progress in this thread or task; None outside one."""
    run = _current.get()
    return None if run is None or run._state == "ended" else run  # ended in another thread, it is in this context yet


class _CurrentRun:
    """The run in progress in this thread or task; using it outside a run raises `RunStateError`.

    >>> from trackmetrics import Tracker, tracker
    >>> from trackmetrics.testing import runs_in_memory
    >>> with runs_in_memory(), Tracker("demo", train=[], dev=[]) as run:
    ...     with tracker.epoch() as epoch:
    ...         epoch.log(train_loss=0.5, train_accuracy=1.0, dev_accuracy=1.0, gradient_norm=0.1)
    ...     tracker.record is run.record
    True
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        run = run_in_progress()
        if run is None:
            raise RunStateError(
                f"tracker.{name} was used outside a run; decorate the training function with @tracked_training(...), "
                "or open a run with `with Tracker(task=...)`"
            )
        return getattr(run, name)

    def __repr__(self) -> str:
        return f"<the run in progress: {_current.get()!r}>"


tracker: Tracker = cast(Tracker, _CurrentRun())
"""The run in progress in this thread or task; using it outside a run raises `RunStateError`."""


def disabled() -> bool:
    """Whether the environment says that nothing is tracked."""
    return os.environ.get("TRACKMETRICS_DISABLED", "").lower() not in ("", "0", "false")


def _reset(token: Token[Tracker | None]) -> None:
    try:
        _current.reset(token)
    except ValueError:  # left in another context than it was entered in, as some notebooks do
        _current.set(None)
