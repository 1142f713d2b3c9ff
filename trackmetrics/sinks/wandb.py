"""Weights & Biases: a run on its server, or an offline one."""

from __future__ import annotations

import re
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
    """

    libraries, extra = ("wandb", "PIL"), "wandb"

    def __init__(self, run: Any = None, **init: Any) -> None:
        super().__init__()
        if run is not None and not hasattr(run, "define_metric"):
            raise ArgumentError(f"run is {shown(run)}; give what wandb.init returned")
        self._run, self._init = run, init

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


class _Run(TrackerRun):
    def accepted(self, name: str) -> str:
        """Without `*`, which stands for several metrics; what W&B has of its own gets one more `_`."""
        return re.sub(r"\*|^$|^(?=_(?:step|runtime|timestamp|wandb)$)", "_", name)

    def log_epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        for name in metrics:
            self.client.define_metric(name, step_metric="epoch")
        self.client.log({"epoch": number, **metrics})

    def log_hyperparameters(self, values: Mapping[str, Any], *, last: bool) -> None:
        self.client.config.update(values, allow_val_change=True)

    def log_end(self, number: int, results: Mapping[str, float], images: Images, files: list[Path]) -> None:
        wandb = extras.load("wandb", extra="wandb")
        if images:
            self.client.log({"epoch": number, **{name: wandb.Image(image) for name, image in images.items()}})
        self.client.summary.update(results)
        artifact = wandb.Artifact(f"metrics-{self.client.id}", "metrics")
        for file in files:
            artifact.add_file(str(file))
        self.client.log_artifact(artifact)

    def close(self, state: str) -> None:
        if self.own:
            self.client.finish(exit_code=_EXIT_CODES[state])
