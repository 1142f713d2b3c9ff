"""The benchmarks run, and print their tables. What they measure is read by people: no figure is asserted here."""

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

BENCHMARKS = Path(__file__).parent / "benchmarks"


def run(script, *arguments, **environment):
    """A benchmark in a process of its own."""
    return subprocess.run(
        [sys.executable, BENCHMARKS / script, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def rows(text):
    """The first column of a table's rows, and the numbers in each."""
    cells = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return {
        name.strip(): [float(number) for number in re.findall(r"-?[0-9.]+", "".join(rest))] for name, *rest in cells[2:]
    }


def loaded_overhead(monkeypatch):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("overhead", BENCHMARKS / "overhead.py")
    overhead = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "overhead", overhead)
    spec.loader.exec_module(overhead)
    return overhead


def test_the_overhead_is_measured_and_printed(tmp_path):
    """Each way has its row; one whose library can't be imported is left out, and that is said."""
    (tmp_path / "wandb.py").write_text("raise ImportError('there is no wandb here')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    ways = ["bare again", "least", "by hand", "trackmetrics", "wandb watch"]
    done = run("overhead.py", "--models", "letter-counting", "--blocks", "1", "--ways", *ways, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    assert list(found) == ways[:-1]
    for ratio, low, high, _ in found.values():
        assert 0 < low <= ratio <= high
    assert "86 thousand parameters in 24 tensors" in done.stdout
    assert "wandb watch is left out: there is no wandb here" in done.stdout
    assert re.search(r"trackmetrics beside the steps: [0-9.]+ ms to open a run", done.stdout)


def test_what_ranks_cost_is_measured_and_printed():
    """One process says nothing to a store; two meet three times an epoch."""
    done = run("ranks.py", "--ranks", "1", "2", "--epochs", "3")
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    assert list(found) == ["1", "2"]
    assert found["1"][3:7] == [0, 0, 0, 0]
    assert found["2"][4] == 9


def test_the_live_view_is_measured_and_printed():
    """The ratio, and how often the line was drawn."""
    pytest.importorskip("pty")
    done = run("live_cost.py", "--blocks", "2", "--steps", "120")
    assert done.returncode == 0, done.stderr
    assert re.search(r"ratio [0-9.]+, middle half [0-9.]+ to [0-9.]+, [0-9.]+ drawn a second", done.stdout)


def test_a_way_that_measures_nothing_has_no_figure(tmp_path, monkeypatch):
    """With tracking turned off the benchmark raises; it doesn't say that tracking is for free."""
    overhead = loaded_overhead(monkeypatch)
    case = dataclasses.replace(overhead.CASES["letter-counting"], warm_up=1, steps=2, few=1)
    measurement = overhead.Measurement(case, ["trackmetrics"], tmp_path)
    monkeypatch.setattr(overhead.Trackmetrics, "notes", lambda way: [])
    measurement.run(1)
    assert measurement.ratios["trackmetrics"][0] > 0
    monkeypatch.setenv("TRACKMETRICS_DISABLED", "1")
    with pytest.raises(RuntimeError):
        measurement.run(1)


def test_a_bare_step_is_not_observed(tmp_path, monkeypatch):
    """The benchmark holds that a run has seen its own steps and no bare one: it raises where bare steps are seen."""
    overhead = loaded_overhead(monkeypatch)
    case = dataclasses.replace(overhead.CASES["letter-counting"], warm_up=1, steps=2, few=1)
    measurement = overhead.Measurement(case, ["trackmetrics"], tmp_path)
    monkeypatch.setattr(overhead.contextvars, "copy_context", lambda: Inside())
    with pytest.raises(RuntimeError, match="5 of 3 steps were observed"):
        measurement.run(1)


class Inside:
    """Takes a context's place, and runs in the run's own."""

    def run(self, function):
        return function()


def test_the_import_time_is_measured_and_printed():
    """A row each for the import before torch, after it, and what the first run loads."""
    done = run("import_time.py", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    assert list(found) == ["imported before torch", "imported after torch", "the first run, after both"]
    for median, low, high, *_ in found.values():
        assert 0 < low <= median <= high


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of memory as Linux tells it")
def test_what_saving_costs_is_measured_and_printed():
    """The last saves beside the first, of losses and of NaN, and a final inference each way."""
    done = run("saving.py", "--epochs", "50", "--layers", "2", "--length", "64")
    assert done.returncode == 0, done.stderr
    _, losses, nans, inference = re.split("50 epochs of loss|final inference of 2x64x64", done.stdout)
    assert losses.startswith(" 1.0 ")
    assert nans.startswith(" nan ")
    for epochs in (losses, nans):
        assert list(rows(epochs)) == ["the first 20 epochs", "the last 20"]
    assert list(rows(inference)) == ["json.dump", "in the file", "beside the file"]
    assert rows(inference)["json.dump"][1] == 1.0


def test_the_float32_that_readers_get_wrong_is_found():
    """The first numbers there are have none; the one that the writer knows is found where it stands."""
    done = run("float32_decimals.py", "0", "0x100000")
    assert done.stdout == "1048576 numbers seen\n"
    number = "0x15ae43fd"
    found = run("float32_decimals.py", number, hex(int(number, 16) + 1)).stdout
    assert found == "0x1.5c87fa0000000p-84 is 7.038531e-26 to those who read float32\n1 numbers seen\n"


def test_the_support_of_attention_is_tabulated():
    """The tables that are asked for, each row with what is had and how exactly."""
    done = run("attention_support.py", "wrapped")
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    assert list(found)[:3] == ["torch.compile", "torch.compile, fullgraph", "scripted"]
    assert "3 self (native)" in done.stdout
    assert "of all that is asked for" in run("attention_support.py", "nothing").stderr


@pytest.mark.parametrize("script", sorted(BENCHMARKS.glob("*.py")), ids=lambda script: script.name)
def test_a_benchmark_is_no_test(script):
    """None of the scripts is collected, and each is described in the docs by its command."""
    assert not script.name.startswith("test_")
    pages = (BENCHMARKS.parents[1] / "docs").rglob("*.md")
    assert any(f"python tests/benchmarks/{script.name}" in page.read_text(encoding="utf-8") for page in pages)
