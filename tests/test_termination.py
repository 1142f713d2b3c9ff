"""However a run is ended, its whole epochs are on the disk with the reason, and the process ends as it would have.

Real processes and real signals.
"""

import os
import signal
import subprocess
import sys

import pytest
from processes import ended, run, running, wait_for
from strict_json import strict_loads

from trackmetrics.termination import told_of_termination
from trackmetrics.validation import validate

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them"),
]

FILE = "output/t_training_metrics.json"
MESSAGE = "the process was told to end by {}"


def written(path=FILE):
    """The file as it stands: its state, its error, the number of its epochs."""
    with open(path, "rb") as file:
        plain = strict_loads(file.read())
    status = plain["extensions"]["status"]
    assert plain["final_results"] is None
    return status["state"], status.get("error"), len(plain["epochs"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_process_is_in_the_file(number):
    """SIGTERM and SIGHUP: the whole epochs, `interrupted` with the signal's name; the process ends by that signal."""
    with running("train()") as process:
        wait_for(process, "epoch 3")
        process.send_signal(number)
        status, errors = ended(process)
    assert status == -number
    state, error, epochs = written()
    assert (state, error) == ("interrupted", {"type": number.name, "message": MESSAGE.format(number.name)})
    assert epochs >= 3
    assert "Traceback" not in errors


def test_a_signal_before_the_first_epoch_changes_no_file():
    """Where nothing was tracked nothing is written; the earlier file stays."""
    os.mkdir("output")
    with open(FILE, "w") as file:
        file.write("the earlier run")
    with running("nn.functional.cross_entropy = lambda *_: time.sleep(60)\ntrain()") as process:
        wait_for(process, "begun")
        process.terminate()
        assert ended(process)[0] == -signal.SIGTERM
    with open(FILE) as file:
        assert file.read() == "the earlier run"


def test_control_c_is_an_interruption():
    """SIGINT is Python's KeyboardInterrupt: the file says so, and the exception goes on."""
    with running("train()") as process:
        wait_for(process, "epoch 2")
        process.send_signal(signal.SIGINT)
        status, errors = ended(process)
    assert status == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    state, error, epochs = written()
    assert (state, error["type"]) == ("interrupted", "KeyboardInterrupt")
    assert epochs >= 2


ENDINGS = """
def end():
    {ending}

say_ = say
def say(line):
    say_(line)
    if line == "epoch 2":
        end()

train()
"""


@pytest.mark.parametrize(
    ("ending", "status", "state", "error", "last_line"),
    [
        ("sys.exit(7)", 7, "interrupted", {"type": "SystemExit", "message": "7"}, ""),
        ("sys.exit('enough')", 1, "interrupted", {"type": "SystemExit", "message": "enough"}, "enough"),
        ("raise ValueError('bad')", 1, "failed", {"type": "ValueError", "message": "bad"}, "ValueError: bad"),
        ("raise MemoryError", 1, "failed", {"type": "MemoryError", "message": ""}, "MemoryError"),
        (
            "raise GeneratorExit('x')", 1, "interrupted", {"type": "GeneratorExit", "message": "x"}, "GeneratorExit: x",
        ),
    ],
)  # fmt: skip
def test_an_exception_goes_on_and_is_in_the_file(ending, status, state, error, last_line):
    """`sys.exit` and any exception: the exit status and the last line of the traceback are what they were."""
    found, errors = run(ENDINGS.format(ending=ending))
    assert found == status
    assert (errors.splitlines() or [""])[-1] == last_line
    assert written() == (state, error, 2)


def test_a_users_handler_is_theirs():
    """A handler that the user set is called, and ours isn't: theirs decides, here to end at the epoch's end."""
    found, errors = run("""
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
mine = signal.getsignal(signal.SIGTERM)
say_ = say
def say(line):
    say_(line)
    if line == "epoch 2":
        os.kill(os.getpid(), signal.SIGTERM)
    if stop:
        sys.exit(5)
try:
    train()
finally:
    assert signal.getsignal(signal.SIGTERM) is mine
""")
    assert found == 5, errors
    assert written() == ("interrupted", {"type": "SystemExit", "message": "5"}, 2)


def test_a_handler_that_the_user_sets_in_the_run_stays():
    """Set while a run lives, it is called, and isn't taken away at the run's end."""
    found, errors = run("""
def handler(*_):
    say("called")
with Tracker("t", progress=False):
    signal.signal(signal.SIGTERM, handler)
    os.kill(os.getpid(), signal.SIGTERM)
assert signal.getsignal(signal.SIGTERM) is handler
""")
    assert found == 0, errors


def test_an_ignored_signal_stays_ignored():
    """What `nohup` ignores goes on being ignored."""
    found, errors = run("""
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with Tracker("t", progress=False):
    os.kill(os.getpid(), signal.SIGHUP)
assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
""")
    assert found == 0, errors


def test_nested_runs_are_both_told():
    """A run in a run: each has its file say so, the handler is set once and gone after the last."""
    found, errors = run("""
with Tracker("u", progress=False) as outer:
    with outer.epoch() as epoch:
        epoch.log(train_loss=1.0)
    train(2)
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    train(2, task="v")
    say_ = say
    def say(line):
        say_(line)
        if line == "epoch 1":
            os.kill(os.getpid(), signal.SIGTERM)
    train()
""")
    assert found == -signal.SIGTERM, errors
    error = {"type": "SIGTERM", "message": MESSAGE.format("SIGTERM")}
    assert written() == ("interrupted", error, 1)
    assert written("output/u_training_metrics.json") == ("interrupted", error, 1)


def test_a_run_in_another_thread_is_told_by_one_in_the_main_thread():
    """Both write their files, one after the other; the process ends by the signal."""
    with running("""
thread = threading.Thread(target=train, kwargs={"task": "u"}, daemon=True)
with Tracker("t", progress=False) as run:
    with run.epoch() as epoch:
        epoch.log(train_loss=1.0)
    thread.start()
    thread.join()
""") as process:
        wait_for(process, "epoch 5")
        process.terminate()
        assert ended(process)[0] == -signal.SIGTERM
    error = {"type": "SIGTERM", "message": MESSAGE.format("SIGTERM")}
    assert written() == ("interrupted", error, 1)
    assert written("output/u_training_metrics.json")[:2] == ("interrupted", error)


def test_a_run_in_another_thread_alone_ends_as_without_us():
    """Python lets only its main thread handle signals: the file says `running`, and names a process that is dead."""
    with running("thread = threading.Thread(target=train)\nthread.start()\nthread.join()") as process:
        wait_for(process, "epoch 2")
        process.terminate()
        assert ended(process)[0] == -signal.SIGTERM
    assert written()[0] == "running"
    with open(FILE, "rb") as file:
        status = strict_loads(file.read())["extensions"]["status"]
    assert status["process"] == process.pid


def test_control_c_in_the_final_save_is_an_interruption():
    """Once, and once more while that is saved: whole epochs, `interrupted`, no results, and the file is valid."""
    for times in (1, 2):
        found, errors = run(f"""
left, fsync = {times}, os.fsync
def interrupted(descriptor):
    global left
    if done and left:
        left -= 1
        raise KeyboardInterrupt
    return fsync(descriptor)
os.fsync, done = interrupted, False
with Tracker("t", progress=False, train=[], dev=[]) as it:
    with it.epoch():
        pass
    done = True
""")
        assert found == -signal.SIGINT, errors
        state, error, epochs = written()
        assert (state, error["type"], epochs) == ("interrupted", "KeyboardInterrupt", 1)
        assert validate(FILE) == []


def test_control_c_while_a_run_is_entered_leaves_nothing():
    """Neither the lock nor a file nor a handler, while the exception still lives."""
    found, errors = run("""
opened = os.open
def interrupted(path, *args):
    if str(path).endswith(".tmp"):
        os.close(opened(path, *args))
        raise KeyboardInterrupt
    return opened(path, *args)
os.open = interrupted
try:
    Tracker("t").__enter__()
except KeyboardInterrupt as error:
    kept = error
os.open = opened
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
with Tracker("t", progress=False):
    pass
""")
    assert found == 0, errors
    assert os.listdir("output") == ["t_training_metrics.json"]


def test_a_signal_in_the_final_evaluation_and_after_it():
    """Before the results are saved: `interrupted` without them; after that they stay, `completed`."""
    script = """
def evaluate(model, data):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGTERM)
    return 0.5
calls = 0
from trackmetrics.live.progress import Progress
if {call} == 0:
    Progress.run_done = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
with Tracker("t", progress=False, train=[1], dev=[1], evaluate=evaluate) as it:
    it.watch(nn.Linear(1, 1))
    with it.epoch():
        pass
"""
    found, errors = run(script.format(call=2))
    assert found == -signal.SIGTERM, errors
    assert written()[0] == "interrupted"
    assert validate(FILE) == []
    found, errors = run(script.format(call=0))
    assert found == -signal.SIGTERM, errors
    with open(FILE, "rb") as file:
        plain = strict_loads(file.read())
    assert plain["extensions"]["status"]["state"] == "completed"
    assert plain["final_results"]["train_accuracy"] == 0.5


def test_of_interleaved_runs_each_is_told_until_its_end():
    """The first to begin may be the first to end."""
    found, errors = run("""
a, b = Tracker("u", progress=False), Tracker("t", progress=False)
a.__enter__()
b.__enter__()
with b.epoch():
    pass
a.__exit__(None, None, None)
os.kill(os.getpid(), signal.SIGTERM)
""")
    assert found == -signal.SIGTERM, errors
    assert written()[0] == "interrupted"


def test_a_handler_that_calls_the_one_before_it_decides_for_itself():
    """Without us there would have been none to call, and the training would have gone on."""
    found, errors = run("""
stop = []
with Tracker("t", progress=False) as it:
    before = signal.getsignal(signal.SIGTERM)
    def mine(*args):
        stop.append(1)
        if callable(before):
            before(*args)
    signal.signal(signal.SIGTERM, mine)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop
    signal.signal(signal.SIGTERM, before)
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
""")
    assert found == 0, errors


def test_a_forked_process_ends_in_the_midst_of_c_code():
    """A worker that hangs in one call into C is terminated as it would be without a run."""
    found, errors = run("""
with Tracker("t", progress=False):
    child = os.fork()
    if not child:
        sum(range(3 * 10**9))  # some minute in which no handler of Python's can run
        os._exit(0)
    time.sleep(1)
    began = time.monotonic()
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert time.monotonic() - began < 10
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
""")
    assert found == 0, errors


def test_a_forked_child_has_no_run():
    """A child that is terminated, exits or raises inside the run writes nothing, and takes nothing from its parent."""
    found, errors = run("""
with Tracker("t", progress=False, train=[], dev=[]) as run:
    for number in range(2):
        with run.epoch() as epoch:
            epoch.log(train_loss=1.0)
        before = open(run.path).read()
        child = os.fork()
        if not child and number:
            sys.exit(0)  # unwinds the child's copy of the run
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == (0 if number else -signal.SIGTERM), status
        assert open(run.path).read() == before
        assert os.path.exists("output/.t_training_metrics.json.lock")
    try:
        Tracker("t").__enter__()
    except OSError:
        say("still held")
    else:
        raise AssertionError("the path isn't held any more")
    raise SystemExit(3)
""")
    assert found == 3, errors
    assert written() == ("interrupted", {"type": "SystemExit", "message": "3"}, 2)


def test_a_worker_of_a_killed_run_holds_nothing():
    """A process that the run forked, and that outlives it, doesn't keep the path from the next run."""
    with running("""
with Tracker("t", progress=False) as run:
    if not os.fork():
        say("worker")
        time.sleep(60)
    say("begun")
    time.sleep(60)
""", start_new_session=True) as process:  # fmt: skip
        try:
            wait_for(process, "worker")
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert run("Tracker('t', progress=False).__enter__()")[0] == 0
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_nothing_is_left_after_a_run():
    """The handlers are the system's own before and after, also where the block is left by an exception."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(KeyError), told_of_termination(print):
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        raise KeyError
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_a_child_is_not_told():
    """A process that was forked in the block ends by the signal alone."""
    with told_of_termination(lambda name: os._exit(5)):
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(6)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_a_fault_of_ours_while_being_told_keeps_nothing_alive():
    """Whatever fails while a run is told, the process ends by the signal."""
    script = """
import os, signal, time
from trackmetrics.termination import told_of_termination

def fail(name):
    os.write(1, name.encode())
    raise ValueError

with told_of_termination(fail):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "SIGTERM")
