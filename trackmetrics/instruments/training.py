"""Everything that is observed of one training, wired to the events of its context."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch

from . import events
from .criteria import Criterion
from .gradient_norm import GradientNorm, NormSummary, parameters_of
from .guard import Guard
from .hyperparameters import ConstructorArguments, OptimizerSettings, one_or_list, scheduler_settings
from .pairing import Pairing
from .steps import Steps
from .training_metrics import TrainingMetrics


@dataclass(frozen=True)
class Observation:
    """What one epoch showed; a fault says why a value is missing."""

    loss: float | None
    accuracy: float | None
    norm: NormSummary
    loss_fault: str | None
    accuracy_fault: str | None
    norm_fault: str | None


def _said_with_the_values(name: str, error: Exception) -> None:
    """An epoch's values say themselves why they are missing."""


class Training(events.Listener):
    """Listens to a training while it is `active`; a fault of ours ends the instrument it is in, nothing else.

    An instrument of an epoch's values that failed says so with each of them that it costs; of any other `on_fault` is
    told the name and the error. `on_steps` is told, between two steps, that at least one more is complete.
    """

    def __init__(self, on_fault: Callable[[str, Exception], None], on_steps: Callable[[], None]) -> None:
        self.active = False
        self._on_steps = on_steps
        self._norm = GradientNorm()
        self._metrics = TrainingMetrics()
        self._constructed = ConstructorArguments()
        self._settings = OptimizerSettings()
        self._spare_norm = Guard("gradient_norm", _said_with_the_values)
        self._spare_metrics = Guard("train_loss and train_accuracy", _said_with_the_values)
        self._spare_steps = Guard("gradient_norm, train_loss and train_accuracy", _said_with_the_values)
        self._spare_arguments = Guard("the model's constructor arguments", on_fault)
        self._spare_settings = Guard("the optimizer's settings", on_fault)
        self._steps = Steps(self._norm, self._metrics, self._spare_norm, self._spare_metrics)

    # What was observed

    @property
    def pairing(self) -> Pairing | None:
        """How the last observed training call paired output with target; None where none was observed."""
        return self._metrics.pairing

    @property
    def criterion(self) -> dict[str, Any] | None:
        """Name and settings of the observed criterion."""
        return self._metrics.criterion

    @property
    def constructed(self) -> ConstructorArguments:
        """The constructor arguments of modules built during the run."""
        return self._constructed

    @property
    def completed_steps(self) -> int:
        """How many training steps were taken since the run began."""
        return self._steps.completed

    def trained(self) -> list[torch.Tensor]:
        """The parameters that have received a gradient; where no hook saw any, those that were stepped."""
        stepped = (parameter for optimizer in self._settings.optimizers() for parameter in parameters_of(optimizer))
        return self._norm.trained() or [parameter for parameter in stepped if parameter.requires_grad]

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers that have stepped and are still alive."""
        return self._settings.optimizers()

    @property
    def measured_at_step(self) -> bool:
        """Whether some gradient was seen only when its optimizer stepped: it was set by hand."""
        return self._norm.measured_at_step

    def observed_hyperparameters(self, schedulers: list[Any]) -> dict[str, Any]:
        """What was seen while training, under fixed names; None for what wasn't."""
        return {
            **self._settings.observed(),
            "scheduler": one_or_list([scheduler_settings(scheduler) for scheduler in schedulers]),
            "criterion": self.criterion,
        }

    def take(self) -> Observation:
        """Close the last step, fetch the epoch's figures from the device, and begin a new epoch."""
        self._spare_steps(self._steps.end_open_step)
        loss, accuracy = self._spare_metrics(self._metrics.take, otherwise=(None, None))
        norm = self._spare_norm(self._norm.take, otherwise=NormSummary())
        faults = self._metrics.loss_fault, self._metrics.accuracy_fault
        self._metrics.loss_fault = self._metrics.accuracy_fault = None
        norm_fault = self._spare_norm.fault or self._spare_steps.fault
        if self.metrics_fault is not None:  # what was counted before is a part of the epoch
            loss, accuracy, faults = None, None, (self.metrics_fault, self.metrics_fault)
        elif norm_fault is not None and not self.optimizers():  # then it would have told one step from the next
            loss, faults = None, (norm_fault, faults[1])
        return Observation(loss, accuracy, norm if norm_fault is None else NormSummary(), *faults, norm_fault)

    @property
    def metrics_fault(self) -> str | None:
        """Why the training's criterion calls aren't observed any more; None while they are."""
        return self._spare_metrics.fault or self._spare_steps.fault

    def failed(self, event: str, error: Exception) -> None:
        guards = {
            "module_built": self._spare_arguments,
            "optimizer_built": self._spare_norm,
            "criterion_called": self._spare_metrics,
            "batch_yielded": self._spare_metrics,
        }
        guards.get(event, self._spare_steps).fail(error)

    def release(self) -> None:
        """Remove every hook and drop every reference."""
        self.active = False
        with contextlib.ExitStack() as stack:  # each, though another fails
            stack.callback(self._metrics.release)
            stack.callback(self._norm.release)
            stack.callback(self._steps.release)
        self._constructed = ConstructorArguments()
        self._settings = OptimizerSettings()

    # What happens

    def criterion_called(self, criterion: Criterion, arguments: tuple[Any, ...], result: torch.Tensor) -> None:
        if self.active:
            self._spare_metrics(self._metrics.criterion_called, criterion, arguments, result)

    def loss_scaled(self, scaled: torch.Tensor, scale: torch.Tensor) -> None:
        if self.active:
            self._spare_steps(self._steps.loss_scaled, scaled, scale)

    def backward_begins(self, roots: tuple[torch.Tensor, ...]) -> None:
        if self.active:
            self._spare_steps(self._steps.between_backwards)
            self._on_steps()
            self._spare_steps(self._steps.backward_begins, roots, events.live_runs() == 1)

    def backward_ended(self, completed: bool) -> None:
        if self.active:
            self._spare_steps(self._steps.backward_ended, completed)

    def optimizer_steps(self, optimizer: torch.optim.Optimizer, takes_closure: bool) -> None:
        if self.active:
            self._spare_settings(self._settings.optimizer_steps, optimizer)
            if self._spare_steps(self._steps.before_optimizer, optimizer, otherwise=False):
                self._on_steps()
            self._spare_steps(self._steps.optimizer_steps, optimizer, takes_closure)

    def optimizer_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        if self.active:
            self._spare_steps(self._steps.optimizer_stepped, optimizer)
            if self._steps.certainly_over:
                self._on_steps()

    def closure_begins(self, optimizer: torch.optim.Optimizer) -> None:
        if self.active:
            self._spare_steps(self._steps.closure_begins)

    def closure_ended(self, optimizer: torch.optim.Optimizer, completed: bool) -> None:
        if self.active:
            self._spare_steps(self._steps.closure_ended, optimizer, completed)

    def scaler_steps(self, optimizer: torch.optim.Optimizer) -> None:
        if self.active:
            self._spare_steps(self._steps.scaler_steps)

    def scaler_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        if self.active:
            self._spare_steps(self._steps.scaler_stepped, optimizer)

    def optimizer_built(self, optimizer: torch.optim.Optimizer) -> None:
        self._spare_norm(self._norm.add_optimizer, optimizer)

    def batch_yielded(self, batch: Any) -> None:
        if self.active:
            self._spare_metrics(self._metrics.batch_yielded, batch)

    def module_built(self, module: torch.nn.Module, frame: FrameType) -> None:
        self._spare_arguments(self._constructed.module_built, module, frame)
