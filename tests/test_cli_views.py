"""The commands that look at runs, run as a user runs them."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from a_run_to_look_at import a_run
from strict_json import strict_loads

from trackmetrics.metrics_file import encode_record

NAME = "counting_training_metrics.json"
LIVE = """
import os, sys, time, warnings
from trackmetrics import Tracker
warnings.simplefilter("ignore")
with Tracker("live", progress=False) as run:
    for _ in range(int(sys.argv[1])):
        with run.epoch() as epoch:
            epoch.log(train_loss=0.5)
        print("saved", flush=True)
        sys.stdin.readline()
"""


def trackmetrics(*arguments, **settings):
    """Run the command in a process of its own, 100 columns wide."""
    command = [sys.executable, "-m", "trackmetrics.cli", *arguments]
    settings.setdefault("env", {**os.environ, "COLUMNS": "100"})
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **settings)


def printed(*arguments, **settings):
    """The lines of a command that goes well, without the blanks at their ends."""
    done = trackmetrics(*arguments, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.rstrip() for line in done.stdout.splitlines()]


def read_json(*arguments):
    done = trackmetrics(*arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return strict_loads(done.stdout.encode())


@pytest.fixture
def files():
    """Two runs, and one that was killed."""
    os.makedirs("output/folds")
    runs = {"output/a": a_run(), "output/b": a_run(losses=(0.9, 0.7), learning_rate=0.01, state="failed"),
            "output/folds/c": a_run(state="running", process=2**22 + 1, host=os.uname().nodename)}  # fmt: skip
    for path, run in runs.items():
        Path(f"{path}_training_metrics.json").write_bytes(encode_record(run))
    return [f"{path}_training_metrics.json" for path in runs]


def test_show_shows_runs(files):
    """One under the other, each from its title to its warnings."""
    lines = printed("show", *files)
    titles = [line for line in lines if line.startswith("counting")]
    assert titles == ["counting  completed", "counting  failed", f"counting  died (process {2**22 + 1} is gone)"]
    assert "      1  0.8000      0.1250    0.2500      2.0000      1.7411    1.5 s" in lines
    assert sum(line == "  • seed: nothing seeded torch" for line in lines) == 3


def test_show_shows_as_many_epochs_as_asked_for():
    """Twenty-four unless told otherwise; 0 is all."""
    Path("many.json").write_bytes(encode_record(a_run(losses=[1.0] * 30)))
    for arguments, count in ([], 24), (["--epochs", "6"], 6), (["--epochs", "0"], 30):
        rows = [line for line in printed("show", "many.json", *arguments) if re.match(r" +\d+ +1.0000", line)]
        assert len(rows) == count


def test_show_as_json(files):
    """An object a file, in strict JSON: what is in few words, all hyperparameters, what is predicted."""
    first, *_ = found = read_json("show", *files)
    assert [item["file"] for item in found] == files
    assert first["best"]["train_loss"] == {"epoch": 3, "value": 0.2}
    assert first["hyperparameters"]["training.adam.eps"] == 0
    assert first["predictions"][1] == {"token": "b", "predicted": 1, "probability": 0.5, "unsure": True}
    assert found[2]["state"] == "died"


def test_compare_sets_runs_side_by_side(files):
    """Named by what tells their files apart."""
    lines = printed("compare", *files)
    assert lines[0].split() == ["a", "b", "c"]
    assert ["training.learning_rate", "0.1", "0.01", "0.1"] in [line.split() for line in lines]
    found = read_json("compare", *files)
    assert found["differing_hyperparameters"] == {"training.learning_rate": [0.1, 0.01, 0.1]}
    assert [run["epochs"] for run in found["runs"]] == [3, 2, 3]


def test_list_lists_a_folder(files):
    """Each run with its state; below the folder too if asked; what can't be read is named, and ends nothing."""
    Path("output/broken_training_metrics.json").write_text("{")
    rows = [line.split()[:2] for line in printed("list")]
    assert rows[:4] == [["file", "state"], ["a", "completed"], ["b", "failed"], ["broken", "unreadable"]]
    rows = [line.split()[:2] for line in printed("list", ".", "-r")]
    assert ["c", "died"] in rows
    found = read_json("list", "output")
    assert [item.get("state") for item in found] == ["completed", "failed", None]
    assert found[2]["fault"].startswith("is not a metrics file: not valid JSON: ")


def test_export_writes_beside_the_file_or_where_it_is_told(files):
    """CSV, Parquet, TensorBoard's folder; '-' is standard output."""
    assert printed("export", files[0], "--to", "csv", "-o", "-")[0].startswith("epoch,train_loss,")
    assert read_json("export", files[0], "--to", "csv") == {"file": "output/a.csv"}
    assert Path("output/a.csv").read_text().splitlines()[1].startswith("1,0.8,0.125,0.25,2.0,")
    pytest.importorskip("polars")
    assert printed("export", files[0], "--to", "parquet", "-o", "a.pq") == []
    assert Path("a.pq").read_bytes().startswith(b"PAR1")
    pytest.importorskip("tensorboard")
    assert read_json("export", files[0], "--to", "tensorboard") == {"file": "output/tensorboard/a"}
    assert len(os.listdir("output/tensorboard/a")) == 1


def test_plot_draws_curves_and_attention(files):
    """In the format that the name says, several runs in one picture."""
    pytest.importorskip("matplotlib")
    assert read_json("plot", *files, "-o", "c.svg") == {"file": "c.svg"}
    assert Path("c.svg").read_text().startswith("<?xml")
    assert printed("plot", files[0], "--layer", "1", "-o", "attention.pdf") == []
    assert Path("attention.pdf").read_bytes().startswith(b"%PDF")
    assert printed("plot", files[0]) == []
    assert Path("curves.png").read_bytes().startswith(b"\x89PNG")


def test_validate_and_demo_as_json(files):
    """Faults by pointer, value and rule; where the demo's file is."""
    plain = json.loads(Path(files[0]).read_text())
    plain["epochs"][1]["epoch"] = 7
    Path("bad.json").write_text(json.dumps(plain))
    done = trackmetrics("validate", "bad.json", "--json")
    assert done.returncode == 1
    (found,) = strict_loads(done.stdout.encode())
    assert (found["file"], found["valid"]) == ("bad.json", False)
    assert found["faults"][0] == {
        "pointer": "/epochs/1/epoch",
        "value": "7",
        "rule": "expected 2: numbered from 1, one after the other",
    }
    done = trackmetrics("demo", "--epochs", "1", "--train-examples", "64", "--dev-examples", "16", "--json")
    assert Path(strict_loads(done.stdout.encode())["file"]).is_file()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["show", "none.json"], 2, "none.json can't be read: No such file or directory"),
        (["show", "."], 2, ". can't be read: Is a directory"),
        (["compare", "{a}", "bad.json"], 2, "bad.json is not a metrics file: the top level is []; expected an object"),
        (["list", "none"], 2, "none can't be listed (No such file or directory); give a folder of metrics files"),
        (["export", "bad.json", "--to", "csv"], 2, "bad.json is not a metrics file: "),
        (
            ["export", "{a}", "--to", "csv", "-o", "no/a.csv"],
            1,
            "no/a.csv can't be written (No such file or directory)",
        ),
        (["plot", "{a}", "-o", "a.gif"], 2, "--output is 'a.gif', which no format is known for; end it in .png, "),
        (["plot", "{a}", "-o", "curves"], 2, "--output is 'curves', which no format is known for; end it in .png, "),
        (["plot", "{a}", "{a}", "--attention"], 2, "--attention was asked for of 2 files; give one"),
        (["plot", "{a}", "--layer", "9"], 2, "layer is 9; the run has layers 0 to 1"),
        (["plot", "{a}", "--layer", "-1"], 2, "Invalid value for '--layer': "),
        (["show"], 2, "Missing argument 'FILE...'. (see trackmetrics show --help)"),
        (["shwo", "{a}"], 2, "No such command 'shwo'"),
        (["show", "{a}", "--epochen"], 2, "No such option: --epochen"),
        (["export", "{a}"], 2, "Missing option '--to'"),
        (["list", "a", "b"], 2, "Got unexpected extra argument"),
    ],
)
def test_a_users_mistake_is_one_line(files, arguments, status, message):
    """What is wrong and how to mend it, on standard error, no traceback; nothing is written."""
    Path("bad.json").write_text("[]")
    before = sorted(os.listdir())
    done = trackmetrics(*(item.replace("{a}", files[0]) for item in arguments))
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"trackmetrics: {message}")
    assert done.stderr.count("\n") == 1
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("command", ["demo", "validate", "show", "compare", "list", "export", "plot"])
def test_every_command_has_an_example_in_its_help(command):
    """And `--json`."""
    text = " ".join(trackmetrics(command, "--help").stdout.split())
    assert f"Example: trackmetrics {command} " in text
    assert "--json" in text


def test_shells_can_complete_commands():
    """As bash asks: the commands that begin so."""
    code = "import sys; sys.argv[0] = 'trackmetrics'; from trackmetrics.cli import main; main()"
    asked = {"_TRACKMETRICS_COMPLETE": "complete_bash", "COMP_WORDS": "trackmetrics e", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["export"]
    assert "--install-completion" in trackmetrics("--help").stdout


@pytest.mark.parametrize("command", [["show"], ["compare"], ["export", "--to", "csv", "-o", "-"], ["plot"], ["list"]])
def test_looking_needs_no_torch(files, command):
    """Neither torch nor a training."""
    if command == ["plot"]:
        pytest.importorskip("matplotlib")
    code = "import sys; from trackmetrics.cli import app; app(sys.argv[1:], standalone_mode=False); "
    place = "output" if command == ["list"] else files[0]
    done = subprocess.run(
        [sys.executable, "-c", code + "sys.exit('torch' in sys.modules)", *command, place],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_any_terminals_letters_are_enough(files, encoding):
    """What it has no letter for is escaped."""
    lines = printed("show", files[0], env={**os.environ, "PYTHONIOENCODING": encoding}, encoding=encoding)
    assert "  train accuracy  0.5000" in lines


def test_a_closed_pipe_is_no_error(files):
    """`trackmetrics show FILE | head -1` prints one line, and no traceback."""
    done = subprocess.run(
        f"{sys.executable} -m trackmetrics.cli show {' '.join(files * 20)} | head -1",
        shell=True, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["counting", "completed"]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["export", "--to", "csv"], ["report"], ["plot"]])
def test_what_is_there_is_not_lost(files, command):
    """Neither the run's own file nor a link, a pipe or a folder gives way to the output; nor is a name that is none."""
    for library in {"report": ["plotly", "jinja2"], "plot": ["matplotlib"]}.get(command[0], []):
        pytest.importorskip(library)
    end = ".png" if command == ["plot"] else ".json"
    run = Path(f"output/run{end}")
    run.write_bytes(Path(files[0]).read_bytes())
    os.mkfifo(f"pipe{end}")
    os.symlink(run, f"link{end}")
    os.mkdir(f"folder{end}")
    said = {str(run): "is one of the files", f"pipe{end}": "is no ordinary file", f"link{end}": "is one of the files",
            f"folder{end}": "is no ordinary file"}  # fmt: skip
    said |= {} if command == ["plot"] else {".": "is no ordinary file", "": "is no ordinary file"}
    for output, words in said.items():
        done = trackmetrics(command[0], str(run), *command[1:], "-o", output)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert words in done.stderr
    assert run.read_bytes() == Path(files[0]).read_bytes()


def test_standard_output_has_one_thing(files):
    """A table or JSON; TensorBoard's events are no table."""
    for arguments in (["--to", "csv", "--json"], ["--to", "tensorboard"]):
        done = trackmetrics("export", files[0], "-o", "-", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("trackmetrics: --output - is for a table alone")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")
def test_a_full_standard_output_is_one_line(files):
    """The system's reason, status 1."""
    for arguments in (["show", files[0]], ["export", files[0], "--to", "csv", "-o", "-"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "trackmetrics.cli", *arguments], stdout=full, stderr=subprocess.PIPE, text=True,
                check=False,
            )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr == "trackmetrics: standard output can't be written (No space left on device)\n"


def test_a_name_that_is_no_utf_8_is_escaped(files):
    """In JSON and in messages."""
    os.rename(files[0], os.fsencode("output/\udcff_training_metrics.json"))
    assert read_json("list")[-1]["file"] == "output/\\udcff_training_metrics.json"
    done = trackmetrics("show", "a\nb\x1b[2J.json")
    assert done.stderr == "trackmetrics: a\\nb\\x1b[2J.json can't be read: No such file or directory\n"


class Terminal:
    """A command in a pseudo-terminal of 100 columns and 30 lines."""

    def __init__(self, *arguments):
        self.fd, inside = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trackmetrics.cli", *arguments],
            stdin=inside, stdout=inside, stderr=inside, start_new_session=True,
            env={**os.environ, "COLUMNS": "100", "LINES": "30", "TERM": "xterm"},
        )  # fmt: skip
        os.close(inside)
        self.text = ""

    def until(self, pattern):
        """Read on until the text matches."""
        deadline = time.monotonic() + 60
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, self.text
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    self.text += re.sub("\x1b\\[[0-9;]*m", "", os.read(self.fd, 65536).decode())
                except OSError:
                    assert re.search(pattern, self.text), self.text

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.fixture
def training():
    """A real training, which goes on to its next epoch when it is told."""
    with subprocess.Popen(
        [sys.executable, "-c", LIVE, "3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        yield process
        process.kill()


def go_on(training):
    training.stdin.write("\n")
    training.stdin.flush()


def test_show_follows_a_run(training):
    """Each epoch appears as it is saved; when the run has ended, it is shown whole and the command ends."""
    terminal = Terminal("show", "output/live_training_metrics.json", "--follow")
    try:
        terminal.until(rf"live  running \(process {training.pid}\)")
        terminal.until(r"\n +1  +0\.5000")
        go_on(training)
        terminal.until(r"\n +2  +0\.5000")
        go_on(training)
        go_on(training)
        terminal.until(r"live  completed[^$]*final results")
        assert terminal.process.wait(30) == 0
        assert "\x1b[?25h" in terminal.text  # the cursor is back
    finally:
        terminal.close()


def test_a_run_that_is_killed_is_seen_to_have_died(training):
    """Following ends."""
    terminal = Terminal("show", "output/live_training_metrics.json", "--follow")
    try:
        terminal.until("live  running")
        training.kill()
        training.wait()
        terminal.until(r"live  died \(process \d+ is gone\)")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.close()


def test_following_waits_for_the_file_and_ends_by_control_c():
    """The terminal is left as it was, with the usual status."""
    terminal = Terminal("show", "none.json", "--follow")
    try:
        terminal.until("waiting for none.json")
        os.kill(terminal.process.pid, signal.SIGINT)
        assert terminal.process.wait(30) == 130
        terminal.until(r"\x1b\[\?25h")
        assert "Traceback" not in terminal.text
    finally:
        terminal.close()
