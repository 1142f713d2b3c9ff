"""The metrics file's rules that a schema can't say: what has to agree with what, and what a pointer has to name.

A rule says only its own: where a value is of the wrong type it passes by, for the schema has a line on that.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from .errors import shown
from .json_pointer import escaped, inside_another
from .metrics_file import DEEPEST, nests_too_deep
from .places import DTYPES, NON_FINITE, SIDECARS, Array, File, is_length

_LOG_PROBS, _WEIGHTS = "/final_inference/log_probs", "/final_inference/attention_weights"
_MAPS, _HEADS = "/extensions/attention/maps", "/extensions/attention/heads"
# How far a row's probabilities may sum from 1. What stands as float32 may have been a half type, whose logarithms of
# small probabilities are off by up to 1/32.
_TOLERANCE = {"float64": 1e-4, "float32": 5e-2}


@dataclass(frozen=True)
class Fault:
    """What is wrong at a place of a file; as text, one line.

    >>> print(Fault("/epochs/1/epoch", "3", "expected 2"))
    /epochs/1/epoch: 3: expected 2
    """

    pointer: str
    value: str
    rule: str

    def __str__(self) -> str:
        place = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in self.pointer)
        return f"{place or 'the top level'}: {self.value}: {self.rule}"


def broken_rules(file: File) -> Iterator[Fault]:
    """Each fault of a file, but for the places of which one is known."""
    for rule in _RULES:
        yield from (fault for fault in rule(file) if fault.pointer not in file.malformed)


def _nesting_is_limited(file: File) -> Iterator[Fault]:
    if isinstance(file.plain, dict) and nests_too_deep(file.plain):
        yield Fault("", shown(file.plain), f"expected {DEEPEST} levels of nesting at most")


# Time


def _dates_are_real(file: File) -> Iterator[Fault]:
    for pointer in ("/metadata", *(place for place, _ in file.objects("/extensions/resumed"))):
        text = file.get(f"{pointer}/timestamp")
        if isinstance(text, str) and not _is_date(text):
            yield Fault(f"{pointer}/timestamp", shown(text), "expected a date that exists")


def _is_date(text: str) -> bool:
    try:
        datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return False
    return True


def _epochs_are_numbered(file: File) -> Iterator[Fault]:
    return _unnumbered(file.objects("/epochs"), "epoch", 1)


def _unnumbered(items: Iterable[tuple[str, Mapping[str, Any]]], key: str, first: int) -> Iterator[Fault]:
    """A fault wherever the numbering breaks off; it goes on from there."""
    expected = first
    for pointer, item in items:
        number = item.get(key)
        if type(number) is not int:
            expected += 1
            continue
        if number != expected:
            rule = f"expected {shown(expected)}: numbered from {first}, one after the other"
            yield Fault(f"{pointer}/{key}", shown(number), rule)
        expected = number + 1


def _time_never_falls(file: File) -> Iterator[Fault]:
    before: float = 0
    for pointer, epoch in file.objects("/epochs"):
        seconds = _number(epoch.get("elapsed_seconds"))
        if seconds is None:
            continue
        if seconds < before:
            rule = f"expected at least {shown(before)}, the epoch's before: time never falls"
            yield Fault(f"{pointer}/elapsed_seconds", shown(seconds), rule)
        before = seconds


def _total_time_is_the_last_epochs(file: File) -> Iterator[Fault]:
    epochs = [epoch for _, epoch in file.objects("/epochs")]
    last = _number(epochs[-1].get("elapsed_seconds")) if epochs else None
    total = _number(file.get("/final_results/total_time_seconds"))
    if last is not None and total is not None and total != last:
        rule = f"expected {shown(last)}, the last epoch's elapsed_seconds"
        yield Fault("/final_results/total_time_seconds", shown(total), rule)


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) else None


def _results_are_of_a_completed_run(file: File) -> Iterator[Fault]:
    state = file.get("/extensions/status/state")
    for pointer in ("/final_results", "/final_inference"):
        value = file.get(pointer)
        if state in ("running", "failed", "interrupted") and value is not None:
            yield Fault(pointer, shown(value), f"expected null, for the run's state is {state!r}")


def _norms_are_of_the_epochs(file: File) -> Iterator[Fault]:
    place = "/extensions/gradient_norm/epochs"
    norms, epochs = file.get(place), file.get("/epochs")
    if not isinstance(norms, list) or not isinstance(epochs, list):
        return
    if len(norms) != len(epochs):
        yield Fault(place, f"{len(norms)} of {len(epochs)}", "expected one for each epoch")
    yield from _unnumbered(file.objects(place), "epoch", 1)


# Arrays


def _arrays_are_regular(file: File) -> Iterator[Fault]:
    for pointer, dimensions in _array_places(file):
        fault = None if file.is_malformed(pointer) else _irregular(file, pointer, dimensions)
        if fault is not None:
            yield fault
            file.note_malformed(pointer)


def _irregular(file: File, pointer: str, dimensions: str) -> Fault | None:
    value, array = file.get(pointer), file.array(pointer)
    if isinstance(value, list) and array is None:
        return Fault(pointer, shown(value), "expected rows of one length")
    if array is not None and array.size and str(len(array.shape)) not in dimensions:
        return Fault(pointer, _said(array.shape), f"expected {dimensions} dimensions")
    if array is not None and file.width(pointer) == "float32" and _beyond_single(array):
        return Fault(pointer, shown(value), f"expected numbers of float32, as {DTYPES} says")
    if file.is_null(pointer) and pointer != _LOG_PROBS and pointer not in file.mapping(SIDECARS):
        return Fault(pointer, "None", f"expected an array, or an entry in {SIDECARS}")
    return None


def _array_places(file: File) -> Iterator[tuple[str, str]]:
    """Where the format has arrays, and of how many dimensions."""
    yield _LOG_PROBS, "2"
    yield _WEIGHTS, "3"
    yield _HEADS, "4"
    yield from ((f"{place}/weights", "2, 3 or 4") for place, _ in file.objects(_MAPS))


def _beyond_single(array: Array) -> bool:
    """Whether a number is too large for float32; its largest, in decimals, is a little above itself as a double."""
    with np.errstate(over="ignore"):
        return bool((np.isinf(array.astype(np.float32)) & np.isfinite(array)).any())


def _said(shape: tuple[int, ...]) -> str:
    return f"shape {shown(list(shape))}"


def _log_probs_are_distributions(file: File) -> Iterator[Fault]:
    array = file.array(_LOG_PROBS)
    if array is None or array.ndim != 2:
        return
    values = _with_infinities(file, _LOG_PROBS, array)
    with np.errstate(over="ignore"):
        sums = np.exp(values).sum(-1)
    tolerance = _TOLERANCE[file.width(_LOG_PROBS) or "float32"]
    for index in np.flatnonzero(np.abs(sums - 1) > tolerance):  # of a row with a NaN nothing is known
        rule = f"expected log-probabilities: the exponentials sum to {sums[index]:.6g}, not to 1"
        yield Fault(f"{_LOG_PROBS}/{index}", shown(values[index].tolist()), rule)


def _with_infinities(file: File, pointer: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    entry = file.mapping(NON_FINITE).get(pointer)
    if isinstance(entry, str):
        return np.where(np.isnan(values), {"Infinity": np.inf, "-Infinity": -np.inf}.get(entry, np.nan), values)
    if not isinstance(entry, dict) or _times_named(entry, values.size) is None:
        return values
    values = values.copy()
    for name, number in (("Infinity", np.inf), ("-Infinity", -np.inf)):
        for start, length in entry.get(name, ()):
            values.reshape(-1)[start : start + length] = number
    return values


def _attention_is_square(file: File) -> Iterator[Fault]:
    shape = file.shape(_WEIGHTS, 3)
    if shape is not None and shape[1] != shape[2]:
        yield Fault(_WEIGHTS, _said(shape), "expected [num_layers, seq_len, seq_len]")


def _heads_are_of_the_layers(file: File) -> Iterator[Fault]:
    heads, weights = file.shape(_HEADS, 4), file.shape(_WEIGHTS, 3)
    if heads is not None and weights is not None and (heads[0], *heads[2:]) != weights:
        rule = f"expected [num_layers, heads, seq_len, seq_len], where attention_weights has the {_said(weights)}"
        yield Fault(_HEADS, _said(heads), rule)


def _maps_agree(file: File) -> Iterator[Fault]:
    """Each map is a layer of attention_weights or has weights of its own, of the shape that it says."""
    maps = list(file.objects(_MAPS))
    layers = [(place, entry) for place, entry in maps if "layer" in entry]
    yield from _unnumbered(layers, "layer", 0)
    weights = file.shape(_WEIGHTS, 3)
    if maps and weights is not None and len(layers) != weights[0]:
        yield Fault(_MAPS, f"{len(layers)} with a layer", f"expected {weights[0]}, as attention_weights has")
    for place, entry in maps:
        if ("layer" in entry) == ("weights" in entry):
            yield Fault(place, shown(entry), "expected either a layer or weights")
        elif "weights" in entry:
            yield from _disagreeing_weights(file, place, entry.get("shape"))
        else:
            yield from _disagreeing_layer(file, place, entry.get("shape"))


def _disagreeing_weights(file: File, place: str, shape: Any) -> Iterator[Fault]:
    array = file.array(f"{place}/weights")
    if array is None or not array.size or not 2 <= len(array.shape) <= 4 or not _is_of_four(shape):
        return
    batch, heads, *lengths = shape
    several = [batch] * (batch > 1)
    if list(array.shape) not in ([*several, *lengths], [*several, heads, *lengths]):
        rule = f"expected the lengths of [batch, heads, queries, keys] {shown(shape)}"
        yield Fault(f"{place}/weights", _said(array.shape), rule)


def _disagreeing_layer(file: File, place: str, shape: Any) -> Iterator[Fault]:
    weights, heads = file.shape(_WEIGHTS, 3), file.shape(_HEADS, 4)
    if weights is None or not _is_of_four(shape):
        return
    expected = [shape[0], shape[1] if heads is None else heads[1], *weights[1:]]
    if shape != expected:
        yield Fault(f"{place}/shape", shown(shape), f"expected {expected}, as attention_weights and heads have it")


def _is_of_four(shape: Any) -> bool:
    return isinstance(shape, list) and len(shape) == 4 and all(map(is_length, shape))


# Pointers


def _sidecars_are_there(file: File) -> Iterator[Fault]:
    for place, pointer, entry in _entries(file, SIDECARS):
        if not file.is_null(pointer):
            yield Fault(place, shown(entry), f"expected null at {shown(pointer)}")
        elif file.array(pointer) is None and pointer in file.unread:
            yield Fault(place, shown(entry), file.unread[pointer])


def _dtypes_are_of_arrays(file: File) -> Iterator[Fault]:
    for place, pointer, width in _entries(file, DTYPES):
        if file.array(pointer) is None and pointer not in file.unread:
            yield Fault(place, shown(width), f"expected an array at {shown(pointer)}")


def _non_finite_are_null(file: File) -> Iterator[Fault]:
    for place, pointer, entry in _entries(file, NON_FINITE):
        if isinstance(entry, str) and not file.is_null(pointer) and not _any_null(file, pointer):
            yield Fault(place, shown(entry), f"expected null at {shown(pointer)}")
        elif isinstance(entry, dict) and not _are_nulls(_nulls(file, pointer), entry):
            yield Fault(place, shown(entry), f"expected a list at {shown(pointer)} with these nulls, each named once")


def _entries_are_apart(file: File) -> Iterator[Fault]:
    for place in (SIDECARS, DTYPES, NON_FINITE):
        nested = inside_another(file.mapping(place))
        if nested is not None:
            yield Fault(place, shown(nested), "expected no place inside another of these")


def _entries(file: File, place: str) -> Iterator[tuple[str, str, Any]]:
    """The entries by JSON pointer at a place: each with its own place, and the pointer, unless more is said there."""
    entries = file.mapping(place)
    if inside_another(entries) is not None:
        return  # which is a fault of its own
    for pointer, entry in entries.items():
        own = f"{place}/{escaped(pointer)}"
        if not file.is_malformed(own) and not file.is_malformed(pointer):
            yield own, pointer, entry


def _nulls(file: File, pointer: str) -> npt.NDArray[np.bool_] | None:
    """Where the nulls are in the array or the list at a place, over its flat order."""
    value = file.get(pointer)
    if not isinstance(value, list):
        return None
    if not any(isinstance(item, (list, dict)) for item in value):
        return np.array([item is None for item in value], dtype=bool)
    array = file.array(pointer)
    return None if array is None else np.isnan(array).ravel()


def _any_null(file: File, pointer: str) -> bool:
    nulls = _nulls(file, pointer)
    return nulls is not None and bool(nulls.any())


def _are_nulls(nulls: npt.NDArray[np.bool_] | None, entry: Mapping[str, Any]) -> bool:
    times = None if nulls is None else _times_named(entry, nulls.size)
    return nulls is not None and times is not None and bool((times <= nulls).all())


def _nulls_are_named(file: File) -> Iterator[Fault]:
    """Where there are extensions, they say of each null in an array what it was."""
    for pointer, _ in _array_places(file):
        array, entry = file.array(pointer), file.mapping(NON_FINITE).get(pointer)
        if array is None or file.width(pointer) is None or file.is_malformed(pointer) or isinstance(entry, str):
            continue
        times = _times_named(entry if isinstance(entry, dict) else {}, array.size)
        unnamed = 0 if times is None else int((np.isnan(array).ravel() & (times == 0)).sum())
        if unnamed and isinstance(file.get(pointer), list):
            yield Fault(pointer, f"{unnamed} null", f"expected numbers, or an entry in {NON_FINITE}")


def _times_named(entry: Mapping[str, Any], size: int) -> npt.NDArray[Any] | None:
    """How often an entry of `non_finite` names each number of an array; None where it isn't one for this size."""
    steps = np.zeros(size + 1, dtype=np.int64)
    for run in (run for runs in entry.values() for run in (runs if isinstance(runs, list) else [None])):
        if not _is_run(run, size):
            return None
        start, length = run
        steps[start] += 1
        steps[start + length] -= 1
    return np.cumsum(steps[:-1])


def _is_run(run: Any, size: int) -> TypeGuard[tuple[int, int]]:
    return isinstance(run, list) and len(run) == 2 and all(map(is_length, run)) and sum(run) <= size


_RULES: Sequence[Callable[[File], Iterator[Fault]]] = (
    _nesting_is_limited,
    _dates_are_real,
    _epochs_are_numbered,
    _time_never_falls,
    _results_are_of_a_completed_run,
    _total_time_is_the_last_epochs,
    _arrays_are_regular,
    _log_probs_are_distributions,
    _attention_is_square,
    _norms_are_of_the_epochs,
    _maps_agree,
    _heads_are_of_the_layers,
    _entries_are_apart,
    _sidecars_are_there,
    _dtypes_are_of_arrays,
    _non_finite_are_null,
    _nulls_are_named,
)
