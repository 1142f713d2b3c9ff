"""Metrics files to look at: read, found, told apart."""

import os
import socket
import time
from pathlib import Path

import psutil
import pytest
from a_run_to_look_at import a_run

from trackmetrics import run_files
from trackmetrics.errors import MetricsFileError
from trackmetrics.metrics_file import encode_record
from trackmetrics.run_files import find, read, short_names

NAME = "counting_training_metrics.json"


def write(path, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_record(a_run(**settings)))
    return path


def test_a_file_is_read_with_its_state(tmp_path):
    """The record as load_run gives it, its path, and what became of the run."""
    path = write(tmp_path / NAME, state="failed", error={"type": "ValueError", "message": "no"})
    found = read(path)
    assert (found.path, str(found.state)) == (path, "failed (ValueError: no)")
    assert found.run.metadata.task == "counting"


def test_files_are_found_by_their_names(tmp_path):
    """Those of metrics files, in order; temporary files, locks, arrays beside them and other files are none."""
    here = [write(tmp_path / f"{part}_training_metrics.json") for part in ("b", "a")]
    below = write(tmp_path / "folds" / "1" / NAME)
    for other in (
        f".{NAME}.tmp",
        f".{NAME}.lock",
        "counting_training_metrics.final_inference.npy",
        "x.json",
        f".{NAME}",
    ):
        (tmp_path / other).touch()
    assert find(tmp_path) == sorted(here)
    assert find(tmp_path, deep=True) == sorted([*here, below])


def test_a_folder_without_any_is_an_error(tmp_path):
    """It says what was looked for, and where else to look."""
    write(tmp_path / "folds" / NAME)
    with pytest.raises(MetricsFileError) as caught:
        find(tmp_path)
    assert str(caught.value) == (
        f"no metrics file (*_training_metrics.json) is in {tmp_path}; give another folder, or look below it with "
        "--recursive"
    )
    os.mkdir("empty")
    with pytest.raises(MetricsFileError, match=r"is in empty; give another folder$"):
        find(Path("empty"), deep=True)


@pytest.mark.parametrize("deep", [False, True])
def test_no_folder_is_an_error(tmp_path, deep):
    """Missing, or a file."""
    for path, why in ((tmp_path / "missing", "No such file or directory"), (write(tmp_path / NAME), "Not a directory")):
        with pytest.raises(MetricsFileError) as caught:
            find(path, deep=deep)
        assert str(caught.value) == f"{path} can't be listed ({why}); give a folder of metrics files"


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ([], []),
        ([f"out/{NAME}"], ["counting"]),
        ([f"out/{NAME}", f"other/{NAME}"], ["out/counting", "other/counting"]),
        ([f"a/out/{NAME}", f"b/out/{NAME}", "x.json"], ["a/out/counting", "b/out/counting", "x.json"]),
        ([f"out/{NAME}", f"out/{NAME}"], ["counting", "counting (2)"]),
        ([f"/here/{NAME}", f"/here/out/{NAME}"], ["here/counting", "out/counting"]),
        (["/a.json", "/b/a.json"], ["/a.json", "b/a.json"]),
        (["/a/b.json", "/c/b.json", "/c/d.json"], ["a/b.json", "c/b.json", "d.json"]),
    ],
)
def test_names_tell_files_apart(paths, names):
    """By the part alone where that does, else by as many folders as it takes; the same file twice is numbered."""
    assert short_names(paths) == names


def test_a_run_that_ends_while_it_is_looked_at_has_not_died(tmp_path, monkeypatch):
    """It wrote its end after its file was read, and was gone when its process was looked for."""
    path = write(tmp_path / NAME, state="running", process=os.getpid(), host=socket.gethostname())
    looks = []

    def ends(process):
        if not looks:
            write(path)
            os.utime(path, ns=(0, 1))
        looks.append(process)
        raise psutil.NoSuchProcess(process)

    monkeypatch.setattr(psutil, "Process", ends)
    assert read(path).state.name == "completed"
    assert looks == [os.getpid()]
    write(path, state="running", process=os.getpid(), host=socket.gethostname())
    assert read(path).state.name == "died"


def test_following_gives_each_change_once(tmp_path, monkeypatch):
    """The file that comes, each epoch, the end; nothing anew where nothing is new."""
    path = tmp_path / NAME
    live = {"state": "running", "process": os.getpid(), "host": socket.gethostname()}
    happens = iter(
        [
            lambda: None,
            lambda: write(path, losses=(0.5,), **live),
            lambda: None,
            lambda: write(path, losses=(0.5, 0.25), **live),
            lambda: None,
            lambda: write(path, losses=(0.5, 0.25)),
        ]
    )
    dates = iter(range(10))

    def pause(seconds):
        assert seconds == 0.5
        if next(happens)() is not None:
            os.utime(path, ns=(0, time.time_ns() + next(dates)))  # writes of one moment have one date

    monkeypatch.setattr(run_files.time, "sleep", pause)
    given = [
        found[path] and (found[path].state.name, len(found[path].run.epochs)) for found in run_files.follow([path])
    ]
    assert given == [None, ("running", 1), ("running", 2), ("completed", 2)]
    assert next(happens, None) is None
