"""Training loss and accuracy, from the criterion calls that a backward reached.

A hook on each criterion's result tells training from evaluation: it fires only if a backward gets there. Figures
stay on the device, and are fetched once an epoch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .criteria import Call, Criterion, Made
from .epoch_means import EpochMeans, settle
from .figures import Share
from .metric_objects import MetricObjects
from .pairing import Pairing
from .reaching import ReachHooks, can_be_reached
from .tally import Tally, wide
from .trained_parameters import Root

_OVERWRITTEN = "the outputs or targets were overwritten before the backward ended"
_SEVERAL = "several criterion calls with class targets fed one backward"
_SEVERAL_OUTPUTS = "several criterion calls fed one backward, and which has the model's outputs isn't known"
_UNKNOWN = "no criterion of torch.nn.functional was seen (the loss is the loop's own, or compiled)"
_LET_GO = "outputs and targets had to be let go of before it was known whether they count"
_IN_PARTS = "several backwards went through one loss without a reduction, each through a part of it"


@dataclass(slots=True)
class _Backward:
    """What one backward says: the calls it reached, and the value that it was called on, if that is one number."""

    calls: list[Call]
    scalar: torch.Tensor | None

    @property
    def joined(self) -> bool:
        """Whether it reached calls that have outputs and targets of their own, each.

        Forwards that are joined into one backward have; two heads judged by one target, or one output judged by a
        mixture of two, haven't.
        """
        return len(self.calls) == 1 or (bool(self.calls) and _apart(self.calls))

    @property
    def judged(self) -> list[Call] | None:
        """The calls from which accuracy follows; None where that isn't clear."""
        judged = [call for call in self.calls if call.has_accuracy]
        if len(judged) < 2 or (self.joined and _alike(judged)):
            return judged
        return None

    @property
    def fed(self) -> list[Call] | None:
        """The calls whose outputs and targets are the model's; None where that isn't clear."""
        return self.judged or (self.calls if self.judged == [] and self.joined and _alike(self.calls) else None)

    @property
    def chosen(self) -> Call | None:
        """The call that tells how output and target pair; None of several heads is the model's output."""
        if len(self.calls) == 1:
            return self.calls[0]
        judged = self.judged
        return next(iter(self.calls if judged == [] else judged or []), None)

    @property
    def first(self) -> Call | None:
        """Of those like the chosen one, the call that was made first: a backward comes to it last."""
        return None if self.chosen is None else (self.judged or self.calls)[-1]


class TrainingMetrics:
    """Collects an epoch's training loss and accuracy.

    Both are fetched with `take`; `loss_fault` and `accuracy_fault` say, where one is missing, why. `pairing` is how
    the last training call paired output with target. `on_followed` is told each call of which it isn't known yet
    whether a backward comes to it; `on_first`, until it says that this is enough, the call that a backward was judged
    by, or that there was none. `metrics` are the user's own, where there are any: they are fed the calls from which
    accuracy would follow.
    """

    def __init__(self, on_followed: Callable[[Call], None], on_first: Callable[[Call | None], bool]) -> None:
        self._on_followed = on_followed
        self._on_first: Callable[[Call | None], bool] | None = on_first
        self._judged_last: Call | None = None
        self._any_calls = False
        self._results = ReachHooks()
        self.reached: dict[Call, None] = {}
        # In a plain loop a call is followed by a backward from its very result; then that is all there is to know.
        self._plain = True
        self._latest: Made | None = None
        self._in_backward = False
        self._any_backward = False
        self._differentiated: list[_Backward] = []
        self._backwards: list[_Backward] = []
        self._means = EpochMeans()
        self.metrics: MetricObjects | None = None
        self._fed: set[Call] = set()  # in this step, already
        self.steps_unheard = False
        self.loss_fault: str | None = None
        self.accuracy_fault: str | None = None

    # What happens in a step

    def loader_asked(self) -> None:
        """A loader gave the training a batch, or had no more."""
        self._follow_latest()

    def criterion_called(self, criterion: Criterion, arguments: tuple[Any, ...], result: torch.Tensor) -> None:
        """Follow a call whose result a backward may reach."""
        if self._latest is not None:
            self._follow_latest()
        if self.reached and not self._in_backward:
            self._settle_differentiated()
        if not can_be_reached(result):
            return
        self._latest = Made.of(criterion, arguments, result)
        if self._in_backward or not self._plain or result.ndim:  # of several losses, it tells which of them count
            self._follow_latest()

    def _follow_latest(self) -> None:
        """Something else than a backward from the latest call's result came next: follow it as any other."""
        if self._latest is not None:
            latest, self._latest = self._latest, None
            self._plain = False
            call = Call(latest)
            self._results.add(latest.result, latest.edge, functools.partial(self._reach, call))
            self._on_followed(call)

    def differentiates(self) -> None:
        """`torch.autograd.grad` may reach the latest call's result."""
        self._follow_latest()

    def optimizer_steps(self) -> None:
        """Settle what `torch.autograd.grad` reached, if nothing else did."""
        self._settle_differentiated()

    def _reach(self, call: Call, gradient: torch.Tensor | None) -> None:
        if call.reduction == "none" and gradient is not None:
            if call.tallied is not None and any(call in backward.calls for backward in self._backwards):
                # too large to have waited for what another backward brings
                self.loss_fault = _IN_PARTS
                self._accuracy_lost(_IN_PARTS)
            call.factor = gradient.detach() if call.factor is None else call.factor + gradient
        self.reached[call] = None

    def backward_begins(self, roots: tuple[Root, ...], retains: bool) -> None:
        """Forget what `torch.autograd.grad` reached: the step has a backward of its own."""
        for call in self.reached:
            call.factor = None
        self.reached.clear()
        self._differentiated.clear()
        self._in_backward = True
        latest = self._latest
        if latest is not None and (
            retains or roots[0] is not latest.result or latest.result._version != latest.version
        ):
            self._follow_latest()

    def backward_ended(self, roots: tuple[Root, ...], scale: torch.Tensor | None, counts: bool) -> None:
        """Settle the calls that the backward from `roots` reached, unless it doesn't count."""
        self._in_backward = False
        self._any_backward |= counts
        latest, self._latest = self._latest, None
        if counts and latest is not None and not self.reached:  # one call, and a backward from its very result
            call = Call(latest)
            self._judged_last = call
            if call.overwritten():
                self._accuracy_lost(_OVERWRITTEN)
            self._count(call, True)
            self._backwards.append(_Backward([call], latest.value if len(roots) == 1 else None))
        elif counts:
            self._results.check()
            calls = list(self.reached)
            self._plain = len(calls) == 1 and calls[0].gave(roots)
            self._backwards.append(self._settle(calls, _scalar(roots, scale), True))
        self.reached.clear()
        if self._on_first is not None and counts and self._on_first(self._backwards[-1].first):
            self._on_first = None

    def _settle_differentiated(self) -> None:
        """Settle what `torch.autograd.grad` reached: its gradients may be the step's, set by hand."""
        self._results.check()
        if not self._backwards:
            self._differentiated.append(self._settle(list(self.reached), None, False))
        self.reached.clear()

    def _settle(self, calls: list[Call], scalar: torch.Tensor | None, counts: bool) -> _Backward:
        """Take what calls say; it `counts` for certain, or unless a backward follows."""
        backward = _Backward(calls, scalar)
        self._any_calls |= bool(calls)
        chosen = backward.chosen
        if chosen is not None and not chosen.settled:
            self._judged_last = chosen
        for call in backward.calls:
            if not call.settled:
                if call.overwritten():
                    self._accuracy_lost(_OVERWRITTEN)
                self._count(call, counts and self.metrics is not None and call in (backward.fed or ()))
        return backward

    def _count(self, call: Call, feeds: bool) -> None:
        """Take what a call says, or keep what that needs; metrics are fed at once where it isn't kept."""
        call.settled = True
        if call.can_wait:
            call.keep()
        else:
            if feeds and self.metrics is not None:
                self._spare(self.metrics, self.metrics.feed_call, call)
                self._fed.add(call)
            settle([call])

    def _accuracy_lost(self, reason: str) -> None:
        """What outputs and targets say isn't known; metrics can't be fed with them either."""
        self.accuracy_fault = reason
        if self.metrics is not None:
            self.metrics.spoil(reason)

    def end_step(self) -> None:
        """Add the step's figures to the epoch's."""
        if self.reached:
            self._settle_differentiated()
        backwards = self._backwards or self._differentiated
        self._backwards, self._differentiated = [], []
        if self.metrics is not None and backwards:
            self._spare(self.metrics, self._feed, self.metrics, backwards)
        only = backwards[0].calls[0] if len(backwards) == 1 and len(backwards[0].calls) == 1 else None
        if only is not None and only.factor is None:  # one forward, one reduced criterion, one backward
            self._means.add(only, True, only.has_accuracy)
        elif backwards:
            backwards = _that_tell(backwards)
            losses, judged = self._add_loss(backwards), self._judged(backwards)
            for call in dict.fromkeys([*losses, *judged]):
                self._means.add(call, call in losses, call in judged)

    def _spare(self, metrics: MetricObjects, method: Callable[..., None], *args: Any) -> None:
        """A fault of feeding metrics costs these alone."""
        try:
            method(*args)
        except Exception as error:
            metrics.failed(error)

    def _feed(self, metrics: MetricObjects, backwards: list[_Backward]) -> None:
        """Feed metrics with the step's calls, but for those that they have been fed with."""
        if not any(backward.calls for backward in backwards):
            metrics.spoil(_UNKNOWN)
        if any(backward.calls and backward.fed is None for backward in backwards):
            metrics.spoil(_SEVERAL_OUTPUTS)
        for call in dict.fromkeys(call for backward in backwards for call in backward.fed or ()):
            if call.tallied is None:
                metrics.feed_call(call)
            elif call not in self._fed:
                metrics.spoil(_LET_GO)
        self._fed.clear()

    def _add_loss(self, backwards: list[_Backward]) -> list[Call]:
        """Give the calls whose values are the step's loss; where it isn't theirs, add it here."""
        calls = list(dict.fromkeys(call for backward in backwards for call in backward.calls))
        scalars = [wide(backward.scalar) for backward in backwards if backward.scalar is not None]
        complete = len(scalars) == len(backwards)
        if all(backward.joined for backward in backwards) and _alike(calls):
            if complete and any(call.reduction == "none" for call in calls):
                self._add_unreduced(calls, functools.reduce(torch.add, scalars))
                return []
            return calls
        if self.steps_unheard and len(backwards) > 1:
            self.loss_fault = "steps of an optimizer in compiled code can't be told from micro-batches"
            return []
        if not complete:
            self.loss_fault = "several losses were differentiated together, or one that is no scalar"
            return []
        weights = [_targets(backward.chosen or backward.calls[-1]) for backward in backwards if backward.calls]
        self._means.add_loss(
            functools.reduce(torch.add, scalars), functools.reduce(torch.add, weights) if weights else 1
        )
        return []

    def _add_unreduced(self, calls: list[Call], scalar: torch.Tensor) -> None:
        """Add the mean over the targets, unless the loop weighs them by itself: then the loss is what it makes of them.

        A mask gives each target that counts the same gradient; weights don't.
        """
        tallies = [_tallied(call) for call in calls]
        targets = torch.cat([tallied.targets for tallied in tallies])
        values = torch.cat([tallied.values for tallied in tallies])
        mean = torch.where(targets > 0, wide(values) * targets, 0).sum() / targets.sum()
        for tallied in tallies:
            if tallied.even is not None:
                mean = torch.where(tallied.even.reshape(()), mean, scalar.to(mean))
        self._means.add_loss(mean, targets.sum())

    def _judged(self, backwards: list[_Backward]) -> list[Call]:
        """The calls whose predictions are the step's."""
        if not any(backward.calls for backward in backwards):
            self.accuracy_fault = "the loss is no criterion of torch.nn.functional that has class targets"
        judged: dict[Call, None] = {}
        for backward in backwards:
            if backward.judged is None:
                self.accuracy_fault = _SEVERAL
                return []
            judged |= dict.fromkeys(backward.judged)
        return list(judged)

    # What comes out

    @property
    def pairing(self) -> Pairing | None:
        """How the last training call paired output with target; None where none was observed."""
        if self._judged_last is None:
            return None
        return Pairing.of(self._judged_last)

    @property
    def why_unpaired(self) -> str:
        """Why there is no `pairing`."""
        return _SEVERAL if self._any_calls else "no criterion of torch.nn.functional was seen in training"

    @property
    def criterion(self) -> dict[str, Any] | None:
        """Name and settings of that call's criterion."""
        return None if self._judged_last is None else self._judged_last.settings

    def loss_so_far(self) -> torch.Tensor | None:
        """The epoch's loss up to its last whole step, on its device; None where there is none yet, or none at all."""
        return None if self.loss_fault else self._means.loss_so_far()

    def take(self) -> tuple[Share, Share]:
        """Fetch the epoch's loss and accuracy from the device, once, and begin a new epoch."""
        self._follow_latest()
        if self._any_backward:  # then `torch.autograd.grad` after the last step was no training
            self.reached.clear()
            self._differentiated.clear()
        self._any_backward = False
        self.end_step()  # micro-batches that no optimizer step has followed yet were trained on all the same
        means = self._means.take()
        if means.soft:
            self.accuracy_fault = "the targets are probabilities, not classes"
        return means.loss, means.accuracy

    def release(self) -> None:
        """Remove every hook and drop every reference."""
        self._results.remove()
        self.__init__(self._on_followed, _unheard)  # type: ignore[misc]


def _unheard(call: Call | None) -> bool:
    """Nobody is told any more."""
    return True


def _scalar(roots: tuple[Root, ...], scale: torch.Tensor | None) -> torch.Tensor | None:
    """The value that `backward` was called on, less the gradient scaler's factor."""
    root = roots[0] if len(roots) == 1 else None
    if not isinstance(root, torch.Tensor) or root.numel() != 1:
        return None
    value = root.detach().clone()
    return value if scale is None else value.float() / scale.to(value.device)


def _that_tell(backwards: list[_Backward]) -> list[_Backward]:
    """Without backwards that only hand on what another one has brought, where a model is gone through in pieces."""
    if not any(backward.calls for backward in backwards):
        return backwards
    return [backward for backward in backwards if backward.calls or backward.scalar is not None]


def _tallied(call: Call) -> Tally:
    if call.tallied is None:
        settle([call])
    tallied, index = call.tallied
    one: Tally = tallied.of(index)
    return one


def _targets(call: Call) -> torch.Tensor:
    """How many targets a call has that count, as a tensor without dimensions."""
    return _tallied(call).targets.reshape(())


def _alike(calls: list[Call]) -> bool:
    """Whether calls measure the same thing: one criterion, one number of classes."""
    return len(calls) == 1 or len({(call.criterion.name, call.classes) for call in calls}) == 1


def _apart(calls: list[Call]) -> bool:
    return len({call.input_at for call in calls}) == len({call.target_at for call in calls}) == len(calls)
