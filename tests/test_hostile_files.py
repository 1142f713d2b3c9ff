"""Hostile files, names and folders: a clear error in bounded time and memory, and nothing is run or written outside."""

import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from a_run import A_FILE, a_record
from comparison import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from refused_file import refusal_of
from strict_json import strict_loads

from trackmetrics import Tracker, TrackmetricsWarning
from trackmetrics.errors import InvalidNameError, MetricsFileError, OutputError
from trackmetrics.metrics_file import MetricsFile, encode_record, load_run
from trackmetrics.names import check_name

pytestmark = pytest.mark.long

posix_only = pytest.mark.skipif(os.name != "posix", reason="links and pipes as POSIX has them")

SECONDS = 20
MEGABYTES = 400


@contextlib.contextmanager
def bounded(seconds=SECONDS, megabytes=MEGABYTES):
    """Assert that the block takes no more processor time, and no more memory at a time, than it may."""
    tracemalloc.start()
    began = time.process_time()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < seconds
    assert peak < megabytes


def fault_of(text, name="hostile.json"):
    """What is wrong with a file of this text."""
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return refusal_of(name)


def changed(**parts):
    """A metrics file's data, with other values in the places that pointers name with '__' for '/'."""
    plain = json.loads(A_FILE)
    for pointer, value in parts.items():
        *parents, last = pointer.split("__")
        holder = plain
        for part in parents:
            holder = holder[part]
        holder[last] = value
    return plain


def text_with(raw, **parts):
    """A metrics file's text in which the value '@@' is replaced by raw text."""
    return json.dumps(changed(**parts)).replace('"@@"', raw)


# The text

PLACES = [
    "metadata__task", "metadata__hyperparameters__training__x", "final_results__train_accuracy", "epochs",
    "final_inference__log_probs", "final_inference__attention_weights", "extensions__x", "extensions__non_finite",
    "extensions__dtypes", "extensions__sidecars",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("brackets", [("[", "]"), ('{"a": ', "}")])
def test_deep_nesting_is_refused_anywhere(place, brackets):
    """101 levels under a top-level key and 100 thousand end in a message, wherever they stand, and in no crash."""
    for depth in (102, 900, 1020, 100_000):
        raw = brackets[0] * depth + "1" + brackets[1] * depth
        with bounded(seconds=5):
            assert fault_of(text_with(raw, **{place: "@@"}))


def test_nesting_has_a_limit_with_a_name():
    """Of what the record keeps as it is, 100 levels are read and written, and one more is refused."""
    deep = text_with("[" * 97 + "]" * 97, metadata__hyperparameters__training__x="@@")
    Path("x.json").write_text(deep)
    record = load_run("x.json")
    assert encode_record(record)
    deeper = text_with("[" * 98 + "]" * 98, metadata__hyperparameters__training__x="@@")
    assert fault_of(deeper) == "nested deeper than 100 levels"


@pytest.mark.parametrize("key", ["sidecars", "non_finite", "dtypes"])
def test_nesting_inside_the_maps_of_the_extensions_is_refused(key):
    """What stands in an entry is never gone into, and shown in 60 characters."""
    raw = "[" * 900 + "]" * 900
    entry = {"file": "@@", "dtype": "float32", "shape": [1], "sha256": ""} if key == "sidecars" else "@@"
    fault = fault_of(text_with(raw, **{"extensions__x": None, f"extensions__{key}": {"/extensions/x": entry}}))
    assert len(fault) < 200
    assert {
        "sidecars": "expected an object of file, dtype, shape and sha256",
        "non_finite": "stands at '/extensions/x', where no such null is",
        "dtypes": "no such array is there",
    }[key] in fault


@pytest.mark.parametrize("place", ["final_results__train_accuracy", "metadata__hyperparameters__training__x"])
@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        ("9" * 5000, "not valid JSON: number is infinity"),
        ("-" + "9" * 5000, "not valid JSON: number is infinity"),
        ("1" + "0" * 308, "not valid JSON: an integer of more than 308 digits"),
        ("1e999999", "not valid JSON: number is infinity"),
        ("-1e400", "not valid JSON: number is infinity"),
        ("1" * 5_000_000, "not valid JSON: number is infinity"),
        ("NaN", "not valid JSON: "),
        ("Infinity", "not valid JSON: "),
    ],
    ids=lambda value: value[:12],
)
def test_numbers_beyond_every_type_are_refused(place, raw, fault):
    """Thousands of digits and exponents beyond a double's are no numbers of a metrics file, and cost no time."""
    with bounded(seconds=2, megabytes=100):
        assert fault_of(text_with(raw, **{place: "@@"})).startswith(fault)


@pytest.mark.parametrize("raw", ["1e-999999", "0." + "1" * 100_000, "1" * 308, "-0.0", "4.9e-324"])
def test_numbers_that_a_double_or_an_integer_holds_are_read(raw):
    """A small exponent, many decimals and 308 digits are numbers."""
    Path("x.json").write_text(text_with(raw, final_results__train_accuracy="@@"))
    assert load_run("x.json").final_results.train_accuracy == float(raw)


def test_of_a_key_that_comes_twice_the_last_counts():
    """Whichever of the two parsers reads the file: the one with a long integer in it goes through another."""
    for seed in ("1", "1" * 30):
        text = A_FILE.replace('"task": "letter_counting"', f'"task": "a", "x": {seed}, "task": "b"')
        Path("x.json").write_text(text)
        assert load_run("x.json").metadata.task == "b"


def test_megabytes_of_one_string_are_read_and_never_shown_whole():
    """A long text in a text's place is read; in another's place, the message shows 60 characters of it."""
    long = "x" * 20_000_000
    texts = [text_with(json.dumps(long), **{place: "@@"}) for place in ("metadata__task", "metadata__hyperparameters")]
    texts.append(json.dumps(changed(extensions__non_finite={"/" + long: "NaN"})))
    Path("x.json").write_text(texts[0])
    with bounded(megabytes=400):  # orjson takes 14 times the text
        assert len(load_run("x.json").metadata.task) == len(long)
        assert fault_of(texts[1]) == f"/metadata/hyperparameters is '{'x' * 56}...; expected an object"
        assert len(fault_of(texts[2])) < 250


# What the extensions say of the text


@pytest.mark.parametrize(
    "runs",
    [
        [[0, 10**18]],
        [[10**18, 1]],
        [[0, 10**300]],
        [[0, 2], [1, 1]],  # overlapping
        [[0, 1], [0, 1]],
        [[-1, 1]],
        [[0, -1]],
        [[0.0, 1]],
        [[0]],
        [[0, 1, 2]],
        [["0", 1]],
        [[[0], 1]],
        "01",
        5,
        None,
    ],
    ids=repr,
)
def test_a_run_that_fits_no_nulls_is_refused(runs):
    """Huge, overlapping, negative and malformed runs are refused with their place."""
    entry = {"/extensions/x": {"NaN": runs}}
    with bounded(seconds=2, megabytes=50):
        fault = fault_of(json.dumps(changed(extensions__x=[None, None, None], extensions__non_finite=entry)))
    assert fault.startswith("/extensions/non_finite says {'NaN': ")
    assert fault.endswith(" stands at '/extensions/x', where no such null is")


def test_a_million_entries_take_a_time_in_proportion():
    """A million places, and a million runs, are read; a million that lead nowhere are refused at the first."""
    count = 1_000_000
    nulls = [None] * count
    places = {f"/extensions/x/{index}": "NaN" for index in range(count)}
    runs = {"/extensions/x": {"-Infinity": [[2 * index, 1] for index in range(count // 2)]}}
    lost = {f"/extensions/none/{index}": {"NaN": [[0, 1]]} for index in range(count)}
    Path("places.json").write_text(json.dumps(changed(extensions__x=nulls, extensions__non_finite=places)))
    Path("runs.json").write_text(json.dumps(changed(extensions__x=nulls, extensions__non_finite=runs)))
    text = json.dumps(changed(extensions__non_finite=lost))
    began = time.process_time()
    assert np.isnan(load_run("places.json").extensions["x"]).all()
    assert load_run("runs.json").extensions["x"].count(-np.inf) == count // 2
    assert "where no such null is" in fault_of(text)
    assert time.process_time() - began < SECONDS


def test_a_place_has_one_pointer():
    """A tilde that is no escape would give one array a million names, each to be gone through anew."""
    key = "~" * 3
    said = changed(extensions__non_finite={f"/extensions/{key}": {"NaN": [[0, 1]]}})
    said["extensions"][key] = [None]
    assert fault_of(json.dumps(said)).endswith("stands at '/extensions/~~~', where no such null is")
    said["extensions"]["non_finite"] = {"/extensions/~0~0~0": {"NaN": [[0, 1]]}}
    Path("x.json").write_text(json.dumps(said))
    assert np.isnan(load_run("x.json").extensions[key]).all()


def test_names_of_the_same_array_again_and_again_are_refused():
    """Entries for an array and for each of its parts would each go through it."""
    depth = 60
    rows = [[None]] * 200_000
    for _ in range(depth):
        rows = [rows]
    entries = {"/extensions/x" + "/0" * level: {} for level in range(depth)}
    with bounded(seconds=10, megabytes=1500):
        fault = fault_of(json.dumps(changed(extensions__x=rows, extensions__non_finite=entries)))
    assert "/extensions/non_finite names '/extensions/x/0', inside another of its places" in fault


@pytest.mark.parametrize("kind", ["float16", "complex64", "object", "O", "<f4", "V1000000000", 5, None, ["float32"]])
def test_a_type_that_no_array_has_is_refused(kind):
    """Of the extensions' arrays only two types are known; a type is never looked up in NumPy."""
    fault = fault_of(json.dumps(changed(extensions__x=[1.5], extensions__dtypes={"/extensions/x": kind})))
    assert fault == (f"/extensions/dtypes says that '/extensions/x' is an array of {kind!r}; no such array is there")


@pytest.mark.parametrize(
    "value",
    [None, 1.5, "1.5", True, [True], ["1.5"], [[1], [1, 2]], [[1], 2], {}, [{}], [[[]], [1]], [1e300], [10**300]],
)
def test_what_is_no_array_of_numbers_is_not_made_one(value):
    """A number alone, texts, booleans, ragged rows and numbers beyond float32 are refused."""
    fault = fault_of(json.dumps(changed(extensions__x=value, extensions__dtypes={"/extensions/x": "float32"})))
    assert fault.endswith("/extensions/x' is an array of 'float32'; no such array is there")


@pytest.mark.parametrize(
    "pointer", ["/extensions/metadata", "/extensions/x/0/0/0", "/extensions/dtypes", "/extensions/"]
)
def test_dtypes_that_name_other_places_are_refused(pointer):
    """Each has to name a list of numbers."""
    fault = fault_of(json.dumps(changed(extensions__x=[[1.5]], extensions__dtypes={pointer: "float64"})))
    assert f"says that {pointer!r} is an array of 'float64'" in fault


def test_the_same_list_named_whole_and_in_parts_is_refused():
    """In whichever order."""
    for order in (["/extensions/x", "/extensions/x/0"], ["/extensions/x/0", "/extensions/x"]):
        said = changed(extensions__x=[[1.5]], extensions__dtypes=dict.fromkeys(order, "float64"))
        assert "/extensions/dtypes names '/extensions/x/0', inside another of its places" in fault_of(json.dumps(said))


# Files beside it


def npy(array, **options):
    """An array as an `.npy` file's bytes."""
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def raw_npy(header, data=b"", version=(1, 0)):
    """An `.npy` file of any header."""
    said = header.encode() + b"\n"
    length = len(said).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + said + data


ARRAY = np.array([[0.5, -1.0], [2.0, 0.25]], dtype=np.float32)


def entry_of(content, name="x.npy", **changes):
    """What the metrics file says of a file of this content."""
    return {
        "file": name,
        "dtype": "float32",
        "shape": [2, 2],
        "sha256": hashlib.sha256(content).hexdigest(),
        **changes,
    }


def with_sidecar(entry, pointer="/final_inference/log_probs"):
    """A metrics file's data in which an array stands beside it."""
    plain = changed(final_inference__log_probs=None, extensions__sidecars={pointer: entry})
    del plain["extensions"]["non_finite"]
    plain["epochs"][1]["gradient_norm"] = 1.0
    return plain


def sidecar_fault(entry, **options):
    """What is wrong with the entry; what it says of it before is the same for all."""
    fault = fault_of(json.dumps(with_sidecar(entry, **options)))
    assert fault.startswith("/extensions/sidecars names ")
    return re.split(r" for '[^']*': |, (?=where no)", fault, maxsplit=1)[1]


def test_a_good_array_beside_the_file_is_read():
    """The fixture of the tests below is right: without their faults, the array is read."""
    Path("x.npy").write_bytes(npy(ARRAY))
    Path("x.json").write_text(json.dumps(with_sidecar(entry_of(npy(ARRAY)))))
    assert_same(load_run("x.json").final_inference.log_probs, ARRAY)


def test_arrays_beside_the_file_come_back():
    """What the writer puts beside the file is read back bit for bit, whatever folder it was moved to."""
    record = a_record(extensions={"maps": [{"weights": np.arange(6.0).reshape(1, 2, 3)}]})
    with MetricsFile("output", "t", max_inline_mb=0) as file:
        file.write(record)
    os.rename("output", "elsewhere")
    read = load_run(Path("elsewhere") / file.path.name)
    assert_same(read.final_inference, record.final_inference)
    assert_same(read.extensions["maps"], record.extensions["maps"])
    assert len(list(Path("elsewhere").glob("*.npy"))) == 3


@pytest.mark.parametrize(
    "name",
    [
        "../x.npy", "/etc/x.npy", "a/x.npy", "./x.npy", "..\\x.npy", "a\\x.npy", "", ".", "..", "x.npz", "x.npy/",
        "x\n.npy", "\0.npy", "\u202e.npy",
    ],
)  # fmt: skip
def test_a_name_that_leads_anywhere_is_refused(name):
    """Only a name's own last part, as it stands in the metrics file's folder, is ever opened."""
    Path("x.npy").write_bytes(npy(ARRAY))
    Path("folder").mkdir()
    Path("folder/hostile.json").write_text(json.dumps(with_sidecar(entry_of(npy(ARRAY), name=name))))
    with pytest.raises(
        MetricsFileError, match=r": expected the name of a \.npy file in the metrics file's own folder$"
    ):
        load_run("folder/hostile.json")


@posix_only
def test_a_link_in_an_arrays_place_is_not_followed():
    """A link out of the folder, or to a file in it, is no file of the folder."""
    Path("folder").mkdir()
    Path("outside.npy").write_bytes(npy(ARRAY))
    Path("folder/inside.npy").write_bytes(npy(ARRAY))
    for target in ("../outside.npy", "inside.npy", "nowhere", "x.npy"):
        link = Path("folder/x.npy")
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        Path("folder/hostile.json").write_text(json.dumps(with_sidecar(entry_of(npy(ARRAY)))))
        with pytest.raises(MetricsFileError, match=r"that file can't be read: Too many levels of symbolic links$"):
            load_run("folder/hostile.json")


@posix_only
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: os.mkfifo(path), "it is no regular file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: None, "No such file or directory"),
    ],
    ids=["a pipe", "a folder", "nothing"],
)
def test_what_is_no_file_in_an_arrays_place_is_refused(make, reason):
    """A pipe would be waited for without end; nothing stays open."""
    make(Path("x.npy"))
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    assert sidecar_fault(entry_of(b"")) == f"that file can't be read: {reason}"
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)


class Payload:
    """Unpickling it would make a file."""

    def __reduce__(self):
        return Path("unpickled").touch, ()


@pytest.mark.parametrize("as_claimed", [True, False])
def test_nothing_is_unpickled(as_claimed):
    """An array of pickled objects, a pickle alone and an archive with one run nothing, with right hashes or wrong."""
    objects = np.empty(1, dtype=object)
    objects[0] = Payload()
    archive = io.BytesIO()
    np.savez(archive, x=objects)
    contents = [npy(objects, allow_pickle=True), pickle.dumps(Payload()), archive.getvalue()]
    for content in contents:
        Path("x.npy").write_bytes(content)
        entry = entry_of(content if as_claimed else b"", shape=[1])
        assert sidecar_fault(entry).startswith("that file isn't this array: ")
        assert not Path("unpickled").exists()
        assert fault_of(content).startswith("not valid JSON: ")
        assert not Path("unpickled").exists()
    pickle.loads(contents[1])
    assert Path("unpickled").exists()  # the payload would have worked


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4611686018427387904), }"


@pytest.mark.parametrize(
    ("content", "changes", "fault"),
    [
        (raw_npy(HUGE), {"shape": [2**62, 2**62]}, "it has 106 bytes"),
        (raw_npy(HUGE.replace("(4611686018427387904, 4611686018427387904)", "(100000000000,)")),
         {"shape": [10**11]}, "it has 79 bytes"),
        (raw_npy(HUGE), {}, "it holds shape (4611686018427387904, 4611686018427387904) of float32"),
        (npy(ARRAY.T), {}, "it holds shape (2, 2) of float32, column by column"),
        (npy(ARRAY.astype(np.float64)), {}, "it holds shape (2, 2) of float64"),
        (npy(ARRAY.astype(">f4")), {}, "it holds shape (2, 2) of >f4"),
        (npy(ARRAY.astype(np.int32)), {}, "it holds shape (2, 2) of int32"),
        (npy(np.zeros((2, 2), "i4,f4")), {}, "it holds shape (2, 2) of [('f0', '<i4'), ('f1', '<f4')]"),
        (npy(ARRAY[0]), {}, "it holds shape (2,) of float32"),
        (npy(ARRAY)[:-1], {}, "it has 143 bytes"),
        (npy(ARRAY) + b"\0", {}, "it has 145 bytes"),
        (npy(ARRAY)[:60], {}, "its header can't be read: "),
        (b"", {}, "EOF: reading magic string, expected 8 bytes got 0"),
        (b"\x93NUMPY", {}, "EOF: reading magic string, expected 8 bytes got 6"),
        (b"PK\x03\x04" * 10, {}, "the magic string is not correct"),
        (raw_npy(HUGE, version=(2, 0)), {}, "its format isn't version 1.0 of .npy"),
        (raw_npy(HUGE, version=(3, 0)), {}, "its format isn't version 1.0 of .npy"),
        (raw_npy(HUGE, version=(9, 9)), {}, "its format isn't version 1.0 of .npy"),
        (raw_npy("(" * 5000), {}, "its header can't be read: "),
        (raw_npy("'" + "x" * 60_000), {}, "its header can't be read: "),
        (raw_npy("__import__('pathlib').Path('unpickled').touch()"), {}, "its header can't be read: "),
        (raw_npy("{'descr': '|O', 'fortran_order': False, 'shape': (2, 2), }"), {}, "it holds shape (2, 2) of object"),
        (raw_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -2), }"), {}, "it holds shape (-2, -2)"),
        (raw_npy("{'descr': [('a', '<f4', (2147483647, 2147483647))], 'fortran_order': False, 'shape': ()}"), {},
         "its header can't be read: "),
        (raw_npy("\0"), {}, "its header can't be read: "),
        (raw_npy("{"), {}, "its header can't be read: "),
    ],
)  # fmt: skip
def test_a_file_that_is_not_the_array_is_refused(content, changes, fault):
    """Of another shape, type, order, version or length than the metrics file says: refused before memory is taken."""
    Path("x.npy").write_bytes(content)
    with bounded(seconds=2, megabytes=30), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # NumPy's, of headers that Python 2 wrote
        assert sidecar_fault(entry_of(content, **changes)).startswith(f"that file isn't this array: {fault}")
    assert not Path("unpickled").exists()


def test_a_file_of_other_content_is_refused():
    """One bit is enough, in the numbers or in the header's padding."""
    content = npy(ARRAY)
    for place in (len(content) - 1, 100):
        Path("x.npy").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        fault = sidecar_fault(entry_of(content))
        assert fault.startswith("that file isn't this array: ")
        assert place == 100 or fault.endswith("its content has another SHA-256")


@pytest.mark.parametrize(
    "entry",
    [
        None,
        5,
        "x.npy",
        [],
        {},
        ["file", "dtype", "shape", "sha256"],
        *(
            entry_of(npy(ARRAY), **changes)
            for changes in (
                {"shape": [-2, -2]},
                {"shape": [2.0, 2]},
                {"shape": [True, 2]},
                {"shape": [0, 2]},
                {"shape": []},
                {"shape": ""},
                {"shape": "22"},
                {"shape": {"2": 2}},
                {"shape": 4},
                {"shape": [[2], 2]},
                {"shape": None},
                {"dtype": "object"},
                {"dtype": "<f4"},
                {"dtype": ["float32"]},
                {"dtype": None},
                {"file": None},
                {"file": ["x.npy"]},
                {"sha256": None},
                {"sha256": 5},
            )
        ),
    ],
    ids=lambda entry: str(entry)[:90],
)
def test_an_entry_that_is_none_is_refused(entry):
    """Each of its four values has one type; a size is a whole number from 1."""
    Path("x.npy").write_bytes(npy(ARRAY))
    assert sidecar_fault(entry) == "expected an object of file, dtype, shape and sha256"


@pytest.mark.parametrize("entries", [None, [], "x", 5])
def test_sidecars_that_are_no_object_are_refused(entries):
    """The map itself must be an object."""
    fault = fault_of(json.dumps(changed(extensions__sidecars=entries)))
    assert fault == f"/extensions/sidecars is {entries!r}; expected an object"


@pytest.mark.parametrize(
    "pointer",
    ["/metadata/task", "/final_inference/attention_weights", "/nowhere", "", "x", "/epochs/7", "/extensions/sidecars"],
)
def test_an_array_for_a_place_that_is_taken_is_refused(pointer):
    """An array comes where a null stands, and nowhere else."""
    Path("x.npy").write_bytes(npy(ARRAY))
    assert sidecar_fault(entry_of(npy(ARRAY)), pointer=pointer) == "where no null is"


@pytest.mark.parametrize("pointer", ["/metadata/device", "/final_results", "/metadata/hyperparameters/training/x"])
def test_arrays_come_to_where_arrays_are(pointer):
    """Hyperparameters, results and epochs hold none."""
    Path("x.npy").write_bytes(npy(ARRAY))
    plain = with_sidecar(entry_of(npy(ARRAY)), pointer=pointer)
    plain["metadata"]["device"] = plain["final_results"] = plain["metadata"]["hyperparameters"]["training"]["x"] = None
    fault = fault_of(json.dumps(plain))
    assert fault.endswith(": expected a place of final_inference or extensions")


def test_a_million_entries_of_one_file_read_it_once():
    """However its entry is spelled: the file is gone through once, and its array is there once."""
    array = np.zeros((500, 500), dtype=np.float32)
    Path("x.npy").write_bytes(npy(array))
    entry = entry_of(npy(array), shape=[500, 500])
    count = 200_000
    plain = changed(extensions__x=[None] * count)
    plain["extensions"]["sidecars"] = {f"/extensions/x/{index}": {**entry, "n": index} for index in range(count)}
    Path("x.json").write_text(json.dumps(plain))
    began = time.process_time()
    read = load_run("x.json").extensions["x"]
    assert time.process_time() - began < SECONDS
    assert all(item is read[0] for item in read)


MEASURED = """
import resource, sys, time
from trackmetrics import load_run
from trackmetrics.errors import MetricsFileError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_run(sys.argv[1])
except MetricsFileError as error:
    print(error)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((peak - before) * (1 if sys.platform == "darwin" else 1024))
"""


@posix_only
def test_a_process_that_loads_a_forged_array_does_not_grow():
    """Measured by the system: a header that promises terabytes takes no memory."""
    Path("x.npy").write_bytes(raw_npy(HUGE))
    Path("x.json").write_text(json.dumps(with_sidecar(entry_of(raw_npy(HUGE), shape=[2**62, 2**62]))))
    run = subprocess.run([sys.executable, "-c", MEASURED, "x.json"], capture_output=True, text=True, timeout=60)
    message, grown = run.stdout.splitlines()
    assert message.endswith("that file isn't this array: it has 106 bytes")
    assert int(grown) < 50e6


# What is no file


@posix_only
def test_a_pipe_is_not_read():
    """It may never end, or never begin."""
    os.mkfifo("pipe.json")
    with pytest.raises(MetricsFileError) as caught:
        load_run("pipe.json")
    assert str(caught.value) == "pipe.json can't be read: it is no regular file"
    with pytest.raises(MetricsFileError, match=r"^/dev/zero can't be read: it is no regular file$"):
        load_run("/dev/zero")


def write_beside(name, make):
    """Write a run's file, its arrays beside it, in a folder in which `make` has put something under a name."""
    left = Path("output/t_training_metrics.old.00000000.npy")
    left.parent.mkdir()
    left.write_bytes(b"")
    make(Path("output") / name)
    with MetricsFile("output", "t", max_inline_mb=0) as file:
        file.write(a_record())
    assert load_run(file.path).metadata.task == "letter_counting"
    return left.exists()


@posix_only
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir])
def test_what_lies_beside_the_file_cannot_stop_a_run(make):
    """A pipe, a link to a device or a folder by the name of an earlier file isn't read, and names nothing."""
    assert not write_beside("t_training_metrics.20260101T000000Z.json", make)


@pytest.mark.parametrize(
    ("content", "stays"),
    [
        (b"", False),
        (b'{"extensions": {"sidecars": [{}, null]}}', False),
        (b"\xff\x00 t_training_metrics.old.00000001.npy", False),
        (b"\xff\x00 t_training_metrics.old.00000000.npy", True),
        (b"[" * 100_000 + b'"\\u0074_training_metrics.old.00000000.npy"', True),
    ],
)
def test_an_earlier_file_of_any_content_cannot_stop_a_run(content, stays):
    """It is searched, not parsed: an array whose name it holds stays, however the name is spelled, others go."""
    assert write_beside("anything.json", lambda path: path.write_bytes(content)) is stays


# Names


class OnDisk:
    """Each path that a run opens for writing, makes, renames or removes."""

    def __init__(self, monkeypatch):
        self.paths = set()
        for name in ("open", "replace", "unlink", "mkdir", "link", "symlink"):
            monkeypatch.setattr(os, name, self.noting(getattr(os, name)))

    def noting(self, function):
        def call(path, *arguments, **options):
            self.paths.add(Path(path))
            if function.__name__ in ("replace", "link"):
                self.paths.add(Path(arguments[0]))
            return function(path, *arguments, **options)

        call.__name__ = function.__name__
        return call


names = st.one_of(
    st.text(max_size=20),
    st.text("./\\:~ ab\0\n", min_size=1, max_size=8),
    st.sampled_from(
        [
            "..",
            ".",
            "../x",
            "~root",
            "C:x",
            "NUL",
            "a" * 200,
            "é" * 100,
            "a..",
            "..a",
            "...",
            "\uff0fetc",
            "\u2024\u2024",
        ]
    ),
)


@settings(deadline=None, max_examples=200)
@given(names)
def test_no_name_that_is_taken_leads_out_of_the_folder(name):
    """The file, its lock, its temporary file, the arrays beside it and the file put aside all stand in the folder."""
    try:
        check_name("part", name)
    except InvalidNameError:
        with pytest.raises(InvalidNameError):
            MetricsFile("output", name)
        return
    with tempfile.TemporaryDirectory() as above, pytest.MonkeyPatch.context() as patch:
        folder = Path(above).resolve() / "output"
        disk = OnDisk(patch)
        for _ in range(2):
            with MetricsFile(folder, name, keep_previous=True, max_inline_mb=0) as file:
                file.write(a_record())
                file.write(a_record(epochs=()))
        touched = {path for path in disk.paths if path not in (folder, folder.parent)}
        assert {path.parent for path in touched} == {folder}
        assert len(touched) >= 5
        assert {path.name for path in Path(above).iterdir()} == {"output"}
        assert all(path.name.lstrip(".").startswith(f"{name}_training_metrics.") for path in folder.iterdir())
        assert load_run(file.path).epochs == ()


# Links in the folder


@pytest.fixture
def target(tmp_path):
    """A file of somebody else's, outside the output folder."""
    (tmp_path / "outside").mkdir()
    path = tmp_path / "outside" / "precious"
    path.write_text("precious")
    (tmp_path / "output").mkdir()
    yield path
    assert path.read_text() == "precious"
    assert [item.name for item in path.parent.iterdir()] == ["precious"]


@posix_only
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_in_the_files_place_is_refused_before_the_training(target, dangling):
    """It is neither written through nor replaced; the message says where it leads."""
    link = Path("output/t_training_metrics.json")
    goal = "../outside/none" if dangling else "../outside/precious"
    link.symlink_to(goal)
    with pytest.raises(OutputError) as caught:
        Tracker("t").__enter__()
    assert str(caught.value) == (
        f"{link.absolute()} is a symbolic link, to '{goal}'; remove it, or give output_dir= the folder that it leads to"
    )
    assert os.readlink(link) == goal
    assert sorted(os.listdir("output")) == [link.name]


@posix_only
def test_a_link_that_comes_into_the_files_place_in_mid_run_is_refused(target):
    """Each save then warns, the training goes on, and the link stays as it is."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TrackmetricsWarning)
        with Tracker("t", final_train_accuracy=False, progress=False) as run:
            path = Path(run.path)
            for number in range(3):
                with run.epoch() as epoch:
                    epoch.log(train_loss=0.5, train_accuracy=1.0, dev_accuracy=1.0, gradient_norm=1.0)
                if number == 0:
                    path.unlink()
                    path.symlink_to("../outside/precious")
    assert len(run.record.epochs) == 3
    assert os.readlink(path) == "../outside/precious"
    said = [str(item.message) for item in caught if "could not be written" in str(item.message)]
    assert len(said) == 1
    assert f"({path} is a symbolic link, to '../outside/precious'; remove it" in said[0]


@posix_only
@pytest.mark.parametrize("goal", ["../outside/precious", "../outside/none"])
def test_a_link_in_the_locks_place_is_refused(target, goal):
    """The lock isn't written through it."""
    link = Path("output/.t_training_metrics.json.lock")
    link.symlink_to(goal)
    with pytest.raises(OutputError, match="Too many levels of symbolic links"), MetricsFile("output", "t"):
        pass
    assert os.readlink(link) == goal


@posix_only
@pytest.mark.parametrize("goal", ["../outside/precious", "../outside/none"])
def test_a_link_in_the_temporary_files_place_goes(target, goal):
    """It is taken away, at the start and at each write, as any left-over is; what it leads to stays."""
    link = Path("output/.t_training_metrics.json.tmp")
    link.symlink_to(goal)
    with MetricsFile("output", "t") as file:
        assert not link.is_symlink()
        link.symlink_to(goal)
        file.write(a_record())
    assert not link.is_symlink()
    assert file.path.read_text() == A_FILE


@posix_only
@pytest.mark.parametrize("goal", ["../outside/precious", "../outside/none"])
def test_a_link_that_comes_back_into_the_temporary_files_place_is_not_followed(target, goal, monkeypatch):
    """Put there anew between its removal and the opening, it is refused, not written through."""
    remove = Path.unlink

    def put_back(path, **options):
        remove(path, missing_ok=True)
        if path.name.endswith(".tmp"):
            path.symlink_to(goal)

    monkeypatch.setattr(Path, "unlink", put_back)
    with pytest.raises(OutputError, match="File exists"), MetricsFile("output", "t"):
        pass


@posix_only
def test_a_link_in_an_arrays_place_is_not_written_through(target):
    """The array's file takes the link's place; what the link leads to stays."""
    with MetricsFile("output", "t", max_inline_mb=0) as file:
        file.write(a_record())
    beside = sorted(Path("output").glob("*.npy"))
    assert len(beside) == 2
    for path in beside:
        path.unlink()
        path.symlink_to("../outside/precious")
    with MetricsFile("output", "t", max_inline_mb=0) as file:
        file.write(a_record())
    assert not any(path.is_symlink() for path in beside)
    assert_same(load_run(file.path).final_inference, a_record().final_inference)


@posix_only
@pytest.mark.parametrize("goal", ["../outside/precious", "../outside/none", "t_training_metrics.json"])
def test_a_link_in_the_place_of_the_file_put_aside_is_passed_by(target, goal):
    """The earlier file is kept whole, beside the link or in its stead, and never through it."""
    with MetricsFile("output", "t") as file:
        file.write(a_record())
    os.utime(file.path, (1777636800, 1777636800))
    link = Path("output/t_training_metrics.20260501T120000Z.json")
    link.symlink_to(goal)
    with MetricsFile("output", "t", keep_previous=True) as file:
        file.write(a_record(epochs=()))
    kept = [path for path in Path("output").glob("t_training_metrics.2*.json") if not path.is_symlink()]
    assert [path.read_text() for path in kept] == [A_FILE]
    assert os.readlink(link) == goal


def test_a_folder_that_is_a_link_is_the_users_own_choice(target):
    """`output_dir=` may be a link to a folder: the user gave it."""
    os.mkdir("real")
    os.symlink("real", "link")
    with MetricsFile("link", "t") as file:
        file.write(a_record())
    assert strict_loads(Path("real/t_training_metrics.json").read_bytes())
