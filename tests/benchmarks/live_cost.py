"""What the live view costs a training step: CPU time with it, on a pseudo-terminal, as a ratio to that without it.

    python tests/benchmarks/live_cost.py

Two trackings of letter counting (the step of the demo's model, one example each) run in one process on one thread, and
take turns, a few steps each. The one with the live view has a clock that goes by the CPU time of its own steps, so that
it draws as often, four times a second, as one that has the processor to itself. Another process reads the terminal.
What drawing itself takes is shown too: on a busy machine it says more than a ratio near 1.
"""

from __future__ import annotations

import argparse
import contextlib
import contextvars
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from overhead import CASES, Training, describe_machine

from trackmetrics import Tracker, TrackmetricsWarning
from trackmetrics.engine import Engine
from trackmetrics.surroundings import Surroundings, within
from trackmetrics.testing import FakeClock

FEW = 4
_drawing: list[float] = []  # CPU seconds of each time
_draw = Engine._draw


def _timed_draw(engine: Engine) -> None:
    began = time.process_time()
    _draw(engine)
    _drawing.append(time.process_time() - began)


class Tracked:
    """A training in its own context, tracked in an epoch that doesn't end; its clock says what its steps took."""

    def __init__(self, folder: str, progress: Any) -> None:
        self.clock = FakeClock()
        self._training = Training(CASES["letter-counting"])
        self._context = contextvars.copy_context()
        self._stack = contextlib.ExitStack()
        self._context.run(self._open, folder, progress)

    def _open(self, folder: str, progress: Any) -> None:
        with within(Surroundings(self.clock)):
            run = self._stack.enter_context(Tracker("live", output_dir=folder, progress=progress, train=[], dev=[]))
        self._stack.enter_context(run.epoch())

    def steps(self, number: int) -> None:
        """Some steps; the clock goes on at each."""
        self._context.run(self._steps, self._training.batches(number))

    def _steps(self, batches: list[Any]) -> None:
        for inputs, targets in batches:
            began = time.process_time()
            loss, _, _ = self._training.loss(inputs, targets)
            self._training.optimizer.zero_grad()
            loss.backward()
            self._training.optimizer.step()
            self.clock.advance(time.process_time() - began)

    def close(self) -> None:
        """End the run."""
        self._context.run(self._stack.close)


def measure(blocks: int, steps: int, folder: str, shown: Callable[[], int]) -> tuple[list[float], float]:
    """The ratio of each block, and how often the line was drawn a second."""
    live, silent = Tracked(os.path.join(folder, "live"), True), Tracked(os.path.join(folder, "silent"), False)
    ratios, began_seconds, began_shown = [], 0.0, 0
    for block in range(blocks + 1):
        before = live.clock.seconds, silent.clock.seconds
        for turn in range(steps // FEW):
            for tracked in (live, silent) if turn % 2 else (silent, live):
                tracked.steps(FEW)
        if block == 0:  # what is done once isn't counted
            _drawing.clear()
            began_seconds, began_shown = live.clock.seconds, shown()
        else:
            ratios.append((live.clock.seconds - before[0]) / (silent.clock.seconds - before[1]))
    rate = (shown() - began_shown) / (live.clock.seconds - began_seconds)
    live.close()
    silent.close()
    return ratios, rate


def main() -> None:
    """Measure, and print the ratio's median and middle half."""
    parser = argparse.ArgumentParser(
        description="CPU time of a training step with the live view as a ratio to without."
    )
    parser.add_argument("--blocks", type=int, default=40, help="timed blocks (default 40)")
    parser.add_argument("--steps", type=int, default=400, help="steps a block (default 400)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", TrackmetricsWarning)
    Engine._draw = _timed_draw  # type: ignore[method-assign]
    os.environ.setdefault("TERM", "xterm")
    print(describe_machine(), flush=True)
    master, slave = pty.openpty()
    size = os.terminal_size((100, 40))
    with tempfile.TemporaryDirectory() as folder, open(slave, "w", encoding="utf-8") as terminal:
        subprocess.run(["stty", "cols", str(size.columns), "rows", str(size.lines)], stdin=slave, check=True)
        log = os.path.join(folder, "written")
        with open(log, "wb") as file, subprocess.Popen(["cat"], stdin=master, stdout=file) as reader:
            sys.stderr = terminal
            try:

                def shown() -> int:
                    time.sleep(0.2)
                    with open(log, "rb") as written:
                        return written.read().count(b"step ")

                ratios, drawn_a_second = measure(arguments.blocks, arguments.steps, folder, shown)
            finally:
                sys.stderr = sys.__stderr__
                reader.terminate()
    if not _drawing:
        sys.exit("the line was never drawn: give more --steps")
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    print(f"ratio {median:.4f}, middle half {low:.4f} to {high:.4f}, {drawn_a_second:.1f} drawn a second")
    print(f"drawing takes {1000 * drawn_a_second * statistics.fmean(_drawing):.1f} ms of each second")


if __name__ == "__main__":
    main()
