"""The evaluation pass: accuracy over a whole set, paired as the training paired output and target."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch

from .criteria import Call, Criterion, tally
from .data import (
    ExamplesSource,
    Parts,
    Source,
    UnreadableError,
    collate,
    open_source,
    take_apart,
    to_device,
)
from .events import Listener, heard_by
from .pairing import Pairing, PairingError
from .training_metrics import DeviceMean
from .undisturbed import undisturbed


def accuracy(model: torch.nn.Module, data: Any, pairing: Pairing) -> float | None:
    """Give the share of the set's targets that the model predicts right, in `eval()` under `no_grad`.

    Raises `UnreadableError` or `PairingError` with the reason where the set can't be read or paired; whatever the
    model raises comes through. The training is left undisturbed.
    """
    source = open_source(data)
    with undisturbed(model, data):
        return _accuracy(model, source, pairing)


def _accuracy(model: torch.nn.Module, source: Source, pairing: Pairing) -> float | None:
    mean = DeviceMean()
    for parts in _batches(model, source, pairing):
        right, counted = judge(model, parts, pairing)
        mean.add_sum(right, counted)
    return mean.take()


def judge(model: torch.nn.Module, parts: Parts, pairing: Pairing) -> tuple[torch.Tensor, torch.Tensor | int]:
    """Run the model on a batch and count: right predictions, and targets that count."""
    output, calls = run(model, parts)
    tallies = map(tally, calls)
    inside = [(tallied.correct, tallied.targets) for tallied in tallies if tallied.correct is not None]
    if len(inside) == 1:
        return inside[0]
    if parts.target is None:
        raise UnreadableError("there is no target to compare with")
    return pairing.judge(main_output(output), parts.target)


class _Inner(Listener):
    """Keeps the criterion calls of one forward: those of a model that computes its loss inside."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def criterion_called(self, criterion: Criterion, arguments: tuple[Any, ...], result: torch.Tensor) -> None:
        self.calls.append(Call(criterion, arguments, result))


def run(model: torch.nn.Module, parts: Parts) -> tuple[Any, list[Call]]:
    """Run the model on its inputs, on its own device; give what it returns, and the criterion calls inside it.

    Keyword inputs are those that `forward` takes; the labels join them where it takes labels.
    """
    parts = _on_device_of(model, parts)
    inner = _Inner()
    with heard_by(inner):
        if not parts.keywords:
            return model(parts.inputs), inner.calls
        keywords = dict(parts.inputs)
        if parts.labels is not None and parts.target is not None:
            keywords[parts.labels] = parts.target
        return model(**_accepted(model, keywords)), inner.calls


def _accepted(model: torch.nn.Module, keywords: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(model.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return keywords
    accepted = {name: value for name, value in keywords.items() if name in parameters}
    if not accepted:
        raise UnreadableError(
            f"forward({', '.join(parameters)}) takes none of the batch's keys {sorted(map(str, keywords))}"
        )
    return accepted


def _on_device_of(model: torch.nn.Module, parts: Parts) -> Parts:
    parameter = next(model.parameters(), None)
    if parameter is None:
        return parts
    target = None if parts.target is None else parts.target.to(parameter.device)
    return parts._replace(inputs=to_device(parts.inputs, parameter.device), target=target)


def main_output(output: Any) -> torch.Tensor:
    """The predictions in what a model returned: a tensor, the first of a tuple, `.logits`.

    Raises `PairingError` for anything else.
    """
    for name in ("logits", "log_probs"):
        if hasattr(output, name):
            return main_output(getattr(output, name))
        if isinstance(output, dict) and name in output:
            return main_output(output[name])
    if isinstance(output, (tuple, list)) and output:
        return main_output(output[0])
    if isinstance(output, torch.Tensor):
        return output
    raise PairingError(f"the model returned a {type(output).__name__}, in which no predictions are known")


def _batches(model: torch.nn.Module, source: Source, pairing: Pairing) -> Iterator[Parts]:
    if not isinstance(source, ExamplesSource):
        yield from (take_apart(batch) for batch in source.batches())
        return
    first = source.examples[0]
    if not needs_batch_dimension(model, first, pairing):
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


def needs_batch_dimension(model: torch.nn.Module, example: Any, pairing: Pairing) -> bool:
    """Whether the model was trained with a batch dimension that a single example lacks.

    What the training's targets say is tried first; if the model can't be run that way, the other one. Raises what
    the first way raised if neither works.
    """
    target = _target_of(example)
    likely = pairing.target_dimensions > target.ndim or pairing.targets != target.numel()
    try:
        _try(model, example, pairing, batched=likely)
        return likely
    except Exception as error:
        try:
            _try(model, example, pairing, batched=not likely)
            return not likely
        except Exception:
            raise error from None


def _try(model: torch.nn.Module, example: Any, pairing: Pairing, batched: bool) -> None:
    parts = collate([example]) if batched else take_apart(example)
    if pairing.has_accuracy and not pairing.soft:
        judge(model, parts, pairing)
    else:
        run(model, parts)


def _target_of(example: Any) -> torch.Tensor:
    target = take_apart(example).target
    if target is None:
        raise UnreadableError("an example has no target")
    return target
