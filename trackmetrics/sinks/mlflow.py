"""MLflow: a run on a tracking server, or in a local store."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import extras
from .attention_images import Images
from .tracker_sink import TrackerRun, TrackerSink, part_of

_STATUS = {"completed": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_LONGEST_NAME, _LONGEST_VALUE = 250, 500  # what older servers take, too


class MLflow(TrackerSink):
    """Logs to the run named by `run_id`, else to the active one, else to a new one of each training.

    A run of the user's gets the new epochs and stays open; a new one gets all, earlier epochs included, and ends as the
    training does. `client` is the `MlflowClient` to use, `experiment` the name of the one for new runs; by default
    both are MLflow's own.
    """

    libraries, extra = ("mlflow", "PIL"), "mlflow"

    def __init__(self, run_id: str | None = None, *, client: Any = None, experiment: str | None = None) -> None:
        super().__init__()
        self._run_id, self._client, self._experiment = run_id, client, experiment

    def _opened(self, path: Path, timestamp: str, earlier: int) -> TrackerRun:
        mlflow = extras.load("mlflow", extra="mlflow")
        client = self._client or mlflow.MlflowClient()
        active = mlflow.active_run() if self._client is None else None  # it is MLflow's own client's
        run_id = self._run_id or (active.info.run_id if active else None)
        if run_id is not None:
            return _Run(client, run_id, earlier + 1, own=False)
        if self._experiment is None:
            experiment = mlflow.tracking.fluent._get_experiment_id()
        elif named := client.get_experiment_by_name(self._experiment):
            experiment = named.experiment_id
        else:
            experiment = client.create_experiment(self._experiment)
        return _Run(client, client.create_run(experiment, run_name=part_of(path)).info.run_id, 1, own=True)


class _Run(TrackerRun):
    def __init__(self, client: Any, run_id: str, first_epoch: int, *, own: bool) -> None:
        super().__init__(client, first_epoch, own=own)
        self._id = run_id

    def accepted(self, name: str) -> str:
        """With letters, digits and some signs alone; each part between `/` is there, and begins with no dot."""
        return re.sub(r"[^\w./ -]|(?<![^/])[./]|/$|^$", "_", name[:_LONGEST_NAME])

    def log_epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        metric, now = extras.load("mlflow.entities", extra="mlflow").Metric, int(time.time() * 1000)
        items = [metric(name, value, now, number) for name, value in metrics.items()]
        self.client.log_batch(self._id, metrics=items)

    def log_hyperparameters(self, values: Mapping[str, Any], *, last: bool) -> None:
        there = self.client.get_run(self._id).data.params
        for name, value in values.items():
            text = str(value)[:_LONGEST_VALUE]
            counted = name == "training.num_epochs" and value == self.first_epoch - 1  # it may be those so far
            if name not in there and (last or not counted):
                self.client.log_param(self._id, name, text)
            elif there.get(name, text) != text:
                self.client.set_tag(self._id, name, text)  # a parameter never changes

    def log_end(self, number: int, results: Mapping[str, float], images: Images, files: list[Path]) -> None:
        self.log_epoch(number, results)
        for name, image in images.items():
            self.client.log_image(self._id, image, artifact_file=f"{name}.png")
        for file in files:
            self.client.log_artifact(self._id, str(file))

    def close(self, state: str) -> None:
        if self.own:
            self.client.set_terminated(self._id, _STATUS[state])
