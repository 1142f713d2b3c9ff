"""Weights & Biases: a run on its server, or an offline one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import extras
from ..errors import ArgumentError, shown
from .attention_images import Images
from .tracker_sink import TrackerRun, TrackerSink, part_of

_EXIT_CODES = {"completed": 0, "failed": 1, "interrupted": 255}  # 255 is W&B's own for Ctrl+C
_PROMPT_SECONDS = 30  # that W&B waits on a terminal for a key that it doesn't know


class Wandb(TrackerSink):
    """Logs to the given run, else to the active one (`wandb.run`), else to a new one of each training.

    A run of the user's gets the new epochs and stays open; a new one gets all, earlier epochs included, and ends as the
    training does. `init` are arguments of `wandb.init` for new runs: `Wandb(project="counting")`.

    >>> Wandb(run="counting")
    Traceback (most recent call last):
    ...
    trackmetrics.errors.ArgumentError: run is 'counting'; give what wandb.init returned
    """

    def __init__(self, run: Any = None, **init: Any) -> None:
        super().__init__()
        if run is not None and not hasattr(run, "define_metric"):
            raise ArgumentError(f"run is {shown(run)}; give what wandb.init returned")
        self._run, self._init = run, init

    def _check(self) -> None:
        for module in ("wandb", "PIL"):
            extras.load(module, extra="wandb")

    def _opened(self, path: Path, timestamp: str, earlier: int) -> TrackerRun:
        wandb = extras.load("wandb", extra="wandb")
        run = self._run or wandb.run
        if run is not None:
            return _Run(run, earlier + 1, own=False)
        hooks = sys.exit, sys.excepthook
        try:  # neither these, nor `wandb.run`, nor standard output become others
            settings = wandb.Settings(reinit="create_new", console="off", login_timeout=_PROMPT_SECONDS)
            run = wandb.init(**{"name": part_of(path), "settings": settings, **self._init})
        finally:
            sys.exit, sys.excepthook = hooks
        return _Run(run, earlier + 1 if run.resumed else 1, own=True)


class _Run:
    def __init__(self, run: Any, first_epoch: int, *, own: bool) -> None:
        self._run, self.first_epoch, self._own = run, first_epoch, own

    def log_epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        for name in metrics:
            self._run.define_metric(name, step_metric="epoch")
        self._run.log({"epoch": number, **metrics})

    def log_hyperparameters(self, values: Mapping[str, Any], *, last: bool) -> None:
        self._run.config.update(values, allow_val_change=True)

    def log_end(self, number: int, results: Mapping[str, float], images: Images, files: list[Path]) -> None:
        wandb = extras.load("wandb", extra="wandb")
        if images:
            self._run.log({"epoch": number, **{name: wandb.Image(image) for name, image in images.items()}})
        self._run.summary.update(results)
        artifact = wandb.Artifact(f"metrics-{self._run.id}", "metrics")
        for file in files:
            artifact.add_file(str(file))
        self._run.log_artifact(artifact)

    def close(self, state: str) -> None:
        if self._own:
            self._run.finish(exit_code=_EXIT_CODES[state])
