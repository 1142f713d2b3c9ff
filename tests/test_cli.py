"""The command line, run as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from trackmetrics import load_run


def trackmetrics(*arguments, **settings):
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "trackmetrics.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **settings)


def test_demo_writes_the_file_and_says_where():
    """One line an epoch on standard error, at the end where the file is; standard output stays empty."""
    done = trackmetrics("demo", "--epochs", "2", "--train-examples", "320", "--dev-examples", "40", "--seed", "3")
    assert done.returncode == 0
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line.split()[0] for line in lines] == ["epoch", "epoch", "final", "metrics"]
    path = Path(lines[-1].removeprefix("metrics in "))
    assert path == Path("output/letter_counting_training_metrics.json").absolute()
    record = load_run(path)
    assert len(record.epochs) == 2
    assert record.metadata.hyperparameters.training["seed"] == 3
    assert f"dev accuracy {record.epochs[0].dev_accuracy:.4f}" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--output-dir", "taken"],
            "the output folder {cwd}/taken is a file; choose an output_dir= that can be written",
        ),
        (["--device", "abacus"], "--device is 'abacus', which this torch can't use here; give another, such as cpu"),
        (["--device", "meta:x"], "--device is 'meta:x', which this torch can't use here; give another, such as cpu"),
        (
            ["--model", "encoder", "--d-internal", "30"],
            "64 features can't be split into heads of 30; give a divisor of 64",
        ),
        (["--dev-examples", "1000000"], "10000 training and 1000000 dev examples were asked for; the text has"),
    ],
)
def test_a_users_mistake_is_one_line(arguments, message):
    """What is wrong, in one line on standard error, with status 1 and no traceback."""
    Path("taken").touch()
    done = trackmetrics("demo", *arguments)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("trackmetrics: " + message.format(cwd=Path.cwd()))


def test_an_option_out_of_range_is_refused():
    """The command line's own check, with its usual status."""
    done = trackmetrics("demo", "--epochs", "0")
    assert done.returncode == 2
    assert "--epochs" in done.stderr


def test_help_does_not_load_torch():
    """`--help` answers without importing torch."""
    code = "import sys; from trackmetrics.cli import app; app(['demo', '--help'], standalone_mode=False); "
    done = subprocess.run(
        [sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Train a small Transformer" in done.stdout
