"""A file that is replaced whole or not at all: folders made to last, and an earlier file put aside.

That a save survives any failing call is in test_failing_calls.
"""

import os
import stat
from pathlib import Path

import pytest

from trackmetrics.whole_file import make_folder, put_aside, replace_whole, try_writing

TEMPORARY = Path(".file.tmp")


def test_a_file_is_put_in_its_place_in_pieces():
    """Its content is that of the pieces; an earlier file, and what was left beside it, are gone."""
    Path("file").write_text("old")
    TEMPORARY.write_text("left by a run that was killed")
    replace_whole(Path("file"), [b"new", memoryview(b" one")], TEMPORARY)
    assert Path("file").read_bytes() == b"new one"
    assert os.listdir() == ["file"]


def test_pieces_that_fail_leave_the_old_file():
    """What they raise comes out."""

    def pieces():
        yield b"half"
        raise KeyError

    Path("file").write_text("old")
    with pytest.raises(KeyError):
        replace_whole(Path("file"), pieces(), TEMPORARY)
    assert Path("file").read_text() == "old"
    assert os.listdir() == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="links and modes as POSIX has them")
def test_a_link_in_the_temporary_files_place_is_not_followed():
    """What it leads to stays as it is."""
    Path("mine").write_text("mine")
    TEMPORARY.symlink_to("mine")
    replace_whole(Path("file"), [b"new"], TEMPORARY)
    assert Path("mine").read_text() == "mine"
    assert not Path("file").is_symlink()
    TEMPORARY.symlink_to("mine")
    try_writing(TEMPORARY)
    assert sorted(os.listdir()) == ["file", "mine"]
    assert Path("mine").read_text() == "mine"


@pytest.mark.skipif(os.name != "posix", reason="links and modes as POSIX has them")
def test_the_temporary_file_has_the_files_mode_from_the_start():
    """It is never more open than the file will be."""
    before = os.umask(0o027)
    try:
        modes = []
        replace_whole(
            Path("file"), (modes.append(stat.S_IMODE(TEMPORARY.stat().st_mode)) or b"" for _ in "a"), TEMPORARY
        )
    finally:
        os.umask(before)
    assert modes == [0o640]
    assert stat.S_IMODE(Path("file").stat().st_mode) == 0o640


def test_each_folder_that_was_missing_is_made_and_made_to_last(monkeypatch):
    """Whatever holds a new folder is synced, and nothing else."""
    synced, opened, whole = [], {}, os.open

    def watched(path, *args, **kwargs):
        descriptor = whole(path, *args, **kwargs)
        opened[descriptor] = Path(path)
        return descriptor

    Path("a").mkdir()
    monkeypatch.setattr(os, "open", watched)
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(opened[descriptor]))
    make_folder(Path("a/b/c").absolute())
    assert Path("a/b/c").is_dir()
    assert sorted(synced) == [Path("a").absolute(), Path("a/b").absolute()]
    make_folder(Path("a/b/c").absolute())
    assert len(synced) == 2


def test_a_file_put_aside_is_there_twice_until_it_is_replaced():
    """A run that is killed between the two leaves both, and the next one doesn't put it aside again."""
    path = Path("file.json")
    put_aside(path, TEMPORARY)
    assert os.listdir() == []
    path.write_text("old")
    os.utime(path, (0, 0))
    for _ in range(2):
        put_aside(path, TEMPORARY)
        assert sorted(os.listdir()) == ["file.19700101T000000Z.json", "file.json"]
    replace_whole(path, [b"new"], TEMPORARY)
    assert Path("file.19700101T000000Z.json").read_text() == "old"
    os.utime(path, (0, 0))
    put_aside(path, TEMPORARY)
    assert Path("file.19700101T000000Z-2.json").read_text() == "new"
