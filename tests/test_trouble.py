"""What goes wrong around a training doesn't stop it: disks that fill up, folders that go, outputs that nobody reads.

Real processes and, where root allows, a real small filesystem.
"""

import contextlib
import fcntl
import os
import re
import resource
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
from processes import run, running, wait_for

from trackmetrics import Tracker, load_run
from trackmetrics.errors import PathInUseError

NAME = "t_training_metrics.json"
NOTHING = {"train": [], "dev": [], "progress": False}

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.name != "posix", reason="disks, limits and pipes as POSIX has them"),
]


def epoch(of, **values):
    """One epoch with all its values said."""
    with of.epoch() as one:
        one.log(**{"train_loss": 0.5, "train_accuracy": 0.5, "dev_accuracy": 0.5, "gradient_norm": 1.0, **values})


def epochs_on_disk(path):
    return len(load_run(path).epochs)


@pytest.fixture
def told():
    """The warnings that were given about saving."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [str(one.message) for one in caught if "written" in str(one.message)]


@pytest.fixture
def small_disk():
    """A filesystem of 256 KiB of its own."""
    disk = Path("disk").absolute()
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a filesystem")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_costs_the_epochs_until_there_is_room(small_disk, told):
    """One warning, the last good file stays, and the first epoch after room was made brings all of them."""
    with Tracker("t", output_dir=small_disk, **NOTHING) as of:
        epoch(of)
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space left"), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        for _ in range(3):
            epoch(of, padding="x" * 20_000)
            assert epochs_on_disk(of.path) == 1
            assert not [name for name in os.listdir(small_disk) if name.endswith(".tmp")]
        (message,) = told()
        assert message == (
            f"{of.path} could not be written ([Errno 28] No space left on device); the last good file stays, training "
            "goes on, and the next save tries again"
        )
        filler.unlink()
        epoch(of)
        assert epochs_on_disk(of.path) == 5
    assert len(told()) == 1
    record = load_run(of.path)
    assert record.extensions["status"]["state"] == "completed"
    assert message in record.extensions["warnings"]


def test_a_final_inference_that_finds_no_room_costs_itself_alone(small_disk, told):
    """The final results are saved without it."""
    import numpy as np
    from torch import nn

    from trackmetrics import FinalInference

    large = np.random.default_rng(0).random((8, 64, 64))
    finalize = {"finalize": lambda model, example: FinalInference("x", None, large), "example": [0.0]}
    with Tracker("t", output_dir=small_disk, **NOTHING, **finalize) as of:
        of.watch(nn.Linear(1, 1))
        epoch(of)
    record = load_run(of.path)
    assert record.final_results is not None
    assert record.final_inference is None
    assert record.extensions["status"]["state"] == "completed"
    assert len(told()) == 1


def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)


def test_a_disk_that_becomes_read_only_harms_nothing(small_disk, told, request):
    """Read-only in mid-run, and back: as for a full disk."""
    view = Path("view").absolute()  # what is open for writing can't be remounted, but its place can
    view.mkdir()
    request.addfinalizer(lambda: subprocess.run(["umount", "-l", view], check=False))
    with Tracker("t", output_dir=small_disk, **NOTHING) as of:
        epoch(of)
        mount("--bind", small_disk, view)
        mount("-o", "remount,bind,ro", view)
        mount("--bind", view, small_disk)
        epoch(of)
        epoch(of)
        assert epochs_on_disk(of.path) == 1
        (message,) = told()
        assert "Read-only file system" in message
        subprocess.run(["umount", small_disk], check=True)
        epoch(of)
        assert epochs_on_disk(of.path) == 4


def test_a_limit_on_file_sizes_harms_nothing(told):
    """A quota of the system's on the size of a file: the file that fits stays."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Tracker("t", **NOTHING) as of:
        epoch(of)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
            epoch(of, padding="x" * 20_000)
            assert epochs_on_disk(of.path) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        epoch(of)
        assert epochs_on_disk(of.path) == 3
    (message,) = told()
    assert "File too large" in message


def test_a_folder_that_is_deleted_is_made_anew(told):
    """The next epoch's save makes it, with all epochs in the file and the path still held."""
    with Tracker("t", output_dir="a/b", **NOTHING) as of:
        epoch(of)
        shutil.rmtree("a")
        epoch(of)
        assert epochs_on_disk(of.path) == 2
        with pytest.raises(PathInUseError):
            Tracker("t", output_dir="a/b", **NOTHING).__enter__()
    assert os.listdir("a/b") == [NAME]
    assert told() == []


def test_a_path_that_another_run_took_when_the_folder_was_deleted_is_left_to_it(told):
    """Of two runs the one whose lock was deleted gives way, says so once, and goes on when the other has ended."""
    with Tracker("t", **NOTHING) as first:
        epoch(first)
        shutil.rmtree("output")
        with Tracker("t", **NOTHING) as second:
            epoch(second)
            epoch(first)
            epoch(first)
            assert epochs_on_disk(first.path) == 1
            (message,) = told()
            assert "another live run writes" in message
        epoch(first)
        assert epochs_on_disk(first.path) == 4
    assert os.listdir("output") == [NAME]


def test_a_folder_that_became_a_file_harms_nothing(told):
    """What stands in the folder's place is left alone."""
    with Tracker("t", **NOTHING) as of:
        epoch(of)
        shutil.rmtree("output")
        Path("output").write_text("mine")
        epoch(of)
        assert Path("output").read_text() == "mine"
        Path("output").unlink()
        epoch(of)
        assert epochs_on_disk(of.path) == 3
    assert len(told()) == 1


# Outputs that nobody reads

WITH_A_WARNING = """
def train_here(**options):
    with Tracker("t", train=[], dev=[], **options) as run:
        for number in range(300):
            with run.epoch() as epoch:
                epoch.log(train_loss=object())
    say("done")
"""


def test_warnings_that_are_errors_stop_no_training():
    """`python -W error`: each value that can't be had is null, and the messages are in the file."""
    status, errors = run(WITH_A_WARNING + "train_here(progress=True)", "-W", "error")
    assert status == 0, errors
    record = load_run(Path("output", NAME))
    assert len(record.epochs) == 300
    assert record.extensions["warnings"]


def test_a_closed_standard_error_stops_no_training():
    """`2>&-`: nothing is shown, everything is written."""
    with running(WITH_A_WARNING + "os.close(2)\nsys.stderr = None\ntrain_here(progress=True)") as process:
        wait_for(process, "done")
        assert process.wait(60) == 0
    assert epochs_on_disk(Path("output", NAME)) == 300


def test_a_standard_error_closed_by_the_shell_stops_no_training():
    """Closed before Python begins."""
    script = WITH_A_WARNING + "train_here(progress=True)"
    with running(script, preexec_fn=lambda: os.close(2), stderr=None) as process:
        wait_for(process, "done")
        assert process.wait(60) == 0
    assert epochs_on_disk(Path("output", NAME)) == 300


def test_a_pipe_that_nobody_reads_holds_nothing_up():
    """A full pipe: lines that find no room are left out, no write waits, and what was written are whole lines."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 16384)
    script = WITH_A_WARNING + "train_here(progress=True)"
    with running(script, stderr=writing) as process:
        os.close(writing)
        wait_for(process, "done")
        assert process.wait(60) == 0
    with open(reading) as file:
        lines = file.read().splitlines()
    assert 10 < len(lines) < 300
    assert all(re.match(r"epoch +\d+ .* s$|<string>|  ", line) for line in lines)
    assert epochs_on_disk(Path("output", NAME)) == 300


def test_a_pipe_that_is_full_already_holds_no_warning_up():
    """However long what a warning would say: it stands in the file, cut to a thousand characters."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    script = """
def fail(model, data):
    raise ValueError("x" * 100_000)

with Tracker("t", train=[1], dev=[1], evaluate=fail, progress=False) as run:
    run.watch(nn.Linear(1, 1))
    for _ in range(2):
        with run.epoch():
            pass
say("done")
"""
    with running(script, stderr=writing) as process:
        os.close(writing)
        wait_for(process, "done")
        assert process.wait(60) == 0
    os.close(reading)
    record = load_run(Path("output", NAME))
    assert len(record.epochs) == 2
    assert 1000 in map(len, record.extensions["warnings"])


def test_a_pipe_whose_reader_has_gone_stops_no_training():
    """A broken pipe shows nothing more."""
    reading, writing = os.pipe()
    os.close(reading)
    with running(WITH_A_WARNING + "train_here(progress=True)", stderr=writing) as process:
        os.close(writing)
        wait_for(process, "done")
        process.wait(60)
    assert epochs_on_disk(Path("output", NAME)) == 300


def test_a_standard_error_on_a_full_disk_stops_no_training():
    """`2>/dev/full`."""
    with open("/dev/full", "w") as full, running(WITH_A_WARNING + "train_here(progress=True)", stderr=full) as process:
        wait_for(process, "done")
        process.wait(60)
    assert epochs_on_disk(Path("output", NAME)) == 300
