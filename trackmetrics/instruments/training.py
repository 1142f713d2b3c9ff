"""Everything that is observed of one training, wired to the events of its context."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import torch

from . import events
from .batch_check import BatchCheck
from .criteria import Call, Criterion
from .figures import Figures, Norms, Share
from .gradient_norm import GradientNorm
from .guard import Guard
from .hyperparameters import ConstructorArguments, OptimizerSettings, one_or_list, scheduler_settings
from .metric_objects import MetricObjects
from .own_evaluation import Evaluations, OwnEvaluation
from .pairing import Pairing
from .readback import Readback
from .steps import Steps
from .trained_parameters import Root, TrainedParameters, parameters_of
from .training_metrics import TrainingMetrics


@dataclass(frozen=True)
class Observation:
    """What one epoch showed in this process; `evaluations` is what the user evaluated after the last step."""

    figures: Figures
    evaluations: Evaluations | None = None


def _said_with_the_values(name: str, error: Exception) -> None:
    """An epoch's values say themselves why they are missing."""


def _nothing() -> None:
    """Nobody waits for it."""


class Training(events.Listener):
    """Listens to a training while it is `active`; a fault of ours ends the instrument it is in, nothing else.

    An instrument of an epoch's values that failed says so with each of them that it costs; of any other `on_fault` is
    told the name and the error. `on_steps` is called, where it is set, between two steps, when at least one more is
    complete: when the next batch comes, where a loader feeds the training, so that an evaluation after the step is
    still the step's; else as soon as the step is over. `on_due` is called between two steps, where `due` is set
    and says that it is time.
    """

    def __init__(self, on_fault: Callable[[str, Exception], None]) -> None:
        self.active = False
        self.on_steps: Callable[[], None] | None = None
        self.due: Callable[[], bool] | None = None
        self.on_due: Callable[[], None] = _nothing
        self._fed_by: Any = None  # which batches came since the last step was over: their sampler
        self._awaited: Any = None  # the sampler whose next batch begins the next step
        self._parameters = TrainedParameters()
        self._norm = GradientNorm()
        self._metrics = TrainingMetrics(self._followed, self._first_step)
        self._check = BatchCheck()
        self._own = OwnEvaluation()
        self._constructed = ConstructorArguments()
        self._settings = OptimizerSettings()
        self._readback = Readback()
        self._spare_norm = Guard("gradient_norm", _said_with_the_values)
        self._spare_metrics = Guard("train_loss and train_accuracy", _said_with_the_values)
        self._spare_own = Guard("dev_accuracy of your own evaluation (the run evaluates again)", on_fault)
        self._spare_steps = Guard("the records of epochs(every=...)", self._steps_failed)
        self._spare_check = Guard("whether the loop changes its loader's batches", on_fault)
        self._spare_trained = Guard("metadata.device and metadata.hyperparameters", on_fault)
        self._spare_arguments = Guard("the model's constructor arguments", on_fault)
        self._spare_settings = Guard("the optimizer's settings", on_fault)
        self._spare_figures = Guard("the live line's figures", on_fault)
        self._steps = Steps(self._parameters, self._norm, self._metrics, self._spare_norm, self._spare_metrics)

        self._on_fault = on_fault

    def _steps_failed(self, name: str, error: Exception) -> None:
        if self.on_steps is not None:  # nobody counts them any more; an epoch's values say themselves why
            self._on_fault(name, error)

    def feed(self, metrics: MetricObjects | None) -> None:
        """Feed the user's metrics with what is observed from here on."""
        self._metrics.metrics = metrics

    # What was observed

    @property
    def pairing(self) -> Pairing | None:
        """How the last observed training call paired output with target; None where none was observed."""
        pairing = self._metrics.pairing
        if pairing is None:
            return None
        return replace(
            pairing,
            given_others=self._spare_check(self._check.given_others, otherwise=frozenset()),
            targets_changed=self._spare_check(self._check.targets_changed, otherwise=False),
        )

    @property
    def why_unpaired(self) -> str:
        """Why there is no `pairing`."""
        return self.metrics_fault or self._metrics.why_unpaired

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
        return self._spare_trained(self._parameters.trained, otherwise=[]) or [
            parameter for parameter in stepped if parameter.requires_grad
        ]

    def owners(self) -> list[str]:
        """The names of the optimizers that own something of what is trained, whether they stepped or not."""
        owners: list[str] = self._spare_trained(self._parameters.owners, otherwise=[])
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

    def figures(self) -> Mapping[str, float]:
        """The epoch's `loss` and `norm` so far, as late as they come from a device that isn't waited for."""
        figures: Mapping[str, float] = self._spare_figures(self._latest_figures, otherwise={})
        return figures

    def _latest_figures(self) -> Mapping[str, float]:
        parameter = next(iter(self._parameters.trained()), None)
        return {} if parameter is None else self._readback.latest(parameter.device.type, self._figures_on_device)

    def _figures_on_device(self) -> dict[str, torch.Tensor | None]:
        return {"loss": self._metrics.loss_so_far(), "norm": self._norm.mean_so_far()}

    def take(self) -> Observation:
        """Close the last step, fetch the epoch's figures from the device, and begin a new epoch."""
        self._readback.forget()
        self._spare_steps(self._steps.end_epoch)
        loss, accuracy = self._spare_metrics(self._metrics.take, otherwise=(Share(), Share()))
        norms = self._spare_norm(self._norm.take, otherwise=Norms())
        loss_fault, accuracy_fault = self._metrics.loss_fault, self._metrics.accuracy_fault
        self._metrics.loss_fault = self._metrics.accuracy_fault = None
        norm_fault = self._spare_norm.fault or self._spare_steps.fault
        if self.metrics_fault is not None:  # what was counted before is a part of the epoch
            loss_fault = accuracy_fault = self.metrics_fault
        elif norm_fault is not None and not self.optimizers():  # then it would have told one step from the next
            loss_fault = norm_fault
        faults = {"train_loss": loss_fault, "train_accuracy": accuracy_fault, "gradient_norm": norm_fault}
        figures = Figures(loss, accuracy, norms, {key: fault for key, fault in faults.items() if fault is not None})
        return Observation(figures, self._spare_own(self._own.take))

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
            "batches_ended": self._spare_metrics,
            "module_called": self._spare_check,
        }
        guards.get(event, self._spare_steps).fail(error)

    def release(self) -> None:
        """Remove every hook and drop every reference."""
        self.active = False
        self.on_steps = self.due = self._fed_by = self._awaited = None
        self.on_due = _nothing
        with contextlib.ExitStack() as stack:  # each, though another fails
            stack.callback(self._own.release)
            stack.callback(self._metrics.release)
            stack.callback(self._norm.release)
            stack.callback(self._parameters.release)
            stack.callback(self._steps.release)
        self._check = BatchCheck()
        self._constructed = ConstructorArguments()
        self._settings = OptimizerSettings()

    # What happens

    def criterion_called(self, criterion: Criterion, arguments: tuple[Any, ...], result: torch.Tensor) -> None:
        if self.active:
            if not self._spare_metrics.broken:
                self._metrics.criterion_called(criterion, arguments, result)
            if not result.requires_grad:
                self._spare_own(self._own.criterion_called, criterion, arguments, result)

    def _followed(self, call: Call) -> None:
        """A backward may come to this call, or none: then it may be an evaluation."""
        self._spare_own(self._own.call_followed, call)

    def _first_step(self, call: Call | None) -> bool:
        """One of the training's first backwards is over; say whether that was enough of them."""
        return bool(self._spare_check(self._check.step_taken, call, otherwise=True))

    def differentiates(self) -> None:
        if self.active:
            self._spare_metrics(self._metrics.differentiates)

    # A fault of the steps' bookkeeping is told to `failed` by whoever told of the event: without a guard's own call in
    # between, for these come with every step.

    def losses_scaled(self, scaled: Any, scale: torch.Tensor) -> None:
        if self.active and not self._spare_steps.broken:
            self._steps.losses_scaled(scaled, scale)

    def backward_begins(self, roots: tuple[Root, ...], inputs: tuple[torch.Tensor, ...] | None, retains: bool) -> None:
        if self.active and not self._spare_steps.broken:
            if self.due is not None and self.due():
                self._steps.between_backwards()
                self.on_due()
            if self.on_steps is not None:
                self._steps.between_backwards()
                self.on_steps()
            if self._own.holds_any:
                self._spare_own(self._own.training_goes_on)
            self._steps.backward_begins(roots, inputs, retains, events.live_runs() == 1)

    def backward_ended(self, completed: bool) -> None:
        if self.active and not self._spare_steps.broken:
            self._steps.backward_ended(completed)

    def optimizer_steps(self, optimizer: torch.optim.Optimizer, takes_closure: bool) -> None:
        if self.active:
            self._spare_settings(self._settings.optimizer_steps, optimizer)
        if self.active and not self._spare_steps.broken:
            if self.on_steps is not None and self._steps.before_optimizer(optimizer):
                self.on_steps()
            if self._own.holds_any:
                self._spare_own(self._own.training_goes_on)
            self._steps.optimizer_steps(optimizer, takes_closure)

    def optimizer_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        if self.active and not self._spare_steps.broken:
            self._steps.optimizer_stepped(optimizer)
            if self.on_steps is not None and self._steps.certainly_over:
                self._awaited, self._fed_by = self._fed_by, None
                if self._awaited is None:
                    self.on_steps()

    def closure_begins(self, optimizer: torch.optim.Optimizer) -> None:
        if self.active and not self._spare_steps.broken:
            self._steps.closure_begins()

    def closure_ended(self, optimizer: torch.optim.Optimizer, completed: bool) -> None:
        if self.active and not self._spare_steps.broken:
            self._steps.closure_ended(optimizer, completed)

    def scaler_steps(self, optimizer: torch.optim.Optimizer) -> None:
        if self.active and not self._spare_steps.broken:
            self._steps.scaler_steps()

    def scaler_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        if self.active and not self._spare_steps.broken:
            self._steps.scaler_stepped(optimizer)

    def optimizer_built(self, optimizer: torch.optim.Optimizer) -> None:
        self._spare_norm(self._parameters.add_optimizer, optimizer)

    def batch_yielded(self, batch: Any, number: int, iterator: Any) -> None:
        if self.active:
            self._fed_by = iterator._index_sampler
            if self.on_steps is not None and self._fed_by is self._awaited:
                self.on_steps()
            self._spare_metrics(self._metrics.loader_asked)
            self._spare_check(self._check_batch, batch)
            self._spare_own(self._own.batch_yielded, batch, number, iterator)

    def module_called(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return self.active and bool(self._spare_check(self._check_module, module, args, kwargs))

    def _check_batch(self, batch: Any) -> None:
        self._check.batch_yielded(batch)
        if self._check.awaits_model:
            events.hear_modules(self)

    def _check_module(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        self._check.module_called(module, args, kwargs)
        return self._check.awaits_model

    def batches_ended(self, iterator: Any) -> None:
        if self.active:
            self._spare_metrics(self._metrics.loader_asked)
            self._spare_own(self._own.batches_ended)

    def module_built(self, module: torch.nn.Module, frame: FrameType) -> None:
        self._spare_arguments(self._constructed.module_built, module, frame)
