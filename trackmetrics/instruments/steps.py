"""What a training step is: all that happens between two optimizer steps.

This is the one place that decides where a step begins and ends; the gradient norm and the training's loss and
accuracy are told, and keep their own figures.
"""

from __future__ import annotations

import torch

from .gradient_norm import GradientNorm
from .guard import Guard
from .training_metrics import TrainingMetrics


class Steps:
    """Follows backwards and optimizer steps, and closes a training step when it is over.

    Optimizer steps with no backward between them are one step; a closure that is evaluated several times in an
    optimizer's step counts once, its first time; optimizers that step inside a backward make one step of it; where
    no optimizer owns what is trained, each backward is a step.
    """

    def __init__(self, norm: GradientNorm, metrics: TrainingMetrics, spare_norm: Guard, spare_metrics: Guard) -> None:
        self.norm = norm
        self.metrics = metrics
        self._spare_norm = spare_norm
        self._spare_metrics = spare_metrics
        self.count = 0
        self._depth = 0
        self._roots: tuple[torch.Tensor, ...] = ()
        self._scale: torch.Tensor | None = None
        self._stepped: set[int] = set()
        self._stepped_inside = False
        self._closure_of: torch.optim.Optimizer | None = None
        self._closure_done = False
        self._scaler_waits = False

    @property
    def completed(self) -> int:
        """How many steps are over: those closed, and an open one that no further optimizer can add to."""
        taken = bool(self._stepped) and self._closure_of is None
        return self.count + (taken and self._spare_norm(self.norm.complete, otherwise=True))

    def loss_scaled(self, scale: torch.Tensor) -> None:
        """A gradient scaler multiplied the loss of the coming backward."""
        self.between_backwards()
        self._scale = scale

    def between_backwards(self) -> None:
        """Something begins that belongs to the next step, if the last one was taken."""
        if self._depth == 0 and self._closure_of is None:
            self.end_open_step()

    def backward_begins(self, roots: tuple[torch.Tensor, ...], alone: bool = True) -> None:
        """A backward begins, after `between_backwards`; not `alone`, where other runs live in the process."""
        self._depth += 1
        if self._depth > 1:  # inside another one: reentrant checkpointing
            return
        self._roots = roots
        self._spare_metrics(self.metrics.backward_begins)
        self._spare_norm(self.norm.prepare, roots, alone)

    def backward_ended(self, completed: bool) -> None:
        """That backward is over; it counts only if it was `completed`."""
        self._depth -= 1
        if self._depth > 0:
            return
        roots, self._roots = self._roots, ()
        again = self._closure_of is not None and self._closure_done
        self._spare_metrics(self.metrics.backward_ended, roots, self._scale, completed and not again)
        if not completed or again:
            self._spare_norm(self.norm.forget_arrived)
        elif self._stepped_inside:
            self._spare_norm(self.norm.forget_arrived)
            self._end()
        elif self._spare_norm(self.norm.measure, self._scale, otherwise=True):
            self._measured()

    def _measured(self) -> None:
        if self._closure_of is not None:
            self._closure_done = True
            self._spare_norm(self.norm.include, self._closure_of)
        elif not self._spare_norm(self.norm.has_optimizer, otherwise=True):
            self._spare_norm(self.norm.include_all)
            self._end()

    def optimizer_steps(self, optimizer: torch.optim.Optimizer, takes_closure: bool) -> None:
        """An optimizer is about to step."""
        self._scaler_waits = False
        if self._depth > 0:
            self._stepped_inside = True
            self._spare_norm(self.norm.measure_inside, optimizer, self._scale)
            return
        if id(optimizer) in self._stepped and not self.norm.measured:
            self.end_open_step()  # gradients set by hand: no backward tells one step from the next
        self._spare_norm(self.norm.add_optimizer, optimizer)
        if takes_closure:
            self.end_open_step()
            self._closure_of, self._closure_done = optimizer, False
        else:
            self._spare_norm(self.norm.include, optimizer)

    def optimizer_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """That optimizer's step is over."""
        if self._depth == 0:
            self._closure_of = None
            self._stepped.add(id(optimizer))

    def scaler_steps(self) -> None:
        """A gradient scaler begins to step its optimizer, or to skip it."""
        self._scaler_waits = True

    def scaler_stepped(self) -> None:
        """The gradient scaler is done; if no optimizer stepped meanwhile, it skipped the step."""
        if self._scaler_waits:
            self._scaler_waits = False
            self._spare_norm(self.norm.skip)
            self._end()

    def end_open_step(self) -> None:
        """Close the step that an optimizer has taken, if there is one."""
        if self._stepped:
            self._end()

    def _end(self) -> None:
        self._stepped = set()
        self._stepped_inside = False
        self._scale = None
        self._spare_metrics(self.metrics.end_step)
        if self._spare_norm(self.norm.end_step, otherwise=True):
            self.count += 1
