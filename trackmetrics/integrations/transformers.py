"""Hugging Face: a callback for the `Trainer` of `transformers`."""

from __future__ import annotations

from typing import Any

from .. import extras
from .followed_run import FollowsTraining

_library = extras.load("transformers", extra="transformers")


class MetricsFileCallback(FollowsTraining, _library.TrainerCallback):  # type: ignore[misc, name-defined]
    """Tracks each `trainer.train`.

    The trainer tells no callback of an exception: where one is to stand in the file, leave `task` out and train inside
    a run.

    Args:
        task: the task's name; without it the callback is a part of the run around it, that of a decorated function or
            of `with Tracker(...)`.
        **options: those of `Tracker`.

    >>> MetricsFileCallback("letter_counting", part="first", output_dir="runs").task
    'letter_counting'
    """

    _library_name = "the Trainer"

    def __init__(self, task: str | None = None, **options: Any) -> None:
        super().__init__(task, **options)
        self._begins = False  # the training, whose first epoch is to begin yet
        self._trained = False  # the epoch that is open: what follows is its log and its evaluation, if one is due
        self._evaluates = False
        self._dev: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A training begins, and the run with its first epoch: with nothing left to train there is none."""
        self._begins, self._trained, self._dev = True, False, None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An epoch begins."""
        if self._begins:
            self._begins = False
            self._run.begin(int(state.epoch or 0))
            with self._run.spared("what the trainer knows"):
                self._run.learn(_known(args, state, self._dev, **kwargs), kwargs["model"])
        self._trained = False
        self._run.begin_epoch()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The epoch ends, at once if neither a log nor an evaluation of it is due."""
        self._trained, self._evaluates = True, control.should_evaluate
        if not (control.should_log or control.should_evaluate):
            self._end_epoch()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """What the trainer logs, `compute_metrics` included, is the epoch's; what it logs at the very end is not."""
        if "train_runtime" in (logs or {}):
            self._end_epoch()  # before the best weights are loaded
        elif self._run.in_epoch:
            self._run.log({name: value for name, value in (logs or {}).items() if name != "epoch"})
            if not self._evaluates:
                self._end_epoch()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """The first set that is evaluated is the dev set; where there is one, the epoch is over with it."""
        metrics = metrics or {}
        if self._dev is None and any(name.startswith("eval_") for name in metrics):
            self._dev = kwargs.get("eval_dataloader")
            if self._run.begun:
                self._run.learn({"dev": self._dev})
        if "eval_runtime" in metrics:  # else it is one of several, which have names of their own
            self._end_epoch()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The run ends."""
        self._end_epoch()
        self._run.end()
        self._dev = None

    def _end_epoch(self) -> None:
        if self._trained:
            self._trained = False
            self._run.end_epoch()


def _known(
    args: Any, state: Any, dev: Any, *, train_dataloader: Any = None, lr_scheduler: Any = None, **kwargs: Any
) -> dict[str, Any]:
    settings = dict(args.to_dict()) if hasattr(args, "to_dict") else {}
    known = {
        "train": train_dataloader,
        "dev": dev,
        "scheduler": lr_scheduler,
        "settings": {**settings, "num_epochs": state.num_train_epochs},
    }
    return {name: value for name, value in known.items() if value is not None}
