"""The command line, run as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from a_valid_file import REMOVED, VALID, edited, text_of

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
    ("arguments", "status", "message"),
    [
        (
            ["--output-dir", "taken"],
            1,
            "the output folder {cwd}/taken is a file; choose an output_dir= that can be written",
        ),
        (["--device", "abacus"], 2, "--device is 'abacus', which this torch can't use here; give another, such as cpu"),
        (["--device", "meta:x"], 2, "--device is 'meta:x', which this torch can't use here; give another, such as cpu"),
        (
            ["--model", "encoder", "--d-internal", "30"],
            2,
            "64 features can't be split into heads of 30; give a divisor of 64",
        ),
        (["--dev-examples", "1000000"], 2, "10000 training and 1000000 dev examples were asked for; the text has"),
    ],
)
def test_a_users_mistake_is_one_line(arguments, status, message):
    """What is wrong, in one line on standard error, with its status and no traceback."""
    Path("taken").touch()
    done = trackmetrics("demo", *arguments)
    assert done.returncode == status
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


# validate


def test_validate_says_each_fault():
    """A line for each fault on standard output: the file, the place, the value, the rule; status 1."""
    Path("good.json").write_bytes(text_of(VALID))
    broken = {"/epochs/1/epoch": 3, "/final_results/dev_accuracy": 93.5, "/metadata/device": REMOVED}
    Path("bad.json").write_bytes(text_of(edited(VALID, broken)))
    done = trackmetrics("validate", "good.json", "bad.json")
    assert done.returncode == 1
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "good.json: valid",
        "bad.json: /metadata/device: missing: a metrics file has this key",
        "bad.json: /final_results/dev_accuracy: 93.5: expected at most 1",
        "bad.json: /epochs/1/epoch: 3: expected 2: numbered from 1, one after the other",
    ]


def test_validate_takes_what_the_demo_wrote():
    """Status 0, and one line a file."""
    trackmetrics("demo", "--epochs", "1", "--train-examples", "64", "--dev-examples", "16")
    done = trackmetrics("validate", "output/letter_counting_training_metrics.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "output/letter_counting_training_metrics.json: valid\n"


def test_validate_says_what_cannot_be_read():
    """One line each on standard error, status 2; the files beside it are checked all the same."""
    Path("good.json").write_bytes(text_of(VALID))
    Path("bad.json").write_text("[]")
    Path("empty.json").touch()
    Path("binary.json").write_bytes(b"\x93NUMPY\x01\x00\xff")
    Path("long.json").write_bytes(text_of(VALID).replace(b"1.25", b"9" * 5000))
    Path("deep.json").write_text("[" * 100_000)
    unreadable = ["none.json", ".", "empty.json", "binary.json", "long.json", "deep.json"]
    done = trackmetrics("validate", *unreadable, "good.json", "bad.json")
    assert done.returncode == 2
    assert done.stdout.splitlines() == ["good.json: valid", "bad.json: the top level: []: expected an object"]
    lines = done.stderr.splitlines()
    assert lines[:2] == [
        "trackmetrics: none.json can't be read: No such file or directory",
        "trackmetrics: . can't be read: Is a directory",
    ]
    refused = [f"trackmetrics: {name} is not a metrics file: not valid JSON: " for name in unreadable[2:]]
    assert [line[: len(start)] for line, start in zip(lines[2:], refused, strict=True)] == refused


def test_validate_lists_a_hundred_faults_of_a_file():
    """Then it says that there are more."""
    for count in (100, 101):
        Path(f"{count}.json").write_bytes(text_of(edited(VALID, {"/extensions/warnings": [0] * count})))
    hundred, more = (trackmetrics("validate", f"{count}.json") for count in (100, 101))
    assert [len(hundred.stdout.splitlines()), len(more.stdout.splitlines())] == [100, 101]
    assert hundred.stdout.splitlines()[-1] == "100.json: /extensions/warnings/99: 0: expected a string"
    assert more.stdout.splitlines()[-1] == "101.json: more faults, which aren't listed"


def test_validate_needs_no_letters_of_the_terminal():
    """What it has no letter for is escaped, in a file's name as in a key."""
    Path("中.json").write_bytes(text_of({**VALID, "中": 1}))
    done = trackmetrics("validate", "中.json", env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 1
    assert done.stdout == "\\u4e2d.json: /\\u4e2d: 1: no key of the format\n"


def test_validate_without_a_file_is_refused():
    """The command line's own check, with its usual status."""
    done = trackmetrics("validate")
    assert done.returncode == 2
    assert "FILE" in done.stderr


def test_validate_does_not_load_torch():
    """Neither for its help, which has an example, nor for its work."""
    Path("good.json").write_bytes(text_of(VALID))
    code = "import sys; from trackmetrics.cli import app; app(sys.argv[1:], standalone_mode=False); "
    for arguments, said in (["--help"], "Example: trackmetrics validate output/*.json"), (["good.json"], "valid"):
        done = subprocess.run(
            [sys.executable, "-c", code + "sys.exit('torch' in sys.modules)", "validate", *arguments],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
