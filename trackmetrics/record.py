"""What a run is: frozen types, and their way to and from the file's plain data.

The record in memory keeps full precision; the file's rounding happens here, on the way out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .array_types import array_of, single_or_double
from .errors import MetricsFileError, shown
from .plain import Growing, is_number, to_plain

FORMAT_VERSION = 1

METRIC_KEYS = ("train_loss", "train_accuracy", "dev_accuracy", "gradient_norm")
RESERVED_EPOCH_KEYS = ("epoch", "elapsed_seconds")

METRIC_DECIMALS = 4
SECONDS_DECIMALS = 2


@dataclass(frozen=True)
class Hyperparameters:
    """The architecture parameters (`model`) and the training parameters (`training`), plain values only."""

    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Metadata:
    """Which run this is: task, UTC start (`YYYY-MM-DDTHH:MM:SSZ`), device type, hyperparameters."""

    task: str
    timestamp: str
    device: str | None = None
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)


@dataclass(frozen=True)
class EpochRecord:
    """One epoch's numbers at full precision; `metrics` holds what the user logged under other names."""

    epoch: int
    train_loss: float | None = None
    train_accuracy: float | None = None
    dev_accuracy: float | None = None
    gradient_norm: float | None = None
    elapsed_seconds: float = 0.0
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FinalResults:
    """Accuracies with the final weights over the full sets, and the seconds that training took."""

    train_accuracy: float | None
    dev_accuracy: float | None
    total_time_seconds: float


def _no_attention() -> npt.NDArray[Any]:
    return np.zeros((0, 0, 0), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class FinalInference:
    """The first dev example through the trained model.

    `log_probs` has shape `[seq_len, num_classes]`, or is None where the output is no distribution.
    `attention_weights` has shape `[num_layers, seq_len, seq_len]`, `[0, 0, 0]` where there is no attention.

    >>> FinalInference("ab", np.log([[0.5, 0.5]]), np.zeros((0, 0, 0))).log_probs.shape
    (1, 2)
    """

    example_input: str
    log_probs: npt.NDArray[Any] | None
    attention_weights: npt.NDArray[Any] = field(default_factory=_no_attention)

    def __eq__(self, other: object) -> bool:
        """Equal where the text, the types and each bit that is a number are; NaN equals NaN."""
        if not isinstance(other, FinalInference):
            return NotImplemented
        return (
            self.example_input == other.example_input
            and _same_array(self.log_probs, other.log_probs)
            and _same_array(self.attention_weights, other.attention_weights)
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A whole run, as `tracker.record` and `load_run` give it. `extensions` is None where it was left out.

    >>> run = RunRecord(Metadata("demo", "2026-01-01T00:00:00Z"), (EpochRecord(1, 0.9), EpochRecord(2, 0.4)))
    >>> [epoch.train_loss for epoch in run.epochs], run.final_results
    ([0.9, 0.4], None)
    """

    metadata: Metadata
    epochs: tuple[EpochRecord, ...] = ()
    final_results: FinalResults | None = None
    final_inference: FinalInference | None = None
    extensions: Mapping[str, Any] | None = None

    def __eq__(self, other: object) -> bool:
        """Equal where each part is; the extensions may hold arrays."""
        if not isinstance(other, RunRecord):
            return NotImplemented
        parts = ("metadata", "epochs", "final_results", "final_inference")
        same = all(getattr(self, part) == getattr(other, part) for part in parts)
        return same and _same(self.extensions, other.extensions)

    __hash__ = None  # type: ignore[assignment]


def record_to_plain(record: RunRecord) -> dict[str, Any]:
    """Give the record in the file's order of keys, rounded as the file is; arrays stay NumPy arrays.

    The epochs are a `Growing` list, and so is a tuple in the extensions.
    """
    inference = record.final_inference
    results = record.final_results
    plain: dict[str, Any] = {
        "metadata": {
            "task": record.metadata.task,
            "timestamp": record.metadata.timestamp,
            "device": record.metadata.device,
            "hyperparameters": {
                "model": dict(record.metadata.hyperparameters.model),
                "training": dict(record.metadata.hyperparameters.training),
            },
        },
        "epochs": Growing(record.epochs, _epoch_to_plain),
        "final_results": results
        and {
            "train_accuracy": _rounded(results.train_accuracy, METRIC_DECIMALS),
            "dev_accuracy": _rounded(results.dev_accuracy, METRIC_DECIMALS),
            "total_time_seconds": _rounded(results.total_time_seconds, SECONDS_DECIMALS),
        },
        "final_inference": inference
        and {
            "example_input": to_plain(inference.example_input),
            "log_probs": None if inference.log_probs is None else _rows(inference.log_probs),
            "attention_weights": _rows(inference.attention_weights),
        },
    }
    if record.extensions is not None:
        plain["extensions"] = _with_arrays(record.extensions)
    return plain


def _with_arrays(value: Any) -> Any:
    """Plain data that keeps its arrays as they are."""
    if isinstance(value, Mapping):
        return {str(key): _with_arrays(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return Growing(value, to_plain)
    if isinstance(value, list):
        return [_with_arrays(item) for item in value]
    return single_or_double(value) if isinstance(value, np.ndarray) else to_plain(value)


def _rows(array: npt.NDArray[Any]) -> npt.NDArray[Any] | list[Any]:
    return single_or_double(array) if array.size else []


def _epoch_to_plain(epoch: EpochRecord) -> dict[str, Any]:
    return {
        "epoch": epoch.epoch,
        **{key: _rounded(getattr(epoch, key), METRIC_DECIMALS) for key in METRIC_KEYS},
        "elapsed_seconds": _rounded(epoch.elapsed_seconds, SECONDS_DECIMALS),
        **epoch.metrics,
    }


def _rounded(value: float | None, decimals: int) -> float | None:
    return None if value is None else round(value, decimals)


def record_from_plain(plain: Any) -> RunRecord:
    """Build the record from a file's plain data, or raise `MetricsFileError` naming the key that is wrong."""
    top = _Reader("", plain)
    metadata = top.child("metadata")
    hyperparameters = metadata.child("hyperparameters")
    extensions = plain.get("extensions")
    if extensions is not None and not isinstance(extensions, dict):
        raise top.fault("extensions", "an object", extensions)
    dtypes = (extensions or {}).get("dtypes", {})
    return RunRecord(
        metadata=Metadata(
            task=metadata.text("task"),
            timestamp=metadata.text("timestamp"),
            device=None if metadata.value("device") is None else metadata.text("device"),
            hyperparameters=Hyperparameters(
                model=hyperparameters.child("model").plain, training=hyperparameters.child("training").plain
            ),
        ),
        epochs=tuple(_epoch_from_plain(item) for item in top.children("epochs")),
        final_results=_final_results_from_plain(top.optional_child("final_results")),
        final_inference=_final_inference_from_plain(top.optional_child("final_inference"), dtypes),
        extensions=extensions,
    )


def _epoch_from_plain(epoch: _Reader) -> EpochRecord:
    named = (*METRIC_KEYS, *RESERVED_EPOCH_KEYS)
    number = epoch.value("epoch")
    if not isinstance(number, int) or isinstance(number, bool):
        raise epoch.fault("epoch", "an integer", number)
    return EpochRecord(
        epoch=number,
        **{key: epoch.number(key) for key in METRIC_KEYS},
        elapsed_seconds=epoch.required_number("elapsed_seconds"),
        metrics={key: item for key, item in epoch.plain.items() if key not in named},
    )


def _final_results_from_plain(results: _Reader | None) -> FinalResults | None:
    if results is None:
        return None
    return FinalResults(
        train_accuracy=results.number("train_accuracy"),
        dev_accuracy=results.number("dev_accuracy"),
        total_time_seconds=results.required_number("total_time_seconds"),
    )


def _final_inference_from_plain(inference: _Reader | None, dtypes: Any) -> FinalInference | None:
    if inference is None:
        return None
    log_probs = None if inference.value("log_probs") is None else inference.array("log_probs", 2, dtypes)
    return FinalInference(
        example_input=inference.text("example_input"),
        log_probs=log_probs,
        attention_weights=inference.array("attention_weights", 3, dtypes),
    )


def _same(a: Any, b: Any) -> bool:
    """Whether two values are equal, arrays in them included."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return _same_array(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is not np.ndarray and type(b) is not np.ndarray and bool(a == b)


def _same_array(a: npt.NDArray[Any] | None, b: npt.NDArray[Any] | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)


class _Reader:
    """An object of the file with the JSON pointer at which it stands, so that a fault can name its place."""

    def __init__(self, pointer: str, plain: Any) -> None:
        if not isinstance(plain, dict):
            raise _fault(pointer, "an object", plain)
        self.pointer = pointer
        self.plain: dict[str, Any] = plain

    def fault(self, key: str, expected: str, found: Any) -> MetricsFileError:
        return _fault(f"{self.pointer}/{key}", expected, found)

    def value(self, key: str) -> Any:
        if key not in self.plain:
            raise MetricsFileError(f"{self.pointer}/{key} is missing: a metrics file has this key")
        return self.plain[key]

    def child(self, key: str) -> _Reader:
        return _Reader(f"{self.pointer}/{key}", self.value(key))

    def optional_child(self, key: str) -> _Reader | None:
        return None if self.value(key) is None else self.child(key)

    def children(self, key: str) -> list[_Reader]:
        items = self.value(key)
        if not isinstance(items, list):
            raise self.fault(key, "an array", items)
        return [_Reader(f"{self.pointer}/{key}/{index}", item) for index, item in enumerate(items)]

    def text(self, key: str) -> str:
        value = self.value(key)
        if not isinstance(value, str):
            raise self.fault(key, "a string", value)
        return value

    def number(self, key: str) -> float | None:
        value = self.value(key)
        if value is None:
            return None
        if not is_number(value):
            raise self.fault(key, "a number or null", value)
        return float(value)

    def required_number(self, key: str) -> float:
        value = self.number(key)
        if value is None:
            raise self.fault(key, "a number", value)
        return value

    def array(self, key: str, dimensions: int, dtypes: Any) -> npt.NDArray[Any]:
        value = self.value(key)
        empty = np.zeros((0,) * dimensions, dtype=np.float32)  # written as [], whatever its shape
        if isinstance(value, list) and not value:
            return empty
        if isinstance(value, np.ndarray) and value.ndim == dimensions:  # from beside the file
            return value
        narrow = isinstance(dtypes, dict) and dtypes.get(f"{self.pointer}/{key}") == "float32"
        expected = f"an array of {'float32 ' if narrow else ''}numbers with {dimensions} dimensions and equal rows"
        try:
            array = array_of(value, np.float32 if narrow else np.float64)
        except (TypeError, ValueError):
            raise self.fault(key, expected, value) from None
        if array.ndim != dimensions:
            raise self.fault(key, expected, value)
        return array if array.size else empty


def _fault(pointer: str, expected: str, found: Any) -> MetricsFileError:
    return MetricsFileError(f"{pointer or 'the top level'} is {shown(found)}; expected {expected}")
