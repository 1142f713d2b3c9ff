"""Lightning: a callback for the `Trainer` of `lightning` and of `pytorch_lightning`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import extras
from .followed_run import FollowsTraining

_PACKAGES = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
_installed = [module for package, module in _PACKAGES.items() if extras.installed(package)]
_libraries = [extras.load(module, extra="lightning") for module in _installed or _PACKAGES.values()]
_SETTINGS = ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "precision", "max_steps")


class MetricsFileCallback(FollowsTraining, *(library.Callback for library in _libraries)):  # type: ignore[misc]
    """Tracks each `trainer.fit`.

    Args:
        task: the task's name; without it the callback is a part of the run around it, that of a decorated function or
            of `with Tracker(...)`.
        **options: those of `Tracker`.

    >>> MetricsFileCallback("letter_counting", part="first", output_dir="runs").task
    'letter_counting'
    """

    _library_name = "Lightning"

    def __init__(self, task: str | None = None, **options: Any) -> None:
        super().__init__(task, **options)
        self._before: Mapping[str, Any] = {}  # what was logged when the epoch began
        self._epoch_end: Any = None

    # `trainer` is of one of two libraries, and so is what it holds.

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The run begins: the sanity check is over, and there is something to train."""
        self._run.begin(trainer.current_epoch)
        with self._run.spared("what the trainer knows"):
            self._run.learn(_known(trainer, pl_module), _evaluated(pl_module))
            # Other callbacks may load weights or average them when the training ends; the run ends after them.
            trainer.callbacks = [*(callback for callback in trainer.callbacks if callback is not self), self]

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """An epoch begins."""
        self._run.begin_epoch()
        with self._run.spared("the logged values"):
            self._before = dict(trainer.callback_metrics)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """An epoch goes on that a checkpoint had broken off; its start isn't told."""
        if not self._run.in_epoch:
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """The epoch ends, but the module is to log the last of its values yet.

        Lightning calls the module next, and then those callbacks that keep checkpoints: for once one of ours is there.
        """
        with self._run.spared("the epoch's record"):
            library = next(library for library in _libraries if isinstance(trainer, library.Trainer))

            class EpochEnd(library.callbacks.Checkpoint):  # type: ignore[misc, name-defined]
                def on_train_epoch_end(this, trainer: Any, pl_module: Any) -> None:  # noqa: N805
                    self._end_epoch(trainer)

            self._epoch_end = EpochEnd()
            trainer.callbacks = [self._epoch_end, *trainer.callbacks]

    def _end_epoch(self, trainer: Any) -> None:
        self._forget_epoch_end(trainer)
        with self._run.spared("the data"):
            self._run.learn(_data(trainer))
        with self._run.spared("the logged values"):
            metrics = trainer.callback_metrics
            self._run.log({name: value for name, value in metrics.items() if value is not self._before.get(name)})
        self._run.end_epoch()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The run ends, while the model is where it was trained."""
        self._before = {}
        self._run.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """An exception, Ctrl+C or a signal ends the run."""
        self._forget_epoch_end(trainer)
        self._before = {}
        self._run.end(exception)

    def _forget_epoch_end(self, trainer: Any) -> None:
        own, self._epoch_end = self._epoch_end, None
        trainer.callbacks = [callback for callback in trainer.callbacks if callback is not own]


def _known(trainer: Any, pl_module: Any) -> dict[str, Any]:
    settings = {name: getattr(trainer, name, None) for name in _SETTINGS}
    epochs = trainer.max_epochs
    return {
        **_data(trainer),
        "settings": {
            **{name: value for name, value in settings.items() if value not in (None, -1)},
            **({"num_epochs": epochs} if epochs is not None and epochs > 0 else {}),
        },
        "hparams": dict(pl_module.hparams),
        **{f"scheduler{number}": config.scheduler for number, config in enumerate(trainer.lr_scheduler_configs)},
    }


def _data(trainer: Any) -> dict[str, Any]:
    """The loaders as they are now: they may be made anew, and a validation that comes late makes its own late."""
    data = {"train": trainer.train_dataloader, "dev": _first(trainer.val_dataloaders)}
    return {name: loader for name, loader in data.items() if loader is not None}


def _first(loaders: Any) -> Any:
    """Of several validation sets the first is the dev set."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    return next(iter(loaders), None) if isinstance(loaders, (list, tuple)) else loaders


def _evaluated(pl_module: Any) -> Any:
    """What can be called on a batch's inputs: the module, or where it has no `forward`, the model that it trains."""
    if all(type(pl_module).forward is not library.LightningModule.forward for library in _libraries):
        return pl_module
    trained = {id(parameter) for parameter in pl_module.parameters() if parameter.requires_grad}
    owners = [child for child in pl_module.children() if trained <= {id(parameter) for parameter in child.parameters()}]
    return owners[0] if len(owners) == 1 else pl_module
