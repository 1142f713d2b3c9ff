"""A lock that keeps other live runs away: one at a time under any race, and nothing left of it.

Real files and real processes; that a second run is refused, and how, is in test_metrics_file.
"""

import errno
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from trackmetrics import Tracker, load_run, tracked_training, tracker
from trackmetrics.errors import PathInUseError
from trackmetrics.metrics_file import MetricsFile
from trackmetrics.path_lock import PathLock

QUIET = {"train": [], "dev": [], "progress": False}

# Takes and gives back the path over and over, and says whether anybody else held it at the same time.
CONTENDER = """
import os, sys
from pathlib import Path
from trackmetrics.errors import PathInUseError
from trackmetrics.path_lock import PathLock

lock, taken, refused, together = PathLock(Path("file")), 0, 0, 0
print("ready", flush=True)
sys.stdin.readline()
while taken < 300:
    try:
        lock.acquire()
    except PathInUseError as error:
        refused += 1
        assert "process" in str(error), error
        continue
    try:
        os.close(os.open("alone", os.O_CREAT | os.O_EXCL))
        os.remove("alone")
    except FileExistsError:
        together += 1
    lock.release()
    taken += 1
print(taken, refused, together)
"""


@pytest.mark.skipif(os.name != "posix", reason="the lock file is deleted by its holder, as POSIX allows")
def test_of_many_processes_one_holds_the_path_at_a_time():
    """Four processes take and give back the same path three hundred times each, never two of them together."""
    command = [sys.executable, "-c", CONTENDER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    counts = [list(map(int, process.communicate(timeout=300)[0].split())) for process in processes]
    assert [(taken, together) for taken, _, together in counts] == [(300, 0)] * 4
    assert sum(refused for _, refused, _ in counts) > 0, "they never met"
    assert os.listdir() == []


def test_nothing_is_left_of_the_lock():
    """The lock file stands while the path is held, names its holder, and goes with it."""
    lock = PathLock(Path("file"))
    lock.acquire()
    assert os.listdir() == [".file.lock"]
    assert f"process {os.getpid()} on " in Path(".file.lock").read_text()
    lock.release()
    lock.release()
    assert os.listdir() == []


def test_a_lock_file_that_was_deleted_is_locked_anew():
    """A clean-up of the folder doesn't let a second run in, from the first one's next save on."""
    lock = PathLock(Path("file"))
    lock.acquire()
    os.remove(".file.lock")
    lock.keep()
    with pytest.raises(PathInUseError):
        PathLock(Path("file")).acquire()
    lock.release()
    assert os.listdir() == []


def test_a_path_that_was_taken_since_is_not_taken_back():
    """The lock file that stands there is another run's: it is neither locked nor deleted."""
    first, second = PathLock(Path("file")), PathLock(Path("file"))
    first.acquire()
    os.remove(".file.lock")
    second.acquire()
    for _ in range(2):
        with pytest.raises(PathInUseError):
            first.keep()
    first.release()
    assert os.listdir() == [".file.lock"]
    second.keep()
    second.release()


def test_a_filesystem_without_locks_is_warned_of_once(monkeypatch):
    """The run trains, with one warning that says what to do, and the message is in the file."""
    from without_locks import without_locks  # which asks for POSIX

    without_locks(monkeypatch, errno.ENOLCK)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Tracker("t", **QUIET) as run:
            for _ in range(2):
                with run.epoch():
                    pass
    messages = [str(one.message) for one in caught if "locked" in str(one.message)]
    assert messages == [
        f"{run.path} can't be locked (No locks available): nothing keeps a second run from writing it; give each run a "
        "part= or output_dir= of its own"
    ]
    assert messages[0] in load_run(run.path).extensions["warnings"]
    assert os.listdir("output") == [Path(run.path).name]


@pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")
def test_a_nested_run_on_the_same_path_is_refused_before_it_trains():
    """A decorated function that is called in its own run: the inner call raises, the outer run goes on."""
    trained = []

    @tracked_training("t", **QUIET)
    def train(depth):
        trained.append(depth)
        with tracker.epoch():
            pass
        if depth == 0:
            with pytest.raises(PathInUseError, match=rf"\(process {os.getpid()} on "):
                train(1)
        with tracker.epoch():
            pass

    train(0)
    assert trained == [0]
    assert len(load_run("output/t_training_metrics.json").epochs) == 2


def test_a_filesystem_that_fails_otherwise_is_refused(monkeypatch, tmp_path):
    """An error of the disk's is no filesystem without locks."""
    import filelock

    def refuse(self):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(filelock.FileLock, "_acquire", refuse)
    with pytest.raises(OSError, match="can't be written \\(Input/output error\\)"), MetricsFile("output", "t"):
        pass


@pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")
def test_a_live_run_can_be_told_from_a_dead_one():
    """While it lives the file names its process and host, which is enough to look it up."""
    with Tracker("t", **QUIET) as run:
        with run.epoch():
            pass
        status = json.loads(Path(run.path).read_bytes())["extensions"]["status"]
        assert status["state"] == "running"
        os.kill(status["process"], 0)
