"""The command line: `trackmetrics`."""

from __future__ import annotations

import enum
import io
import json
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from .errors import MetricsFileError, TrackmetricsError

app = typer.Typer(
    help="Metrics files of PyTorch trainings.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


_LISTED = 100  # faults a file; a hostile one has as many as it has letters


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


@app.command(epilog="Example: trackmetrics validate output/*.json")
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Metrics files.", show_default=False)],
) -> None:
    """Check that files are what the format promises: a line for each fault, with its place, value and rule.

    Ends with status 0 where all are valid, 1 where one has faults, 2 where one can't be read.
    """
    from . import validation  # here, not for --help

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a key may hold what the terminal has no letter for
    statuses = []
    for file in files:
        try:
            faults = validation.validate(file, _LISTED + 1)
        except MetricsFileError as error:
            typer.echo(f"trackmetrics: {error}", err=True)
            statuses.append(2)
            continue
        lines = [str(fault) for fault in faults[:_LISTED]] or ["valid"]
        lines += ["more faults, which aren't listed"] * (len(faults) > _LISTED)
        for line in lines:
            typer.echo(f"{file}: {line}")
        statuses.append(1 if faults else 0)
    raise typer.Exit(max(statuses))


@app.command(epilog="Example: trackmetrics report output/*.json -o report.html")
def report(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Metrics files.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the page is written.")] = Path("report.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Say what was written as JSON.")] = False,
) -> None:
    """Put runs on one page with curves, the final example and attention, that needs nothing but a browser.

    Ends with status 2, and writes no page, where a file can't be read or is no metrics file.
    """
    from .metrics_file import load_run  # here, not for --help
    from .report import page
    from .run_state import state_of

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold what the terminal has no letter for
    runs = []
    for file in files:
        try:
            runs.append((file, load_run(file)))
        except MetricsFileError as error:
            typer.echo(f"trackmetrics: {error}", err=True)
    if len(runs) < len(files):
        raise typer.Exit(2)
    if output.resolve() in {file.resolve() for file in files}:
        fail(f"{output} is one of the files; give -o another")
    try:
        page.write(page.render(runs), output)
    except TrackmetricsError as error:
        fail(str(error))
    if as_json:
        told = [
            {"file": str(file), "task": run.metadata.task, "state": state_of(run, file).name, "epochs": len(run.epochs)}
            for file, run in runs
        ]
        typer.echo(json.dumps({"report": str(output.absolute()), "runs": told}))
    else:
        typer.echo(f"report in {output.absolute()}")


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
