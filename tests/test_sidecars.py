"""Arrays beside the file: the largest leave first, each whole, named by content, and read back only as described."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from comparison import assert_same
from refused_file import refusal_of
from strict_json import strict_loads

from trackmetrics.errors import ArgumentError, MetricsFileError
from trackmetrics.json_text import text_length
from trackmetrics.metrics_file import MetricsFile, encode_record, load_run
from trackmetrics.options import Options
from trackmetrics.record import EpochRecord, FinalInference, Metadata, RunRecord
from trackmetrics.sidecars import too_large

NAME = "t_training_metrics.json"
FILE = Path("output") / NAME


def a_run(seed=0, **extensions):
    """A run with arrays of both widths, infinities among them, and maps in the extensions."""
    chance = np.random.default_rng(seed)
    log_probs = np.log(chance.random((5, 4)))
    log_probs[:, 0] = -np.inf
    weights = chance.random((2, 5, 5), dtype=np.float32)
    maps = [{"name": "a", "weights": chance.random((3, 7), dtype=np.float32)}, {"name": "b"}]
    return RunRecord(
        Metadata("t", "2026-01-30T22:08:22Z"),
        (EpochRecord(1, 0.5),),
        None,
        FinalInference("x", log_probs, weights),
        {"attention": {"maps": maps}, **extensions},
    )


def write(record, **options):
    with MetricsFile("output", "t", **options) as file:
        file.write(record)
    return strict_loads(FILE.read_bytes())


def arrays_beside():
    return sorted(name for name in os.listdir("output") if name.endswith(".npy"))


def described(record):
    """A loaded record without the entries that are about the text."""
    return {key: value for key, value in record.extensions.items() if key not in ("sidecars", "dtypes", "non_finite")}


def test_all_arrays_stand_beside_the_file_where_none_may_stand_in_it():
    """At each one's place a null; `sidecars` names file, type, shape and SHA-256; numpy reads it by itself."""
    record = a_run()
    plain = write(record, max_inline_mb=0)
    assert plain["final_inference"] == {"example_input": "x", "log_probs": None, "attention_weights": None}
    assert plain["extensions"]["attention"]["maps"] == [{"name": "a", "weights": None}, {"name": "b"}]
    assert "non_finite" not in plain["extensions"]
    assert "dtypes" not in plain["extensions"]
    entries = plain["extensions"]["sidecars"]
    arrays = {
        "/final_inference/log_probs": record.final_inference.log_probs,
        "/final_inference/attention_weights": record.final_inference.attention_weights,
        "/extensions/attention/maps/0/weights": record.extensions["attention"]["maps"][0]["weights"],
    }
    assert entries.keys() == arrays.keys()
    for pointer, array in arrays.items():
        entry = entries[pointer]
        content = Path("output", entry["file"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert (entry["dtype"], entry["shape"]) == (str(array.dtype), list(array.shape))
        assert_same(np.load(Path("output", entry["file"]), allow_pickle=False), array)
    assert arrays_beside() == sorted(entry["file"] for entry in entries.values())


@pytest.mark.parametrize("limit", [0, 0.0002, 0.0005, 256])
def test_the_loaded_record_is_the_same_wherever_its_arrays_stand(limit):
    """Beside the file or in it, some or all: `load_run` gives the same."""
    record = a_run()
    write(record, max_inline_mb=limit)
    loaded, inline = load_run(FILE), json.loads(encode_record(record))
    assert_same(loaded.final_inference, record.final_inference)
    assert_same(described(loaded)["attention"], record.extensions["attention"])
    assert inline["epochs"] == strict_loads(FILE.read_bytes())["epochs"]


def test_the_largest_leave_first_until_the_rest_fits():
    """Counted as text: what takes most goes, as many as must, and no more."""
    arrays = {
        "/small": np.full((10,), 0.5),  # 41 bytes: brackets, ten times 0.5, nine commas
        "/wide": np.full((10,), 1 / 3),  # 191 bytes
        "/large": np.full((2, 60), 0.5),  # 482
        "/none": np.zeros((0, 3)),
    }
    assert [text_length(arrays[name]) for name in ("/small", "/wide", "/large")] == [41, 191, 482]
    assert too_large(arrays, 714) == []
    assert too_large(arrays, 713) == ["/large"]
    assert too_large(arrays, 232) == ["/large"]
    assert too_large(arrays, 231) == ["/large", "/wide"]
    assert too_large(arrays, 0) == ["/large", "/wide", "/small"]


def test_the_count_is_that_of_the_text():
    """What an array is said to take is what its rows take in the file."""
    array = np.random.default_rng(0).random((3, 4, 50), dtype=np.float32)
    text = encode_record(RunRecord(Metadata("t", ""), (), None, FinalInference("x", None, array)))
    rows = [line.strip().rstrip(b",") for line in text.splitlines() if line.strip().startswith(b"[0.")]
    assert text_length(array) == sum(map(len, rows))


def test_without_extensions_arrays_stay_in_the_file():
    """There is nowhere to name another file."""
    record = a_run()
    plain = write(RunRecord(record.metadata, (), None, record.final_inference), max_inline_mb=0)
    assert len(plain["final_inference"]["attention_weights"]) == 2
    assert arrays_beside() == []


def test_a_new_run_takes_the_earlier_ones_arrays_away():
    """What no file names any more goes with the save that replaces it; what is there twice is written once."""
    write(a_run(0), max_inline_mb=0)
    before = arrays_beside()
    write(a_run(1), max_inline_mb=0)
    assert len(arrays_beside()) == 3
    assert not set(before) & set(arrays_beside())
    write(a_run(1), max_inline_mb=256)
    assert os.listdir("output") == [NAME]


def test_strangers_files_are_left_alone():
    """Only what has the very form of our names is ours: others' arrays, another part's, a file put aside elsewhere."""
    Path("output").mkdir()
    strangers = [
        "weights.npy", "u_training_metrics.weights.0123abcd.npy", "t_training_metrics.npy",
        "t_training_metrics.weights.npy", "t_training_metrics.weights.0123abcde.npy",
        "t_training_metrics.my.weights.0123abcd.npy", "t_training_metrics.weights.0123abcd.npz",
    ]  # fmt: skip
    for name in strangers:
        Path("output", name).touch()
    ours = Path("output", "t_training_metrics.weights.0123abcd.npy")
    ours.touch()
    write(a_run(), max_inline_mb=0)
    assert not ours.exists()
    assert set(strangers) <= set(os.listdir("output"))


def test_what_any_json_file_of_the_folder_names_is_kept():
    """A file that was copied, renamed or damaged may still be somebody's only way to its arrays."""
    write(a_run(0), max_inline_mb=0)
    kept = set(arrays_beside())
    for copy in ("best.json", "t_training_metrics.json.bak.json"):
        Path("output", copy).write_bytes(FILE.read_bytes()[:-2])
    Path("output", "empty.json").touch()
    Path("output", "folder.json").mkdir()
    write(a_run(1), max_inline_mb=0)
    assert len(arrays_beside()) == 6
    os.remove(Path("output", "best.json"))
    write(a_run(1), max_inline_mb=0)
    assert kept < set(arrays_beside())
    os.remove(Path("output", "t_training_metrics.json.bak.json"))
    write(a_run(1), max_inline_mb=0)
    assert len(arrays_beside()) == 3
    assert not kept & set(arrays_beside())


@pytest.mark.parametrize("limit", [-1, True, "256", None, float("nan")])
def test_a_wrong_limit_is_refused(limit):
    """It is a number of millions of bytes."""
    with pytest.raises(ArgumentError, match=r"^max_inline_mb is .*; give a number of millions of bytes, 0 or more$"):
        Options("t", max_inline_mb=limit)


def test_no_limit_is_infinity():
    """An infinite limit keeps all in the file."""
    assert Options("t", max_inline_mb=float("inf")).max_inline_mb == float("inf")
    write(a_run(), max_inline_mb=float("inf"))
    assert arrays_beside() == []


# Read back only as described


def spoiled(edit):
    """The message with which a file is refused whose entry for the attention weights was edited."""
    write(a_run(), max_inline_mb=0)
    plain = json.loads(FILE.read_bytes())
    entries = plain["extensions"]["sidecars"]
    entry = entries["/final_inference/attention_weights"]
    changed = edit(entry, Path("output", entry["file"]))
    if changed is not None:
        entries["/final_inference/attention_weights"] = changed
    FILE.write_text(json.dumps(plain))
    message = refusal_of(FILE)
    assert message.startswith("/extensions/sidecars names ")
    return message.partition("'/final_inference/attention_weights'")[2]


def says(**changes):
    """An entry that says something else."""
    return lambda entry, path: {**entry, **changes}


def holds(change):
    """A file that holds something else."""

    def edit(entry, path):
        path.write_bytes(change(path.read_bytes()))

    return edit


def becomes(make):
    """Something else in the file's place."""

    def edit(entry, path):
        path.rename("elsewhere.npy")
        make(path)

    return edit


CANT_BE_READ = ": that file can't be read: "
NOT_THAT = ": that file isn't this array: "
NO_ENTRY = ": expected an object of file, dtype, shape and sha256"
NO_NAME = ": expected the name of a .npy file in the metrics file's own folder"
OF_FLOAT32 = "it holds shape (2, 5, 5) of float32"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (becomes(lambda path: None), CANT_BE_READ + "No such file or directory"),
        (holds(lambda content: content[:-1] + b"x"), NOT_THAT + "its content has another SHA-256"),
        (holds(lambda content: content[:-1]), NOT_THAT + "it has 327 bytes"),
        (holds(lambda content: content + b"x"), NOT_THAT + "it has 329 bytes"),
        (says(shape=[5, 10]), NOT_THAT + OF_FLOAT32),
        (says(shape=[2**62, 2**62]), NOT_THAT + OF_FLOAT32),
        (says(dtype="float64"), NOT_THAT + OF_FLOAT32),
        (says(sha256="0" * 64), NOT_THAT + "its content has another SHA-256"),
        (says(sha256=None), NO_ENTRY),
        (says(dtype="object"), NO_ENTRY),
        (says(dtype=["float32"]), NO_ENTRY),
        (says(shape=[2, -5, -5]), NO_ENTRY),
        (says(shape=[2.0, 5, 5]), NO_ENTRY),
        (says(shape=50), NO_ENTRY),
        (says(file=5), NO_ENTRY),
        (lambda entry, path: "x.npy", NO_ENTRY),
        (lambda entry, path: {"file": entry["file"]}, NO_ENTRY),
        (lambda entry, path: {**entry, "file": f"../output/{entry['file']}"}, NO_NAME),
        (lambda entry, path: {**entry, "file": str(path.absolute())}, NO_NAME),
        (says(file="..\\x.npy"), NO_NAME),
        (says(file="x\0.npy"), NO_NAME),
        (says(file="x.pkl"), NO_NAME),
        (says(file=""), NO_NAME),
    ],
)
def test_an_array_that_is_not_the_one_described_is_refused(edit, message):
    """Missing, altered, shorter, longer, of another shape or type, or somewhere else: said, and never guessed."""
    assert spoiled(edit) == message


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"\x93NUMPY\x02\x00", b"rubbish" * 100, b"\x93NUMPY\x01\x00\xff\xff{"]
)
def test_a_file_that_is_no_array_is_refused(content):
    """Whatever numpy says of it is the reason."""
    assert spoiled(holds(lambda _: content)).startswith(NOT_THAT)


@pytest.mark.skipif(os.name != "posix", reason="links and pipes as POSIX has them")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to(Path("elsewhere.npy").absolute()), "Too many levels of symbolic links"),
        (os.mkfifo, "it is no regular file"),
        (os.mkdir, "Is a directory"),
    ],
)
def test_what_is_no_file_of_the_folder_itself_is_refused(make, message):
    """A link may lead anywhere, and a pipe may never end."""
    assert spoiled(becomes(make)) == CANT_BE_READ + message


def test_a_place_that_holds_something_is_no_sidecars():
    """An entry for a place where no null stands is refused, and so is one that isn't there."""
    for pointer in ("/final_inference/example_input", "/nowhere", "no pointer"):
        plain = write(a_run(), max_inline_mb=0)
        entry = next(iter(plain["extensions"]["sidecars"].values()))
        plain["extensions"]["sidecars"] = {pointer: entry}
        FILE.write_text(json.dumps(plain))
        with pytest.raises(MetricsFileError, match=f"for '{pointer}', where no null is$"):
            load_run(FILE)
    plain["extensions"]["sidecars"] = [1]
    FILE.write_text(json.dumps(plain))
    with pytest.raises(MetricsFileError, match=r"/extensions/sidecars is \[1\]; expected an object$"):
        load_run(FILE)


def test_nothing_is_unpickled():
    """A file of pickled objects is refused by its header, before any of it is loaded."""

    class Bomb:
        def __reduce__(self):
            return os.mkdir, ("exploded",)

    def pickled(entry, path):
        np.save(path, np.array([Bomb()] * 50, dtype=object).reshape(2, 5, 5), allow_pickle=True)

    assert spoiled(pickled) == NOT_THAT + "it holds shape (2, 5, 5) of object"
    assert not Path("exploded").exists()


def test_a_file_that_many_entries_name_is_read_once(monkeypatch):
    """A thousand places with one array cost one reading."""
    from trackmetrics import sidecars

    plain = write(a_run(), max_inline_mb=0)
    entry = plain["extensions"]["sidecars"]["/final_inference/attention_weights"]
    plain["extensions"]["x"] = [None] * 1000
    plain["extensions"]["sidecars"] |= {f"/extensions/x/{index}": entry for index in range(1000)}
    FILE.write_text(json.dumps(plain))
    opened, reading = [], sidecars.open_whole
    monkeypatch.setattr(sidecars, "open_whole", lambda path, **how: opened.append(path) or reading(path, **how))
    assert len(load_run(FILE).extensions["x"]) == 1000
    assert len(opened) == 3
