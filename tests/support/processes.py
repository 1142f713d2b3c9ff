"""Trainings in processes of their own, that say each epoch and can be interrupted there."""

import contextlib
import subprocess
import sys
import threading

PATIENCE_SECONDS = 120
TRAINING = """
import contextlib, os, signal, sys, threading, time
import torch
from torch import nn
from trackmetrics import Tracker, tracker

def say(line):
    os.write(1, line.encode() + b"\\n")

def train(epochs=10**6, task="t", **options):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [(torch.ones(3), torch.tensor(1))]
    with Tracker(task, progress=False, train=data, dev=data, **options) as run:
        say("begun")
        for number in range(1, epochs + 1):
            with run.epoch():
                nn.functional.cross_entropy(model(torch.ones(4, 3)), torch.tensor([0, 1, 1, 0])).backward()
                optimizer.step()
            say(f"epoch {number}")
"""
"""What each script begins with."""


@contextlib.contextmanager
def running(script, *flags, **settings):
    """A process that runs the script after `TRAINING`; killed at the end if it lives, and if it hangs."""
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **settings}
    with subprocess.Popen([sys.executable, *flags, "-c", TRAINING + script], **settings) as process:
        watchdog = threading.Timer(PATIENCE_SECONDS, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            watchdog.join()
            if process.poll() is None:
                process.kill()


def wait_for(process, line):
    """Read what a process says until it says a line."""
    for said in process.stdout:
        if said == line + "\n":
            return
    raise AssertionError(f"it never said {line!r}: {process.stderr and process.stderr.read()}")


def ended(process):
    """Wait for a process's end; give its exit status and what it wrote to standard error."""
    _, errors = process.communicate()
    return process.returncode, errors


def run(script, *flags, **settings):
    """Run a script to its end."""
    with running(script, *flags, **settings) as process:
        return ended(process)
