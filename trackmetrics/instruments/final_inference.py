"""The final inference: one forward of the first dev example through the trained model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..record import FinalInference
from .attention import returned_maps
from .data import ExamplesSource, Parts, UnreadableError, collate, open_source, take_apart
from .evaluation import main_output, needs_batch_dimension, run
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
) -> tuple[FinalInference, bool]:
    """Run the model on an example, in `eval()` under `no_grad`; also say whether it returned attention maps.

    `log_probs` is `[seq_len, num_classes]`, classes last. What the output is, the observed criterion says; with
    none, rows whose exponentials sum to 1 are taken as they are, probabilities through the logarithm, anything
    else through `log_softmax`. Raises what the model raises, and `PairingError` where its output is no prediction.
    """
    with undisturbed(model):
        output, _ = run(model, example.parts)
    predictions = main_output(output).detach()
    if pairing is not None:
        rows = pairing.log_probs(predictions, example.parts.target)
    else:
        rows = _log_probs_of_any(predictions)
    maps = returned_maps(output, example.batched)
    inference = FinalInference(
        example_input=(describe or describe_example)(example.raw),
        log_probs=None if rows is None else _array(rows),
        attention_weights=np.zeros((0, 0, 0), np.float32) if maps is None else _array(maps),
    )
    return inference, maps is not None


def first_example(model: torch.nn.Module, data: Any, pairing: Pairing | None) -> Example:
    """The first example of a set, collated alone, with a batch dimension where the model was trained with one."""
    source = open_source(data)
    with undisturbed(model, data):
        if isinstance(source, ExamplesSource):
            return named_example(model, source.examples[0], pairing)
        raw, batch = source.first()
        return Example(raw, take_apart(batch), batched=True)


def raw_example(data: Any) -> Any:
    """The first example of a set, as the set holds it."""
    source = open_source(data)
    return source.examples[0] if isinstance(source, ExamplesSource) else source.first()[0]


def named_example(model: torch.nn.Module, raw: Any, pairing: Pairing | None) -> Example:
    """An example that stands alone, such as the user's `example=`: with a target or, as a bare input, without."""
    try:
        take_apart(raw)
    except UnreadableError:
        if isinstance(raw, torch.Tensor):
            return _bare(model, raw)
        raise
    if pairing is None:
        return Example(raw, take_apart(raw), batched=False)
    with undisturbed(model):
        batched = needs_batch_dimension(model, raw, pairing)
    return Example(raw, collate([raw]) if batched else take_apart(raw), batched)


def _bare(model: torch.nn.Module, raw: torch.Tensor) -> Example:
    """An input without a target: as it is, if the model runs on it, else with a batch dimension."""
    alone = Parts(raw, None)
    try:
        with undisturbed(model):
            run(model, alone)
        return Example(raw, alone, batched=False)
    except Exception:
        return Example(raw, Parts(raw.unsqueeze(0), None), batched=True)


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
    while isinstance(inputs, (Mapping, list, tuple)) and inputs:
        inputs = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs[0]
    values = inputs.tolist() if hasattr(inputs, "tolist") else inputs
    return " ".join(map(str, _flat(values)))


def _flat(values: Any) -> list[Any]:
    return [item for value in values for item in _flat(value)] if isinstance(values, list) else [values]


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
