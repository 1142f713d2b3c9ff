"""The final inference: one forward of the first dev example through the trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
from torch.utils.data import default_collate

from ..errors import ArgumentError
from ..record import FinalInference
from .data import ExamplesSource, Parts, UnreadableError, collate, copied, open_source, take_apart, to_tensors
from .evaluation import main_output, needs_batch_dimension, run
from .inference_attention import Detail, InferenceAttention, attention_of
from .pairing import Pairing, PairingError, are_log_probs, are_probabilities
from .undisturbed import undisturbed


class Example(NamedTuple):
    """An example as its set holds it, and as the model is given it."""

    raw: Any
    parts: Parts
    batched: bool


def infer(
    model: torch.nn.Module,
    example: Example,
    pairing: Pairing | None,
    describe: Callable[[Any], str] | None = None,
    detail: Detail = "mean",
) -> tuple[FinalInference, InferenceAttention]:
    """Run the model on an example, in `eval()` under `no_grad`, and once more to watch it attend.

    `log_probs` is `[seq_len, num_classes]`, classes last. What the output is, the observed criterion says; with
    none, rows whose exponentials sum to 1 are taken as they are, probabilities through the logarithm, anything
    else through `log_softmax`. Raises what the model raises, and `PairingError` where its output is no prediction.
    """
    inputs = example.parts.inputs
    parts = example.parts._replace(inputs=copied(inputs))  # a forward may write to its inputs
    with undisturbed(model, describe):
        output, rows, with_labels = _predicted(model, parts, pairing)
        text = (describe or describe_example)(example.raw)
    if not isinstance(text, str):
        raise ArgumentError(f"describe returned a {type(text).__name__}; return a string")
    length = None if rows is None else len(rows)

    def forward(own: Any) -> Any:
        return run(model, parts._replace(inputs=own), with_labels)[0]

    attention = attention_of(model, forward, inputs, output, length, detail)
    log_probs = None if rows is None else _array(rows)
    return FinalInference(text, log_probs, attention.weights), attention


def _predicted(model: torch.nn.Module, parts: Parts, pairing: Pairing | None) -> tuple[Any, torch.Tensor | None, bool]:
    """What the model returns, its rows of log-probabilities, and whether it was given labels.

    A model that returns only its loss when it is given labels is asked again without them.
    """
    output, _ = run(model, parts)
    try:
        return output, _log_probs(main_output(output), parts.target, pairing), True
    except PairingError as error:
        try:
            output, _ = run(model, parts, with_labels=False)
            return output, _log_probs(main_output(output), parts.target, pairing), False
        except Exception:
            raise error from None


def first_example(model: torch.nn.Module, data: Any, pairing: Pairing | None) -> Example:
    """The first example of a set, collated alone, with a batch dimension where the model was trained with one."""
    if pairing is not None and pairing.has_accuracy:
        pairing.check_inputs(model)
    with undisturbed(model, data):
        source = open_source(data)
        if isinstance(source, ExamplesSource):
            return _single_example(model, source.first(), pairing, source)
        raw, batch = source.first()
        return Example(raw, take_apart(batch), source.batched)


def raw_example(data: Any) -> Any:
    """The first example of a set, as the set holds it."""
    with undisturbed(None, data):
        source = open_source(data)
        return source.first() if isinstance(source, ExamplesSource) else source.first()[0]


def named_example(model: torch.nn.Module, raw: Any, pairing: Pairing | None) -> Example:
    """An example that stands alone, such as the user's `example=`: with a target or, as a bare input, without."""
    with undisturbed(model):
        try:
            take_apart(raw)
        except UnreadableError:
            return _bare(model, raw, pairing)
        return _single_example(model, raw, pairing)


def _single_example(model: torch.nn.Module, raw: Any, pairing: Pairing | None, examples: Iterable[Any] = ()) -> Example:
    batched = needs_batch_dimension(model, raw, pairing, examples)
    return Example(raw, collate([raw]) if batched else take_apart(raw), batched)


def _bare(model: torch.nn.Module, raw: Any, pairing: Pairing | None) -> Example:
    """An input without a target, with a batch dimension if the model was trained with one.

    The output's dimensions tell, beside those of the training; where neither way gives them, the first that runs.
    """
    inputs = to_tensors(raw)
    ways = [Example(raw, Parts(inputs, None, isinstance(raw, Mapping)), batched=False)]
    if not isinstance(raw, str):
        joined = default_collate([inputs])
        ways.append(Example(raw, Parts(joined, None, isinstance(raw, Mapping)), batched=True))
    runs, faults = [], []
    for way in ways:
        try:
            predictions = main_output(run(model, way.parts)[0])
        except Exception as error:
            faults.append(error)
            continue
        if pairing is not None and predictions.ndim == _output_dimensions(pairing):
            return way
        runs.append(way)
    if not runs:
        raise faults[0]
    return runs[0]


def _output_dimensions(pairing: Pairing) -> int:
    """How many dimensions the training's outputs had."""
    return pairing.target_dimensions + (pairing.kind == "classes" and not pairing.soft)


def describe_example(example: Any) -> str:
    """The example's input as text: its `input` where that is text, itself where it is, else its input's values."""
    if isinstance(example, str):
        return example
    named = example.get("input") if isinstance(example, Mapping) else getattr(example, "input", None)
    if isinstance(named, str):
        return named
    if isinstance(example, (tuple, list)) and example and isinstance(example[0], str):
        return example[0]
    try:
        inputs = take_apart(example).inputs
    except UnreadableError:
        inputs = example
    return " ".join(map(str, _values(inputs)))


def _values(inputs: Any) -> list[Any]:
    """All values of an input, one after the other; of several inputs, those of the first."""
    if isinstance(inputs, Mapping):
        return _values(next(iter(inputs.values()), []))
    if isinstance(inputs, tuple) and inputs and hasattr(inputs[0], "tolist"):
        return _values(inputs[0])
    values = inputs.tolist() if hasattr(inputs, "tolist") else inputs
    return [item for value in values for item in _values(value)] if isinstance(values, (list, tuple)) else [values]


def _log_probs(predictions: torch.Tensor, target: torch.Tensor | None, pairing: Pairing | None) -> torch.Tensor | None:
    return _log_probs_of_any(predictions) if pairing is None else pairing.log_probs(predictions, target)


def _log_probs_of_any(predictions: torch.Tensor) -> torch.Tensor:
    if predictions.ndim == 0 or not predictions.is_floating_point():
        raise PairingError(f"the model's output, of shape {tuple(predictions.shape)}, has no classes")
    rows = predictions.reshape(-1, predictions.shape[-1])
    if are_log_probs(rows):
        return rows
    return rows.log() if are_probabilities(rows) else rows.log_softmax(-1)


def _array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Full precision: float64 stays, everything narrower is held exactly by float32."""
    wide = tensor if tensor.dtype is torch.float64 else tensor.float()
    return wide.detach().cpu().numpy()
