"""The live view: what stands on a terminal while a training runs on it, whoever else writes there, and afterwards."""

import contextlib
import gc
import os
import re
import signal
import subprocess
import sys
import termios
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import toy
from oracle import one_thread  # noqa: F401  a fixture
from torch.utils._python_dispatch import TorchDispatchMode

from trackmetrics import Tracker, tracked_training, tracker
from trackmetrics.errors import PathInUseError
from trackmetrics.live.progress import Progress

pytest.importorskip("pyte")
terminals = pytest.importorskip("terminals")  # needs pty: no Windows

pytestmark = pytest.mark.filterwarnings("ignore::trackmetrics.TrackmetricsWarning")

FILE = Path("output/t_training_metrics.json")
HEADING = "epoch        loss  train acc.    dev acc.  grad. norm       elapsed"


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 24 rows of 80 letters; this process's standard output and error are on it (see conftest)."""
    for name in terminals.OTHERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in terminals.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    made = terminals.Terminal()
    yield made
    made.close()


def epochs(number, clock, after_step=lambda epoch, step: None, seconds=0.1, loader=None, net=None, run=tracker):
    """A training of six steps an epoch, each taking so long by the clock."""
    net = toy.model() if net is None else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for epoch in range(1, number + 1):
        with run.epoch():
            for step, (features, classes) in enumerate(loader or toy.loader(48), 1):
                optimizer.zero_grad()
                F.cross_entropy(net(features), classes).backward()
                optimizer.step()
                clock.advance(seconds)
                after_step(epoch, step)
    return net


@tracked_training("t")
def train_and_track(num_epochs, clock, train, dev, after_step):
    return epochs(num_epochs, clock, after_step, loader=train)


def trained(clock, number=3, after_step=lambda epoch, step: None):
    return train_and_track(number, clock, toy.loader(48), toy.loader(8, seed=1), after_step)


# What is shown


def test_a_row_stays_for_each_epoch_under_one_heading(terminal, clock):
    """The whole screen of a run, its end included: a heading, a row an epoch, the final results, the file."""
    trained(clock)
    assert terminal.look() == [
        HEADING,
        "    1      1.7405      0.5000      0.6250      0.8095         0.6 s",
        "    2      1.4237      0.4792      0.6250      0.7608         1.2 s",
        "    3      1.1480      0.5208      0.7500      0.7015         1.8 s",
        "final                  0.5833      0.7500                     1.8 s",
        *wrapped(f"metrics in {FILE.absolute()}", 80),
    ]
    assert terminal.scrolls_whole


def wrapped(text, width):
    return [text[start : start + width] for start in range(0, len(text), width)]


def test_the_live_line_follows_the_epoch(terminal, clock):
    """Steps, rate, loss and norm; from the second epoch on a bar, by the steps of the first, and the time left."""
    seen = []
    trained(clock, 3, lambda epoch, step: seen.append(terminal.last_row))
    lines = list(dict.fromkeys(re.sub(r"loss .* norm \S+", "loss L  norm N", line) for line in seen))
    assert lines == [
        "epoch 1/3  step 0",
        "epoch 1/3  step 3  10/s  loss L  norm N",
        f"epoch 2/3  {'─' * 30}  step 0/~6  0:01 left",
        "epoch 2/3  ━━━━━━━───────  step 3/~6  10/s  loss L  norm N  0:01 left",
        f"epoch 3/3  {'─' * 30}  step 0/~6  0:01 left",
        "epoch 3/3  ━━━━━━━───────  step 3/~6  10/s  loss L  norm N  0:00 left",
    ]


def test_loss_and_norm_are_those_of_the_epoch_so_far(terminal, clock):
    """At each step the mean over the steps that are complete, as it would be written of an epoch that ended there."""
    losses, norms, seen = [], [], []
    net = toy.model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Tracker("t", dev=[], train=[]) as run, run.epoch():
        for features, classes in toy.loader(400, batch_size=1):
            loss = F.cross_entropy(net(features), classes)
            optimizer.zero_grad()
            clock.advance(1 if len(losses) % 37 == 5 else 0)
            loss.backward()
            line = terminal.last_row
            if len(losses) % 37 == 5:
                seen.append(line)
                assert f"step {len(losses)} " in line
                assert f"loss {sum(losses) / len(losses):.4f}  norm {sum(norms) / len(norms):.4f}" in line
            losses.append(loss.item())
            norms.append(float(torch.cat([item.grad.flatten() for item in net.parameters()]).norm()))
            optimizer.step()
    assert len(seen) == 11


def test_a_training_without_a_known_number_of_epochs(terminal, clock):
    """Then the time left is the epoch's."""
    with Tracker("t", dev=[], train=[]):
        net, seen = toy.model(), []
        epochs(2, clock, lambda epoch, step: seen.append(terminal.last_row), net=net)
    assert seen[5].startswith("epoch 1  step 3  10/s  loss ")
    assert re.match(r"epoch 2  ━+─+  step 3/~6  10/s  loss .*  0:00 left", seen[-1])


def test_counted_records_are_as_long_as_they_are_asked_to_be(terminal, clock):
    """`epochs(every=4)`: the bar is over four steps, known from the start, and an argument of epochs counts others."""
    seen = []
    net = toy.model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Tracker("t", dev=[], train=[], hyperparameters={"num_epochs": 2}) as run, run.epochs(every=4):
        for features, classes in toy.loader(80):
            optimizer.zero_grad()
            F.cross_entropy(net(features), classes).backward()
            optimizer.step()
            clock.advance(0.25)
            seen.append(terminal.last_row)
    assert re.match(r"epoch 1  ━+─+  step 2/4  4.0/s  loss", seen[2])
    assert re.match(r"epoch 2  ━+─+  step 2/4  4.0/s  loss", seen[6])


# Whoever else writes to the terminal


def test_prints_come_out_whole_above_the_live_line(terminal, clock):
    """To standard output and error, from another process, long and short, in pieces: each as it was written.

    Of a screen of 24 rows many times as much is written, and what was scrolled off can be scrolled back to.
    """
    said = []

    def say(epoch, step):
        for part in range(3):
            said.append(f"epoch {epoch} step {step} part {part} " + "x" * (37 * part))
            print(said[-1], file=(sys.stdout, sys.stderr, sys.stdout)[part])
        subprocess.run(["echo", "a process of its own"], stdout=terminal.slave, check=True)
        print("in ", end="", flush=True)
        os.write(terminal.slave, b"pieces")
        print()
        said.extend(["a process of its own", "in pieces"])
        assert terminal.last_row.startswith(f"epoch {epoch}/3 ")

    trained(clock, 3, say)
    rows = terminal.all_rows
    table = [row for row in rows if re.match(r"epoch {8}| +[123]  |final|metrics", row)]
    assert len(table) == 6
    expected = [piece.rstrip() for line in said for piece in wrapped(line, 80)]
    told = [row for row in rows if row not in table]
    assert told[: len(expected)] == expected


def test_a_line_in_pieces_stays_whole_around_an_epochs_row(terminal, clock):
    """What was begun before an epoch's row is ended after it, in its own line below."""

    def dots(epoch, step):
        os.write(terminal.slave, b".")

    trained(clock, 2, dots)
    rows = terminal.look()
    assert rows[0] == HEADING
    assert [row.split()[0] for row in rows[1:4]] == ["1", "2", "final"]
    assert rows[-1] == "." * 12


@pytest.mark.parametrize("where", ["around the epochs", "around the steps", "around both"])
def test_bars_of_tqdm_stay_whole(terminal, clock, where):
    """The user's own bars, redrawn at each step: at the end each stands full in a line of its own, in tqdm's order."""
    from tqdm import tqdm

    settings = {"file": terminal.stream, "mininterval": 0, "miniters": 1, "ascii": True, "ncols": 60}
    net = toy.model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    numbers = range(3)
    with Tracker("t", dev=toy.loader(8, seed=1), train=[]) as run:
        for _ in numbers if where == "around the steps" else tqdm(numbers, desc="epochs", **settings):
            with run.epoch():
                batches = toy.loader(48)
                for features, classes in (
                    batches if where == "around the epochs" else tqdm(batches, desc="steps", **settings)
                ):
                    optimizer.zero_grad()
                    F.cross_entropy(net(features), classes).backward()
                    optimizer.step()
                    clock.advance(0.25)
                    assert terminal.last_row.startswith("epoch ")
    rows = terminal.all_rows
    bars = [row for row in rows if "%|" in row]
    table = [row for row in rows if "%|" not in row and row]
    assert table[0] == HEADING
    assert [row.split()[0] for row in table[1:4]] == ["1", "2", "3"]
    whole = re.compile(r"(epochs|steps): 100%\|#+\| (3/3|6/6) \[.*\]")
    assert all(whole.fullmatch(bar) for bar in bars)
    assert len(bars) == {"around the epochs": 1, "around the steps": 3, "around both": 4}[where]


def test_a_second_run_leaves_the_live_line_to_the_first(terminal, clock):
    """Of runs on one terminal one has its last row; the next has it when that one is done."""
    first, second = (Progress("auto", lambda: clock.seconds, terminal.stream) for _ in range(2))
    first.epoch_begins(1, None)
    second.epoch_begins(8, None)
    first.draw(0, dict)
    second.draw(0, dict)
    assert terminal.last_row == "epoch 1  step 0"
    first.close()
    assert terminal.last_row == ""
    second.draw(0, dict)
    assert terminal.last_row == "epoch 8  step 0"
    second.close()
    assert terminal.scrolls_whole


def test_a_forked_process_draws_nothing(terminal, clock):
    """A worker has a copy of everything, and the terminal is the parent's."""
    progress = Progress("auto", lambda: clock.seconds, terminal.stream)
    progress.epoch_begins(1, None)
    progress.draw(0, dict)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if child == 0:
        progress.draw(5, dict)
        progress.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert terminal.last_row == "epoch 1  step 0"
    assert not terminal.scrolls_whole
    progress.close()


# Terminals of all kinds


@pytest.mark.parametrize("size", [(80, 40), (80, 12), (120, 24), (50, 24), (50, 40)])
def test_a_terminal_that_changes_its_size(terminal, clock, size):
    """From the next drawing on the live line is in the new last row, and what is printed comes out whole."""
    said = []

    def say(epoch, step):
        if (epoch, step) == (2, 1):
            terminal.resize(*size)
        elif (epoch, step) != (2, 2):
            said.append(f"epoch {epoch} step {step}")
            print(said[-1])
        if (epoch, step) > (2, 4):
            assert terminal.last_row.startswith(f"epoch {epoch}/3 "), terminal.look()

    trained(clock, 3, say)
    shown = [row for row in terminal.all_rows if re.fullmatch(r"epoch \d step \d", row)]
    if size[1] < 24:  # what the emulator cuts off at the top when it shrinks isn't kept
        said = said[-len(shown) :]
        assert len(shown) > 8
    assert shown == said
    assert not any(re.match(r"epoch \d/3", row) for row in terminal.all_rows)  # where the last row was before
    assert terminal.scrolls_whole


def test_a_narrow_terminal_has_less(terminal, clock):
    """Twenty letters: the columns and parts that have room, none cut in two."""
    terminal.resize(20, 24)
    seen = []
    trained(clock, 2, lambda epoch, step: seen.append(terminal.last_row))
    assert set(seen) == {"epoch 1/2  step 0", "epoch 1/2  step 3", "epoch 2/2"}
    assert terminal.look()[:4] == ["epoch        loss", "    1      1.7405", "    2      1.4237", "final"]


@pytest.mark.parametrize("lines", [0, 3])
def test_a_terminal_of_no_height_has_rows_alone(terminal, clock, lines):
    """Three rows are too few to take one of them; a terminal that doesn't say its size has none to take."""
    terminal.resize(80, max(lines, 1))
    terminal._set_size(80, lines)
    trained(clock)
    assert b"r" not in re.sub(rb"[^\x1b]*(\x1b\[?[\d;]*[A-Za-z78])?", rb"\1", terminal.written).split(b"\x1b[")
    assert terminal.scrolls_whole
    assert terminal.written.count(b"final") == 1
    assert b"step" not in terminal.written


@pytest.mark.parametrize("set_to", ["", "1"])
def test_no_color(terminal, clock, monkeypatch, set_to):
    """`NO_COLOR=1`: no colour, no bold, none of it dim; otherwise there is some."""
    monkeypatch.setenv("NO_COLOR", set_to)
    trained(clock, 2)
    terminal.look()
    assert bool(re.search(rb"\x1b\[[1-9][0-9]*m", terminal.written)) == (not set_to)


@pytest.mark.parametrize(
    ("name", "value"), [("TERM", "dumb"), ("TERM", ""), ("JPY_PARENT_PID", "7")], ids=lambda item: item or "empty"
)
def test_a_terminal_that_moves_no_cursor_has_plain_lines(terminal, clock, monkeypatch, name, value):
    """`TERM=dumb` or none, and a shell command of a notebook: a line an epoch as anywhere else, and nothing to obey."""
    monkeypatch.setenv(name, value)
    trained(clock, 2)
    rows = terminal.look()
    assert rows[0] == "epoch   1  loss 1.7405  train accuracy 0.5000  dev accuracy 0.6250  gradient nor"
    assert b"\x1b" not in terminal.written


@pytest.mark.parametrize(("name", "value"), [("LANG", "C"), ("LC_ALL", "POSIX"), ("LANG", "de_DE.ISO-8859-1")])
def test_a_terminal_without_unicode(terminal, clock, monkeypatch, name, value):
    """Another locale than a UTF-8 one, whatever Python makes of it: nothing but ASCII, bar included."""
    monkeypatch.setenv(name, value)
    seen = []
    trained(clock, 2, lambda epoch, step: seen.append(terminal.last_row))
    assert seen[-1].startswith("epoch 2/2  #######-------  step 3/~6")
    assert terminal.written.isascii()


def test_a_terminal_that_is_stopped_holds_nothing_up(terminal, clock):
    """Ctrl+S: the training goes on, and with Ctrl+Q the rows of the epochs meanwhile come, each once."""

    def stop(epoch, step):
        if (epoch, step) == (2, 1):
            termios.tcflow(terminal.slave, termios.TCOOFF)
        if (epoch, step) == (10, 1):
            termios.tcflow(terminal.slave, termios.TCOON)

    trained(clock, 12, stop)
    assert [row.split()[0] for row in terminal.all_rows if re.match(" +[0-9]", row)] == [str(i) for i in range(1, 13)]
    assert terminal.scrolls_whole


def test_a_terminal_that_nobody_reads_holds_nothing_up(terminal, clock):
    """Its buffer is full: the run ends, and all of it is in the file."""
    fill(terminal)
    trained(clock, 4)
    terminal.look()
    assert len(re.findall('"train_loss"', FILE.read_text())) == 4
    assert set(terminal.all_rows) - {"full", "f", "fu", "ful", ""} == set()


def fill(terminal):
    """Write until nothing more is taken: the kernel makes room for a while yet, moving what it has on to the reader."""
    writing = os.open(os.ttyname(terminal.slave), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    full_since = None
    while full_since is None or time.monotonic() - full_since < 1:
        try:
            os.write(writing, b"full\r\n" * 100)
            full_since = None
        except BlockingIOError:
            full_since = full_since or time.monotonic()
            time.sleep(0.01)
    os.close(writing)


def test_a_terminal_that_is_gone_stops_nothing(terminal, clock):
    """Its window was closed, and the process goes on without it."""
    trained(clock, 4, lambda epoch, step: os.close(terminal.master) if (epoch, step) == (2, 3) else None)
    assert len(Path(FILE).read_text().split('"train_loss"')) == 5


# Where nothing is shown


@pytest.mark.parametrize("why", ["progress=False", "RANK=1", "second of a process group", "TRACKMETRICS_DISABLED"])
@pytest.mark.parametrize("form", ["a terminal", "lines"])
def test_not_a_byte_where_nothing_is_wanted(terminal, clock, monkeypatch, why, form, capfd):
    """`progress=False`; a process that isn't the first of those that train together; all turned off."""
    settings = {"progress": False if why == "progress=False" else "auto" if form == "a terminal" else True}
    if form == "lines":
        monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    if why == "RANK=1":
        monkeypatch.setenv("RANK", "1")
    if why == "TRACKMETRICS_DISABLED":
        monkeypatch.setenv("TRACKMETRICS_DISABLED", "1")
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(Tracker("t", dev=[], train=[], **settings))
        if why == "second of a process group":
            from torch.testing._internal.distributed.fake_pg import FakeStore

            torch.distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
            stack.callback(torch.distributed.destroy_process_group)
        epochs(2, clock, loader=run.progress(toy.loader(48)), run=run)
    assert terminal.look() == []
    assert terminal.written == b""
    assert capfd.readouterr() == ("", "")


def test_the_first_process_of_a_group_shows_the_run(terminal, clock, monkeypatch):
    """`RANK=0`, and of a process group what it says itself."""
    monkeypatch.setenv("RANK", "0")
    trained(clock, 1)
    assert terminal.look()[0] == HEADING


# What it costs, and leaves alone


def test_it_is_drawn_four_times_a_second_and_its_figures_once(terminal, clock, monkeypatch):
    """However many steps there are: at every other one the clock is read, once, and that is all."""
    read, drawn, asked = [], [], []

    def seconds():
        read.append(clock.seconds)
        return clock.seconds

    progress = Progress("auto", seconds, terminal.stream)
    progress.epoch_begins(1, None)
    monkeypatch.setattr(type(progress._view), "draw", lambda view, status: drawn.append(status.loss))
    began = len(read)
    for _ in range(3000):
        clock.advance(0.001)
        if progress.due():
            progress.draw(7, lambda: asked.append(clock.seconds) or {"loss": float(len(asked))})
    progress.close()
    assert len(drawn) == 12
    assert len(asked) == 3
    assert drawn == [1.0] * 4 + [2.0] * 4 + [3.0] * 4
    assert len(read) - began <= 3000 + 12 * 4


class Fetches(TorchDispatchMode):
    """Counts what waits for a device: numbers that are asked for."""

    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        if name in ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select"):
            self.counted[name] += 1
        return operation(*args, **(kwargs or {}))


def test_a_drawn_step_asks_the_device_for_nothing(terminal, clock):
    """The same training, silent and with every step drawn: as many numbers are asked for, whichever those are."""
    counted = []
    for progress in ("auto", False):
        net, fetches = toy.model(), Fetches()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with Tracker("t", dev=[], train=[], progress=progress) as run, run.epoch(), fetches:
            for features, classes in toy.loader(80):
                optimizer.zero_grad()
                F.cross_entropy(net(features), classes).backward()
                optimizer.step()
                clock.advance(2)
        counted.append(fetches.counted)
        terminal.look()
        assert terminal.written.count(b"loss ") >= 8
    assert counted[0] == counted[1]


def file_of(clock, net, progress, loss=F.cross_entropy, batch_size=8):
    """The bytes of the file of a run in which time flies: each step is drawn."""
    moment, torch_state = (clock.seconds, clock.date), torch.get_rng_state()
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    batches = toy.loader(batch_size * 20, batch_size=batch_size, shuffle=True)
    with Tracker("t", dev=toy.loader(8), train=toy.loader(8), progress=progress) as run:
        for _ in range(2):
            with run.epoch():
                for features, classes in run.progress(batches):
                    optimizer.zero_grad()
                    loss(net(features), classes).backward()
                    optimizer.step()
                    clock.advance(0.3)
    clock.seconds, clock.date = moment
    drawn = torch.rand(3)
    torch.set_rng_state(torch_state)
    return FILE.read_bytes(), run.record.epochs, [item.detach().clone() for item in net.parameters()], drawn


@pytest.mark.parametrize("batch_size", [1, 7, 300])
@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        lambda scores, classes: F.cross_entropy(scores, classes, reduction="sum"),
        lambda scores, classes: F.cross_entropy(scores, classes, reduction="none").mean(),
        lambda scores, classes: F.mse_loss(scores[:, 0], classes.float()) + F.cross_entropy(scores, classes),
        lambda scores, classes: scores.square().mean(),
    ],
    ids=["mean", "sum", "unreduced", "two", "no criterion"],
)
def test_the_file_is_the_same_with_and_without(terminal, clock, loss, batch_size):
    """Byte by byte, in full precision too, with every step drawn; and torch's stream goes on with the same numbers."""
    shown = file_of(clock, toy.model(), "auto", loss, batch_size)
    terminal.look()
    assert terminal.written.count(b"batch") >= 20
    silent = file_of(clock, toy.model(), False, loss, batch_size)
    assert shown[:2] == silent[:2]
    assert all(map(torch.equal, shown[2], silent[2]))
    assert torch.equal(shown[3], silent[3])


def test_nothing_is_left_behind(terminal, clock):
    """The streams are those that were, no file is open that wasn't, and no handler or thread is there."""

    def held():
        gc.collect()
        return (
            len(os.listdir("/proc/self/fd")), sys.stdout, sys.stderr, sys.excepthook, sys.displayhook,
            signal.getsignal(signal.SIGWINCH), signal.getsignal(signal.SIGINT), termios.tcgetattr(terminal.slave),
        )  # fmt: skip

    before = held()
    inside = []
    trained(clock, 2, lambda *_: inside.append(held()[1:]))
    assert held() == before
    assert all(item == before[1:] for item in inside)


@pytest.mark.parametrize("error", [ArithmeticError, KeyboardInterrupt, SystemExit])
def test_a_run_that_fails_gives_the_terminal_back(terminal, clock, error):
    """At once, so that whatever is said of the error begins in a line of its own, with nothing below."""

    def fail(epoch, step):
        if (epoch, step) == (2, 4):
            raise error

    with pytest.raises(error):
        trained(clock, 3, fail)
    assert terminal.scrolls_whole
    assert terminal.last_row == ""
    print("Traceback")
    assert [row.split()[0] for row in terminal.look()] == ["epoch", "1", "Traceback"]


def test_a_run_that_cannot_begin_holds_no_terminal(terminal):
    """Its file is another run's: nothing is open that wasn't."""
    with Tracker("t", train=[], dev=[]):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(PathInUseError), Tracker("t"):
            pass
        assert len(os.listdir("/proc/self/fd")) == before


# In a process of its own

SCRIPT = """
import sys, time, torch, warnings
from torch import nn
from trackmetrics import Tracker
torch.set_num_threads(1)
warnings.simplefilter("ignore")
net = nn.Linear(4, 2)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
def steps(number):
    for _ in range(number):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(torch.ones(2, 4)), torch.tensor([0, 1])).backward()
        optimizer.step()
def train(run):
    with run.epoch():
        steps(2)
    with run.epoch():
        print("a line of the user's")
        time.sleep(0.3)
        steps(2)
        pause("training")
        while os.environ["END"] != "left open":
            steps(1)
        os.environ["END"] = ""
        sys.exit()
run = Tracker("t", dev=[], train=[])
if os.environ["END"] == "left open":
    run.__enter__()
    train(run)
with run:
    train(run)
"""


@pytest.mark.parametrize("end", ["Ctrl+C", "SIGTERM", "left open"])
def test_a_process_that_is_ended_leaves_a_sane_terminal(terminal, end):
    """All rows scroll, the live line is gone, the cursor is there at the beginning of a line, below the traceback."""
    process = terminals.Process(terminal, SCRIPT, END=end)
    try:
        process.until("training")
        assert terminal.last_row.startswith("epoch 2")
        process.go()
        if end == "Ctrl+C":
            process.press(b"\x03")
        elif end == "SIGTERM":
            process.kill(signal.SIGTERM)
        status = process.ended()
        assert status == {"Ctrl+C": -signal.SIGINT, "SIGTERM": -signal.SIGTERM, "left open": 0}[end]
        rows = [*terminal.all_rows, *filter(None, [terminal.last_row])]
        assert rows[0] == HEADING
        assert "a line of the user's" in rows
        assert terminal.scrolls_whole
        assert not any("step" in row and "loss" in row for row in rows)
        assert not terminal.screen.cursor.hidden
        assert terminal.screen.cursor.x == 0
        if end == "Ctrl+C":
            assert "^CTraceback (most recent call last):" in rows
            assert rows[-1] == "KeyboardInterrupt"
    finally:
        process.close()


def test_in_the_background_there_is_no_live_line(terminal):
    """A shell's prompt is the user's: rows come above it, and the last row stays the shell's."""
    script = """
os.write(1, b"$ ls my-fol")
if os.fork():
    pause("shell")
    os._exit(0)
os.setpgid(0, 0)
""" + SCRIPT.replace("print(", "print and (")
    process = terminals.Process(terminal, script, END="")
    try:
        assert {process.until_any(), process.until_any()} == {"shell", "training"}
        rows = terminal.look()
        assert rows[0] == HEADING
        assert rows[1].startswith("    1 ")
        assert rows[2:] == ["$ ls my-fol"]
        assert terminal.scrolls_whole
    finally:
        process.close()
