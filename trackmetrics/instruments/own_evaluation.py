"""The user's own evaluation of the dev set, in an epoch's body: known as such, so that no second pass is made.

Neither the module's mode nor whether gradients are on tells what a criterion call without a backward was for. Calls
are the dev evaluation if all of this holds; else the run makes a pass of its own:

- no training came after them: a backward or an optimizer's step makes what was judged before it out of date;
- they cover the dev set once (`covering`);
- the model, in `eval()`, gives the predictions of their first again. That tells the mode it was in, and tells the
  model from an average of it or from what it was before other weights were loaded.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .covering import Covering, Judged, Pass, Place, Sample, covering
from .criteria import Call, Criterion, Made, class_dimension
from .data import Parts, collate, open_source, take_apart
from .evaluation import main_output, run
from .pairing import Pairing, PairingError
from .tally import tally
from .undisturbed import undisturbed

_COMPARED = 16  # predictions that are compared with the model's own, where there are as many
_KEPT = 2**22  # numbers, over all calls, that are kept to be compared
_WAITING = 2**20  # numbers in the scores of calls that wait to be judged; a call counts as a thousand at least
_FEW = 4  # calls that may wait however large they are: a training's own, before its backward
_FOLD = 256  # calls whose figures wait as separate tensors
_MOST = 2**17  # calls that are followed; with more, all are ignored


class _Batch(NamedTuple):
    """The batch that was yielded last, and a copy of its targets: a loop may change its own."""

    of: Pass
    content: Any
    target: torch.Tensor | None


class OwnEvaluation:
    """Collects the criterion calls that no backward has reached, and the batches that loaders gave, of an epoch.

    A call waits until something shows that no backward follows it; a plain training's are never looked at.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Call, torch.dtype | None]] = []
        self._weight = 0
        self._passes: list[Pass] = []
        self._going: dict[int, Pass] = {}
        self._batch: _Batch | None = None
        self._judged: list[Judged] = []
        self._figures: list[torch.Tensor] = []
        self._room = _KEPT

    # What happens

    def training_goes_on(self) -> None:
        """Forget what was judged: it was training, or of a model that is no more."""
        if self._waiting:
            self._waiting.clear()
            self._weight = 0
        if self._passes or self._judged:
            self.release()

    def batch_yielded(self, batch: Any, number: int, iterator: Any) -> None:
        """A `DataLoader`'s iterator gave its `number`th batch; ignored where it began before the last training."""
        self.batches_ended()
        if number == 1:
            self._going[id(iterator)] = Pass.begun_by(iterator)
            self._passes.append(self._going[id(iterator)])
        going = self._going.get(id(iterator))
        if going is not None:
            target = _target_of(batch)
            going.batches += 1
            going.examples += len(target) if going.makes_batches and target is not None and target.ndim else 1
            self._batch = _Batch(going, batch, target)

    def batches_ended(self) -> None:
        """The calls from here on belong to no batch that was given so far."""
        if self._waiting:
            self._judge_waiting()
        self._batch = None

    @property
    def holds_any(self) -> bool:
        """Whether there is anything to forget when the training goes on."""
        return bool(self._waiting or self._passes or self._judged)

    def call_followed(self, call: Call) -> None:
        """A call was made that a backward may come to, or none."""
        if len(self._waiting) >= _FEW:
            self._make_room()
        self._waiting.append((call, None))

    def criterion_called(self, criterion: Criterion, arguments: tuple[Any, ...], result: torch.Tensor) -> None:
        """A criterion gave a `result` that no backward can come to."""
        if _is_of_a_transformation(result):
            return
        if len(self._waiting) >= _FEW:
            self._make_room()
        call = Call(Made.of(criterion, arguments, result))
        self._waiting.append((call, _autocast_type(call.input.device)))
        # This is no training; inference tensors don't tell whether they are overwritten later.
        if call.input.is_inference() or call.input.numel() > _WAITING:
            self._judge_waiting()

    def _make_room(self) -> None:
        self._weight += max(1024, self._waiting[-1][0].input.numel())
        if self._weight > _WAITING:
            self._judge_waiting()

    def _judge_waiting(self) -> None:
        waiting, self._weight = [*self._waiting], 0
        self._waiting.clear()
        for call, autocast in waiting:
            self._judge(call, autocast)

    def _judge(self, call: Call, autocast: torch.dtype | None) -> None:
        released = call.input.numel() == 0  # `torch.autograd.grad` reached it: it was training
        if released or len(self._judged) >= _MOST or _is_of_a_transformation(call.input):
            return
        pairing = Pairing.of(call)
        if not pairing.has_accuracy:
            return
        tallied = tally([call])
        assert tallied.correct is not None
        device = tallied.correct.device
        clear = not call.overwritten() and (tallied.soft is None or tallied.soft == 0)
        self._figures.append(_as_one([tallied.correct, tallied.targets, clear, *self._compare_targets(call)], device))
        if len(self._figures) >= _FOLD:
            self._figures = [_joined(self._figures)]
        batch = self._batch
        number = 0 if batch is None else batch.of.batches
        judged = Judged(pairing, Place.of(call.target), number, self._sample(call, autocast))
        self._judged.append(judged)
        if batch is not None:
            batch.of.judged.append(judged)

    def _compare_targets(self, call: Call) -> tuple[torch.Tensor | bool, torch.Tensor | bool]:
        """Whether the call's targets are its batch's, and whether they are these moved by one position."""
        if self._batch is None or self._batch.target is None:
            return False, False
        used = call.target.reshape(-1)
        given = self._batch.target.to(used.device, non_blocking=True)
        if given.ndim < 2 or given.dtype is not torch.int64:
            return _equal(used, given), False
        moved = given[..., 1:]
        filled = torch.nn.functional.pad(moved, (0, 1), value=call.argument("ignore_index", -100))
        return _equal(used, given), _equal(used, moved) | _equal(used, filled)

    def _sample(self, call: Call, autocast: torch.dtype | None) -> Sample | None:
        batch = self._batch
        if batch is not None:
            sampled = sum(len(judged.sample.scores) for judged in batch.of.judged if judged.sample is not None)
            if sampled >= _COMPARED:
                return None
        if self._room < 0:
            return None
        scores = _first_rows_of(call)
        self._room -= scores.numel()
        return Sample(scores, None if batch is None else batch.content, autocast) if self._room >= 0 else None

    # What comes out

    def take(self) -> Evaluations | None:
        """Fetch what was judged since the last step, and begin anew; None where nothing was."""
        self.batches_ended()
        judged, passes, figures = self._judged, self._passes, self._figures
        self.release()
        if not judged or len(judged) >= _MOST:
            return None
        for one, (correct, targets, *flags) in zip(judged, _joined(figures).tolist(), strict=True):
            one.correct, one.targets = correct, targets
            one.clear, one.yielded, one.shifted = map(bool, flags)
        return Evaluations(judged, passes)

    def release(self) -> None:
        """Drop every reference."""
        self.__init__()  # type: ignore[misc]


class Evaluations(NamedTuple):
    """What an epoch's body judged after its last step."""

    judged: list[Judged]
    passes: list[Pass]

    def accuracy(self, model: torch.nn.Module, data: Any, pairing: Pairing | None) -> float | None:
        """The accuracy of `model` over a set, if that was evaluated, and once; else None.

        `pairing` is the training's: an evaluation by another kind of criterion gives another figure.
        """
        with undisturbed(model, data):
            try:
                source = open_source(data)
            except Exception:  # the pass that follows says what is wrong with the set
                return None
            covered = covering(source, self.judged, self.passes)
            if covered is None or not _comparable(covered, pairing) or not _predicted_by(model, covered):
                return None
        targets = sum(judged.targets for judged in covered.judged)
        return sum(judged.correct for judged in covered.judged) / targets if targets else None


def _comparable(covered: Covering, pairing: Pairing | None) -> bool:
    """Whether all calls judged the set's own targets, by one criterion, which judges as the training's does."""
    calls = covered.judged
    kinds = {_kind(judged.pairing) for judged in calls} | ({_kind(pairing)} if pairing is not None else set())
    own = not covered.by_loader or all(judged.yielded for judged in calls) or all(judged.shifted for judged in calls)
    return len(kinds) == 1 and own and all(judged.clear for judged in calls)


def _kind(pairing: Pairing) -> tuple[str, int, int]:
    return pairing.kind, pairing.classes, pairing.ignore_index


# The model's own predictions


_Way = Callable[[Any], Parts]


def _predicted_by(model: torch.nn.Module, covered: Covering) -> bool:
    """Whether the model gives the calls' first predictions again."""
    wanted = min(_COMPARED, sum(judged.pairing.targets for judged in covered.judged))
    # A batch is given as it is; an example may have been given a batch dimension, and then all were.
    ways: list[_Way] = [take_apart] if covered.by_loader else [take_apart, lambda example: collate([example])]
    for judged, at, item in covered.samples:
        counts = ((_agreeing(model, way, item, judged, at, covered.by_loader), way) for way in ways)
        agreeing, way = next((count for count in counts if count[0]), (0, take_apart))
        if not agreeing:
            return False
        wanted -= agreeing
        if wanted <= 0:
            return True
        ways = [way]
    return False


def _agreeing(model: torch.nn.Module, way: _Way, item: Any, judged: Judged, at: int, by_loader: bool) -> int:
    """How many of the call's predictions, from `at`, the model gives again; 0 where one differs."""
    assert judged.sample is not None
    try:
        with _autocast(judged.sample):
            scores = _scores(model, way(item), judged, by_loader)
        ours = _log_probs(scores, judged.pairing)
        theirs = _log_probs(judged.sample.scores[at:], judged.pairing)
    except Exception:  # the model takes something else than what the set holds
        return 0
    count = min(len(ours), len(theirs))
    return count if torch.allclose(ours[:count], theirs[:count], rtol=1e-4, atol=1e-5) else 0


def _scores(model: torch.nn.Module, parts: Parts, judged: Judged, by_loader: bool) -> torch.Tensor:
    """The model's first scores: those of a criterion call inside it, or of its output."""
    output, calls = run(model, parts)
    inside = [call for call in calls if Pairing.of(call).has_accuracy]
    targets = judged.pairing.targets if by_loader or parts.target is None else parts.target.numel()
    if len(inside) == 1 and inside[0].target.numel() == targets:
        return _first_rows_of(inside[0])
    if inside or (by_loader and not judged.yielded):
        raise PairingError("the calls' targets are none that the model's output has")
    scores = main_output(output)
    if judged.pairing.kind == "classes":
        return _first_rows(judged.pairing.with_classes_last(scores, parts.target), 1)
    if scores.numel() != targets:
        raise PairingError("the output has another number of predictions")
    return _first_rows(scores, 0)


def _first_rows_of(call: Call) -> torch.Tensor:
    """A call's first predictions."""
    if call.criterion.kind == "classes":
        return _first_rows(call.input.movedim(class_dimension(call.input.ndim), -1), 1)
    return _first_rows(call.input, 0)


def _first_rows(scores: torch.Tensor, width: int) -> torch.Tensor:
    """A copy of the first predictions, in the order of their targets; the rest, which may be much, isn't copied.

    Each takes up the last `width` dimensions, one or none.
    """
    while scores.ndim > width + 1:
        inner = math.prod(scores.shape[1 : scores.ndim - width])
        scores = scores[: math.ceil(_COMPARED / max(1, inner))]
        if len(scores) != 1:
            break
        scores = scores[0]
    predictions = math.prod(scores.shape[: scores.ndim - width])
    return scores.reshape(predictions, *scores.shape[scores.ndim - width :])[:_COMPARED].clone()


def _log_probs(scores: torch.Tensor, pairing: Pairing) -> torch.Tensor:
    """Rows of scores as log-probabilities, so that a loop may have normalised them itself."""
    wide = scores.cpu().double()
    if pairing.kind == "classes":
        return wide.log_softmax(-1)
    rows = pairing.log_probs(wide, None)
    assert rows is not None
    return rows


# What a call is reduced to


def _is_of_a_transformation(tensor: torch.Tensor) -> bool:
    """Whether it stands for others, inside `torch.func.vmap` and its like."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _target_of(batch: Any) -> torch.Tensor | None:
    """A copy of a batch's targets: a loop may change its own."""
    try:
        target = take_apart(batch).target
    except Exception:  # what can't be taken apart has no targets, whatever is odd about it
        return None
    return None if target is None else target.detach().clone()


def _equal(used: torch.Tensor, given: torch.Tensor) -> torch.Tensor | bool:
    return (used == given.reshape(-1)).all() if used.numel() == given.numel() else False


def _as_one(numbers: list[torch.Tensor | int], device: torch.device) -> torch.Tensor:
    """Whole numbers as one row, made on the device without waiting for it."""
    row = [
        number.to(device, torch.int64).reshape(())
        if isinstance(number, torch.Tensor)
        else torch.full((), number, dtype=torch.int64, device=device)
        for number in numbers
    ]
    return torch.stack(row).reshape(1, -1)


def _joined(figures: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([rows.to(figures[0].device) for rows in figures])


# Autocast


def _autocast_type(device: torch.device) -> torch.dtype | None:
    """The type that autocast has on a device at this moment; None where it is off."""
    enabled = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if enabled else None


def _autocast(sample: Sample) -> contextlib.AbstractContextManager[Any]:
    """Autocast as it was when a call was made."""
    return torch.autocast(sample.scores.device.type, sample.autocast, enabled=sample.autocast is not None)
