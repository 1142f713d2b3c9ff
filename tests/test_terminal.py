"""Runs as the terminal shows them: golden outputs, and no record that breaks a view."""

import dataclasses
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
from a_run_to_look_at import a_run
from any_record import records
from hypothesis import given, settings
from rich.console import Console

from trackmetrics import terminal
from trackmetrics.record import EpochRecord, FinalInference, Hyperparameters
from trackmetrics.run_files import RunFile
from trackmetrics.run_state import RunState, state_of


def drawn(view, width=100, *, colours=False):
    """The text of a view, without the blanks at its lines' ends."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colours, color_system="standard" if colours else None)
    console.print(view)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def a_file(path="output/counting_training_metrics.json", **settings):
    run = a_run(**settings)
    return RunFile(Path(path), run, state_of(run, path))


def shown(item, rows=24, width=100, **how):
    return drawn(terminal.shown_run(item, rows, width), width, **how)


def test_a_run_is_shown():
    """All that there is of it; each figure is the record's, rounded."""
    assert (
        shown(a_file())
        == """\
counting  completed
file    output/counting_training_metrics.json
began   2026-01-30 22:08:22 UTC
device  cpu, Abacus, torch 2.13.0, python 3.11.7
steps   30, 2 with a gradient that isn't finite

hyperparameters
  model                    training
  class   Transformer      learning_rate  0.1
  layers  2                adam.eps       0

epochs
  epoch    loss  train acc.  dev acc.  grad. norm  perplexity  elapsed
      1  0.8000      0.1250    0.2500      2.0000      1.7411    1.5 s
      2  0.4000      0.2500    0.3750      1.0000      1.3195    3.0 s
      3  0.2000      0.3750    0.5000      0.6667      1.1487    4.5 s
  trend     █▃▁         ▁▅█       ▁▅█         █▃▁         █▃▁

final results
  train accuracy  0.5000
  dev accuracy    0.6250
  time            4.5 s

first dev example
  input      a  b  c  a
  predicted  0  1? 2  0
  ? another class is at least half as probable
  attention  2 layers, 4 by 4

warnings
  • seed: nothing seeded torch
"""
    )


def test_a_run_that_goes_on_is_shown_as_far_as_it_is():
    """Neither results nor example; its process; a file without extensions and without epochs, too."""
    text = shown(a_file(state="running", process=7, host="elsewhere"))
    assert text.startswith("counting  running (process 7 on elsewhere, which can't be looked at from here)\n")
    assert "epochs\n" in text
    assert "final results" not in text
    assert "first dev example" not in text
    bare = dataclasses.replace(a_run(losses=(), state="running"), extensions=None)
    bare = dataclasses.replace(bare, metadata=dataclasses.replace(bare.metadata, hyperparameters=Hyperparameters()))
    assert shown(RunFile(Path("a.json"), bare, RunState("unknown"))) == (
        "counting  unknown\nfile    a.json\nbegan   2026-01-30 22:08:22 UTC\ndevice  cpu\n"
    )


def test_the_best_of_each_metric_stands_out():
    """In green: the least loss, the highest accuracy; nothing of the gradient norm."""
    lines = shown(a_file(losses=(0.8, 0.2, 0.4)), colours=True).splitlines()
    green = {number: re.findall("\x1b\\[1;32m *([0-9.]+)\x1b", line) for number, line in enumerate(lines)}
    assert [found for found in green.values() if found] == [["0.2000", "1.1487"], ["0.3750", "0.5000"]]


@pytest.mark.parametrize(("rows", "numbers"), [(0, range(1, 41)), (40, range(1, 41)), (8, [1, 2, *range(35, 41)])])
def test_of_many_epochs_the_first_and_the_last_are_shown(rows, numbers):
    """As many rows as asked for, a quarter of them from the beginning; where some are left out is marked."""
    table = drawn(terminal.epochs_table(a_run(losses=[1.0] * 40), rows, 120)).splitlines()
    cells = [line.split()[0] for line in table[1:-1]]
    gap = ["⋮"] if len(list(numbers)) < 40 else []
    numbers = [str(number) for number in numbers]
    assert cells == [*numbers[: rows // 4], *gap, *numbers[rows // 4 :]] if gap else numbers


def test_words_stand_under_each_other():
    """Tokens that are longer than two letters take a line each, with the probability."""
    run = dataclasses.replace(
        a_run(), final_inference=FinalInference("the cat", np.log([[0.75, 0.25], [0.4, 0.6]]))
    )  # fmt: skip
    text = shown(RunFile(Path("a.json"), run, RunState("completed")))
    assert text.partition("first dev example\n")[2].startswith(
        "  input  the cat\n"
        "  token  predicted  probability\n"
        "  the            0       0.7500\n"
        "  cat           1?       0.6000\n"
        "  attention  none\n"
    )


def test_many_tokens_are_wrapped_and_many_words_are_cut():
    """Strips as wide as the terminal; thirty words, and how many more there are."""
    rows = np.log(np.full((50, 2), [0.75, 0.25]))
    letters = dataclasses.replace(a_run(), final_inference=FinalInference("ab" * 25, rows))
    text = shown(RunFile(Path("a.json"), letters, RunState("completed")), width=60)
    assert [line.split()[1:] for line in text.splitlines() if line.startswith("  input")] == [
        ["a", "b"] * 7 + ["a"], ["b", "a"] * 7 + ["b"], ["a", "b"] * 7 + ["a"], ["b", "a", "b", "a", "b"],
    ]  # fmt: skip
    words = dataclasses.replace(a_run(), final_inference=FinalInference("word " * 50, rows))
    text = shown(RunFile(Path("a.json"), words, RunState("completed")))
    assert text.count("\n  word ") == 30
    assert "\n  20 more\n" in text


def test_runs_are_compared():
    """Side by side: what differs, best and last with their epochs, the time; a dash where there is none."""
    runs = [("a", a_file()), ("slow/b", a_file(losses=(0.9, 0.7), learning_rate=0.01, state="failed"))]
    assert (
        drawn(terminal.compared_runs(runs, 120))
        == """\
                                            a            slow/b
state                               completed            failed
epochs                                      3                 2

hyperparameters that differ
training.learning_rate                    0.1              0.01

train_loss
best                         0.2000 (epoch 3)  0.7000 (epoch 2)
last                         0.2000 (epoch 3)  0.7000 (epoch 2)

train_accuracy
best                         0.3750 (epoch 3)  0.2500 (epoch 2)
last                         0.3750 (epoch 3)  0.2500 (epoch 2)

dev_accuracy
best                         0.5000 (epoch 3)  0.3750 (epoch 2)
last                         0.5000 (epoch 3)  0.3750 (epoch 2)

gradient_norm
last                         0.6667 (epoch 3)  1.0000 (epoch 2)

perplexity
best                         1.1487 (epoch 3)  1.6245 (epoch 2)
last                         1.1487 (epoch 3)  1.6245 (epoch 2)

time                                    4.5 s             3.0 s
"""
    )


def test_the_best_of_all_runs_stands_out():
    """Of two runs the better one's; of one run nothing, and of equals both."""
    good, bad = a_file(), a_file(losses=(0.9, 0.7))
    green = re.compile("\x1b\\[1;32m([^\x1b]+)")

    def standing_out(*runs, width=100):
        return green.findall(drawn(terminal.compared_runs(list(zip("ab", runs)), width), colours=True))

    assert standing_out(bad, good)[0].startswith("0.2000")
    assert standing_out(good) == []
    assert len(standing_out(good, good)) == 8
    assert standing_out(bad, good, width=40) == standing_out(bad, good)  # which stand below each other


def test_runs_that_have_no_room_beside_the_others_stand_below():
    """Each in one of the tables, none cut, with all rows; a name that is too long for any is folded."""
    names = [f"run-{number}" for number in range(12)]
    text = drawn(terminal.compared_runs([(name, a_file()) for name in names], 80), width=80)
    headings = [line.split() for line in text.splitlines() if "run-" in line]
    assert headings == [["run-0", "run-1", "run-2"], ["run-3", "run-4", "run-5"], ["run-6", "run-7", "run-8"],
                        ["run-9", "run-10", "run-11"]]  # fmt: skip
    assert text.count("0.2000 (epoch 3)") == 2 * len(names)
    assert text.count("train_loss") == 4
    folded = drawn(terminal.compared_runs([("#" * 150, a_file()), ("b", a_file())], 80), width=80)
    assert folded.count("#") == 150


def test_runs_are_listed():
    """A row each; one that can't be read is said to be so; one without epochs has dashes."""
    items = [
        ("a", a_file()),
        ("b", a_file(losses=(math.nan,), state="interrupted")),
        ("c", "c.json is not a metrics file: not valid JSON"),
        ("d", a_file(losses=(), state="running")),
    ]
    assert (
        drawn(terminal.listed_runs(items), 160)
        == """\
file  state        began                                         epochs    loss  dev acc.   time
a     completed    2026-01-30 22:08:22                                3  0.2000    0.5000  4.5 s
b     interrupted  2026-01-30 22:08:22                                1     nan    0.2500  1.5 s
c     unreadable   c.json is not a metrics file: not valid JSON
d     running      2026-01-30 22:08:22                                0       -         -      -
"""
    )


def test_runs_that_are_followed_fit_the_terminal():
    """Two runs on twenty lines, and one that isn't there yet."""
    found = {Path("a.json"): a_file(losses=[1.0] * 40), Path("b.json"): a_file(), Path("c.json"): None}
    lines = drawn(terminal.followed_runs(found, 100, 30)).splitlines()
    assert len(lines) <= 30
    assert [line.split()[0] for line in lines] == [
        *("counting", "epoch", "1", "⋮", "37", "38", "39", "40", "trend"),
        *("counting", "epoch", "1", "2", "3", "trend"),
        "waiting",
    ]
    assert lines[-1] == "waiting for c.json"


def test_texts_from_the_file_stay_texts():
    """Neither rich's markup nor the terminal's escape sequences in any of them are obeyed."""
    evil = "[bold red]x[/]\x1b[2J:smile:"
    run = a_run(task=evil, state="failed", error={"type": evil, "message": evil})
    run = dataclasses.replace(
        run,
        metadata=dataclasses.replace(
            run.metadata, timestamp=evil, device=evil, hyperparameters=Hyperparameters({evil: evil}, {evil: [evil]})
        ),
        epochs=(EpochRecord(1, metrics={evil: 1.0}),),
        final_inference=FinalInference(evil, np.zeros((1, 2))),
        extensions={**run.extensions, "warnings": [evil], "environment": {"torch": evil}},
    )
    item = RunFile(Path(evil), run, state_of(run, evil))
    for view in (
        terminal.shown_run(item, 0, 200), terminal.compared_runs([(evil, item), ("b", a_file())], 120),
        terminal.listed_runs([(evil, item), (evil, evil)]),
        terminal.followed_runs({Path("a"): item, Path(evil): None}, 200, 40),
    ):  # fmt: skip
        text = drawn(view, 200, colours=True)
        assert "[bold red]x[/]\\x1b[2J:smile:" in re.sub("\x1b\\[[0-9;]*m", "", text)
        assert "\x1b[2J" not in text


@settings(deadline=None, max_examples=200)
@given(records)
def test_any_record_can_be_shown(record):
    """Whatever stands in a file that loads."""
    item = RunFile(Path("a.json"), record, state_of(record, "a.json"))
    for view in (
        terminal.shown_run(item, 3, 80), terminal.compared_runs([("a", item), ("b", a_file())], 120),
        terminal.listed_runs([("a", item)]), terminal.followed_runs({Path("a"): item}, 80, 10),
    ):  # fmt: skip
        assert drawn(view, 80)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_number_is_never_cut(width):
    """Metrics that have no room beside the others stand below them, each column whole."""
    logged = {f"a_rather_long_name_{index}": 3.1234e-05 * 10**-index for index in range(8)}
    run = dataclasses.replace(a_run(), epochs=tuple(dataclasses.replace(e, metrics=logged) for e in a_run().epochs))
    text = drawn(terminal.epochs_table(run, 0, width), width)
    assert "…" not in text
    for name, value in logged.items():
        assert name in text
        assert text.count(f"{value:.4g}") == 3
    assert max(map(len, text.splitlines())) <= width


def test_the_best_epochs_are_among_those_shown():
    """The least loss of forty epochs stands in the midst, between two gaps."""
    losses = [1.0] * 40
    losses[20] = 0.25
    table = drawn(terminal.epochs_table(a_run(losses=losses), 8, 100), 100).splitlines()
    assert [line.split()[0] for line in table[1:-1]] == ["1", "2", "⋮", "21", "⋮", *map(str, range(35, 41))]
