"""What a training step is: all that happens between two optimizer steps.

This is the one place that decides where a step begins and ends; the gradient norm and the training's loss and
accuracy are told, and keep their own figures.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from .compiling import anything_compiled
from .data import tensors_in
from .gradient_norm import GradientNorm
from .guard import Guard
from .reaching import ReachHooks, can_be_reached, edge_of
from .trained_parameters import Root, TrainedParameters, parameters_of
from .training_metrics import TrainingMetrics


class Steps:
    """Follows backwards and optimizer steps, and closes a training step when it is over.

    Optimizer steps with no backward between them are one step; a closure that is evaluated several times in an
    optimizer's step counts once, its first time; optimizers that step inside a backward make one step of it; where
    no optimizer owns what is trained, each backward is a step.
    """

    def __init__(
        self,
        parameters: TrainedParameters,
        norm: GradientNorm,
        metrics: TrainingMetrics,
        spare_norm: Guard,
        spare_metrics: Guard,
    ) -> None:
        self.parameters = parameters
        self.norm = norm
        self.metrics = metrics
        self._spare_norm = spare_norm
        self._spare_metrics = spare_metrics
        self._scaled = ReachHooks()
        self._count = 0
        # The backward under way
        self._depth = 0
        self._roots: tuple[Root, ...] = ()
        self._scale: torch.Tensor | None = None
        self._stepped_inside = False
        # The optimizers' steps under way, the outermost first, and evaluations of the outermost one's closure
        self._stepping: list[int] = []
        self._closures = 0
        self._evaluations = 0
        self._scaler_waits = False
        self._heard_any = False
        # The open step: who took it; or, with no optimizer in sight, whether a backward did
        self._stepped: set[int] = set()
        self._without_optimizer = False
        # The epoch's steps so far; those that no optimizer took, and by identity what got a gradient in them
        self._of_epoch = 0
        self._by_hand = 0
        self._trained_by_hand: set[int] = set()

    @property
    def completed(self) -> int:
        """How many steps were taken, the open one included."""
        taken = bool(self._stepped) and self._spare_norm(lambda: self.norm.included, otherwise=True)
        return self._count + bool(taken or self._without_optimizer)

    @property
    def certainly_over(self) -> bool:
        """Whether the open step is over, with no look ahead: no further optimizer can add to it."""
        return not self._stepping and bool(self._spare_norm(self.norm.complete, otherwise=True))

    def before_optimizer(self, optimizer: torch.optim.Optimizer) -> bool:
        """An optimizer is about to step; say whether that ended the open step.

        Where gradients are set by hand, no backward tells one step from the next: an optimizer's second time does.
        """
        ends = self._depth == 0 and id(optimizer) in self._stepped and not self.norm.measured
        if ends:
            self.end_open_step()
        return ends

    # Backwards

    def losses_scaled(self, scaled: Any, scale: torch.Tensor) -> None:
        """A gradient scaler gave what is in `scaled`: a backward that reaches it brings gradients times `scale`."""
        for loss in tensors_in(scaled):
            if can_be_reached(loss):
                self._scaled.add(loss, edge_of(loss), functools.partial(self._scaled_reached, scale))

    def _scaled_reached(self, scale: torch.Tensor, gradient: torch.Tensor | None) -> None:
        self._scale = scale

    def between_backwards(self) -> None:
        """Something begins that belongs to the next step, if the last one was taken."""
        if self._depth == 0:
            self.end_open_step()
            if self._stepping and not self._closures:
                self._stepping.clear()  # an optimizer whose step raised never said that it was over

    def backward_begins(
        self, roots: tuple[Root, ...], inputs: tuple[torch.Tensor, ...] | None, retains: bool, alone: bool
    ) -> None:
        """A backward begins; not `alone`, where other runs live in the process."""
        self.between_backwards()
        self._depth += 1
        if self._depth > 1:  # inside another one: reentrant checkpointing
            self._spare_norm(self.parameters.prepare_inner, roots)
            return
        self._roots = roots
        self._scale = None
        self._spare_metrics(self.metrics.backward_begins, roots, retains)
        self._spare_norm(self.parameters.prepare, roots, inputs, alone)

    def backward_ended(self, completed: bool) -> None:
        """That backward is over; it counts only if it was `completed`."""
        self._scaled.check()
        self._depth -= 1
        if self._depth > 0:
            return
        roots, self._roots = self._roots, ()
        scale, self._scale = self._scale, None
        counts = completed and (not self._closures or self._evaluations == 1)
        self._spare_metrics(self.metrics.backward_ended, roots, scale, counts)
        if not counts:
            self._spare_norm(self.parameters.forget_arrived)
            return
        read = self._spare_norm(self._measure, roots, scale)
        if self._stepped_inside and not read:
            self._end()

    def _measure(self, roots: tuple[Root, ...], scale: torch.Tensor | None) -> bool:
        """Read the gradients that the backward brought for what is trained and nobody has used yet."""
        trained = self.parameters.arrived(roots)
        if self._stepped_inside:
            trained = [item for item in trained if item.grad is not None and id(item) not in self.norm.used_inside]
        if trained:
            self.norm.measure(trained, scale)
            self._without_optimizer = not self.parameters.has_optimizer()
            if self._without_optimizer:
                self._trained_by_hand.update(map(id, trained))
        return bool(trained)

    # Optimizers

    def optimizer_steps(self, optimizer: torch.optim.Optimizer, takes_closure: bool) -> None:
        """An optimizer steps."""
        if id(optimizer) in self._stepped:
            self.before_optimizer(optimizer)
        self._heard_any = True
        self._scaler_waits = False
        if self._depth > 0:
            self._stepped_inside = True
            self._spare_norm(self._include_inside, optimizer)
            return
        if self.metrics.reached:
            self._spare_metrics(self.metrics.optimizer_steps)
        if not self._stepping:
            self._closures = self._evaluations = 0
        self._stepping.append(id(optimizer))
        self._spare_norm(self._include, optimizer, takes_closure)

    def _include(self, optimizer: torch.optim.Optimizer, takes_closure: bool) -> None:
        """Count the gradients that an optimizer applies; those that a closure is about to bring, when it has."""
        self.parameters.add_optimizer(optimizer)
        if not takes_closure:
            self._include_brought(optimizer)

    def _include_brought(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the gradients that there are."""
        if self._by_hand:
            self._were_probes(optimizer)
        self.norm.include(optimizer)

    def _include_inside(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the gradients that an optimizer applies while the backward goes on."""
        if self._by_hand:
            self._were_probes(optimizer)
        self.norm.measure_inside(optimizer, self._scale)

    def _were_probes(self, optimizer: torch.optim.Optimizer) -> None:
        """Take back the steps before the first that an optimizer takes, unless it owns what was trained in them.

        They were backwards to something else, such as the inputs of an adversarial attack. An optimizer with no
        gradient to apply trains nothing, and tells nothing.
        """
        parameters = parameters_of(optimizer)
        if all(parameter.grad is None for parameter in parameters):
            return
        if self._by_hand == self._of_epoch and self._trained_by_hand.isdisjoint(map(id, parameters)):
            self.norm.forget_steps()
            self.parameters.forget(self._trained_by_hand)
            self._count -= self._by_hand
            self._of_epoch = 0
        self._by_hand, self._trained_by_hand = 0, set()

    def closure_begins(self) -> None:
        """The closure of the optimizer that steps is about to be evaluated."""
        self._closures += 1
        self._evaluations += self._closures == 1  # one may call another: a class's step, and its base class's

    def closure_ended(self, optimizer: torch.optim.Optimizer, completed: bool) -> None:
        """That evaluation is over; the first one's gradients are the step's."""
        self._closures -= 1
        if completed and self._closures == 0 and self._evaluations == 1:
            self._spare_norm(self._include_brought, optimizer)

    def optimizer_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """That optimizer's step is over."""
        if self._depth > 0:
            return
        if id(optimizer) in self._stepping:
            del self._stepping[self._stepping.index(id(optimizer)) :]
        else:  # its beginning was in compiled code, and wasn't heard
            self._spare_norm(self._include, optimizer, False)
        self._stepped.add(id(optimizer))

    def scaler_steps(self) -> None:
        """A gradient scaler begins to step its optimizer, or to skip it."""
        self._scaler_waits = True

    def scaler_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """The gradient scaler is done; if no optimizer stepped meanwhile, it skipped the step."""
        if self._scaler_waits:
            self._scaler_waits = False
            self.before_optimizer(optimizer)
            self._spare_norm(self.norm.skip, optimizer)
            self._stepped.add(id(optimizer))

    # The step

    def end_open_step(self) -> None:
        """Close the step that was taken, if there is one."""
        if self._stepped or self._stepped_inside or self._without_optimizer:
            self._end()
        elif not self._stepping and self._spare_norm(self._stepped_unheard):
            self._spare_norm(self.norm.include_all)
            self._end()

    def _stepped_unheard(self) -> bool:
        """Whether an optimizer has stepped in compiled code: there, no step is heard, and only its effect is seen."""
        return self._may_be_unheard() and self.parameters.updated()

    def _may_be_unheard(self) -> bool:
        silent = not self._heard_any and anything_compiled()
        return silent and self.norm.measured and not self._without_optimizer

    def end_epoch(self) -> None:
        """Close the step that was taken last; what is left over may be micro-batches, or steps that weren't heard."""
        self.end_open_step()
        self.metrics.steps_unheard = bool(self._spare_norm(self._may_be_unheard))
        self._of_epoch, self._by_hand, self._trained_by_hand = 0, 0, set()

    def _end(self) -> None:
        by_hand = self._without_optimizer and not self._spare_norm(lambda: self.norm.included)
        if by_hand:
            self._spare_norm(self.norm.include_all)
        self._stepped = set()
        self._stepped_inside = False
        self._without_optimizer = False
        self._spare_metrics(self.metrics.end_step)
        if self._spare_norm(self.norm.end_step, otherwise=True):
            self._count += 1
            self._of_epoch += 1
            self._by_hand += by_hand

    def release(self) -> None:
        """Drop every reference to the training's tensors."""
        self._scaled.remove()
        self._roots = ()
        self._scale = None
