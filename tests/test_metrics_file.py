"""The metrics file: a right name, one run at a time, whole or not at all, and read back as it was."""

import copy
import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from a_run import A_FILE, a_record
from any_record import arrays, json_values, records
from comparison import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from strict_json import strict_loads

from trackmetrics.errors import InvalidNameError, MetricsFileError, OutputError, PathInUseError
from trackmetrics.metrics_file import DESCRIBING_KEYS, MetricsFile, encode_record, load_run
from trackmetrics.names import check_name
from trackmetrics.record import EpochRecord, FinalInference, FinalResults, Metadata, RunRecord

NAME = "t_training_metrics.json"
MEND = "give a task of letters, digits, spaces, '_', '-' and '.', such as 'letter_counting'"
METADATA = Metadata("t", "2026-01-30T22:08:22Z")
MASKED = '"-Infinity"}'  # in A_FILE: what the null in its log_probs stands for

posix_only = pytest.mark.skipif(os.name != "posix", reason="file modes and signals as POSIX has them")


def visible(folder):
    """The names in a folder, without the lock file that stands there while a run lives."""
    return sorted(path.name for path in Path(folder).iterdir() if not path.name.endswith(".lock"))


# Names


@pytest.mark.parametrize(
    "name", ["letter_counting", "Task 7-b.2", "a..b", "é中", "x" * 200, "é" * 100, "a.json", " padded "]
)
def test_a_name_that_can_stand_in_a_files_name_is_taken(name):
    """Letters of any script, digits, spaces and the usual marks, up to 200 bytes, are written to and read from."""
    assert check_name("task", name) == name
    with MetricsFile("output", name) as file:
        file.write(a_record())
    assert file.path == Path.cwd() / "output" / f"{name}_training_metrics.json"
    assert load_run(file.path).metadata.task == "letter_counting"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", f"the task is empty (''); {MEND}"),
        (" \t\n", f"the task is empty (' \\t\\n'); {MEND}"),
        ("../x", f"the task '../x' looks like a path; {MEND} (the folder goes into output_dir=)"),
        ("a/b", f"the task 'a/b' looks like a path; {MEND} (the folder goes into output_dir=)"),
        ("/etc/x", f"the task '/etc/x' looks like a path; {MEND} (the folder goes into output_dir=)"),
        ("a\\b", f"the task 'a\\\\b' looks like a path; {MEND} (the folder goes into output_dir=)"),
        ("..", f"the task '..' looks like a path; {MEND} (the folder goes into output_dir=)"),
        (".hidden", f"the task '.hidden' looks like a path; {MEND} (the folder goes into output_dir=)"),
        ("a\nb", f"the task 'a\\nb' holds a character that can't be printed; {MEND}"),
        ("a\0b", f"the task 'a\\x00b' holds a character that can't be printed; {MEND}"),
        ("a\u202eb", f"the task 'a\\u202eb' holds a character that can't be printed; {MEND}"),
        ("a\udc80", f"the task 'a\\udc80' holds a character that can't be printed; {MEND}"),
        ("x" * 201, f"the task {'x' * 40!r}... is 201 bytes long; give 200 at most"),
        ("é" * 101, f"the task {'é' * 40!r}... is 202 bytes long; give 200 at most"),
        (None, f"the task is None, of type NoneType; {MEND}"),
        (5, f"the task is 5, of type int; {MEND}"),
        (b"t", f"the task is b't', of type bytes; {MEND}"),
        (Path("t"), f"the task is {Path('t')!r}, of type {type(Path('t')).__name__}; {MEND}"),
    ],
)
def test_a_name_that_cannot_is_refused(name, message):
    """The message says what is wrong with which value, and what to give."""
    with pytest.raises(InvalidNameError) as caught:
        check_name("task", name)
    assert str(caught.value) == message


def test_a_file_checks_its_part():
    """The part goes through the same check, under its own name, before any folder is made."""
    with pytest.raises(InvalidNameError, match=r"^the part '\.\./x' looks like a path; give a part of letters"):
        MetricsFile("output", "../x")
    assert visible(".") == []


# The folder


def test_the_folder_is_made_and_the_path_is_fixed_at_the_start(tmp_path, monkeypatch):
    """Missing folders are made on entering; a later change of the working folder doesn't move the file."""
    with MetricsFile(Path("a") / "b", "t") as file:
        assert visible("a/b") == []  # tried by writing, and nothing of that is left
        monkeypatch.chdir("/")
        file.write(a_record())
    assert file.path == tmp_path / "a" / "b" / NAME
    assert visible(tmp_path / "a" / "b") == [NAME]


def refused(output_dir, error=OutputError):
    """The message with which entering is refused."""
    with pytest.raises(error) as caught, MetricsFile(output_dir, "t"):
        pass
    return str(caught.value)


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    """An output folder that is a file, or is to stand in one, can't be made."""
    Path("output").write_text("mine")
    mend = "choose an output_dir= that can be written"
    assert refused("output") == f"the output folder {tmp_path / 'output'} is a file; {mend}"
    assert refused("output/deeper") == (
        f"the output folder {tmp_path / 'output' / 'deeper'} can't be written (Not a directory); {mend}"
    )
    assert Path("output").read_text() == "mine"


def test_a_folder_in_the_files_place_is_refused(tmp_path):
    """A folder with the metrics file's own name can't be replaced by a file."""
    folder = tmp_path / "output" / NAME
    folder.mkdir(parents=True)
    assert refused("output") == f"{folder} is a folder, where the metrics file is to stand; move it away"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    """A folder that the user may not write into is found out before training."""
    Path("output").mkdir(mode=0o500)
    assert refused("output").startswith(f"the output folder {tmp_path / 'output'} can't be written (Permission denied)")


def test_a_folder_is_tried_by_writing(tmp_path, monkeypatch):
    """Whatever the system says to a trial file, such as a full disk, is said before training, and nothing stays."""
    whole = os.open

    def refuse(path, *args, **kwargs):
        if str(path).endswith(".tmp"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    assert refused("output") == (
        f"the output folder {tmp_path / 'output'} can't be written (No space left on device); "
        "choose an output_dir= that can be written"
    )
    assert os.listdir("output") == []


def test_a_path_that_no_system_takes_is_refused(tmp_path):
    """A null character in the folder, or a folder of a wrong type, is refused with the same kind of error."""
    assert refused("a\0b") == (
        f"the output folder {tmp_path}/a\0b can't be written (embedded null byte); "
        "choose an output_dir= that can be written"
    )
    assert refused(5) == "output_dir is 5, of type int; give a folder's path"
    assert refused(b"output") == "output_dir is b'output', of type bytes; give a folder's path"


@posix_only
def test_a_working_folder_that_is_gone_is_refused(tmp_path, monkeypatch):
    """A relative folder has no meaning where the working folder was deleted."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert refused("output") == (
        "output_dir is 'output', in a working folder that no longer exists; give an absolute path"
    )


@posix_only
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_filesystem_without_locks_is_no_reason_to_refuse(monkeypatch, number):
    """The file says why it isn't held; two runs write by temporary files of their own, and each is whole."""
    from without_locks import without_locks  # which asks for POSIX

    without_locks(monkeypatch, number)
    with MetricsFile("output", "t") as first, MetricsFile("output", "t") as second:
        assert first.lock_fault == second.lock_fault == os.strerror(number)
        assert first._temporary != second._temporary
        first.write(a_record())
        second.write(a_record(epochs=()))
        assert load_run(first.path).epochs == ()
    assert os.listdir("output") == [NAME]


@posix_only
def test_a_forked_process_writes_nothing_where_there_are_no_locks(monkeypatch):
    """Nothing else tells a child that the file is its parent's."""
    from without_locks import without_locks

    without_locks(monkeypatch, errno.ENOLCK)
    with MetricsFile("output", "t") as file:
        file.write(a_record())
        child = os.fork()
        if not child:
            try:
                file.write(a_record(epochs=()))
            except PathInUseError as error:
                os._exit(
                    0 if str(error).endswith(f"is written by process {os.getppid()}, which forked this one") else 1
                )
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert file.path.read_text() == A_FILE


def test_a_lock_file_that_is_somebody_elses_is_refused(tmp_path):
    """What stands where the lock file is to stand, and can't be locked, is named."""
    lock = tmp_path / "output" / f".{NAME}.lock"
    lock.mkdir(parents=True)
    assert refused("output") == f"{lock} can't be locked (Is a directory); choose another output_dir="


# One run at a time

HOLDER = r"process \d+ on \S+, started \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


def test_two_live_runs_on_one_path_are_refused(tmp_path):
    """The second is told the path, who holds it and what to do, as often as it tries; the first goes on undisturbed."""
    with MetricsFile("output", "t") as first:
        for _ in range(3):
            message = refused("output", PathInUseError)
            pattern = (
                rf"another live run writes {re.escape(str(tmp_path / 'output' / NAME))} \({HOLDER}\); "
                r"give this one another part= or output_dir=, or wait until that one has ended"
            )
            assert re.fullmatch(pattern, message)
            assert f"process {os.getpid()} on {socket.gethostname()}, " in message
        first.write(a_record())
    assert visible("output") == [NAME]


def test_live_runs_on_different_paths_do_not_meet():
    """Another part or another folder is another file."""
    with MetricsFile("output", "a") as a, MetricsFile("output", "b") as b, MetricsFile("other", "a") as c:
        for file in (a, b, c):
            file.write(a_record())
    assert visible("output") == ["a_training_metrics.json", "b_training_metrics.json"]
    assert visible("other") == ["a_training_metrics.json"]


def test_one_folder_by_two_names_is_one_path(tmp_path):
    """A link to the folder, or a way around to it, leads to the same lock."""
    (tmp_path / "output").mkdir()
    os.symlink(tmp_path / "output", tmp_path / "link")
    with MetricsFile("output", "t"):
        refused("link", PathInUseError)
        refused("output/../output", PathInUseError)


def in_a_thread(function):
    """Run a function in another thread; give what it returned, or raise what it raised."""
    outcome = []

    def run():
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    ((result, error),) = outcome
    if error is not None:
        raise error
    return result


def test_a_run_in_another_thread_is_refused_too():
    """Threads of one process are two runs as well."""
    with MetricsFile("output", "t"), pytest.raises(PathInUseError):
        in_a_thread(MetricsFile("output", "t").__enter__)


def test_a_run_may_be_left_in_another_thread():
    """A run entered in one thread and left in another gives its path back."""
    file = MetricsFile("output", "t")
    in_a_thread(file.__enter__)
    refused("output", PathInUseError)
    in_a_thread(lambda: file.__exit__(None, None, None))
    with MetricsFile("output", "t"):
        pass


def test_the_path_is_free_after_leaving():
    """A run that has ended, well or by an exception, holds nothing."""
    with MetricsFile("output", "t"):
        pass
    with pytest.raises(KeyboardInterrupt), MetricsFile("output", "t"):
        raise KeyboardInterrupt
    with MetricsFile("output", "t"):
        pass


def test_a_lock_file_of_unknown_content_blocks_nobody():
    """What an earlier run, or anybody, left in the lock file doesn't matter."""
    Path("output").mkdir()
    Path(f"output/.{NAME}.lock").write_bytes(b"\xff\xfe")
    with MetricsFile("output", "t"):
        Path(f"output/.{NAME}.lock").write_bytes(b"\xff\xfe")
        assert "(it doesn't say which process it is)" in refused("output", PathInUseError)


HOLD = """
import sys
from trackmetrics.metrics_file import MetricsFile

with MetricsFile("output", "t"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Another process that holds the path until its standard input ends."""
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_run_in_another_process_is_named_and_waits_for_nobody(holder):
    """The message names the other process and its host; when that run has ended the path is free."""
    assert f"(process {holder.pid} on {socket.gethostname()}, started " in refused("output", PathInUseError)
    holder.communicate("")
    assert holder.returncode == 0
    with MetricsFile("output", "t"):
        pass


@posix_only
def test_a_killed_run_blocks_nobody(holder):
    """The lock of a process that was killed outright is gone with it."""
    refused("output", PathInUseError)
    holder.send_signal(signal.SIGKILL)
    assert holder.wait() == -signal.SIGKILL
    with MetricsFile("output", "t") as file:
        file.write(a_record())
    assert load_run(file.path).metadata.task == "letter_counting"


# Writing


def test_the_file_is_as_written_by_hand():
    """The whole text: order of keys, rounding, an epoch a line, a matrix row a line, a last newline."""
    assert encode_record(a_record()).decode() == A_FILE


def test_without_extensions_the_file_has_the_seeds_keys_alone():
    """`extensions=False` leaves the key out, and the rest is the same text."""
    text = encode_record(a_record(extensions=None)).decode()
    assert text == A_FILE[: A_FILE.index(',\n  "extensions"')] + "\n}\n"


def test_epochs_stand_on_one_line_each_and_rows_on_one_line_each():
    """A file of many epochs and long matrices has one line for each."""
    epochs = tuple(EpochRecord(number, 1 / number, 0.5, 0.5, number / 3, number * 1.5) for number in range(1, 31))
    attention = np.random.default_rng(0).random((2, 20, 20)).astype(np.float32)
    text = encode_record(
        RunRecord(METADATA, epochs, None, FinalInference("x" * 20, attention[0], attention), {})
    ).decode()
    lines = [line.strip().rstrip(",") for line in text.splitlines()]
    assert [json.loads(line)["epoch"] for line in lines if line.startswith('{"epoch"')] == list(range(1, 31))
    rows = [json.loads(line) for line in lines if line.startswith("[") and line.endswith("]")]
    assert [len(row) for row in rows] == [20] * 60


def test_an_earlier_file_stays_until_the_first_write():
    """Entering a run harms nothing: a run that fails before its first epoch leaves the old file."""
    path = Path("output") / NAME
    path.parent.mkdir()
    path.write_text("the earlier run")
    with MetricsFile("output", "t") as file:
        assert path.read_text() == "the earlier run"
        file.write(a_record())
        assert path.read_text() == A_FILE
    assert path.read_text() == A_FILE
    assert visible("output") == [NAME]


def test_two_threads_may_save_one_run():
    """As a signal's handler does for a thread's run: one after the other, each save whole."""
    records = [a_record(epochs=()), a_record()]
    with MetricsFile("output", "t") as file:

        def save(record):
            for _ in range(100):
                file.write(record)

        threads = [
            threading.Thread(target=in_a_thread, args=(lambda record=record: save(record),)) for record in records
        ]
        failed = []
        hook, threading.excepthook = threading.excepthook, failed.append
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            threading.excepthook = hook
    assert failed == []
    assert load_run(file.path).metadata.task == "letter_counting"
    assert visible("output") == [NAME]


def test_after_the_last_write_there_is_none():
    """Another thread that goes on while the process ends doesn't take back what was said last."""
    with MetricsFile("output", "t") as file:
        file.write(a_record(epochs=()))
        file.write(a_record(), last=True)
        file.write(a_record(epochs=()))
    assert file.path.read_text() == A_FILE


def test_each_write_replaces_the_whole_file():
    """The file is rewritten, not appended to; a shorter one leaves no rest of a longer one."""
    with MetricsFile("output", "t") as file:
        file.write(a_record())
        file.write(a_record(epochs=(), final_inference=None, extensions=None))
    assert load_run(file.path) == a_record_as_read(a_record(epochs=(), final_inference=None, extensions=None))


def test_a_reader_never_sees_half_a_file(monkeypatch):
    """At every moment of a write the path holds the old file, whole; then the new one, whole."""
    with MetricsFile("output", "t") as file:
        file.write(a_record(epochs=()))
        seen, looking = [], []

        def look():
            if not looking:  # a reader opens a file, too
                looking.append(True)
                seen.append(load_run(file.path).epochs)
                looking.clear()

        with monkeypatch.context() as patch:
            for name in ("open", "fsync", "replace"):
                patch.setattr(os, name, watched(getattr(os, name), look))
            file.write(a_record())
        assert len(load_run(file.path).epochs) == 2
    assert [len(epochs) for epochs in seen] == [0, 0, 0, 2, 2]  # before each step; the last two are the folder's


def watched(function, look):
    def call(*args, **kwargs):
        look()
        return function(*args, **kwargs)

    return call


@posix_only
def test_a_disk_that_fills_up_in_mid_write_harms_nothing():
    """With a real limit that the system sets on the size of files, the old file stays and no temporary one."""
    import resource

    with MetricsFile("output", "t") as file:
        file.write(a_record())
        big = a_record(final_inference=FinalInference("x", np.random.default_rng(0).random((1000, 100))))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(OSError) as caught:
                file.write(big)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert file.path.read_text() == A_FILE
    assert visible("output") == [NAME]


def test_a_record_that_has_no_text_leaves_the_old_file():
    """A value that isn't plain data raises before the old file is touched."""
    with MetricsFile("output", "t") as file:
        file.write(a_record())
        for extensions in ({"status": object()}, {"status": {"error": 1j}}):
            with pytest.raises(TypeError):
                file.write(a_record(extensions=extensions))
    assert file.path.read_text() == A_FILE
    assert visible("output") == [NAME]


def test_the_file_is_synced_before_it_is_put_in_place(monkeypatch):
    """The bytes reach the disk before the name does, and the folder is synced after."""
    Path("output").mkdir()
    calls = []
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, watched(getattr(os, name), lambda name=name: calls.append(name)))
    with MetricsFile("output", "t") as file:
        file.write(a_record())
    assert calls == ["fsync", "replace", "fsync"] if os.name == "posix" else calls[:2] == ["fsync", "replace"]


@posix_only
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_the_files_mode_is_what_the_umask_says(umask, mode):
    """As any file that the user writes: not a temporary file's private 0600."""
    before = os.umask(umask)
    try:
        with MetricsFile("output", "t") as file:
            file.write(a_record())
            file.write(a_record())
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.path.stat().st_mode) == mode


def test_a_folder_deleted_meanwhile_is_made_anew():
    """A clean-up during training costs the earlier epochs' file, not the next one."""
    with MetricsFile("output", "t") as file:
        file.write(a_record())
        shutil.rmtree("output")
        file.write(a_record())
        assert file.path.read_text() == A_FILE
    with MetricsFile("output", "t"):
        pass


# Arrays


def read_back(inference):
    """A final inference, written and loaded."""
    with MetricsFile("output", "t") as file:
        file.write(RunRecord(METADATA, final_inference=inference, extensions={}))
    return load_run(file.path).final_inference


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_come_back_in_their_own_width_bit_for_bit(dtype):
    """Extremes, subnormals, thirds and zeros of either sign are the very same floats, of the same type."""
    info = np.finfo(dtype)
    row = [info.max, info.min, info.tiny, info.smallest_subnormal, -0.0, 1 / 3, 0.1, info.eps, 1 + info.eps]
    log_probs = np.array([row], dtype=dtype)
    attention = np.random.default_rng(0).standard_normal((2, 3, 3)).astype(dtype)
    assert_same(read_back(FinalInference("x", log_probs, attention)), FinalInference("x", log_probs, attention))


def test_a_float32_on_the_edge_comes_back():
    """A number whose shortest decimal, read as a double, lies halfway to its neighbour is still the same."""
    edge = np.full((1, 2), float.fromhex("0x1.5c87fap-84"), dtype=np.float32)
    assert_same(read_back(FinalInference("x", edge)), FinalInference("x", edge))


@pytest.mark.parametrize(
    ("dtype", "width"),
    [
        (np.float16, np.float32),
        (">f4", np.float32),
        (">f8", np.float64),
        (np.int64, np.float64),
        (np.longdouble, np.float64),
    ],
)
def test_other_types_are_widened_without_loss(dtype, width):
    """Half types become float32; whole numbers, long doubles and foreign byte orders keep each value."""
    values = [[1.0, -3.0], [0.0, 2047.0]] if dtype == np.float16 else [[1.0, -3.0], [0.0, 16777215.0]]
    if width == np.float64:
        values[1][1] = 2.0**53 - 1
    found = read_back(FinalInference("x", np.array(values).astype(dtype))).log_probs
    assert_same(found, np.array(values, dtype=width))


def test_memory_layout_does_not_matter():
    """A transposed, reversed or strided view is written as it reads."""
    whole = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    view = whole[:, ::-1, ::2]
    assert_same(read_back(FinalInference("x", whole[0].T, view)), FinalInference("x", whole[0].T.copy(), view.copy()))


def test_no_attention_comes_back_as_no_attention():
    """`[]` in the file, an array of shape [0, 0, 0] in the record."""
    found = read_back(FinalInference("x", None))
    assert_same(found, FinalInference("x", None, np.zeros((0, 0, 0), np.float32)))
    assert strict_loads(Path("output", NAME).read_bytes())["final_inference"]["attention_weights"] == []


def test_a_null_that_nothing_explains_is_not_a_number():
    """In a file without extensions an array's null can only be read as NaN."""
    with MetricsFile("output", "t") as file:
        file.write(RunRecord(METADATA, final_inference=FinalInference("x", np.array([[0.5, -np.inf]]))))
    assert_same(load_run(file.path).final_inference.log_probs, np.array([[0.5, np.nan]]))


# Any record, there and back


def rounded(number, decimals):
    return None if number is None else float(f"{number:.{decimals}f}")


def array_as_read(array):
    if array is None or array.size:
        return array if array is None or array.dtype != np.float16 else array.astype(np.float32)
    return np.zeros((0,) * array.ndim, np.float32)


def a_record_as_read(record):
    """What the page promises of a record that was written and loaded, its extensions' own keys left aside."""
    inference = record.final_inference
    if inference is not None:
        inference = FinalInference(
            "".join(f"\\u{ord(c):04x}" if 0xD800 <= ord(c) <= 0xDFFF else c for c in inference.example_input),
            array_as_read(inference.log_probs),
            array_as_read(inference.attention_weights),
        )
    results = record.final_results
    return dataclasses.replace(
        record,
        epochs=tuple(
            EpochRecord(
                epoch.epoch,
                rounded(epoch.train_loss, 4),
                rounded(epoch.train_accuracy, 4),
                rounded(epoch.dev_accuracy, 4),
                rounded(epoch.gradient_norm, 4),
                rounded(epoch.elapsed_seconds, 2),
                epoch.metrics,
            )
            for epoch in record.epochs
        ),
        final_results=results
        and FinalResults(
            rounded(results.train_accuracy, 4),
            rounded(results.dev_accuracy, 4),
            rounded(results.total_time_seconds, 2),
        ),
        final_inference=inference,
    )


def without_describing_keys(record):
    described = {key: value for key, value in record.extensions.items() if key not in DESCRIBING_KEYS}
    return dataclasses.replace(record, extensions=described)


def loaded(text):
    """A record from a file's text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.json"
        path.write_bytes(text)
        return load_run(path)


@settings(deadline=None, max_examples=200)
@given(records)
def test_any_record_comes_back(record):
    """Any numbers, texts, keys, nesting, shapes and widths: strict JSON, and the same record but for the rounding."""
    text = encode_record(record)
    plain = strict_loads(text)
    assert list(plain) == ["metadata", "epochs", "final_results", "final_inference", "extensions"]
    assert plain["extensions"]["format_version"] == 1
    assert text.endswith(b"}\n")
    assert_same(without_describing_keys(loaded(text)), a_record_as_read(record))


@settings(deadline=None)
@given(records)
def test_any_record_that_was_loaded_is_written_as_it_was(record):
    """A loaded record makes the very same text: nothing is rounded, widened or described twice."""
    text = encode_record(record)
    assert encode_record(loaded(text)) == text


@settings(deadline=None)
@given(records)
def test_a_record_without_extensions_is_strict_json_too(record):
    """The seed's keys alone, in their order, whatever stands in them."""
    plain = strict_loads(encode_record(dataclasses.replace(record, extensions=None)))
    assert list(plain) == ["metadata", "epochs", "final_results", "final_inference"]


@settings(deadline=None, max_examples=25)
@given(records)
def test_any_record_is_written_and_loaded_through_the_disk(record):
    """What `write` puts on the disk is the record's text, and `load_run` takes it."""
    with tempfile.TemporaryDirectory() as folder:
        with MetricsFile(folder, "t") as file:
            file.write(record)
        assert visible(folder) == [NAME]
        assert file.path.read_bytes() == encode_record(record)
        assert_same(without_describing_keys(load_run(file.path)), a_record_as_read(record))


@settings(deadline=None)
@given(records)
def test_writing_never_changes_the_record(record):
    """The record in memory keeps full precision, its arrays their types."""
    before = copy.deepcopy(record)
    encode_record(record)
    assert_same(record, before)


@settings(deadline=None)
@given(arrays(2), arrays(3))
def test_non_finite_numbers_in_arrays_are_null_in_the_file(log_probs, attention):
    """Each NaN or infinity is a null at its place, each other number stands there itself."""
    record = RunRecord(METADATA, final_inference=FinalInference("x", log_probs, attention), extensions={})
    plain = strict_loads(encode_record(record))["final_inference"]
    for found, array in ((plain["log_probs"], log_probs), (plain["attention_weights"], attention)):
        if array.size:
            finite = np.isfinite(array)
            items = np.array(found, dtype=object)
            assert_same((items != None), finite)  # noqa: E711
            assert_same(items[finite].astype(array.dtype), array[finite])


def test_a_loaded_record_can_be_changed_and_written():
    """What described the old text (non-finite places, widths, version) doesn't describe the new one."""
    record = loaded(A_FILE.encode())
    record = dataclasses.replace(record, epochs=record.epochs[:1], final_inference=None)
    record = dataclasses.replace(record, extensions={**record.extensions, "format_version": 0})
    extensions = strict_loads(encode_record(record))["extensions"]
    assert extensions == {
        "format_version": 1,
        "status": {"state": "completed"},
        "seconds": {"saving": 0.123456789},
    }
    assert_same(without_describing_keys(loaded(encode_record(record))), without_describing_keys(record))


def test_non_finite_values_in_the_extensions_come_back():
    """The extensions' own NaN is described in the same map."""
    record = a_record(extensions={"gradient_norm": {"epochs": [{"max": np.inf}, {"max": np.nan}]}})
    extensions = loaded(encode_record(record)).extensions
    assert_same(extensions["gradient_norm"], {"epochs": [{"max": np.inf}, {"max": np.nan}]})
    assert extensions["non_finite"]["/extensions/gradient_norm/epochs/0/max"] == "Infinity"


# Reading what isn't a metrics file


def fault_of(path):
    with pytest.raises(MetricsFileError) as caught:
        load_run(path)
    return str(caught.value)


def test_a_path_that_cannot_be_read_is_named():
    """A missing file, a folder and an impossible path say which path, and why."""
    Path("folder").mkdir()
    assert fault_of("nowhere.json") == "nowhere.json can't be read: No such file or directory"
    assert fault_of(Path("folder")) == "folder can't be read: Is a directory"
    assert fault_of("a\0b") == "a\0b can't be read: embedded null byte"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", "not valid JSON: "),
        (A_FILE[:200].encode(), "not valid JSON: "),
        (A_FILE.replace("0.0001", "NaN").encode(), "not valid JSON: "),
        (A_FILE.encode("utf-16"), "not valid JSON: "),
        (b"epoch,loss\n1,0.5\n", "not valid JSON: "),
        (b"[" * 100_000, "not valid JSON: "),
        (b"[]", "the top level is []; expected an object"),
        (b"null", "the top level is None; expected an object"),
        (b"{}", "/metadata is missing: a metrics file has this key"),
        (b'{"metadata": {}}', "/metadata/hyperparameters is missing: a metrics file has this key"),
        (A_FILE.replace('"epoch": 2', '"epoch": "two"').encode(), "/epochs/1/epoch is 'two'; expected an integer"),
        (
            A_FILE.replace('"/epochs/1/gradient_norm": "Infinity"', '"/epochs/9/gradient_norm": "Infinity"').encode(),
            "/extensions/non_finite says 'Infinity' stands at '/epochs/9/gradient_norm', where no such null is",
        ),
        (
            A_FILE.replace(MASKED, '{"-Infinity": [[1, 1000000000000000000]]}}').encode(),
            "/extensions/non_finite says {'-Infinity': [[1, 1000000000000000000]]} stands at "
            "'/final_inference/log_probs', where no such null is",
        ),
        (
            A_FILE.replace('"non_finite": {', '"non_finite": null, "x": {').encode(),
            "/extensions/non_finite is None; expected an object",
        ),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:40],
)
def test_a_file_that_is_no_metrics_file_is_named_with_the_fault(text, fault):
    """The path, what is wrong, and where: a place in the text, or a JSON pointer."""
    Path("some.json").write_bytes(text)
    message = fault_of("some.json")
    assert message.startswith(f"some.json is not a metrics file: {fault}")
    assert fault == "not valid JSON: " or message.endswith(fault)


def places(plain, pointer=()):
    """Each place in plain data, as a tuple of keys and indexes."""
    yield pointer
    items = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    for key, item in items:
        yield from places(item, (*pointer, key))


PLACES = list(places(json.loads(A_FILE)))


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(PLACES), json_values)
def test_any_value_in_any_place_is_read_or_named(place, value):
    """With anything standing anywhere in a metrics file, loading gives a record or MetricsFileError, nothing else."""
    plain = json.loads(A_FILE)
    if place:
        *parents, last = place
        holder = plain
        for part in parents:
            holder = holder[part]
        holder[last] = value
    else:
        plain = value
    try:
        record = loaded(json.dumps(plain).encode())
    except MetricsFileError:
        return
    assert isinstance(record, RunRecord)
    assert strict_loads(encode_record(record))


@settings(deadline=None)
@given(st.integers(0, len(A_FILE)), st.binary(max_size=3), st.integers(0, 3))
def test_any_damage_to_the_text_is_read_or_named(start, put, taken):
    """Bytes changed, added or lost anywhere end in a record or MetricsFileError, nothing else."""
    text = A_FILE.encode()
    try:
        loaded(text[:start] + put + text[start + taken :])
    except MetricsFileError:
        return


def test_a_small_file_that_claims_much_is_refused_quickly():
    """Many forged runs in a small file cost neither memory nor time."""
    runs = ", ".join(["[0, 0]"] * 20_000 + ["[0, 1000000000000]"])
    Path("some.json").write_text(A_FILE.replace(MASKED, f'{{"-Infinity": [{runs}]}}}}'))
    began = time.process_time()
    assert "where no such null is" in fault_of("some.json")
    assert time.process_time() - began < 2


def test_ctrl_c_while_it_is_entered_gives_the_path_back(monkeypatch):
    """Between the lock and the first write, too: the next run isn't refused, and nothing is left of this one."""

    def interrupted(temporary):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("trackmetrics.metrics_file.try_writing", interrupted)
        with pytest.raises(KeyboardInterrupt):
            MetricsFile("output", "t").__enter__()
    assert os.listdir("output") == []
    with MetricsFile("output", "t"):
        pass
