"""The evaluation pass: accuracy over a whole set, paired as the training paired output and target."""

from __future__ import annotations

import inspect
import itertools
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
from .epoch_means import DeviceMean
from .events import Listener, heard_by
from .metric_objects import MetricObjects
from .outcomes import of_output
from .pairing import Pairing, PairingError
from .tally import tally
from .undisturbed import undisturbed

_FEW = 16  # so many examples show whether their lengths differ


def accuracy(model: torch.nn.Module, data: Any, pairing: Pairing, metrics: MetricObjects | None = None) -> float | None:
    """Give the share of the set's targets that the model predicts right, in `eval()` under `no_grad`.

    The user's `metrics`, where they are given, are fed with the set; of a regression, which has no accuracy, only that
    is done. Raises `UnreadableError` or `PairingError` with the reason where the set can't be read or paired; whatever
    the model raises comes through. The training is left undisturbed.
    """
    pairing.check_inputs(model)
    if metrics is not None and (metrics.fed or metrics.spoilt):
        metrics.restart()  # another set was tried before
    with undisturbed(model, data):
        share = _accuracy(model, open_source(data), pairing, metrics)
    if share is None and pairing.has_accuracy:
        raise UnreadableError("it has no target that counts")
    return share


def _accuracy(model: torch.nn.Module, source: Source, pairing: Pairing, metrics: MetricObjects | None) -> float | None:
    mean = DeviceMean()
    for parts in _batches(model, source, pairing):
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


def _batches(model: torch.nn.Module, source: Source, pairing: Pairing) -> Iterator[Parts]:
    if not isinstance(source, ExamplesSource):
        yield from (take_apart(batch) for batch in source.batches())
        return
    first = source.first()
    if not needs_batch_dimension(model, first, pairing, source):
        yield from (take_apart(example) for example in source)
        return
    size = max(1, pairing.targets // max(1, _target_of(first).numel()))
    waiting: list[Any] = []
    for example in source:
        waiting.append(example)
        if len(waiting) == size:
            yield from _collated(waiting)
            waiting = []
    if waiting:
        yield from _collated(waiting)


def _collated(examples: list[Any]) -> Iterator[Parts]:
    """One batch where the examples have one shape, else each alone."""
    try:
        yield collate(examples)
    except (RuntimeError, TypeError, ValueError):
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
