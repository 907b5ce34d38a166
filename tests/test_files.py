from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from d2ed2q.errors import StorageError
from d2ed2q.files import append_line, atomic_path, hold, is_held, sha256_of, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_with_its_remedy(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match="the disk is full; free some space"),
        atomic_path(tmp_path / "x") as temporary,
    ):
        raise OSError(errno.ENOSPC, "No space left on device", str(temporary))
    assert not list(tmp_path.iterdir())


def test_files_are_as_readable_as_the_users_own(tmp_path: Path) -> None:
    write_text(tmp_path / "one", "x")
    (tmp_path / "two").write_text("x")
    assert (tmp_path / "one").stat().st_mode == (tmp_path / "two").stat().st_mode


def test_lines_are_appended_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append_line(path, "one")
    append_line(path, "zwei ü")
    assert path.read_text(encoding="utf-8") == "one\nzwei ü\n"
    with pytest.raises(StorageError, match="cannot write"):
        append_line(tmp_path / "no" / "folder", "x")


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    write_text(Path("/dev/null"), "x")
    assert Path("/dev/null").is_char_device()
    reading, writing = os.pipe()
    try:
        write_text(Path(f"/dev/fd/{writing}"), "zwei ü")
        assert os.read(reading, 100).decode() == "zwei ü"
    finally:
        os.close(reading)
        os.close(writing)
    with pytest.raises(StorageError, match=r"cannot write /dev/full: the disk is full"):
        write_text(Path("/dev/full"), "x")


def test_sha256_is_the_standard_one(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    path = tmp_path / "folder" / ".lock"
    assert not is_held(path)
    with hold(path) as first:
        assert first
        assert is_held(path)
        with hold(path) as second:
            assert not second
        assert path.exists(), "who could not have it does not remove it"
    assert not path.exists()
    path.touch()  # what a process leaves that was killed
    assert not is_held(path)
    with hold(path) as again, hold(tmp_path / "other", wait=True) as other:
        assert again
        assert other


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(StorageError, match=r"its file system has no locks; choose a folder on another"),
        hold(tmp_path / ".lock"),
    ):
        pass
    (tmp_path / ".lock").touch()
    assert not is_held(tmp_path / ".lock")


def test_the_umask_is_never_changed_while_others_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("another thread would write with this mask"))
    write_text(tmp_path / "file.txt", "x")


def test_names_are_flushed_to_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(stat.S_ISDIR(os.fstat(descriptor).st_mode)))
    write_text(tmp_path / "file.txt", "x")
    assert flushed == [False, True], "the file, and then the folder that has its name"
