"""The command line: `trackmetrics`."""

from __future__ import annotations

import contextlib
import enum
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from .errors import ArgumentError, MetricsFileError, TrackmetricsError, reason
from .wording import printable

if TYPE_CHECKING:  # each command loads what it needs, so that none waits for another's
    from rich.console import Console

    from .run_files import RunFile

app = typer.Typer(
    help="Metrics files of PyTorch trainings.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


# click's ClickException; click is a part of typer itself in its later versions.
_WrongCall: Any = typer.BadParameter.__mro__[2]
_LISTED = 100  # faults a file; a hostile one has as many as it has letters
_WIDTH = 120  # columns, where no terminal says how many it has

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Metrics files.", show_default=False)]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A metrics file.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON on standard output, for scripts.")]


class Model(enum.Enum):
    """The demo's models."""

    BY_HAND = "by-hand"
    ENCODER = "encoder"


class Format(enum.Enum):
    """What a run can be exported to."""

    CSV = "csv"
    PARQUET = "parquet"
    TENSORBOARD = "tensorboard"


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
    as_json: AsJson = False,
) -> None:
    """Train a small Transformer to count letters in English text, and write its metrics file."""
    import torch

    from . import demo as training
    from .metrics_file import SUFFIX

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        fail(f"--device is {device!r}, which this torch can't use here; give another, such as cpu", 2)
    args = training.Arguments(
        epochs, batch_size, learning_rate, d_model, d_internal, layers, model.value, train_examples, dev_examples, seed,
        device, output_dir,
    )  # fmt: skip
    try:
        training.main(args)
    except (TrackmetricsError, ValueError, RuntimeError) as error:
        fail(str(error).partition("\n")[0], 2 if isinstance(error, ValueError) else 1)
    if as_json:
        _print_json({"file": str(output_dir.absolute() / f"letter_counting{SUFFIX}")})


@app.command(epilog="Example: trackmetrics validate output/*.json")
def validate(files: Files, as_json: AsJson = False) -> None:
    """Check that files are what the format promises: a line for each fault, with its place, value and rule.

    Ends with status 0 where all are valid, 1 where one has faults, 2 where one can't be read.
    """
    from . import validation

    _spell_out()
    statuses, results = [], []
    for file in files:
        try:
            faults = validation.validate(file, _LISTED + 1)
        except MetricsFileError as error:
            _tell(str(error))
            statuses.append(2)
            continue
        statuses.append(1 if faults else 0)
        results.append({"file": str(file), "valid": not faults, "faults": [vars(fault) for fault in faults[:_LISTED]]})
        lines = [str(fault) for fault in faults[:_LISTED]] or ["valid"]
        lines += ["more faults, which aren't listed"] * (len(faults) > _LISTED)
        for line in [] if as_json else lines:
            typer.echo(printable(f"{file}: {line}"))
    if as_json:
        _print_json(results)
    raise typer.Exit(max(statuses))


@app.command(epilog="Example: trackmetrics show output/letter_counting_training_metrics.json")
def show(
    files: Files,
    epochs: Annotated[int, typer.Option(min=0, help="Rows of the table of epochs; 0 for all.")] = 24,
    follow: Annotated[bool, typer.Option("--follow", help="Keep it up to date until the run has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show runs: what they are, their epochs, results, and the first dev example.

    With --follow it waits for a file that isn't there yet; without a terminal it shows the runs once they have ended.
    """
    from . import terminal
    from .summary import described

    if follow:
        _follow(files)
    found = _read(files)
    if as_json:
        _print_json([described(item) for item in found])
        return
    console = _console()
    for item in found:
        console.print(terminal.shown_run(item, epochs, console.width))


def _follow(files: list[Path]) -> None:
    """Show the epochs of runs as they come, until all have ended."""
    from rich.live import Live

    from . import run_files, terminal

    console = _console()
    with _one_line(), Live(console=console, auto_refresh=False, transient=True) as live:
        for found in run_files.follow(files):
            live.update(terminal.followed_runs(found, console.width, console.height), refresh=True)


@app.command(epilog="Example: trackmetrics compare output/a_training_metrics.json output/b_training_metrics.json")
def compare(files: Files, as_json: AsJson = False) -> None:
    """Show runs side by side: the hyperparameters that differ, best and last of each metric, time."""
    from . import terminal
    from .run_files import short_names
    from .summary import differing_hyperparameters, summarize

    found = _read(files)
    if as_json:
        differing = differing_hyperparameters(*(item.run for item in found))
        runs = [summarize(item) for item in found]
        _print_json({"runs": runs, "differing_hyperparameters": differing})
        return
    console = _console()
    console.print(terminal.compared_runs(list(zip(short_names(files), found, strict=True)), console.width))


@app.command("list", epilog="Example: trackmetrics list output")
def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="A folder of metrics files.")] = Path("output"),
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Look in the folders below, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder, each with what became of it."""
    from . import terminal
    from .run_files import find, read, short_names
    from .summary import summarize

    found: list[RunFile | str] = []
    with _one_line():
        paths = find(folder, deep=recursive)
    for path in paths:
        try:
            found.append(read(path))
        except MetricsFileError as error:
            found.append(str(error).removeprefix(f"{path} "))
    if as_json:
        rows = zip(paths, found, strict=True)
        _print_json(
            [{"file": str(path), "fault": item} if isinstance(item, str) else summarize(item) for path, item in rows]
        )
        return
    _console().print(terminal.listed_runs(list(zip(short_names(paths), found, strict=True))))


@app.command(epilog="Example: trackmetrics export output/letter_counting_training_metrics.json --to csv -o epochs.csv")
def export(
    file: File,
    to: Annotated[Format, typer.Option("--to", help="The format.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file, or TensorBoard's folder; '-' is standard output.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's epochs as a table, or as TensorBoard's events.

    Left out, the output stands beside the file: NAME.csv, NAME.parquet, or the folder tensorboard/NAME.
    """
    from . import export as formats
    from .run_files import short_names

    (found,) = _read([file])
    name = short_names([file])[0]
    to_stdout = str(output) == "-"
    if to_stdout and (as_json or to is Format.TENSORBOARD):
        fail("--output - is for a table alone, without --json; give a path", 2)
    with _one_line():
        if to is Format.TENSORBOARD:
            written = output or file.parent / "tensorboard" / name
            try:
                formats.to_tensorboard(found.run, written)
            except OSError as error:
                fail(f"{written} can't be written ({reason(error)}); give another --output")
        else:
            table = (formats.to_csv if to is Format.CSV else formats.to_parquet)(found.run)
            written = output or file.parent / f"{name}.{to.value}"
            if to_stdout:
                sys.stdout.buffer.write(table)
            else:
                _write(written, table, [file])
    if as_json:
        _print_json({"file": str(written)})


@app.command(epilog="Example: trackmetrics plot output/letter_counting_training_metrics.json -o curves.svg")
def plot(
    files: Files,
    output: Annotated[Path, typer.Option("--output", "-o", help="An image: .png, .svg or .pdf.")] = Path("curves.png"),
    attention: Annotated[bool, typer.Option("--attention", help="Draw the attention of one run instead.")] = False,
    layer: Annotated[int | None, typer.Option(min=0, help="One layer's attention, large; counted from 0.")] = None,
    head: Annotated[int | None, typer.Option(min=0, help="One head's, where the run kept them; from 0.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the curves of runs, or the attention of one, into an image file."""
    from . import plots
    from .run_files import short_names

    kind = output.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        fail(f"--output is {str(output)!r}, which no format is known for; end it in .png, .svg or .pdf", 2)
    found = _read(files)
    with _one_line():
        if attention or layer is not None or head is not None:
            if len(found) != 1:
                fail(f"--attention was asked for of {len(found)} files; give one", 2)
            figure = plots.attention(found[0].run, layer, head)
        else:
            figure = plots.curves(*(item.run for item in found), names=short_names(files))
        _write(output, plots.to_image(figure, kind), files)
    if as_json:
        _print_json({"file": str(output)})


@app.command(epilog="Example: trackmetrics report output/*.json -o report.html")
def report(
    files: Files,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the page is written.")] = Path("report.html"),
    as_json: AsJson = False,
) -> None:
    """Put runs on one page with curves, the final example and attention, that needs nothing but a browser."""
    from .report import page
    from .summary import summarize

    found = _read(files)
    with _one_line():
        _write(output, page.render(found).encode(), files)
    if as_json:
        _print_json({"file": str(output), "runs": [summarize(item) for item in found]})
    else:
        _spell_out()
        typer.echo(f"report in {output.absolute()}")


def _read(files: list[Path]) -> list[RunFile]:
    """Read each file; where one can't be read the command ends with status 2, and a line for each of those."""
    from .run_files import read

    found = []
    for file in files:
        try:
            found.append(read(file))
        except MetricsFileError as error:
            _tell(str(error))
    if len(found) < len(files):
        raise typer.Exit(2)
    return found


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """A user's mistake is one line: with status 2 where a file can't be read or the call is wrong, else 1."""
    try:
        yield
    except (MetricsFileError, ArgumentError) as error:
        fail(str(error), 2)
    except TrackmetricsError as error:
        fail(str(error))


def _write(path: Path, data: bytes, files: list[Path]) -> None:
    """Write a file whole or not at all, in no case in the place of one of `files`, a link or a device."""
    from .whole_file import replace_whole

    if path.resolve() in {file.resolve() for file in files}:
        fail(f"{path} is one of the files; give another --output", 2)
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        fail(f"{path} is no ordinary file; give another --output", 2)
    try:
        replace_whole(path, [data], path.with_name(f".{path.name}.tmp"))
    except (OSError, ValueError) as error:  # ValueError: a name that is none
        fail(f"{path} can't be written ({reason(error)}); give another --output")


def _print_json(value: Any) -> None:
    from .json_text import encode
    from .plain import to_plain

    typer.echo(encode(to_plain(value)), nl=False)


def _console() -> Console:
    """Standard output as rich writes to it, nothing in a text taken for markup."""
    from .terminal import plain_console

    _spell_out()
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH
    return plain_console(width=width)


def _spell_out() -> None:
    """A text may hold what the terminal has no letter for."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def fail(message: str, status: int = 1) -> NoReturn:
    """Say in one line what is wrong, and end with that status."""
    _tell(message)
    raise typer.Exit(status)


def _tell(message: str) -> None:
    typer.echo(f"trackmetrics: {printable(message)}", err=True)


def main() -> None:
    """Run the command line."""
    try:
        sys.exit(app(prog_name="trackmetrics", standalone_mode=False))
    except _WrongCall as error:
        said = " ".join(error.format_message().split())
        if said:  # nothing is, where no command was given and the help stands there
            context = getattr(error, "ctx", None)
            _tell(f"{said} (see {context.command_path if context else 'trackmetrics'} --help)")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:  # standard output, which is full or gone
        with contextlib.suppress(OSError):
            _tell(f"standard output can't be written ({reason(error)})")
        os._exit(1)  # at its end Python would try again


if __name__ == "__main__":
    main()
