"""Fuzzes `load_run` with atheris: whatever a file holds, it is a record or a MetricsFileError, nothing else.

    pip install -e . atheris
    python tests/fuzzing/load_run.py -max_total_time=300
    python tests/fuzzing/load_run.py --sidecar -max_total_time=300

The rest of the arguments are libFuzzer's own, a folder that keeps the corpus among them. It begins with files that the
writer itself has made, and changes them as bytes and as JSON: any value of a file in the place of any other. What was
loaded is written again and loaded again, and has to be the same. With `--sidecar` the bytes are those of an array's
file beside a good metrics file. pytest doesn't collect it; an input that it finds belongs into
tests/test_hostile_files.py.
"""

import copy
import hashlib
import json
import random
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
with atheris.instrument_imports(include=["trackmetrics"]):
    from trackmetrics.errors import MetricsFileError
    from trackmetrics.metrics_file import DESCRIBING_KEYS, MetricsFile, encode_record, load_run

import numpy as np
from a_run import a_record
from comparison import assert_same

ODD = [
    None, True, 0, -1, 1.5, 10**19, 2**62, 10**307, "", "NaN", "Infinity", "float32", "../x", "/extensions", [], [[]],
    {}, [None], [[None, 1.0]], [["a"]], [True], {"NaN": [[0, 1]]}, {"NaN": [[0, 10**9]]}, {"x": None}, [[[0.5], [1]]],
    {"/extensions/x": "float32"}, {"/metadata/task": "NaN"}, "~", "/~", 1e308, -0.0, [1e300, None], "\0",
]  # fmt: skip
FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def good_files():
    """Texts of the writer's own: with and without extensions, arrays in them, beside the file."""
    inference = a_record().final_inference
    rows = np.array([[np.nan, np.inf, 0.5], [1.0, -np.inf, np.nan]])
    extensions = {"attention": {"maps": [{"weights": rows}]}, "x": [np.inf, {"y": (1, 2)}], "z": rows[0]}
    records = [
        a_record(),
        a_record(extensions=None),
        a_record(extensions=extensions, final_inference=replace(inference, log_probs=None)),
        a_record(epochs=(), final_results=None, final_inference=None),
    ]
    yield from map(encode_record, records)
    for record in (records[0], records[2]):
        with MetricsFile(FOLDER, "beside", max_inline_mb=0) as file:
            file.write(record)
        yield file.path.read_bytes()  # whose arrays stay there for as long as it does
        file.path.rename(FOLDER / f"beside.{len(list(FOLDER.iterdir()))}.json")  # a later write leaves them


def load(path):
    """Load; and what can be loaded can be written, and is loaded as the same."""
    with suppress(MetricsFileError):
        record = load_run(path)
        text = encode_record(record)
        path.write_bytes(text)
        again = load_run(path)
        assert encode_record(again) == text
        assert_same(again.metadata, record.metadata)
        assert_same([epoch.metrics for epoch in again.epochs], [epoch.metrics for epoch in record.epochs])
        assert_same(again.final_inference, record.final_inference)
        assert_same(own(again.extensions), own(record.extensions))


def own(extensions):
    return extensions and {key: value for key, value in extensions.items() if key not in DESCRIBING_KEYS}


def one_input(data):
    path = FOLDER / "input.json"
    path.write_bytes(data)
    load(path)


def mutate(data, max_size, seed):
    """Half of the time the text's bytes are changed, else its values."""
    chance = random.Random(seed)
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError):
        plain = None
    if plain is None or chance.random() < 0.4:
        return atheris.Mutate(data, max_size)
    with suppress(RecursionError):
        for _ in range(chance.randint(1, 3)):
            change(plain, chance)
        changed = json.dumps(plain).encode()
        return changed if len(changed) <= max_size else data
    return data


def change(plain, chance):
    places = list(walk(plain))
    if not places:
        return
    holder, key = chance.choice(places)
    other, its_key = chance.choice(places)
    kind = chance.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key] = copy.deepcopy(other[its_key])
    elif kind == 2:
        holder[key] = [holder[key]]
    elif kind == 3 and isinstance(holder, dict):
        holder[chance.choice([pointer(plain, chance), str(its_key), "x"])] = copy.deepcopy(chance.choice(ODD))
    elif kind == 4 and isinstance(plain, dict) and isinstance(plain.get("extensions"), dict):
        entries = plain["extensions"].setdefault(chance.choice(DESCRIBING_KEYS[1:]), {})
        if isinstance(entries, dict):
            known = [item for map_ in plain["extensions"].values() if isinstance(map_, dict) for item in map_.values()]
            entries[pointer(plain, chance)] = copy.deepcopy(chance.choice([*ODD, *known]))
    else:
        holder[key] = copy.deepcopy(chance.choice(ODD))


def walk(plain):
    items = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    for key, item in list(items):
        yield plain, key
        yield from walk(item)


def pointer(plain, chance):
    """A pointer to some place."""
    found = ""
    while isinstance(plain, (dict, list)) and plain and (not found or chance.random() < 0.8):
        key = chance.choice(list(plain)) if isinstance(plain, dict) else chance.randrange(len(plain))
        found, plain = f"{found}/{str(key).replace('~', '~0').replace('/', '~1')}", plain[key]
    return found


def one_sidecar(text, name):
    good = FOLDER / "good.json"

    def run(data):
        good.write_bytes(text)
        (FOLDER / name).write_bytes(data)
        load(good)
        # With its own hash, so that the header and the size alone are looked at.
        plain = json.loads(text)
        for entry in plain["extensions"]["sidecars"].values():
            if entry["file"] == name:
                entry["sha256"] = hashlib.sha256(data).hexdigest()
        good.write_text(json.dumps(plain))
        load(good)

    return run


def main():
    beside = "--sidecar" in sys.argv
    arguments = [argument for argument in sys.argv if argument != "--sidecar"]
    seeds = list(good_files())
    corpus = Path(tempfile.mkdtemp())
    if beside:
        text = seeds[-1]
        names = [entry["file"] for entry in json.loads(text)["extensions"]["sidecars"].values()]
        for name in names:
            (corpus / name).write_bytes((FOLDER / name).read_bytes())
        atheris.Setup([*arguments, str(corpus)], one_sidecar(text, names[0]))
    else:
        for number, text in enumerate(seeds):
            (corpus / f"{number}.json").write_bytes(text)
        atheris.Setup([*arguments, str(corpus)], one_input, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
