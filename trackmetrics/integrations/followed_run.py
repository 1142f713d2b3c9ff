"""A run that a trainer's events begin, divide into epochs, and end; what goes wrong in between stops no training."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from ..errors import ArgumentError, RunStateError, TrackmetricsWarning, fault
from ..options import make_options
from ..record import METRIC_KEYS, RESERVED_EPOCH_KEYS
from ..run import Epoch, Tracker, run_in_progress

_LIBRARIES = {"trackmetrics", "lightning", "pytorch_lightning", "transformers", "accelerate", "contextlib", "torch"}
_open: list[FollowedRun] = []


class TrainingLeftError(BaseException):
    """A training that came to no end: nobody said why. No error of the training's own, so it counts as interrupted."""


class FollowedRun:
    """A run of its own where there is a `task`, else a part of the run in progress, which ends by itself.

    `begin` raises what can't be right from the start (`TrackmetricsError`); after it nothing raises: a fault of ours
    costs what it was about, and is said once. It can be begun anew when it has ended.
    """

    def __init__(self, library: str, task: str | None, options: Mapping[str, Any]) -> None:
        if task is not None:
            make_options(task, options).check_without_function()
        elif options:
            raise ArgumentError(f"{', '.join(options)} came without task=; give it, too, or no option to join a run")
        self._library = library
        self._task = task
        self._options = dict(options)
        self._run: Tracker | None = None
        self._epoch: Epoch | None = None
        self._frame: FrameType | None = None  # the library's own, which the training leaves when it ends in any way
        self._lives_in: tuple[int, int] | None = None

    @property
    def run(self) -> Tracker:
        """The run. Raises `RunStateError` before it began, and after it ended."""
        run = run_in_progress() if self._run is None and self._task is None else self._run
        if run is None:
            raise RunStateError(f"no run is in progress: it begins when {self._library} says so")
        return run

    @property
    def begun(self) -> bool:
        """Whether it has begun, and hasn't ended."""
        return self._run is not None

    def begin(self, epochs_done: int = 0) -> None:
        """The training begins; of an earlier one, that a checkpoint was loaded of, so many epochs are done.

        What was left open is ended: this very run, and those of the same library whose training isn't running any more.
        """
        for left in [other for other in _open if other._lives_in == _here() and other._is_left(self._library)]:
            left.end(left._how_it_was_left())
        self.end(self._how_it_was_left())
        if self._task is None:
            run = run_in_progress()
            if run is None:
                raise RunStateError(
                    "no run is in progress to be joined; give task=, or train inside `with Tracker(task=...)` or a "
                    "decorated function"
                )
            run._check_can_begin_epoch()
            self._run = run
            return
        options = dict(self._options)
        if options.get("resume") is True and epochs_done:
            options["resume"] = epochs_done
        self._run = Tracker(self._task, **options).__enter__()
        self._frame, self._lives_in = _library_frame(), _here()
        _open.append(self)

    def learn(self, arguments: Mapping[str, Any], model: Any = None) -> None:
        """Know what the trainer knows, as if it were the arguments of a function: data by name, settings, the model."""
        with self.spared("what the trainer knows"):
            self.run._learn(arguments, model)

    def begin_epoch(self) -> None:
        """An epoch begins; one that is open still is complete."""
        self.end_epoch()
        with self.spared("the epoch"):
            epoch = self.run.epoch()
            epoch.__enter__()
            self._epoch = epoch

    @property
    def in_epoch(self) -> bool:
        """Whether an epoch is open that `begin_epoch` began."""
        return self._epoch is not None

    def log(self, values: Mapping[str, Any]) -> None:
        """Put what the trainer logs into the record of the epoch; a name that the run measures is given another."""
        epoch = None if self._run is None else self._run._open
        if epoch is None:
            outside = RunStateError(f"{', '.join(map(str, values))}: log it within `with tracker.epoch():`")
            _say(self._run, "what is logged outside an epoch", outside)
            return
        for name, value in values.items():
            with self.spared(f"the logged {name}"):
                own = name in METRIC_KEYS or name in RESERVED_EPOCH_KEYS
                epoch.log(**{f"logged_{name}" if own else str(name): value})

    def end_epoch(self) -> None:
        """The epoch is complete, if one is open."""
        epoch, self._epoch = self._epoch, None
        if epoch is not None:
            with self.spared("the epoch's record"):
                epoch._leave(None, _users_frame())

    def end(self, error: BaseException | None = None) -> None:
        """The training has ended, by itself or by an exception; what is left of an epoch then is dropped."""
        run, self._run = self._run, None
        epoch, self._epoch = self._epoch, None
        self._frame = self._lives_in = None
        if epoch is not None:
            with _spared(run, "the end of the epoch"):
                epoch._leave(error or TrainingLeftError("the epoch has no end"), None)
        if self in _open:  # a run of its own
            _open.remove(self)
            with _spared(run, "the end of the run"):
                assert run is not None
                run.__exit__(None if error is None else type(error), error, None)

    @contextlib.contextmanager
    def spared(self, what: str) -> Iterator[None]:
        """A fault of ours in this block costs `what`, never the training."""
        with _spared(self._run, what):
            yield

    # What was left open

    def _is_left(self, library: str) -> bool:
        """Whether the training is over without having said so; a trainer can train another one inside."""
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame is not self._frame:
            frame = frame.f_back
        return self._library == library and frame is None

    def _how_it_was_left(self, at_exit: bool = False) -> BaseException:
        """The exception that ended the training, if the interpreter knows of it."""
        error: BaseException | None = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        step = None if error is None else error.__traceback__
        while step is not None and step.tb_frame is not self._frame:
            step = step.tb_next
        if error is not None and (at_exit or step is not None):
            return error
        return TrainingLeftError(f"the training came to no end that {self._library} has told of")


class FollowsTraining:
    """What a trainer's callbacks and trackers have in common: one run at a time, with the options of `Tracker`."""

    _library_name: str

    def __init__(self, task: str | None = None, **options: Any) -> None:
        super().__init__()
        self.task = task
        self._run = FollowedRun(self._library_name, task, options)

    @property
    def tracker(self) -> Tracker:
        """The run in progress. Raises `RunStateError` before it began, and after it ended."""
        return self._run.run


def _end_all() -> None:
    for left in [*_open]:
        if left._lives_in is not None and left._lives_in[0] == os.getpid():
            left.end(left._how_it_was_left(at_exit=True))


atexit.register(_end_all)


def _here() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def _library_frame() -> FrameType | None:
    """The outermost of the library's frames that led here: that of the call by which the user trains."""
    inner: FrameType | None = None
    frame: FrameType | None = sys._getframe()
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _LIBRARIES:
        inner, frame = frame, frame.f_back
    return inner


def _users_frame() -> FrameType | None:
    """The frame from which the user trains: their names are looked at as those of a loop are."""
    inner = _library_frame()
    return None if inner is None else inner.f_back


@contextlib.contextmanager
def _spared(run: Tracker | None, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        _say(run, what, error)


def _say(run: Tracker | None, what: str, error: Exception) -> None:
    with contextlib.suppress(Exception):  # warnings may be errors
        if run is not None:
            run._say_fault(what, error)
        else:
            warnings.warn(TrackmetricsWarning(f"{what} could not be had: {fault(error)}"), stacklevel=4)
