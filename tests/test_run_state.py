"""Whether a run still lives, told by real processes."""

import os
import socket
import subprocess
import sys
import time

import pytest
from a_run_to_look_at import a_run

from trackmetrics import Tracker, load_run
from trackmetrics.record import Metadata, RunRecord
from trackmetrics.run_state import RunState, state_of

HERE = socket.gethostname()


def state(path="run.json", **status):
    """What is said of a run with this status, whose file was written just now."""
    with open(path, "w"):
        return state_of(a_run(**status), path)


@pytest.fixture
def gone():
    """The number of a process that has just ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_a_live_process_is_running():
    """Its number is said."""
    assert state(state="running", process=os.getpid(), host=HERE) == RunState("running", f"process {os.getpid()}")


def test_a_dead_process_is_said_to_be_dead(gone):
    """The file says running; no such process is there."""
    assert state(state="running", process=gone, host=HERE) == RunState("died", f"process {gone} is gone")


def test_a_later_process_of_the_same_number_is_another():
    """A process that began after the file was last written didn't write it."""
    with open("run.json", "w"):
        os.utime("run.json", (time.time() - 86400,) * 2)
    assert state_of(a_run(state="running", process=os.getpid(), host=HERE), "run.json").name == "died"


def test_a_zombie_is_dead():
    """A process that has ended, and that nobody has asked for its status yet, trains nothing."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert state(state="running", process=process.pid, host=HERE).name == "died"
    finally:
        process.wait()


def test_another_host_cannot_be_looked_at(gone):
    """It is said where to look."""
    found = state(state="running", process=gone, host="elsewhere")
    assert found == RunState("running", f"process {gone} on elsewhere, which can't be looked at from here")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"state": "completed"}, "completed"),
        ({"state": "failed", "error": {"type": "ValueError", "message": "no"}}, "failed (ValueError: no)"),
        ({"state": "interrupted", "error": {"type": "SystemExit", "message": ""}}, "interrupted (SystemExit)"),
        ({"state": "interrupted", "error": "no"}, "interrupted"),
        ({"state": "running"}, "running"),
        ({"state": "running", "process": "7", "host": HERE}, "running"),
        ({"state": "running", "process": -1, "host": HERE}, "died (process -1 is gone)"),
        ({"state": "running", "process": 10**300, "host": HERE}, f"died (process {10**300} is gone)"),
    ],
)  # fmt: skip
def test_what_the_file_says_is_said(status, expected):
    """The error with it; a forged status breaks nothing."""
    assert str(state(**status)) == expected


def test_without_extensions_the_results_tell():
    """A run that has results has completed; of another one nothing is known."""
    metadata, results = Metadata("t", "2026-01-01T00:00:00Z"), a_run().final_results
    for forged in (None, {}, {"status": 7}, {"status": {"state": 7}}):
        assert state_of(RunRecord(metadata, (), results, None, forged), "x").name == "completed"
        assert state_of(RunRecord(metadata, extensions=forged), "x").name == "unknown"


def test_a_training_that_is_killed_has_died():
    """A real one: running while it lives, died once it was killed."""
    code = """
import sys, time, warnings
from trackmetrics import Tracker
warnings.simplefilter("ignore")
with Tracker("t", progress=False) as run:
    with run.epoch() as epoch:
        epoch.log(train_loss=1.0)
    print("saved", flush=True)
    time.sleep(60)
"""
    path = "output/t_training_metrics.json"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "saved\n"
        assert str(state_of(load_run(path), path)) == f"running (process {process.pid})"
        process.kill()
        process.wait()
        assert state_of(load_run(path), path).name == "died"


@pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")
def test_this_process_lives_while_it_trains():
    """The state of a run in this very process, during an epoch and after."""
    with Tracker("t", progress=False) as run:
        with run.epoch() as epoch:
            epoch.log(train_loss=1.0)
        assert state_of(load_run(run.path), run.path).name == "running"
    assert state_of(load_run(run.path), run.path).name == "completed"
