"""A run that is killed at any moment leaves one whole epoch state on the disk, and loses the epoch in progress at most.

Real trainings in processes of their own, killed outright while they save as fast as they can.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from strict_json import strict_loads

from trackmetrics import load_run
from trackmetrics.metrics_file import MetricsFile

KILLS = 200
NAME = "t_training_metrics.json"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.name != "posix", reason="fork and signals as POSIX has them"),
]

# Loads all that a run needs once and forks a training for each line read, since loading takes longer than many epochs.
# A training says each epoch that is over, and is killed by whoever reads that. Its text is long, so that most of its
# time goes into saving.
TRAININGS = """
import os, sys
import torch
from torch import nn
from trackmetrics import Tracker, tracker

torch.set_num_threads(1)

def train(resume, epochs):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dev = [(torch.ones(3), torch.tensor(1))]
    with Tracker("t", progress=False, dev=dev, resume=resume):
        number = 0
        while number < epochs:
            with tracker.epoch() as epoch:
                nn.functional.cross_entropy(model(torch.ones(4, 3)), torch.tensor([0, 1, 1, 0])).backward()
                optimizer.step()
                epoch.log(number=number, padding="x" * 100_000)
            number += 1
            os.write(1, b"%d\\n" % len(tracker.record.epochs))

out, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
os.dup2(null, 1)
train(False, 1)
os.remove("output/t_training_metrics.json")
os.dup2(out, 1)
for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            train(bool(int(line)), float("inf"))
        finally:
            os._exit(1)
    os.write(1, b"child %d\\n" % child)
    os.waitpid(child, 0)
    os.write(1, b"dead\\n")
"""


@pytest.fixture
def trainings(tmp_path):
    """A process that forks a training for each line."""
    with subprocess.Popen(
        [sys.executable, "-c", TRAININGS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        yield process
        process.stdin.close()


def killed_training(process, epochs, delay, *, resume=False):
    """Begin a training, kill it so many epochs and seconds later; give the last epoch that it said was over."""
    process.stdin.write(f"{int(resume)}\n")
    process.stdin.flush()
    child = done = None
    for line in process.stdout:
        if line.startswith("child"):
            child = int(line.split()[1])
        elif line == "dead\n":
            return done
        else:
            done = int(line)
        if child and done is not None and done >= epochs:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            epochs = float("inf")
    raise AssertionError("the trainings have ended")


def test_a_training_killed_at_200_random_moments_loses_the_epoch_in_progress_at_most(
    trainings, tmp_path, record_property
):
    """At each of 200 kills the file is whole and has every epoch whose block was left; leftovers go with the next."""
    chance = random.Random(0)
    counts = Counter()
    path = tmp_path / "output" / NAME
    for _ in range(KILLS):
        done = killed_training(trainings, chance.randint(1, 4), chance.uniform(0, 0.02))
        record = load_run(path)
        plain = strict_loads(path.read_bytes())
        assert [epoch["number"] for epoch in plain["epochs"]] == list(range(len(record.epochs)))
        assert plain["extensions"]["status"]["state"] == "running"
        assert len(record.epochs) >= done, "an epoch whose block was left is lost"
        leftovers = {name for name in os.listdir(path.parent) if name != NAME}
        assert leftovers <= {f".{NAME}.tmp", f".{NAME}.lock"}
        counts["kills"] += 1
        counts["files whole"] += 1
        counts["killed between the rename and the word of it"] += len(record.epochs) > done
        counts["temporary files left, for the next run to take away"] += f".{NAME}.tmp" in leftovers
    counted = ", ".join(f"{name}: {count}" for name, count in counts.items())
    record_property("counts", f"{counted}, whole epochs lost: 0")
    assert counts["temporary files left, for the next run to take away"] > KILLS // 10, "few kills fell into a save"
    killed_training(trainings, 1, 0)
    with MetricsFile("output", "t"):
        assert f".{NAME}.tmp" not in os.listdir("output")


def test_a_training_that_is_resumed_after_each_kill_has_every_epoch(trainings, tmp_path):
    """Killed and resumed twenty times: numbered on, elapsed time never falling, nothing of the earlier ones changed."""
    path = tmp_path / "output" / NAME
    before = []
    for _ in range(20):
        killed_training(trainings, len(before) + 3, 0.005, resume=True)
        epochs = json.loads(path.read_bytes())["epochs"]
        assert epochs[: len(before)] == before
        assert len(epochs) >= len(before) + 3
        assert [epoch["epoch"] for epoch in epochs] == list(range(1, len(epochs) + 1))
        seconds = [epoch["elapsed_seconds"] for epoch in epochs]
        assert seconds == sorted(seconds)
        before = epochs
    assert [entry["after_epoch"] for entry in load_run(path).extensions["resumed"]] == sorted(
        entry["after_epoch"] for entry in load_run(path).extensions["resumed"]
    )
    assert not [name for name in os.listdir(path.parent) if name.endswith(".npy")]


def test_the_dead_runs_status_tells_that_it_is_dead(trainings, tmp_path):
    """`running`, with a process that doesn't live any more."""
    killed_training(trainings, 2, 0)
    status = strict_loads(Path(tmp_path, "output", NAME).read_bytes())["extensions"]["status"]
    assert status["state"] == "running"
    with pytest.raises(ProcessLookupError):
        os.kill(status["process"], 0)
