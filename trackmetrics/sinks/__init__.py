"""Sinks: copies of a run's record in other trackers, made while it goes on.

Each is given with `sinks=`, by name or as an object: `sinks=["tensorboard", MLflow(experiment="counting")]`.
"""

from .mlflow import MLflow
from .sink import Sink
from .tensorboard import TensorBoard
from .wandb import Wandb

__all__ = ["MLflow", "Sink", "TensorBoard", "Wandb"]
