"""A save of which any one system call fails, is cut short, or is the process's last: the old file or the new one.

Each call that a save makes on its folder is found by a library that is loaded before C's own, and failed in turn, in a
process of its own. Where there is no C compiler these tests skip.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMPILER = shutil.which("cc") or shutil.which("gcc")
SOURCE = Path(__file__).parent / "support" / "failing_calls.c"

pytestmark = pytest.mark.skipif(
    COMPILER is None or not sys.platform.startswith("linux"), reason="no C compiler, or another system than Linux"
)

# For each call in turn a child saves with that call failing. Prints what is on the disk then, what is there after the
# next saves, and what is left over: a line of JSON for each call, until a save has no more calls.
SAVES = """
import ctypes, json, os, sys
from pathlib import Path
import numpy as np
from trackmetrics import load_run
from trackmetrics.metrics_file import MetricsFile
from trackmetrics.record import EpochRecord, FinalInference, Metadata, RunRecord

how, number, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
folder = Path(os.environ["FAILING_FOLDER"])
inline = {"max_inline_mb": options.get("max_inline_mb", 256)}
epochs = tuple(EpochRecord(number, metrics={"padding": "x" * 9000}) for number in (1, 2, 3))
states = [
    RunRecord(
        Metadata("t", "2026-01-30T22:08:22Z"), epochs[:n], None,
        FinalInference(str(n), None, np.full((2, 3, 3), n, dtype=np.float32)), {},
    )
    for n in (1, 2, 3)
]

def state_of(path):
    record = load_run(path)
    state = states[len(record.epochs) - 1]
    whole = record.epochs == state.epochs and record.final_inference == state.final_inference
    return len(record.epochs) if whole else "a mixture"

def save(state, **options):
    with MetricsFile(folder, "t", **options) as file:
        file.write(states[state - 1])
    return file.path

path = save(1, **inline)
for at in range(1, 1000):
    child = os.fork()
    if not child:
        status = 100
        try:
            with MetricsFile(folder, "t", **options) as file:
                os.environ.update(FAILING_AT=str(at), FAILING_HOW=how, FAILING_ERRNO=str(number))
                try:
                    file.write(states[1])
                    status = 0
                except OSError as error:
                    status = error.errno
                if ctypes.CDLL(None).failing_calls_counted() < at:
                    status = 99
                os.environ["FAILING_AT"] = "0"
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 99:
        break
    asides = [folder / name for name in os.listdir(folder) if name.endswith(".json") and name != path.name]
    seen = {"status": status, "file": state_of(path), "asides": [state_of(aside) for aside in asides]}
    seen["temporary"] = [name for name in os.listdir(folder) if name.endswith(".tmp")]
    seen["next"] = state_of(save(3, **inline))
    for aside in asides:
        aside.unlink()
    save(1, **inline)
    named = json.loads(path.read_bytes())["extensions"].get("sidecars", {}).values()
    seen["left"] = sorted(set(os.listdir(folder)) - {path.name} - {entry["file"] for entry in named})
    print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The library that fails calls, compiled."""
    path = tmp_path_factory.mktemp("library") / "failing_calls.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", path, SOURCE, "-ldl"], check=True)
    return path


def saves(library, how, number, options):
    """What was seen at each call of a save."""
    Path("output").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SAVES, how, str(number), json.dumps(options)],
        env={**os.environ, "LD_PRELOAD": str(library), "FAILING_FOLDER": str(Path("output").absolute())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("options", "calls"),
    # open, write, fsync, rename and the folder's open and fsync for a file; a link for one that is put aside; unlinks
    # of what may be left of another save, and of arrays that no file names any more.
    [
        ({}, 8),
        ({"keep_previous": True}, 9),
        ({"max_inline_mb": 0}, 15),
        ({"max_inline_mb": 0, "keep_previous": True}, 15),
    ],
    ids=["plain", "keep_previous", "sidecars", "both"],
)
@pytest.mark.parametrize(
    ("how", "number"),
    [
        ("error", errno.EIO),
        ("error", errno.ENOSPC),
        ("error", errno.EROFS),
        ("short", errno.ENOSPC),
        ("kill", 0),
        ("killed", 0),
    ],
)
def test_whichever_call_fails_the_file_is_the_old_one_or_the_new_one(library, how, number, options, calls):
    """Never a third thing, each array with its own file; the next save works, and of the failed one nothing is left."""
    seen = saves(library, how, number, options)
    assert len(seen) >= calls
    for at, one in enumerate(seen, 1):
        assert one["file"] in (1, 2), f"call {at}: {one}"
        assert one["asides"] in ([], [1]), f"call {at}: {one}"
        assert how.startswith("kill") or one["temporary"] == [], f"call {at}: {one}"
        assert one["next"] == 3, f"call {at}: {one}"
        assert one["left"] == [], f"call {at}: {one}"
        assert one["status"] in ({-9} if how.startswith("kill") else {0, number}), f"call {at}: {one}"
        if one["status"] == 0:
            assert one["file"] == 2, f"call {at}: a save that raised nothing has saved nothing"
    assert {one["file"] for one in seen} == {1, 2}
