"""The evaluation pass: accuracy over a whole set, paired as the training paired output and target."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from .compiling import as_written
from .criteria import Call, Criterion, Made
from .data import (
    TARGET_KEYS,
    ExamplesSource,
    Parts,
    Source,
    UnreadableError,
    collate,
    open_source,
    take_apart,
    to_device,
)
from .discovery import unwrapped
from .division import WHOLE, Division, collective
from .epoch_means import DeviceMean
from .events import Listener, heard_by
from .figures import Share
from .metric_objects import MetricObjects
from .outcomes import of_output
from .pairing import Pairing, PairingError
from .tally import tally
from .undisturbed import undisturbed

_FEW = 16  # so many examples show whether their lengths differ


def right_predictions(
    model: torch.nn.Module,
    data: Any,
    pairing: Pairing,
    division: Division = WHOLE,
    metrics: MetricObjects | None = None,
) -> Share:
    """Count the set's targets, and those that the model predicts right, in `eval()` under `no_grad`.

    Of several ranks each counts its part. The user's `metrics`, where they are given, are fed with it; of a
    regression, which has no accuracy, only that is done. Raises `UnreadableError` or `PairingError` with the reason
    where the set can't be read or paired; whatever the model raises comes through. The training is left undisturbed.
    """
    pairing.check_inputs(model)
    if metrics is not None and (metrics.fed or metrics.spoilt):
        metrics.restart()  # another set was tried before
    with undisturbed(model, data):
        share = _count(model, open_source(data), pairing, division, metrics if division.counts else None)
    return share if division.counts else Share()


def _count(
    model: torch.nn.Module, source: Source, pairing: Pairing, division: Division, metrics: MetricObjects | None
) -> Share:
    mean = DeviceMean()
    size = _group_size(model, source, pairing) if isinstance(source, ExamplesSource) else None
    runs = 0
    in_step = division.most > 0 and collective(model)
    for parts in _batches(source, size, division, in_step):
        output, calls = run(model, parts)
        if pairing.has_accuracy:
            mean.add_sum(*_judged(output, calls, parts, pairing))
        if metrics is not None:
            try:
                _feed(metrics, output, calls, parts, pairing)
            except Exception as error:
                if not pairing.has_accuracy:
                    raise
                metrics.spoil(str(error))  # the accuracy is none the worse for it
        runs += 1
    batches = math.ceil(division.most / (size or 1)) if in_step else 0
    for _ in range(runs, math.ceil(batches / division.ranks)):  # the other ranks need this one once more
        run(model, next(_batches(source, size, WHOLE)))
    return mean.take()


def _feed(metrics: MetricObjects, output: Any, calls: list[Call], parts: Parts, pairing: Pairing) -> None:
    """Feed metrics with a batch: with the criterion call inside the model, if there is one like the training's."""
    inside = [call for call in calls if call.criterion.kind == pairing.kind]
    if len(inside) == 1:
        metrics.feed_call(inside[0])
        return
    if parts.target is None:
        raise UnreadableError("there is no target to compare with")
    metrics.feed(of_output(main_output(output), parts.target, pairing))


def judge(model: torch.nn.Module, parts: Parts, pairing: Pairing) -> tuple[torch.Tensor, torch.Tensor | int]:
    """Run the model on a batch and count: right predictions, and targets that count."""
    return _judged(*run(model, parts), parts, pairing)


def _judged(output: Any, calls: list[Call], parts: Parts, pairing: Pairing) -> tuple[torch.Tensor, torch.Tensor | int]:
    inside = [call for call in calls if call.has_accuracy]
    if len(inside) == 1:
        tallied = tally(inside)
        if tallied.correct is None or (tallied.soft is not None and bool(tallied.soft.any())):
            raise PairingError("the targets are probabilities, not classes")
        return tallied.correct.sum(), tallied.targets.sum()
    if parts.target is None:
        raise UnreadableError("there is no target to compare with")
    return pairing.judge(main_output(output), parts.target)


class _Inner(Listener):
    """Keeps the criterion calls of one forward: those of a model that computes its loss inside."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def criterion_called(self, criterion: Criterion, arguments: tuple[Any, ...], result: torch.Tensor) -> None:
        self.calls.append(Call(Made.of(criterion, arguments, result)))


def run(model: torch.nn.Module, parts: Parts, with_labels: bool = True) -> tuple[Any, list[Call]]:
    """Run the model on its inputs, on its own device; give what it returns, and the criterion calls inside it.

    Keyword inputs are those that `forward` takes; the labels join them where it takes labels.
    """
    parts = _on_device_of(model, parts)
    parameters = inspect.signature(unwrapped(model).forward).parameters
    arguments = () if parts.keywords else (parts.inputs,)
    keywords = _accepted(parameters, parts.inputs) if parts.keywords else {}
    if parts.target is not None and with_labels:
        name = _labels_name(parameters, parts)
        keywords |= {} if name is None else {name: parts.target}
    inner = _Inner()
    with heard_by(inner), as_written():
        return model(*arguments, **keywords), inner.calls


def _accepted(parameters: Mapping[str, inspect.Parameter], inputs: Mapping[str, Any]) -> dict[str, Any]:
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(inputs)
    accepted = {name: value for name, value in inputs.items() if name in parameters}
    if not accepted:
        raise UnreadableError(
            f"forward({', '.join(parameters)}) takes none of the batch's keys {sorted(map(str, inputs))}"
        )
    return accepted


def _labels_name(parameters: Mapping[str, inspect.Parameter], parts: Parts) -> str | None:
    """The parameter under which `forward` takes its labels; None where it takes none."""
    names = list(parameters) if parts.keywords else list(parameters)[1:]
    for name in (parts.labels, *TARGET_KEYS):
        if name in names:
            return name
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return parts.labels if takes_any else None


def _on_device_of(model: torch.nn.Module, parts: Parts) -> Parts:
    parameter = next(model.parameters(), None)
    if parameter is None:
        return parts
    target = None if parts.target is None else parts.target.to(parameter.device)
    return parts._replace(inputs=to_device(parts.inputs, parameter.device), target=target)


def main_output(output: Any) -> torch.Tensor:
    """The predictions in what a model returned: a tensor, the first of a tuple, `.logits`, a dict's only tensor.

    A number in front of them in a tuple is the loss. Raises `PairingError` for anything else.
    """
    for name in ("logits", "log_probs"):
        if hasattr(output, name):
            return main_output(getattr(output, name))
        if isinstance(output, dict) and name in output:
            return main_output(output[name])
    if isinstance(output, dict):
        tensors = [value for value in output.values() if isinstance(value, torch.Tensor)]
        output = tensors[0] if len(tensors) == 1 else output
    if isinstance(output, (tuple, list)) and output:
        with_loss = len(output) > 1 and isinstance(output[0], torch.Tensor) and output[0].ndim == 0
        return main_output(output[1] if with_loss else output[0])
    if isinstance(output, torch.Tensor):
        return output
    raise PairingError(f"the model returned a {type(output).__name__}, in which no predictions are known")


def _group_size(model: torch.nn.Module, source: ExamplesSource, pairing: Pairing) -> int | None:
    """How many examples make a batch as those of the training; None where the model takes them one by one."""
    first = source.first()
    if not needs_batch_dimension(model, first, pairing, source):
        return None
    return max(1, pairing.targets // max(1, _target_of(first).numel()))


def _batches(source: Source, size: int | None, division: Division, in_step: bool = False) -> Iterator[Parts]:
    """What the model is run on, one after the other; single examples in batches of `size`."""
    own = division.rank, division.ranks
    if not isinstance(source, ExamplesSource):
        yield from (take_apart(batch) for batch in source.batches(*own))
        return
    for group in source.groups(size or 1, *own):
        if size is None:
            yield take_apart(group[0])
        else:
            yield from _collated(group, in_step)


def _collated(examples: list[Any], in_step: bool) -> Iterator[Parts]:
    """One batch where the examples have one shape, else each alone; then ranks that go in step can't go on."""
    try:
        yield collate(examples)
    except (RuntimeError, TypeError, ValueError):
        if in_step:
            raise UnreadableError("its examples have several shapes, so the ranks can't go in step") from None
        yield from (collate([example]) for example in examples)


def needs_batch_dimension(
    model: torch.nn.Module, example: Any, pairing: Pairing | None, examples: Iterable[Any] = ()
) -> bool:
    """Whether the model was trained with a batch dimension that a single example lacks.

    What the training's targets say, beside those of the `examples` around it, is tried first; if the model can't be
    run that way, the other one. Raises what the first way raised if neither works.
    """
    likely = pairing is not None and _trained_in_batches(pairing, example, examples)
    try:
        _try(model, example, pairing, batched=likely)
        return likely
    except Exception as error:
        try:
            _try(model, example, pairing, batched=not likely)
            return not likely
        except Exception:
            raise error from None


def _trained_in_batches(pairing: Pairing, example: Any, examples: Iterable[Any]) -> bool:
    """A target with more dimensions than one example's says so; so does one as long as several examples' together.

    Examples of different lengths trained one by one have such targets too: they are known by their lengths.
    """
    target = _target_of(example)
    size = max(1, target.numel())
    if pairing.target_dimensions != target.ndim or pairing.targets == size:
        return pairing.target_dimensions > target.ndim
    lengths = {_target_of(other).numel() for other in itertools.islice(examples, _FEW)}
    return lengths <= {size} and pairing.targets % size == 0


def _try(model: torch.nn.Module, example: Any, pairing: Pairing | None, batched: bool) -> None:
    parts = collate([example]) if batched else take_apart(example)
    if pairing is not None and pairing.has_accuracy and not pairing.soft:
        judge(model, parts, pairing)
    else:
        run(model, parts)


def _target_of(example: Any) -> torch.Tensor:
    target = take_apart(example).target
    if target is None:
        raise UnreadableError("an example has no target")
    return target
