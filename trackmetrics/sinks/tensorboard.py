"""TensorBoard: an event file, which its server and others show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import extras
from ..errors import ArgumentError, shown
from .attention_images import Images
from .tracker_sink import TrackerRun, TrackerSink, part_of

_TYPES = (bool, int, float, str)  # of a hyperparameter


class TensorBoard(TrackerSink):
    """Writes TensorBoard's events: to the user's own `SummaryWriter`, which stays open, else to a file of each run's.

    That stands in `tensorboard/<part>/<timestamp>/` beside the metrics file, and a resumed run goes on there. Scalars
    have 32 bits in it, and there is no room for files.

    >>> TensorBoard(writer="runs")
    Traceback (most recent call last):
    ...
    trackmetrics.errors.ArgumentError: writer is 'runs'; give a torch.utils.tensorboard.SummaryWriter
    """

    libraries, extra = ("tensorboard.plugins.hparams.summary_v2", "torch.utils.tensorboard", "PIL"), "tensorboard"

    def __init__(self, writer: Any = None) -> None:
        super().__init__()
        if writer is not None and not hasattr(writer, "add_scalar"):
            raise ArgumentError(f"writer is {shown(writer)}; give a torch.utils.tensorboard.SummaryWriter")
        self._writer = writer

    def _opened(self, path: Path, timestamp: str, earlier: int) -> TrackerRun:
        if self._writer is not None:
            return _Events(self._writer, earlier + 1, own=False)
        begun = timestamp.replace(":", "-")  # a sign that not every system has in names
        folder = path.parent / "tensorboard" / part_of(path) / begun
        first = earlier + 1 if any(folder.glob("events.out.tfevents.*")) else 1
        writer = extras.load("torch.utils.tensorboard", extra="tensorboard").SummaryWriter
        return _Events(writer(str(folder), purge_step=first), first, own=True)  # those that resuming dropped


class _Events(TrackerRun):
    def log_epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.client.add_scalar(name, value, number)
        self.client.flush()

    def log_hyperparameters(self, values: Mapping[str, Any], *, last: bool) -> None:
        if last and values:  # of several the first counts
            plain = {name: value if isinstance(value, _TYPES) else str(value) for name, value in values.items()}
            hparams = extras.load("tensorboard.plugins.hparams.summary_v2", extra="tensorboard")
            self.own |= self.client.file_writer is None  # what its user has closed opens again, and is closed again
            self.client._get_file_writer().add_summary(hparams.hparams_pb(plain))

    def log_end(self, number: int, results: Mapping[str, float], images: Images, files: list[Path]) -> None:
        self.log_epoch(number, results)
        for name, image in images.items():
            self.client.add_image(name, image, number, dataformats="HWC")

    def close(self, state: str) -> None:
        self.client.close() if self.own else self.client.flush()
