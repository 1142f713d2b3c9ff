"""Everything that is observed of one training, wired to the events of its context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch

from . import events
from .criteria import Call, Criterion
from .gradient_norm import GradientNorm, NormSummary
from .guard import Guard
from .hyperparameters import ConstructorArguments, OptimizerSettings, one_or_list, scheduler_settings
from .own_evaluation import Evaluations, OwnEvaluation
from .pairing import Pairing
from .steps import Steps
from .trained_parameters import Root, TrainedParameters, parameters_of
from .training_metrics import TrainingMetrics

_FAILED = "its instrument failed"


@dataclass(frozen=True)
class Observation:
    """What one epoch showed; a fault says why a value is missing.

    `evaluations` is what the user evaluated after the last step.
    """

    loss: float | None
    accuracy: float | None
    norm: NormSummary
    loss_fault: str | None
    accuracy_fault: str | None
    norm_fault: str | None
    evaluations: Evaluations | None


class Training(events.Listener):
    """Listens to a training while it is `active`; a fault of ours ends the instrument it is in, nothing else.

    `on_fault` is told the instrument's name and its error; `on_steps`, where it is set, between two steps, that at
    least one more is complete: when the next batch comes, where a loader feeds the training, so that an evaluation
    after the step is still the step's; else as soon as the step is over.
    """

    def __init__(self, on_fault: Callable[[str, Exception], None]) -> None:
        self.active = False
        self.on_steps: Callable[[], None] | None = None
        self._fed_by: Any = None  # which batches came since the last step was over: their sampler
        self._awaited: Any = None  # the sampler whose next batch begins the next step
        self._parameters = TrainedParameters()
        self._norm = GradientNorm()
        self._metrics = TrainingMetrics(self._followed)
        self._own = OwnEvaluation()
        self._constructed = ConstructorArguments()
        self._settings = OptimizerSettings()
        self._spare_norm = Guard("gradient_norm", on_fault)
        self._spare_metrics = Guard("train_loss and train_accuracy", on_fault)
        self._spare_own = Guard("dev_accuracy of your own evaluation (the run evaluates again)", on_fault)
        self._spare_steps = Guard("gradient_norm, train_loss and train_accuracy", on_fault)
        self._spare_arguments = Guard("the model's constructor arguments", on_fault)
        self._spare_settings = Guard("the optimizer's settings", on_fault)
        self._steps = Steps(self._parameters, self._norm, self._metrics, self._spare_norm, self._spare_metrics)

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
        return self._spare_norm(self._parameters.trained, otherwise=[]) or [
            parameter for parameter in stepped if parameter.requires_grad
        ]

    def owners(self) -> list[str]:
        """The names of the optimizers that own something of what is trained, whether they stepped or not."""
        owners: list[str] = self._spare_norm(self._parameters.owners, otherwise=[])
        return owners

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
        self._spare_steps(self._steps.end_epoch)
        loss, accuracy = self._spare_metrics(self._metrics.take, otherwise=(None, None))
        norm = self._spare_norm(self._norm.take, otherwise=NormSummary())
        faults = self._metrics.loss_fault, self._metrics.accuracy_fault
        self._metrics.loss_fault = self._metrics.accuracy_fault = None
        if self._spare_metrics.broken or self._spare_steps.broken:
            faults = (_FAILED, _FAILED)
        norm_fault = _FAILED if self._spare_norm.broken or self._spare_steps.broken else None
        return Observation(loss, accuracy, norm, *faults, norm_fault, self._spare_own(self._own.take))

    def release(self) -> None:
        """Remove every hook and drop every reference."""
        self.active = False
        self.on_steps = self._fed_by = self._awaited = None
        self._steps.release()
        self._parameters.release()
        self._norm.release()
        self._metrics.release()
        self._own.release()
        self._constructed = ConstructorArguments()
        self._settings = OptimizerSettings()

    # What happens

    def criterion_called(self, criterion: Criterion, arguments: tuple[Any, ...], result: torch.Tensor) -> None:
        if self.active:
            self._spare_metrics(self._metrics.criterion_called, criterion, arguments, result)
            if not result.requires_grad:
                self._spare_own(self._own.criterion_called, criterion, arguments, result)

    def _followed(self, call: Call) -> None:
        """A backward may come to this call, or none: then it may be an evaluation."""
        self._spare_own(self._own.call_followed, call)

    def differentiates(self) -> None:
        if self.active:
            self._spare_metrics(self._metrics.differentiates)

    def loss_scaled(self, scaled: torch.Tensor, scale: torch.Tensor) -> None:
        if self.active:
            self._spare_steps(self._steps.loss_scaled, scaled, scale)

    def backward_begins(self, roots: tuple[Root, ...], inputs: tuple[torch.Tensor, ...] | None, retains: bool) -> None:
        if self.active:
            if self.on_steps is not None:
                self._spare_steps(self._steps.between_backwards)
                self.on_steps()
            if self._own.holds_any:
                self._spare_own(self._own.training_goes_on)
            self._spare_steps(self._steps.backward_begins, roots, inputs, retains, events.live_runs() == 1)

    def backward_ended(self, completed: bool) -> None:
        if self.active:
            self._spare_steps(self._steps.backward_ended, completed)

    def optimizer_steps(self, optimizer: torch.optim.Optimizer, takes_closure: bool) -> None:
        if self.active:
            self._spare_settings(self._settings.optimizer_steps, optimizer)
            if self.on_steps is not None and self._spare_steps(self._steps.before_optimizer, optimizer):
                self.on_steps()
            if self._own.holds_any:
                self._spare_own(self._own.training_goes_on)
            self._spare_steps(self._steps.optimizer_steps, optimizer, takes_closure)

    def optimizer_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        if self.active:
            self._spare_steps(self._steps.optimizer_stepped, optimizer)
            if self.on_steps is not None and self._steps.certainly_over:
                self._awaited, self._fed_by = self._fed_by, None
                if self._awaited is None:
                    self.on_steps()

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
        self._spare_norm(self._parameters.add_optimizer, optimizer)

    def batch_yielded(self, batch: Any, iterator: Any) -> None:
        if self.active:
            self._fed_by = iterator._index_sampler
            if self.on_steps is not None and self._fed_by is self._awaited:
                self.on_steps()
            self._spare_metrics(self._metrics.batch_yielded, batch)
            self._spare_own(self._own.batch_yielded, batch, iterator)

    def batches_ended(self, iterator: Any) -> None:
        if self.active:
            self._spare_metrics(self._metrics.batches_ended)
            self._spare_own(self._own.batches_ended)

    def module_built(self, module: torch.nn.Module, frame: FrameType) -> None:
        self._spare_arguments(self._constructed.module_built, module, frame)
