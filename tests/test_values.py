"""Bad values: whatever a user logs, the training goes on, the file is strict JSON, and loading gives its plain form."""

import datetime
import enum
import itertools
import json
import math
import time
import warnings
from pathlib import Path

import any_value
import numpy as np
import pytest
import torch
from any_value import Parts, Rights, any_text, deep, special_tensors, values
from comparison import assert_same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strict_json import strict_loads

from trackmetrics import Tracker, TrackmetricsWarning, load_run, tracked_training, tracker
from trackmetrics.errors import ArgumentError
from trackmetrics.instruments.hyperparameters import is_secret
from trackmetrics.json_text import text_length
from trackmetrics.metrics_file import MetricsFile
from trackmetrics.plain import MAX_DIGITS, NotPlainError, to_plain
from trackmetrics.record import FinalInference, Metadata, RunRecord

INF, NAN = math.inf, math.nan

OWN = {"train_loss": 0.5, "train_accuracy": 1.0, "dev_accuracy": 1.0, "gradient_norm": 0.1}
NO_MODEL = ("dev_accuracy is null: no parameter was trained", "final_inference is null: no parameter was trained")
_folders = itertools.count()


def plain_or_none(value):
    """The plain form of a value, None where it has none; and whether it has one."""
    try:
        return to_plain(value), True
    except NotPlainError:
        return None, False


def logged(named):
    """A run in which these values are logged: the loaded record, and what was warned of beside the missing model."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TrackmetricsWarning)
        folder = f"output{next(_folders)}"
        with Tracker("t", output_dir=folder, final_train_accuracy=False, progress=False) as run, run.epoch() as epoch:
            epoch.log(**OWN)
            epoch.log(**named)
    strict_loads(Path(run.path).read_bytes())
    said = [str(item.message) for item in caught if issubclass(item.category, TrackmetricsWarning)]
    return load_run(run.path), [message for message in said if not message.startswith(NO_MODEL)]


# Any value, through a whole run


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(values)
def test_any_value_is_logged_as_its_plain_form_or_as_null_with_one_warning(value):
    """Whatever is logged: no error, a strict file, and the plain form comes back; without one a null, said once."""
    expected, has_form = plain_or_none(value)
    record, said = logged({"value": value, "beside": 1.5})
    assert_same(record.epochs[0].metrics, {"value": expected, "beside": 1.5})
    assert len(said) == (0 if has_form else 1)
    assert all(
        message.startswith("value is null: log(value=...) was given a") or "nested" in message for message in said
    )


@pytest.mark.parametrize("index", range(len(special_tensors())))
def test_tensors_of_every_type_are_logged(index):
    """Each type and layout that torch knows: numbers where it has them, else a null that costs no other value."""
    tensor = special_tensors()[index]
    expected, has_form = plain_or_none(tensor)
    record, said = logged({"tensor": tensor, "beside": [tensor], "fine": 1})
    assert_same(record.epochs[0].metrics, {"tensor": expected, "beside": [expected] if has_form else None, "fine": 1})
    assert len(said) == (0 if has_form else 2)
    readable = tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_meta or tensor.is_complex())
    ordinary = tensor.dtype in (torch.bool, torch.int64, torch.uint64, torch.float32, torch.float8_e4m3fn)
    assert has_form or not (readable and ordinary)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.dictionaries(any_text.filter(lambda name: not is_secret(name, "")), values, max_size=3))
def test_any_hyperparameters_are_written_or_refused_before_the_training(given_):
    """`hyperparameters=` of any names and values stand in the file in their plain form, or are refused at once."""
    expected, has_form = plain_or_none(given_)
    folder = f"output{next(_folders)}"
    options = {"output_dir": folder, "hyperparameters": given_, "final_train_accuracy": False, "progress": False}
    if not has_form:
        with pytest.raises(ArgumentError, match=r"^hyperparameters.* holds "):
            Tracker("t", **options)
        assert not Path(folder).exists()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrackmetricsWarning)
        with Tracker("t", **options) as run, run.epoch() as epoch:
            epoch.log(**OWN)
    strict_loads(Path(run.path).read_bytes())
    hyperparameters = load_run(run.path).metadata.hyperparameters
    sections = {
        name: item for name, item in expected.items() if name in ("model", "training") and isinstance(item, dict)
    }
    loose = {name: item for name, item in expected.items() if name not in sections}
    assert_same(dict(hyperparameters.model), sections.get("model", {}))
    for name, item in {**loose, **sections.get("training", {})}.items():
        assert_same(hyperparameters.training[name], item)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.dictionaries(any_text, values, max_size=3), values)
def test_any_arguments_of_the_function_cost_no_file(named, value):
    """Whatever a training function is called with, under whatever names, its file is strict JSON without a warning."""

    @tracked_training("t", output_dir=f"output{next(_folders)}", final_train_accuracy=False, progress=False)
    def train(settings, value, **rest):
        with tracker.epoch() as epoch:
            epoch.log(**OWN)
        return tracker.path

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TrackmetricsWarning)
        path = train(named, value, **{name: item for name, item in named.items() if name not in ("settings", "value")})
    said = [str(item.message) for item in caught if issubclass(item.category, TrackmetricsWarning)]
    assert [message for message in said if not message.startswith(NO_MODEL)] == []
    strict_loads(Path(path).read_bytes())
    assert load_run(path).epochs[0].train_loss == 0.5


def test_an_argument_that_cannot_be_read_costs_no_other():
    """A mapping of a class that fails when it is read is left out; the arguments beside it stand in the file."""

    @tracked_training("t", final_train_accuracy=False, progress=False)
    def train(settings, rate, nested):
        with tracker.epoch() as epoch:
            epoch.log(**OWN)
        return tracker.path

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrackmetricsWarning)
        path = train(any_value.Failing(a=1), 0.1, {"x": any_value.Failing(b=1), "y": 2})
    training = load_run(path).metadata.hyperparameters.training
    assert training["rate"] == 0.1
    assert training["y"] == 2
    assert "a" not in training


def finalized(result):
    """A run whose `finalize=` returns this: the loaded record, and what was warned of it."""
    model = torch.nn.Linear(2, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TrackmetricsWarning)
        with Tracker(
            "t",
            output_dir=f"output{next(_folders)}",
            finalize=lambda model, example: result,
            evaluate=lambda model, data: 1.0,
            dev=[(torch.ones(2), 1)],
            train=[(torch.ones(2), 1)],
            progress=False,
        ) as run:
            run.watch(model)
            with run.epoch() as epoch:
                epoch.log(**OWN)
    strict_loads(Path(run.path).read_bytes())
    said = [str(item.message) for item in caught if issubclass(item.category, TrackmetricsWarning)]
    return load_run(run.path), said


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(any_text | values, values, values)
def test_whatever_finalize_returns_is_written_or_null_with_one_warning(text, log_probs, attention):
    """Any values in its three keys: the final inference stands in the file, or is null and that is said once."""
    record, said = finalized({"example_input": text, "log_probs": log_probs, "attention_weights": attention})
    if record.final_inference is None:
        assert len(said) == 1
        assert said[0].startswith("final_inference is null: ")
    else:
        assert said == []
        assert record.final_inference.example_input == to_plain(text)
        assert record.final_inference.attention_weights.ndim == 3


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8],
)
def test_finalize_may_give_tensors_of_any_width(dtype):
    """Half and quarter types are widened without loss, NaN and infinities among them."""
    numbers = torch.tensor([[0.5, -1.5], [2.0, 0.0]])
    if dtype.is_floating_point and dtype is not torch.float8_e4m3fn:  # which has no infinity
        numbers[1] = torch.tensor([NAN, -INF])
    tensor = numbers.to(dtype)
    record, said = finalized({"example_input": "\0\ud800", "log_probs": tensor, "attention_weights": tensor[None]})
    assert said == []
    wide = np.float64 if dtype in (torch.float64, torch.int8) else np.float32
    assert_same(record.final_inference.log_probs, tensor.double().numpy().astype(wide))
    assert_same(record.final_inference.attention_weights, tensor.double().numpy().astype(wide)[None])
    assert record.final_inference.example_input == "\0\\ud800"


# The spelling of each, as docs/reference/file.md has it: there, a row; here, its example

Nameless = enum.IntFlag("Nameless", {"A": 1})
SPELLINGS = {
    "None, a boolean, text": [(None, None), (True, True), ("😀\0\u2028", "😀\0\u2028")],
    "an integer": [(2**63, 2**63), (-(10**308) + 1, -(10**308) + 1), (10**308, NotPlainError)],
    "a float": [(0.1, 0.1), (-0.0, -0.0)],
    "NaN, an infinity": [(NAN, NAN), (-INF, -INF), ([1, INF], [1, INF])],
    "a lone surrogate in a text": [("a\ud83dz", "a\\ud83dz"), ({"\udc80": 1}, {"\\udc80": 1})],
    "a list, tuple or named tuple": [((1, "b"), [1, "b"]), (any_value.Pair(1, 2), [1, 2])],
    "a set": [({2, 10, 1}, [1, 10, 2]), (frozenset(), [])],
    "a mapping": [({0.5: 2, True: None, any_value.Colour.RED: 1}, {"0.5": 2, "True": None, "RED": 1})],
    "a path": [(Path("a") / "b", str(Path("a") / "b"))],
    "a date, a time": [
        (datetime.date(2026, 1, 30), "2026-01-30"),
        (datetime.datetime(2026, 1, 30, 22, 8, 22), "2026-01-30T22:08:22"),
        (datetime.time(22, 8, tzinfo=datetime.timezone.utc), "22:08:00+00:00"),
    ],
    "an enumeration member": [
        (any_value.Colour.RED, "RED"),
        (any_value.Level.HIGH, "HIGH"),
        (any_value.Name.FIRST, "FIRST"),
    ],
    "flags": [(Parts.LEFT | Parts.RIGHT, "LEFT|RIGHT"), (Parts(0), "0"), (Rights(8), "8"), (Nameless(5), "A|4")],
    "`torch.dtype`, `torch.device`": [(torch.float16, "torch.float16"), (torch.device("cuda", 1), "cuda:1")],
    "a tensor, an array": [
        (torch.tensor([[0.5, NAN]], dtype=torch.bfloat16), [[0.5, NAN]]),
        (torch.tensor([2**64 - 1], dtype=torch.uint64), [2**64 - 1]),
        (torch.tensor([0.5, 448.0], dtype=torch.float8_e4m3fn), [0.5, 448.0]),
        (np.zeros((0, 2)), []),
        (np.array(3, dtype=np.uint8), 3),
        (np.float32(0.1), 13421773 / 2**27),
        (np.longdouble(1) / 3, 1 / 3),
        (np.array([np.longdouble(0.5)]), [0.5]),
        (np.ma.array([1.0, 2.0], mask=[False, True]), [1.0, None]),
    ],
    "an array's item of several fields": [(np.array([(1, 0.5)], dtype=[("a", "i4"), ("b", "g")]), [[1, 0.5]])],
    "`datetime64`": [
        (np.datetime64("2026-01-30"), "2026-01-30"),
        (np.array(["2026-01-30T22:08:22.5"], "M8[ns]"), ["2026-01-30T22:08:22.500000000"]),
        (np.array("2026-01", "M8[M]"), "2026-01"),
        (np.datetime64("NaT"), None),
    ],
    "no plain form": [
        (value, NotPlainError)
        for value in (
            b"a",
            1j,
            datetime.timedelta(1),
            np.timedelta64(1, "ns"),
            np.timedelta64(1, "D"),
            np.longdouble("1e4000") if np.finfo(np.longdouble).max > 1e308 * 10 else b"",
            np.array([b"a"]),
            np.zeros(1, np.clongdouble),
            any_value.Settings(),
            {None: 1},
            {1: 1, "1": 2},
            deep(65),
            torch.eye(2).to_sparse(),
            torch.empty(2, device="meta"),
            torch.tensor([1j]),
        )
    ],
}
TABLE = Path(__file__).parents[1] / "docs" / "reference" / "file.md"


@pytest.mark.parametrize("kind", SPELLINGS)
def test_each_kind_of_value_is_spelled_as_its_row_says(kind):
    """Each row of the page's table of values has examples, and each of them is spelled so."""
    for value, expected in SPELLINGS[kind]:
        if expected is NotPlainError:
            with pytest.raises(NotPlainError):
                to_plain(value)
        else:
            assert_same(to_plain(value), expected)


def test_each_row_of_the_table_has_its_examples():
    """The page's rows and the examples above are the same."""
    table = TABLE.read_text(encoding="utf-8").partition("\n## Values\n")[2]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    assert rows[2:] == list(SPELLINGS)
    assert f"{MAX_DIGITS} digits" in table


# Names


@pytest.mark.parametrize("name", ["epoch", "elapsed_seconds"])
@pytest.mark.parametrize("opened", [lambda run: run.epoch(), lambda run: run.epochs(every=1)])
def test_a_name_that_the_run_fills_in_is_refused_at_once(opened, name):
    """The message names it; nothing that was said beside it is taken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrackmetricsWarning)
        with Tracker("t", progress=False) as run, opened(run) as epoch:
            with pytest.raises(ArgumentError) as caught:
                epoch.log(perplexity=1.5, **{name: 1})
            epoch.log(**OWN)
    assert str(caught.value) == f"log({name}=...) collides with a key that the run itself fills in; choose another"
    assert [epoch.metrics for epoch in load_run(run.path).epochs] == [{}]


@pytest.mark.parametrize("name", ["epoch", "elapsed_seconds", "metadata", "extensions", "model", "class", "task"])
def test_other_names_collide_with_nothing(name):
    """A hyperparameter may have any name: the seed's keys stand elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrackmetricsWarning)
        with Tracker("t", hyperparameters={name: 5}, progress=False) as run, run.epoch() as epoch:
            epoch.log(**OWN)
    record = load_run(run.path)
    assert record.metadata.hyperparameters.training[name] == 5
    assert record.metadata.task == "t"
    assert [epoch.epoch for epoch in record.epochs] == [1]


def test_names_that_become_the_same_are_one_name():
    """A name with a lone surrogate is written with its escape; the last value said under it counts."""
    record, said = logged({"a\ud800": 1, "a\\ud800": 2, "b\udc80": 3})
    assert record.epochs[0].metrics == {"a\\ud800": 2, "b\\udc80": 3}
    assert said == []


# Masked logits

VOCABULARY, LENGTH = 50257, 512


def scattered(log_probs, random):
    """100 allowed tokens a row, anywhere."""
    mask = np.ones(log_probs.shape, dtype=bool)
    for row in mask:
        row[random.choice(VOCABULARY, 100, replace=False)] = False
    log_probs[mask] = -INF


def contiguous(log_probs, random):
    """The same range of allowed tokens in each row."""
    log_probs[:, :1000] = log_probs[:, 1100:] = -INF


def half(log_probs, random):
    """Each second token, by chance."""
    log_probs[random.random(log_probs.shape) < 0.5] = -INF


def half_and_a_nan(log_probs, random):
    """The same, and a row that is no number: then runs are listed."""
    half(log_probs, random)
    log_probs[5] = NAN


@pytest.mark.parametrize(
    ("mask", "length", "share"),
    [(scattered, LENGTH, 1e-6), (contiguous, LENGTH, 1e-6), (half, LENGTH, 1e-6), (half_and_a_nan, LENGTH // 8, 0.5)],
)
def test_masked_logits_do_not_blow_up_the_file(mask, length, share):
    """Of an array masked anyhow, what says where infinities stood is a name, at worst half of the array's own text."""
    random = np.random.default_rng(0)
    log_probs = np.log1p(-random.random((length, VOCABULARY), dtype=np.float32))
    mask(log_probs, random)
    record = RunRecord(Metadata("t", ""), final_inference=FinalInference("x", log_probs), extensions={})
    began = time.process_time()
    with MetricsFile("output", "t", max_inline_mb=10_000) as file:
        file.write(record)
    saved = time.process_time() - began
    read = load_run(file.path)
    loaded = time.process_time() - began - saved
    assert_same(read.final_inference.log_probs, log_probs)
    entries = read.extensions["non_finite"]
    size = len(json.dumps(entries))
    assert size < share * text_length(log_probs)
    assert file.path.stat().st_size < text_length(log_probs) + 1.2 * size + 20 * length + 2000
    assert saved < 15  # 0.6 s were measured, and 7 s of loading
    assert loaded < 90
