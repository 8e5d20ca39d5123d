"""The cache folder, and writes that are whole or did not happen."""

import os
import stat
from pathlib import Path

import pytest

from cmbench.paths import atomic, cache_dir


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("CMBENCH_CACHE", "~/mine")
    assert cache_dir() == Path.home() / "mine"
    monkeypatch.delenv("CMBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_dir() == Path("/somewhere/cmbench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "cmbench"


def test_a_whole_write_arrives_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "folder" / "file.json"
    with atomic(path) as temporary:
        temporary.write_text("done")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename between file systems would not be atomic
    assert path.read_text() == "done"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_the_old_file_too(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(KeyboardInterrupt), atomic(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_writer_may_replace_the_temporary_file(tmp_path):
    path = tmp_path / "file"
    with atomic(path) as temporary:
        temporary.unlink()
        temporary.write_text("by another route")
    assert path.read_text() == "by another route"


def test_permissions_are_those_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic(tmp_path / "file") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_unfinished_files_are_not_taken_for_records(tmp_path):
    """A killed writer leaves its temporary file behind: no listing may match it."""
    with atomic(tmp_path / "a.json") as temporary:
        assert list(tmp_path.glob("*.json")) == []
        assert temporary.name.startswith(".a.json.")


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with atomic(path) as first:
        with atomic(path) as second:
            assert first != second
            second.write_text("second")
        first.write_text("first")
    assert path.read_text() == "first"
