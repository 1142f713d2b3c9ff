"""Accelerate: a tracker for `Accelerator(log_with=...)`; the loop stays the user's, and so does `tracker.epoch()`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import extras
from ..errors import RunStateError
from ..ranks import world_size
from .followed_run import FollowsTraining

_library = extras.load("accelerate.tracking", extra="accelerate")


class MetricsFileTracker(FollowsTraining, _library.GeneralTracker):  # type: ignore[misc, name-defined]
    """A run from `accelerator.init_trackers(...)` to `accelerator.end_training()`.

    Accelerate tells the trackers of the main process alone. On several processes train inside a run, which each of them
    enters, and leave `task` out.

    Args:
        task: the task's name; without it the tracker is a part of the run around it, that of a decorated function or
            of `with Tracker(...)`.
        **options: those of `Tracker`.

    >>> MetricsFileTracker("letter_counting", part="first", output_dir="runs").task
    'letter_counting'
    """

    name = "trackmetrics"
    requires_logging_directory = False
    _library_name = "accelerate"

    def start(self) -> None:
        """The run begins. Raises `RunStateError` where other processes would have none."""
        if self.task is not None and world_size() > 1:
            raise RunStateError(
                "accelerate begins trackers on the main process alone; decorate the function that each process calls "
                "with @tracked_training(...), or train inside `with Tracker(...)`, and give MetricsFileTracker no task"
            )
        self._run.begin()

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """The configuration that `init_trackers` is given: hyperparameters."""
        self._run.learn({"config": dict(values)})

    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """What `accelerator.log` is given is the open epoch's; of several values under a name the last counts."""
        self._run.log(values)

    def finish(self) -> None:
        """The run ends."""
        self._run.end()
