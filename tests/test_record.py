"""The record: the seed's keys in the seed's order, rounded only on the way out, and every wrong file named exactly."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
from a_run import A_FILE, a_record
from any_record import records
from comparison import assert_same
from hypothesis import given, settings

from trackmetrics.errors import MetricsFileError
from trackmetrics.record import (
    EpochRecord,
    FinalInference,
    FinalResults,
    Metadata,
    RunRecord,
    record_from_plain,
    record_to_plain,
)

METADATA = Metadata("task", "2026-01-30T22:08:22Z")


def epoch_in_file(**values):
    """The file's plain data for an epoch with these values."""
    return record_to_plain(RunRecord(METADATA, (EpochRecord(1, **values),)))["epochs"][0]


# To plain data


def test_the_keys_are_the_seeds_in_its_order():
    """Each object has exactly the seed's keys, in the seed's order; user metrics follow, `extensions` is last."""
    plain = record_to_plain(a_record())
    assert list(plain) == ["metadata", "epochs", "final_results", "final_inference", "extensions"]
    assert list(plain["metadata"]) == ["task", "timestamp", "device", "hyperparameters"]
    assert list(plain["metadata"]["hyperparameters"]) == ["model", "training"]
    seeds = ["epoch", "train_loss", "train_accuracy", "dev_accuracy", "gradient_norm", "elapsed_seconds"]
    assert list(plain["epochs"][0]) == [*seeds, "perplexity"]
    assert list(plain["epochs"][1]) == seeds
    assert list(plain["final_results"]) == ["train_accuracy", "dev_accuracy", "total_time_seconds"]
    assert list(plain["final_inference"]) == ["example_input", "log_probs", "attention_weights"]


def test_a_run_at_its_start_has_its_keys_with_nothing_in_them():
    """Before training has completed the results are null, and no key is missing."""
    plain = record_to_plain(RunRecord(METADATA))
    assert plain | {"epochs": list(plain["epochs"])} == {
        "metadata": {
            "task": "task",
            "timestamp": "2026-01-30T22:08:22Z",
            "device": None,
            "hyperparameters": {"model": {}, "training": {}},
        },
        "epochs": [],
        "final_results": None,
        "final_inference": None,
    }


def test_extensions_left_out_leave_no_key():
    """None leaves the key out; an empty mapping keeps it."""
    assert "extensions" not in record_to_plain(a_record(extensions=None))
    assert record_to_plain(a_record(extensions={}))["extensions"] == {}


@pytest.mark.parametrize("key", ["train_loss", "train_accuracy", "dev_accuracy", "gradient_norm"])
@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (0.123449, 0.1234),
        (0.12345001, 0.1235),
        (0.99996, 1.0),
        (12345.00006, 12345.0001),
        (1e-9, 0.0),
        (3.0, 3.0),
        (None, None),
    ],
)
def test_an_epochs_metrics_have_four_decimals(key, value, rounded):
    """Loss, accuracies and gradient norm are rounded to 4 decimals in the file."""
    assert epoch_in_file(**{key: value})[key] == rounded


@pytest.mark.parametrize(("value", "rounded"), [(417.1299, 417.13), (0.004, 0.0), (0.0051, 0.01), (3600.0, 3600.0)])
def test_seconds_have_two_decimals(value, rounded):
    """Elapsed and total seconds are rounded to 2 decimals in the file."""
    assert epoch_in_file(elapsed_seconds=value)["elapsed_seconds"] == rounded
    plain = record_to_plain(RunRecord(METADATA, final_results=FinalResults(None, None, value)))
    assert plain["final_results"]["total_time_seconds"] == rounded


def test_final_accuracies_have_four_decimals():
    """2/3 and 1/3 are written 0.6667 and 0.3333."""
    plain = record_to_plain(RunRecord(METADATA, final_results=FinalResults(2 / 3, 1 / 3, 1.0)))
    assert plain["final_results"] == {"train_accuracy": 0.6667, "dev_accuracy": 0.3333, "total_time_seconds": 1.0}


def test_what_the_user_gives_is_not_rounded():
    """User metrics, hyperparameters and extensions keep each digit."""
    plain = record_to_plain(a_record())
    assert plain["epochs"][0]["perplexity"] == 3.4371234567
    assert plain["metadata"]["hyperparameters"]["model"]["dropout"] == 0.123456789
    assert plain["extensions"]["seconds"]["saving"] == 0.123456789


def test_non_finite_numbers_are_not_rounded_away():
    """NaN and infinities stay what they are until the file's text is made."""
    plain = epoch_in_file(train_loss=math.nan, gradient_norm=math.inf, dev_accuracy=-math.inf)
    assert math.isnan(plain["train_loss"])
    assert (plain["gradient_norm"], plain["dev_accuracy"]) == (math.inf, -math.inf)


def test_the_record_in_memory_keeps_full_precision():
    """Making the file's data changes nothing in the record."""
    record = a_record()
    before = copy.deepcopy(record)
    record_to_plain(record)
    assert_same(record, before)
    assert record.epochs[0].train_loss == 1.234567


def test_no_attention_is_an_empty_list():
    """A model without attention has `[]`, and empty log-probs are `[]` too."""
    inference = FinalInference("ab", np.zeros((0, 3)), np.zeros((2, 0, 0)))
    plain = record_to_plain(RunRecord(METADATA, final_inference=inference))["final_inference"]
    assert plain == {"example_input": "ab", "log_probs": [], "attention_weights": []}


def test_an_example_with_half_a_surrogate_pair_can_be_written():
    """A text that UTF-8 can't hold is written with an escape in its place, in the extensions as well."""
    inference = FinalInference("a\udc80", None)
    plain = record_to_plain(RunRecord(METADATA, final_inference=inference, extensions={"warnings": ["b\udc80"]}))
    assert plain["final_inference"]["example_input"] == "a\\udc80"
    assert plain["extensions"] == {"warnings": ["b\\udc80"]}


# Equality


def test_final_inferences_are_equal_number_by_number():
    """NaN equals NaN; another text, width, shape, number or a missing array makes the difference."""
    array = np.array([[0.5, math.nan]], dtype=np.float32)
    one = FinalInference("ab", array)
    assert one == FinalInference("ab", array.copy())
    for other in (
        FinalInference("abc", array),
        FinalInference("ab", None),
        FinalInference("ab", array.astype(np.float64)),
        FinalInference("ab", array.T),
        FinalInference("ab", array + 1),
        FinalInference("ab", array, np.ones((1, 1, 1), np.float32)),
        "ab",
    ):
        assert one != other
    assert FinalInference("ab", None) != one


def test_a_record_cannot_be_changed():
    """The record's types are frozen: whoever was handed one can rely on it."""
    record = a_record()
    for part in (record, record.metadata, record.epochs[0], record.final_results, record.final_inference):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, None)


# From plain data


def test_a_files_data_gives_the_record_back():
    """Read from the hand-written file, each value stands where it belongs, with its type."""
    record = record_from_plain(json.loads(A_FILE))
    assert_same(record.metadata, a_record().metadata)
    assert_same(
        record.epochs,
        (
            EpochRecord(1, 1.2346, 0.5, 0.25, 3.0, 12.35, {"perplexity": 3.4371234567}),
            EpochRecord(2, 0.0001, 0.6667, None, None, 20.0),
        ),
    )
    assert_same(record.final_results, FinalResults(0.9963, 0.3333, 417.13))
    assert_same(
        record.final_inference,
        FinalInference(
            "ab",
            np.array([[-0.1, math.nan], [-0.2, -2.0]], dtype=np.float32),
            np.array([[[0.1, 0.9], [1 / 3, 2 / 3]]]),
        ),
    )
    assert record.extensions == json.loads(A_FILE)["extensions"]


def test_a_file_of_the_seeds_keys_alone_is_read():
    """Another writer's file without `extensions`, with whole numbers for floats, is a metrics file."""
    plain = json.loads(A_FILE)
    del plain["extensions"]
    plain["epochs"][0]["train_accuracy"] = 1
    plain["final_inference"]["log_probs"] = None
    plain["final_inference"]["attention_weights"] = []
    record = record_from_plain(plain)
    assert record.extensions is None
    assert_same(record.epochs[0].train_accuracy, 1.0)
    assert record.final_inference == FinalInference("ab", None, np.zeros((0, 0, 0), np.float32))


def spoiled(pointer, value):
    """The hand-written file's data with another value at a pointer; `...` takes the key away."""
    plain = json.loads(A_FILE)
    *parents, last = pointer.split("/")[1:]
    holder = plain
    for part in parents:
        holder = holder[int(part) if isinstance(holder, list) else part]
    if value is ...:
        del holder[last]
    else:
        holder[int(last) if isinstance(holder, list) else last] = value
    return plain


def fault_in(plain):
    with pytest.raises(MetricsFileError) as caught:
        record_from_plain(plain)
    return str(caught.value)


@pytest.mark.parametrize("top", [None, 5, "text", [], [{}], True])
def test_the_top_level_must_be_an_object(top):
    """What isn't an object at all is shown as it is."""
    assert fault_in(top) == f"the top level is {top!r}; expected an object"


@pytest.mark.parametrize(
    "pointer",
    [
        "/metadata",
        "/metadata/task",
        "/metadata/timestamp",
        "/metadata/device",
        "/metadata/hyperparameters",
        "/metadata/hyperparameters/model",
        "/metadata/hyperparameters/training",
        "/epochs",
        "/epochs/0/epoch",
        "/epochs/0/train_loss",
        "/epochs/0/train_accuracy",
        "/epochs/1/dev_accuracy",
        "/epochs/1/gradient_norm",
        "/epochs/1/elapsed_seconds",
        "/final_results",
        "/final_results/train_accuracy",
        "/final_results/dev_accuracy",
        "/final_results/total_time_seconds",
        "/final_inference",
        "/final_inference/example_input",
        "/final_inference/log_probs",
        "/final_inference/attention_weights",
    ],
)
def test_each_missing_key_is_named(pointer):
    """Of the seed's keys none may be missing; the pointer says which is."""
    assert fault_in(spoiled(pointer, ...)) == f"{pointer} is missing: a metrics file has this key"


@pytest.mark.parametrize(
    ("pointer", "value", "expected"),
    [
        ("/metadata", [], "an object"),
        ("/metadata/task", 5, "a string"),
        ("/metadata/task", None, "a string"),
        ("/metadata/timestamp", 1769811702, "a string"),
        ("/metadata/device", True, "a string"),
        ("/metadata/hyperparameters", "adam", "an object"),
        ("/metadata/hyperparameters/model", None, "an object"),
        ("/metadata/hyperparameters/training", [1], "an object"),
        ("/epochs", {}, "an array"),
        ("/epochs", None, "an array"),
        ("/epochs/0", None, "an object"),
        ("/epochs/1", [1], "an object"),
        ("/epochs/0/epoch", 1.0, "an integer"),
        ("/epochs/0/epoch", True, "an integer"),
        ("/epochs/0/epoch", None, "an integer"),
        ("/epochs/0/train_loss", "0.5", "a number or null"),
        ("/epochs/0/train_accuracy", False, "a number or null"),
        ("/epochs/1/dev_accuracy", [0.5], "a number or null"),
        ("/epochs/1/gradient_norm", {}, "a number or null"),
        ("/epochs/1/elapsed_seconds", None, "a number"),
        ("/final_results", [], "an object"),
        ("/final_results/train_accuracy", "high", "a number or null"),
        ("/final_results/total_time_seconds", None, "a number"),
        ("/final_inference", "ab", "an object"),
        ("/final_inference/example_input", None, "a string"),
        ("/extensions", [], "an object"),
        ("/extensions", "none", "an object"),
    ],
)
def test_each_wrong_type_is_named(pointer, value, expected):
    """The message says where, what stands there, and what should."""
    assert fault_in(spoiled(pointer, value)) == f"{pointer} is {value!r}; expected {expected}"


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("log_probs", [[0.1, 0.2], [0.3]], "float32 numbers with 2 dimensions"),
        ("log_probs", [0.1, 0.2], "float32 numbers with 2 dimensions"),
        ("log_probs", [[[0.1]]], "float32 numbers with 2 dimensions"),
        ("log_probs", [["0.1"]], "float32 numbers with 2 dimensions"),
        ("log_probs", [[True]], "float32 numbers with 2 dimensions"),
        ("log_probs", [[1e300]], "float32 numbers with 2 dimensions"),
        ("log_probs", [[0.1], None], "float32 numbers with 2 dimensions"),
        ("log_probs", [{}], "float32 numbers with 2 dimensions"),
        ("log_probs", "ab", "float32 numbers with 2 dimensions"),
        ("log_probs", 0.5, "float32 numbers with 2 dimensions"),
        ("attention_weights", None, "numbers with 3 dimensions"),
        ("attention_weights", [[0.5]], "numbers with 3 dimensions"),
        ("attention_weights", [[[0.5], [0.5, 0.5]]], "numbers with 3 dimensions"),
        ("attention_weights", [[[0.5]], [[0.5], [0.5]]], "numbers with 3 dimensions"),
        ("attention_weights", [[["a"]]], "numbers with 3 dimensions"),
        ("attention_weights", [[[False, 0.5]]], "numbers with 3 dimensions"),
        ("attention_weights", {}, "numbers with 3 dimensions"),
    ],
)
def test_each_wrong_array_is_named(key, value, kind):
    """Ragged rows, wrong dimensions, and items that are no numbers (texts and booleans too) are refused."""
    fault = fault_in(spoiled(f"/final_inference/{key}", value))
    assert fault == f"/final_inference/{key} is {value!r}; expected an array of {kind} and equal rows"


def test_a_long_value_is_cut_in_the_message():
    """The message shows 60 characters of what it found, not a megabyte."""
    fault = fault_in(spoiled("/metadata/task", list(range(10_000))))
    assert fault == (
        "/metadata/task is [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16...; expected a string"
    )


def test_a_value_nested_too_deep_to_show_is_named_by_its_type():
    """Nesting beyond Python's own stack is refused with a message, not a RecursionError."""
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert fault_in(spoiled("/metadata/task", deep)) == "/metadata/task is a list; expected a string"
    assert fault_in(spoiled("/final_inference/attention_weights", deep)) == (
        "/final_inference/attention_weights is a list; expected an array of numbers with 3 dimensions and equal rows"
    )


@pytest.mark.parametrize(
    "dtypes", [None, [], "float32", {"/final_inference/log_probs": "complex64"}, {"/x": "float32"}]
)
def test_widths_that_are_not_told_are_double(dtypes):
    """Without a width for it, an array is float64, which holds each decimal of the file."""
    record = record_from_plain(spoiled("/extensions/dtypes", dtypes))
    assert record.final_inference.log_probs.dtype == np.float64


@settings(deadline=None)
@given(records)
def test_making_plain_data_never_changes_the_record(record):
    """Any record is the same after its plain data was made as before."""
    before = copy.deepcopy(record)
    record_to_plain(record)
    assert_same(record, before)


def test_arrays_in_the_extensions_are_compared_by_their_bits():
    """As those of the final inference are: NaN equals NaN, and another type or number doesn't."""
    nan, other = np.array([1.0, math.nan]), np.array([1.0, 2.0])
    assert a_record(extensions={"maps": [nan]}) == a_record(extensions={"maps": [nan.copy()]})
    for different in (other, nan.astype(np.float32), nan[:1], [1.0, math.nan]):
        assert a_record(extensions={"maps": [nan]}) != a_record(extensions={"maps": [different]})
    assert a_record() != "a record"
