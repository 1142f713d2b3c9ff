"""The command line: `trackmetrics`."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from .errors import TrackmetricsError

app = typer.Typer(
    help="Metrics files of PyTorch trainings.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


class Model(enum.Enum):
    """The demo's models."""

    BY_HAND = "by-hand"
    ENCODER = "encoder"


@app.callback()
def commands() -> None:
    """Metrics files of PyTorch trainings."""


@app.command(epilog="Example: trackmetrics demo --epochs 2 --output-dir /tmp/demo")
def demo(
    epochs: Annotated[int, typer.Option(min=1, help="How often the training set is gone through.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples a training step.")] = 32,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Adam's, at the start; it falls to 0.")] = 3e-3,
    d_model: Annotated[int, typer.Option(min=1, help="Width of the Transformer.")] = 64,
    d_internal: Annotated[int, typer.Option(min=1, help="Width of queries and keys.")] = 32,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the Transformer.")] = 2,
    model: Annotated[
        Model, typer.Option(help="Written by hand, or torch's encoder, which returns no attention maps.")
    ] = Model.BY_HAND,
    train_examples: Annotated[int, typer.Option(min=1, help="Strings to train on.")] = 10_000,
    dev_examples: Annotated[int, typer.Option(min=1, help="Strings to evaluate on.")] = 1_000,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Of the weights and of the order of the examples.")
    ] = 0,
    device: Annotated[str, typer.Option(help="Such as cpu, cuda, mps.")] = "cpu",
    output_dir: Annotated[Path, typer.Option(help="The folder of the metrics file.")] = Path("output"),
) -> None:
    """Train a small Transformer to count letters in English text, and write its metrics file."""
    import torch  # here, not for --help

    from . import demo as training

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        fail(f"--device is {device!r}, which this torch can't use here; give another, such as cpu")
    args = training.Arguments(
        epochs, batch_size, learning_rate, d_model, d_internal, layers, model.value, train_examples, dev_examples, seed,
        device, output_dir,
    )  # fmt: skip
    try:
        training.main(args)
    except (TrackmetricsError, ValueError, RuntimeError) as error:
        fail(str(error).partition("\n")[0])


def fail(message: str) -> NoReturn:
    """Say in one line what is wrong, and end with status 1."""
    typer.echo(f"trackmetrics: {message}", err=True)
    raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
