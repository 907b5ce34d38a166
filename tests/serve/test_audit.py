from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ed2q.errors import DataError, StorageError
from d2ed2q.files import append_line
from d2ed2q.serve import audit
from d2ed2q.serve.audit import AuditLog, verify_audit


def test_entries_are_chained_and_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "audit" / "audit.jsonl"
    log = AuditLog(path)
    log.write("started", model="abc")
    log.write("segmented", job=1, door="http", client="Zoë")
    AuditLog(path).write("stopped")
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [entry["number"] for entry in entries] == [1, 2, 3]
    assert [entry["event"] for entry in entries] == ["started", "segmented", "stopped"]
    assert verify_audit(path) == (3, entries[-1]["hash"])


def test_a_line_that_a_power_cut_left_unfinished_is_taken_back(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.write("one")
    with open(log.path, "ab") as file:
        file.write(b'{"number": 2, "ti')
    AuditLog(log.path).write("two")
    assert verify_audit(log.path)[0] == 2


@pytest.mark.parametrize("change", ["remove", "swap", "double", "edit", "cut"])
def test_what_was_changed_is_found(change: str, tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    for number in range(4):
        log.write("segmented", job=number)
    lines = log.path.read_text().splitlines()
    known = verify_audit(log.path)
    if change == "remove":
        del lines[1]
    elif change == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    elif change == "double":
        lines.insert(2, lines[1])
    elif change == "edit":
        lines[1] = lines[1].replace('"job": 1', '"job": 7')
    else:
        del lines[-1]
    log.path.write_text("\n".join(lines) + "\n")
    if change == "cut":  # only the last hash, kept elsewhere, can show it
        assert verify_audit(log.path) != known
        return
    with pytest.raises(DataError, match=r"line [23]"):
        verify_audit(log.path)
    with pytest.raises(DataError):
        AuditLog(log.path)


@settings(max_examples=100)
@given(data=st.data())
def test_one_changed_byte_is_found(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    log = AuditLog(path)
    for number in range(3):
        log.write("segmented", job=number, door="dicom")
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 2))
    changed = data.draw(st.integers(0, 255).filter(lambda value: value != content[position]))
    content[position] = changed
    path.write_bytes(content)
    try:
        same = verify_audit(path)[1] == log._hash
    except DataError:
        return
    # Blanks between the parts of a line are not what it says.
    assert same
    assert chr(changed).isspace()


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        verify_audit(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        AuditLog(tmp_path / "file" / "audit.jsonl")


def test_what_cannot_be_written_now_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.write("started")
    append, room = append_line, False

    def full(path: Path, line: str, sync: bool = False) -> None:
        if not room:
            raise StorageError("the disk is full")
        append(path, line, sync)

    monkeypatch.setattr(audit, "append_line", full)
    monkeypatch.setattr(audit, "_MOST_OWED", 2)
    for number in range(3):
        log.note("segmented", job=number)
    with pytest.raises(StorageError):
        log.write("inferred")
    room = True
    log.note("stopped")
    entries = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [entry["event"] for entry in entries] == ["started", "segmented", "segmented", "lost", "stopped"]
    assert entries[3]["entries"] == 1
    assert verify_audit(log.path)[0] == 5


def test_every_entry_is_flushed_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    log.write("one")
    log.note("two")
    assert len(flushed) == 2


def test_a_log_that_is_only_looked_at_is_not_repaired(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.write("one")
    with open(log.path, "ab") as file:
        file.write(b'{"number": 2, "ti')  # as another node may be about to go on
    content = log.path.read_bytes()
    AuditLog(log.path)
    assert log.path.read_bytes() == content
