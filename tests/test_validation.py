"""Validation: what we write is valid, and each thing that can be wrong with a file has its line."""

import dataclasses
import json
import math
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from a_run import A_FILE, a_record
from a_valid_file import REMOVED, SIDECAR, VALID, edited, text_of
from any_record import json_values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from plausible_record import records

from trackmetrics import Tracker, demo, load_run, sidecars
from trackmetrics.assessment import Assessment
from trackmetrics.errors import MetricsFileError, shown
from trackmetrics.json_pointer import escaped
from trackmetrics.metrics_file import MetricsFile, encode_record
from trackmetrics.record import FinalInference
from trackmetrics.validation import SCHEMA, Fault, validate

THE_SCHEMA = json.loads((files("trackmetrics") / SCHEMA).read_text(encoding="utf-8"))
in_any_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def lines_of(plain, **options):
    """The faults of plain data, as lines."""
    Path("t.json").write_bytes(text_of(plain))
    return [str(fault) for fault in validate("t.json", **options)]


# The schema


def test_the_schema_is_one_of_its_draft():
    """JSON Schema 2020-12, with a name that is no host's."""
    Draft202012Validator.check_schema(THE_SCHEMA)
    assert THE_SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert THE_SCHEMA["$id"] == "urn:trackmetrics:metrics-file:1"


def properties(schema, place=""):
    """Each key that a schema describes, by its place, with its own schema; `*` stands for any key or index."""
    schema = {**THE_SCHEMA["$defs"].get(schema.get("$ref", "").removeprefix("#/$defs/"), {}), **schema}
    inner = {key: schema[key] for key in ("items", "additionalProperties") if isinstance(schema.get(key), dict)}
    for key, value in [*schema.get("properties", {}).items(), *(("*", value) for value in inner.values())]:
        if key != "*":
            yield f"{place}/{key}", value
        yield from properties(value, f"{place}/{key}")


def members(value):
    """What an object or a list holds, by key or index."""
    return value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()


def ways(value, place=""):
    """Each place of plain data, with `*` for its own way and for any."""
    for key, item in members(value):
        for name in (key, "*"):
            yield f"{place}/{name}"
            yield from ways(item, f"{place}/{name}")


def test_every_key_is_described():
    """Who reads the schema alone learns what each key means."""
    described = dict(properties(THE_SCHEMA))
    assert len(described) > 80
    assert [place for place, schema in described.items() if not schema.get("description")] == []
    assert all(schema["description"] for schema in THE_SCHEMA["$defs"].values())


def test_the_file_that_is_broken_below_has_every_key():
    """No key of the schema goes untested for want of it in the valid file."""
    error = {"/extensions/status/error": {"type": "ValueError", "message": "no"}}
    infinite = {"/extensions/non_finite/~1x": {"Infinity": [], "-Infinity": [], "NaN": []}}
    full = edited(VALID, {"/extensions/sidecars": {"/x": SIDECAR}, **error, **infinite})
    assert dict(properties(THE_SCHEMA)).keys() - set(ways(full)) == set()


def test_a_validator_of_the_library_says_the_same():
    """The schema as any validator reads it takes the valid file, and refuses what ours refuses by it."""
    ordinary = Draft202012Validator(THE_SCHEMA)
    assert list(ordinary.iter_errors(VALID)) == []
    assert list(ordinary.iter_errors(json.loads(A_FILE))) == []


# What we write


def test_the_demos_file_is_valid(tmp_path):
    """A real run's file, with every part of it."""
    demo.main(demo.Arguments(epochs=2, train_examples=64, dev_examples=16, output_dir=tmp_path))
    assert validate(tmp_path / "letter_counting_training_metrics.json") == []


@in_any_folder
@given(records())
def test_any_run_is_valid(record):
    """Whatever numbers a run gives and whatever its user logs and sets, at any state of the run."""
    Path("t.json").write_bytes(encode_record(record))
    assert validate("t.json") == []


@pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")
def test_a_run_that_lost_an_epoch_is_valid(monkeypatch, clock):
    """A fault of ours costs an epoch its numbers; when it was over is known all the same."""
    with Tracker("t", progress=False) as run:
        for number in range(3):
            with monkeypatch.context() as patch, run.epoch():
                clock.advance(1.5)
                if number == 1:
                    patch.delattr(Assessment, "assess")
    assert [epoch.elapsed_seconds for epoch in run.record.epochs] == [1.5, 3.0, 4.5]
    assert any("the epoch's record could not be had" in said for said in run.record.extensions["warnings"])
    assert validate(run.path) == []


def test_the_valid_file_is_valid(tmp_path):
    """The file that is broken below, key by key, has no fault; it can be loaded."""
    assert lines_of(VALID) == []
    load_run("t.json")
    assert lines_of(edited(VALID, {"/extensions": REMOVED})) == []


# What can be wrong


def cases():
    """The edits and expected lines of faults.txt."""
    text = (Path(__file__).parent / "support" / "faults.txt").read_text(encoding="utf-8")
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        edits = [line for line in lines if not line.startswith("  ")]
        if edits:
            yield pytest.param(dict(map(edit, edits)), [line[2:] for line in lines[len(edits) :]], id="; ".join(edits))


def edit(line):
    """A pointer, and the value that is to stand there."""
    pointer, equals, value = line.partition(" = ")
    pointer = pointer if equals else line.removesuffix(" removed")
    return pointer.replace("the top level", ""), json.loads(value) if equals else REMOVED


@pytest.mark.parametrize(("edits", "said"), list(cases()))
def test_what_is_wrong_is_said(edits, said):
    """Each key, missing or of a wrong value, and each rule, broken: a line at its place, and none that only follows."""
    assert lines_of(edited(VALID, edits)) == said


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_is_valid_can_be_loaded(data):
    """Any value at any place: lines or none, never an exception; and `load_run` takes what has none."""
    place = st.sampled_from([pointer for pointer, _ in pointers(VALID)])
    broken = edited(VALID, {data.draw(place): data.draw(json_values)})
    if not lines_of(broken, most=None):
        load_run("t.json")


def pointers(value, pointer=""):
    """Each place of plain data by JSON pointer."""
    yield pointer, value
    for key, item in members(value):
        yield from pointers(item, f"{pointer}/{escaped(key)}")


def test_attention_may_sum_to_anything():
    """Heads that the model goes on to mix sum to what they do, a masked row to 0."""
    rows = {f"/final_inference/attention_weights/0/{row}": [-3.5, 0] for row in (0, 1)}
    assert lines_of(edited(VALID, rows)) == []


def test_log_probs_with_an_unknown_number_are_not_judged():
    """A NaN says nothing about its row, and neither does a null where the file has no extensions."""
    nan = {"/final_inference/log_probs/0/0": None, "/extensions/non_finite/~1final_inference~1log_probs/NaN": [[0, 1]]}
    assert lines_of(edited(VALID, nan)) == []
    assert lines_of(edited(VALID, {"/final_inference/log_probs/0/0": None, "/extensions": REMOVED})) == []


def test_a_name_alone_stands_for_each_null_of_an_array():
    """Of a mask's infinities it says all; it wants a null in the list, and a distribution in the row."""
    entry = "/extensions/non_finite/~1final_inference~1"
    assert lines_of(edited(VALID, {f"{entry}log_probs": "-Infinity"})) == []
    assert lines_of(edited(VALID, {f"{entry}log_probs": "NaN"})) == []
    assert lines_of(edited(VALID, {f"{entry}log_probs": "Infinity"})) == [
        "/final_inference/log_probs/1: [0.0, inf]: expected log-probabilities: the exponentials sum to inf, not to 1"
    ]
    assert lines_of(edited(VALID, {f"{entry}attention_weights": "NaN"})) == [
        f"{entry}attention_weights: 'NaN': expected null at '/final_inference/attention_weights'"
    ]
    assert lines_of(edited(VALID, {"/epochs/0/x": [1, None], "/extensions/non_finite/~1epochs~10~1x": "NaN"})) == []


def test_nesting_has_the_limit_that_loading_has():
    """What nests too deep to be loaded is a fault."""
    deep = 1
    for _ in range(98):
        deep = [deep]
    place = "/metadata/hyperparameters/model/class"
    (line,) = lines_of(edited(VALID, {place: deep}))
    assert line.endswith("expected 100 levels of nesting at most")
    assert lines_of(edited(VALID, {place: deep[0]})) == []


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_log_probs_of_many_classes_are_a_distribution(dtype):
    """The tolerance is that of the width: 100,000 alike classes are off by a percent and more in a half type."""
    log_probs = np.full((1, 100_000), -np.log(100_000), dtype)
    record = dataclasses.replace(a_record(), final_inference=FinalInference("x", log_probs, np.zeros((0, 0, 0))))
    Path("t.json").write_bytes(encode_record(record))
    assert [fault.pointer for fault in validate("t.json")] == ["/final_results/total_time_seconds"]


# Sidecars

HEADS, LOG_PROBS = "/extensions/attention/heads", "/final_inference/log_probs"


def beside(pointer, array):
    """The valid file's edits with one of its arrays in a file beside it."""
    entry = sidecars.write(Path("t.json").absolute(), pointer, array, Path("temporary").absolute())
    edits = {pointer: None, "/extensions/dtypes": {}, "/extensions/sidecars": {pointer: entry}}
    if pointer in VALID["extensions"]["non_finite"]:
        edits[f"/extensions/non_finite/{escaped(pointer)}"] = REMOVED
    return edits


def test_an_array_may_stand_beside_the_file():
    """Then null stands in its place, and its shape is held against the others' as if it stood there."""
    assert lines_of(edited(VALID, beside(HEADS, np.zeros((2, 2, 2, 2))))) == []
    assert lines_of(edited(VALID, beside(HEADS, np.zeros((2, 2, 2, 3))))) == [
        f"{HEADS}: shape [2, 2, 2, 3]: expected [num_layers, heads, seq_len, seq_len], "
        "where attention_weights has the shape [2, 2, 2]"
    ]
    assert lines_of(edited(VALID, beside(HEADS, np.zeros((2, 2, 2))))) == [
        f"{HEADS}: shape [2, 2, 2]: expected 4 dimensions"
    ]


def test_log_probs_beside_the_file_are_judged():
    """With the numbers that stand there, non-finite ones as they are."""
    array = np.array([[0.0, -np.inf], [-1.0, -np.inf], [np.nan, 0.0]])
    assert lines_of(edited(VALID, beside(LOG_PROBS, array))) == [
        f"{LOG_PROBS}/1: [-1.0, -inf]: expected log-probabilities: the exponentials sum to 0.367879, not to 1"
    ]


def test_a_sidecar_that_cannot_be_read_is_said():
    """At its entry, with the reason, and nowhere else."""
    edits = beside(HEADS, np.zeros((2, 2, 2, 2)))
    entry = edits["/extensions/sidecars"][HEADS]
    Path(entry["file"]).unlink()
    assert lines_of(edited(VALID, {**edits, "/extensions/dtypes": {HEADS: "float32"}})) == [
        f"/extensions/sidecars/{escaped(HEADS)}: {shown(entry)}: that file can't be read: No such file or directory"
    ]


@in_any_folder
@given(records())
def test_any_run_with_its_arrays_beside_the_file_is_valid(record):
    """As with its arrays in it."""
    with MetricsFile(".", "t", max_inline_mb=0) as file:
        file.write(record)
    assert validate(file.path) == []


@pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")
@pytest.mark.parametrize("extensions", [True, False])
def test_a_resumed_run_is_valid(extensions):
    """Also where the earlier part says nothing of its norms."""
    for resume in (False, True, 2, True):
        with Tracker("t", progress=False, resume=resume, extensions=extensions or resume is not False) as run:
            for _ in range(3):
                with run.epoch() as epoch:
                    epoch.log(losses=[math.nan, "text", 1.0])
        assert validate(run.path) == []
    assert len(run.record.epochs) == 8


# Hostile files


def test_as_many_faults_as_asked_for():
    """A hundred, where nothing is said; all of them with None."""
    wrong = edited(VALID, {"/extensions/warnings": list(range(250))})
    assert len(lines_of(wrong)) == 100
    assert len(lines_of(wrong, most=3)) == 3
    assert len(lines_of(wrong, most=None)) == 250


def test_a_million_wrong_epochs_end_soon():
    """No more is worked out than is asked for."""
    Path("t.json").write_bytes(text_of({**VALID, "epochs": ["EPOCH"]}).replace(b'"EPOCH"', b",".join([b"0"] * 10**6)))
    began = time.monotonic()
    assert len(validate("t.json")) == 100
    assert time.monotonic() - began < 10


def test_millions_of_numbers_are_judged_at_once():
    """Rows of numbers aren't walked one by one, which would take a minute here."""
    weights = np.full((6, 1000, 1000), 0.5)
    record = dataclasses.replace(a_record(), final_results=None, final_inference=FinalInference("x", None, weights))
    Path("t.json").write_bytes(encode_record(dataclasses.replace(record, extensions=None)))
    began = time.monotonic()
    assert validate("t.json") == []
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("place", [pointer for pointer, value in pointers(VALID) if not members(value)])
def test_deep_nesting_is_a_fault(place):
    """Anything but a stack overflow, at each place where a single value stands."""
    deep = text_of(edited(VALID, {place: "DEEP"})).replace(b'"DEEP"', b"[" * 900 + b"]" * 900)
    Path("t.json").write_bytes(deep)
    assert place in UNTYPED or validate("t.json")[0].pointer.startswith(place)


UNTYPED = [place for place, _ in pointers(VALID) if "/hyperparameters/" in place or "perplexity" in place]


@pytest.mark.parametrize(
    "pointer", ["/" * 10**6, "/metadata/hyperparameters/model/class", "~" * 10**6, "/epochs/" + "1" * 10**6]
)
def test_a_hostile_pointer_is_a_fault(pointer):
    """One of a million parts, one to a list nested as deep as the parser goes, one to no list's index."""
    plain = edited(VALID, {"/metadata/hyperparameters/model/class": "DEEP"})
    for key, entry in (("dtypes", "float32"), ("non_finite", "NaN"), ("sidecars", SIDECAR)):
        broken = edited(plain, {f"/extensions/{key}": {pointer: entry}, "/extensions/attention": REMOVED})
        Path("t.json").write_bytes(text_of(broken).replace(b'"DEEP"', b"[" * 900 + b"]" * 900))
        began = time.monotonic()
        expected = f"expected {'an array' if key == 'dtypes' else 'null'} at {shown(pointer)}"
        assert expected in [fault.rule for fault in validate("t.json")]
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("number", ["9" * 300, "-" + "9" * 308, "1e308", "-0.0", "1e-999"])
@pytest.mark.parametrize("place", [pointer for pointer, value in pointers(VALID) if isinstance(value, (int, float))])
def test_large_numbers_are_judged(place, number):
    """Lines or none, and `load_run` takes what has none."""
    Path("t.json").write_bytes(text_of(edited(VALID, {place: "NUMBER"})).replace(b'"NUMBER"', number.encode()))
    if not validate("t.json"):
        load_run("t.json")


def test_a_faults_line_is_one_line():
    """Whatever a key holds; and lone surrogates can be printed."""
    fault = Fault("/a\nb\x1b[0m\ud800/é", "1", "expected 2")
    assert str(fault) == "/a\\nb\\x1b[0m\\ud800/é: 1: expected 2"
    assert lines_of({**VALID, "a\r\nb": 1}) == ["/a\\r\\nb: 1: no key of the format"]


# What can't be read


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\x89PNG\r\n\x1a\n\x00\x00",
        b'{"metadata": NaN}',
        b"[" * 100_000,
        b'{"epochs": ' + b"9" * 5000 + b"}",
        b'"\xed\xa0\x80"',
        b'{"metadata": {}',
    ],
    ids=["empty", "binary", "NaN", "deep", "5000 digits", "surrogate", "cut off"],
)
def test_what_is_no_json_is_refused(text):
    """With the parser's reason, in one line."""
    Path("t.json").write_bytes(text)
    with pytest.raises(MetricsFileError, match=r"\At\.json is not a metrics file: not valid JSON: .+\Z"):
        validate("t.json")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.json", "none.json can't be read: No such file or directory"),
        (".", ". can't be read: Is a directory"),
        ("a\0b", "a\0b can't be read: embedded null byte"),
    ],
)
def test_what_cannot_be_read_is_refused(path, message):
    """With the system's reason."""
    with pytest.raises(MetricsFileError) as caught:
        validate(path)
    assert str(caught.value) == message


def test_places_inside_one_another_are_a_fault():
    """Each goes through what stands there, and so the outermost would be gone through as often as it nests."""
    nested = 1.0
    for _ in range(50):
        nested = [nested, None]
    plain = edited(VALID, {"/extensions/x": nested, "/extensions/attention": REMOVED})
    for key, entry in (("non_finite", "NaN"), ("dtypes", "float32")):
        pointers = {f"/extensions/x{'/0' * depth}": entry for depth in range(50)}
        broken = edited(plain, {"/extensions/dtypes": {}, "/extensions/non_finite": {}, f"/extensions/{key}": pointers})
        assert "expected no place inside another of these" in [fault.rule for fault in faults_of(broken)]
        with pytest.raises(MetricsFileError, match=f"/extensions/{key} names '/extensions/x/0', inside another of its"):
            load_run("t.json")


def faults_of(plain):
    Path("t.json").write_bytes(text_of(plain))
    return validate("t.json")


def test_a_file_that_many_entries_name_is_read_once(monkeypatch):
    """A thousand places with one array cost one reading, and its memory once."""
    edits = beside(HEADS, np.zeros((2, 2, 2, 2)))
    entry = edits["/extensions/sidecars"][HEADS]
    many = {HEADS: entry, **{f"/extensions/x/{index}": entry for index in range(1000)}}
    read, reading = [], sidecars.read
    monkeypatch.setattr(sidecars, "read", lambda *args: read.append(args) or reading(*args))
    assert lines_of(edited(VALID, {**edits, "/extensions/sidecars": many, "/extensions/x": [None] * 1000})) == []
    assert len(read) == 1
