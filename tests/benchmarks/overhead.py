"""What observing costs: the CPU time of a training step as a ratio to the bare loop's.

    python tests/benchmarks/overhead.py --models letter-counting --ways trackmetrics

All ways of observing run in one process on one thread, each with its own copy of the model. A way's block of steps is
interleaved with steps of the bare loop, a few of each in turn, so that what else the machine does falls on both; the
block's ratio is the CPU time of the one over that of the other, and the median over the blocks is what is shown.
`bare again` is the bare loop with another copy of the model: how far its ratio is from 1 says how far the others can be
trusted.

Each block begins with steps that aren't timed. What a way does once (opening a run, its first step, an epoch's end) is
outside of the timed steps; for trackmetrics it is shown below the table. Its bare steps run in another context, outside
of its run, and are not observed; but what it wraps is wrapped for the whole process, and passing through costs them a
little. That is measured too, with a step that takes next to no time, and shown. Threads of this process count, other
processes (Weights & Biases has one) don't.
"""

from __future__ import annotations

import argparse
import contextlib
import contextvars
import itertools
import logging
import math
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from trackmetrics.demo import ALPHABET, CLASSES, LENGTH, Transformer, make_examples, stack

Batch = tuple[torch.Tensor, torch.Tensor]


# What is trained


class Encoder(nn.Module):
    """torch's own Transformer encoder, labelling each letter: logits `[batch, length, classes]`."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(ALPHABET), width)
        self.positions = nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, 8, 4 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers)
        self.output = nn.Linear(width, CLASSES)

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        x = self.letters(letters) + self.positions(torch.arange(LENGTH))
        logits: torch.Tensor = self.output(self.encoder(x))
        return logits


@dataclass(frozen=True)
class Case:
    """A training to measure.

    `few` steps of a way and of the bare loop take turns in a block of `steps`, after `warm_up` of the way alone. Where
    steps are short, a block is long enough for work that a way puts off and does some tens of steps at a time.
    """

    make_model: Callable[[], nn.Module]
    batch_size: int
    warm_up: int
    steps: int
    few: int

    def describe(self) -> str:
        tensors = [parameter.numel() for parameter in self.make_model().parameters()]
        count = sum(tensors)
        size = f"{count / 1e6:.1f} million" if count >= 1e6 else f"{count / 1e3:.0f} thousand"
        return (
            f"{size} parameters in {len(tensors)} tensors, {self.batch_size} x {LENGTH} letters a step, "
            f"blocks of {self.steps} steps, {self.few} at a time"
        )


CASES = {
    "letter-counting": Case(lambda: Transformer(len(ALPHABET), LENGTH, 64, 32, 2, CLASSES), 1, 8, 64, 4),
    "width-128": Case(lambda: Encoder(128, 4), 16, 2, 16, 1),
    "width-512": Case(lambda: Encoder(512, 6), 8, 1, 3, 1),
}


class Training:
    """One way's own copy of the training. `loss` gives a step's loss, and its outputs `[n, classes]` and targets."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.model = case.make_model()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        examples, _ = make_examples(256, 1)
        self._batches = itertools.cycle(
            stack(examples[start : start + case.batch_size]) for start in range(0, len(examples), case.batch_size)
        )

    def batches(self, count: int) -> list[Batch]:
        """The next batches."""
        return list(itertools.islice(self._batches, count))

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        result = self.model(inputs)
        targets = targets.flatten()
        if isinstance(result, tuple):  # the demo's own: log-probabilities, and attention maps
            output = result[0].flatten(0, 1)
            return F.nll_loss(output, targets), output, targets
        output = result.flatten(0, 1)
        return F.cross_entropy(output, targets), output, targets


# The ways


class Way:
    """A way to observe a training; this one observes nothing. Raises `ImportError` where its library isn't there."""

    def __init__(self, training: Training, folder: Path) -> None:
        self.training = training
        self.folder = folder

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """One training step, observed."""
        loss, _, _ = self.training.loss(inputs, targets)
        self.training.optimizer.zero_grad()
        loss.backward()
        self.training.optimizer.step()

    @contextlib.contextmanager
    def observing(self) -> Iterator[None]:
        """What is opened before a block's first step, and closed after its last."""
        yield

    def time_block(self, warm_up: list[Batch], batches: list[Batch], few: int, between: Callable[[], None]) -> float:
        """CPU seconds of the steps with `batches`; `between` is called after each `few` of them, and isn't timed."""
        seconds = 0.0
        with self.observing():
            for inputs, targets in warm_up:
                self.step(inputs, targets)
            for start in range(0, len(batches), few):
                began = time.process_time()
                for inputs, targets in batches[start : start + few]:
                    self.step(inputs, targets)
                seconds += time.process_time() - began
                between()
        return seconds

    def notes(self) -> list[str]:
        """What is to be said beside the way's figure."""
        return []

    def close(self) -> None:
        """Let go of what was opened for all blocks."""


class Least(Way):
    """The straightforward least: one norm over all gradients; everything is summed on the device."""

    def __init__(self, training: Training, folder: Path) -> None:
        super().__init__(training, folder)
        self.parameters = list(training.model.parameters())
        self.loss_sum = self.right = self.norm_sum = torch.zeros(())
        self.count = 0

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        loss, output, targets = self.training.loss(inputs, targets)
        self.training.optimizer.zero_grad()
        loss.backward()
        norms = torch._foreach_norm([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        self.norm_sum = self.norm_sum + torch.linalg.vector_norm(torch.stack(norms))
        self.loss_sum = self.loss_sum + loss.detach()
        self.right = self.right + (output.detach().argmax(-1) == targets).sum()
        self.count += targets.numel()
        self.training.optimizer.step()


class ByHand(Way):
    """As it is often written: `.item()` at each step, and for each parameter's norm."""

    def __init__(self, training: Training, folder: Path) -> None:
        super().__init__(training, folder)
        self.loss_sum = self.norm_sum = 0.0
        self.right = self.count = 0

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        loss, output, targets = self.training.loss(inputs, targets)
        self.training.optimizer.zero_grad()
        loss.backward()
        squares = 0.0
        for parameter in self.training.model.parameters():
            if parameter.grad is not None:
                squares += parameter.grad.norm().item() ** 2
        self.norm_sum += math.sqrt(squares)
        self.loss_sum += loss.item()
        self.right += int((output.argmax(-1) == targets).sum().item())
        self.count += targets.numel()
        self.training.optimizer.step()


@dataclass
class Once:
    """What one block's run cost beside its timed steps, CPU seconds."""

    opening: list[float] = field(default_factory=list)
    epoch_end: list[float] = field(default_factory=list)
    closing: list[float] = field(default_factory=list)


class Trackmetrics(Way):
    """A run with one epoch a block. It has no dev set in reach: evaluation isn't part of a step."""

    def __init__(self, training: Training, folder: Path) -> None:
        super().__init__(training, folder)
        self.spent = Once()
        self.steps = 0

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        super().step(inputs, targets)
        self.steps += 1

    @contextlib.contextmanager
    def observing(self) -> Iterator[None]:
        self.steps = 0
        began = time.process_time()
        with self._tracker() as run:
            with run.epoch():
                self.spent.opening.append(time.process_time() - began)
                yield
                began = time.process_time()
            self.spent.epoch_end.append(time.process_time() - began)
            began = time.process_time()
        self.spent.closing.append(time.process_time() - began)
        (epoch,) = run.record.epochs
        steps = (run.record.extensions or {})["gradient_norm"]["steps"]
        if steps != self.steps or None in (epoch.train_loss, epoch.train_accuracy, epoch.gradient_norm):
            raise RuntimeError(f"{steps} of {self.steps} steps were observed, so the cost means nothing: {epoch}")

    @contextlib.contextmanager
    def _tracker(self) -> Iterator[Any]:
        from trackmetrics import Tracker, TrackmetricsWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TrackmetricsWarning)  # nothing was found to evaluate on
            with Tracker("overhead", output_dir=self.folder, progress=False, final_train_accuracy=False) as run:
                yield run

    def notes(self) -> list[str]:
        medians = {name: 1000 * statistics.median(getattr(self.spent, name)) for name in vars(self.spent)}
        return [
            f"trackmetrics beside the steps: {medians['opening']:.1f} ms to open a run, {medians['epoch_end']:.1f} ms "
            f"at an epoch's end without evaluation, {medians['closing']:.1f} ms to close the run",
            f"a bare step beside an open run takes {1e6 * self._passing_through():.1f} µs more than with none; "
            "the ratio leaves that out",
        ]

    def _passing_through(self) -> float:
        """CPU seconds that a step in another context takes more while a run is open."""
        weight = torch.zeros(1, 2, requires_grad=True)
        target = torch.zeros(1, dtype=torch.long)
        optimizer = torch.optim.SGD([weight], lr=0.0)

        def quickest() -> float:
            took = []
            for _ in range(30):
                began = time.process_time()
                for _ in range(10):
                    optimizer.zero_grad()
                    F.nll_loss(weight, target).backward()
                    optimizer.step()
                took.append((time.process_time() - began) / 10)
            return min(took)

        outside = contextvars.copy_context()
        without, beside = [], []
        for _ in range(20):
            without.append(quickest())
            with self._tracker() as run, run.epoch():
                beside.append(outside.run(quickest))
        return min(beside) - min(without)


class TensorBoard(Way):
    """A `SummaryWriter` is given loss, accuracy and gradient norm at each step."""

    def __init__(self, training: Training, folder: Path) -> None:
        super().__init__(training, folder)
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))
        self.count = 0

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        loss, output, targets = self.training.loss(inputs, targets)
        self.training.optimizer.zero_grad()
        loss.backward()
        gradients = [parameter.grad for parameter in self.training.model.parameters() if parameter.grad is not None]
        self.writer.add_scalar("train_loss", loss.item(), self.count)
        self.writer.add_scalar("train_accuracy", (output.argmax(-1) == targets).float().mean().item(), self.count)
        self.writer.add_scalar("gradient_norm", nn.utils.get_total_norm(gradients).item(), self.count)
        self.count += 1
        self.training.optimizer.step()

    def close(self) -> None:
        self.writer.close()


class Lightning(Way):
    """A `Trainer` of its own for each block: loss and accuracy are logged, and the total that its `grad_norm` gives.

    Logging all that `grad_norm` gives, a norm for each parameter, would take several times as long.
    """

    def __init__(self, training: Training, folder: Path) -> None:
        super().__init__(training, folder)
        import lightning.pytorch
        from lightning.pytorch.utilities import grad_norm

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

        class Module(lightning.pytorch.LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.model = training.model

            def training_step(self, batch: Batch, index: int) -> torch.Tensor:
                loss, output, targets = training.loss(*batch)
                self.log("train_loss", loss)
                self.log("train_accuracy", (output.argmax(-1) == targets).float().mean())
                return loss

            def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
                self.log("gradient_norm", grad_norm(self, norm_type=2)["grad_2.0_norm_total"])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return training.optimizer

        class Timer(lightning.pytorch.Callback):  # type: ignore[misc]
            """Stops the clock after each `few` steps that come after the warm-up, for as long as `between` takes."""

            def __init__(self, warm_up: int, few: int, between: Callable[[], None]) -> None:
                self.warm_up = warm_up
                self.few = few
                self.between = between
                self.seconds = self.began = 0.0

            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
                timed = index + 1 - self.warm_up
                if timed >= 0 and timed % self.few == 0:
                    if timed:
                        self.seconds += time.process_time() - self.began
                        self.between()
                    self.began = time.process_time()

        self.module = Module()
        self.make_timer = Timer
        self.lightning = lightning.pytorch

    def time_block(self, warm_up: list[Batch], batches: list[Batch], few: int, between: Callable[[], None]) -> float:
        timer = self.make_timer(len(warm_up), few, between)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has no workers, and that there are few batches
            trainer = self.lightning.Trainer(
                accelerator="cpu",
                max_epochs=1,
                logger=self.lightning.loggers.CSVLogger(self.folder),
                callbacks=[timer],
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=False,
            )
            trainer.fit(self.module, DataLoader([*warm_up, *batches], batch_size=None))  # type: ignore[arg-type]
        return timer.seconds


class WandbWatch(Way):
    """An offline run of Weights & Biases that watches the gradients, as rarely as it does by default."""

    every: int | None = None

    def __init__(self, training: Training, folder: Path) -> None:
        super().__init__(training, folder)
        import wandb

        self.run = wandb.run or wandb.init(
            mode="offline", dir=str(folder), settings=wandb.Settings(silent=True, console="off")
        )
        self.run.watch(training.model, log="gradients", **({} if self.every is None else {"log_freq": self.every}))

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        loss, output, targets = self.training.loss(inputs, targets)
        self.training.optimizer.zero_grad()
        loss.backward()
        self.training.optimizer.step()
        accuracy = (output.argmax(-1) == targets).float().mean().item()
        self.run.log({"train_loss": loss.item(), "train_accuracy": accuracy})

    def close(self) -> None:
        self.run.finish()


class WandbWatchEachStep(WandbWatch):
    """The same, with gradients looked at in each step: what it takes to have a figure of each."""

    every = 1


WAYS: dict[str, type[Way]] = {
    "bare again": Way,
    "least": Least,
    "by hand": ByHand,
    "trackmetrics": Trackmetrics,
    "TensorBoard": TensorBoard,
    "Lightning": Lightning,
    "wandb watch": WandbWatch,
    "wandb watch each step": WandbWatchEachStep,
}


# The measurement


class Measurement:
    """Blocks of several ways to observe one case, each interleaved with the bare loop."""

    def __init__(self, case: Case, ways: list[str], folder: Path) -> None:
        self.case = case
        self.ways: dict[str, Way] = {}
        self.notes: list[str] = []
        self.bare = Way(Training(case), folder)
        self.bare_seconds: list[float] = []  # a step's, one for each block
        self.ratios: dict[str, list[float]] = {}
        for name in ways:
            try:
                self.ways[name] = WAYS[name](Training(case), folder)
            except ImportError as error:
                self.notes.append(f"{name} is left out: {error}")

    def run(self, blocks: int) -> None:
        """Measure each way in turn, `blocks` times."""
        for way in self.ways.values():
            self._time_block(way)  # memory and libraries that are loaded at first use
        self.ratios = {name: [] for name in self.ways}
        for _ in range(blocks):
            for name, way in self.ways.items():
                seconds, bare = self._time_block(way)
                self.ratios[name].append(seconds / bare)
                self.bare_seconds.append(bare / self.case.steps)
        for way in self.ways.values():
            way.close()
            self.notes += way.notes()

    def _time_block(self, way: Way) -> tuple[float, float]:
        """CPU seconds of a block's steps, observed and bare."""
        case, bare = self.case, self.bare
        outside = contextvars.copy_context()  # as it is before the way opens anything
        seconds = 0.0

        def bare_steps() -> None:
            nonlocal seconds
            batches = bare.training.batches(case.few)
            began = time.process_time()
            for inputs, targets in batches:
                bare.step(inputs, targets)
            seconds += time.process_time() - began

        batches = way.training.batches(case.warm_up + case.steps)
        observed = way.time_block(
            batches[: case.warm_up], batches[case.warm_up :], case.few, lambda: outside.run(bare_steps)
        )
        return observed, seconds


def describe_machine() -> str:
    """Processor, system, Python and torch."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    return f"{processor}, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"


def table(seconds: float, ratios: dict[str, list[float]]) -> str:
    """The ratios' medians and middle halves, and what the median makes of a step."""
    lines = ["| way | ratio to bare | middle half | more a step |", "| --- | --- | --- | --- |"]
    for name, values in ratios.items():
        low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        more = (median - 1) * seconds * 1e6
        lines.append(f"| {name} | {median:.3f} | {low:.3f} to {high:.3f} | {more:.0f} µs |")
    return "\n".join(lines)


def main() -> None:
    """Measure what the command line names, and print a table a model."""
    parser = argparse.ArgumentParser(
        description="CPU time of a training step, observed in several ways, as a ratio to the bare loop."
    )
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES), help="by default all")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="by default all that are installed")
    parser.add_argument("--blocks", type=int, default=60, help="timed blocks of each way (default 60)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine(), flush=True)
    for name in arguments.models:
        case = CASES[name]
        with tempfile.TemporaryDirectory() as folder:
            measurement = Measurement(case, arguments.ways, Path(folder))
            measurement.run(arguments.blocks)
        seconds = statistics.median(measurement.bare_seconds)
        print(f"\n{name}: {case.describe()}; bare {seconds * 1e6:.0f} µs a step\n")
        print(table(seconds, measurement.ratios))
        for note in measurement.notes:
            print(f"\n{note}", flush=True)


if __name__ == "__main__":
    main()
