"""Jobs whose image or whose model is another than before."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from d2ed2q.errors import StorageError
from d2ed2q.serve.store import JobStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    store = JobStore(tmp_path)
    yield store
    store.close()


class FullDisk:
    """A database whose next change cannot be written."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if statement == "COMMIT":
            self.db.execute("ROLLBACK")
            raise sqlite3.OperationalError("database or disk is full")
        return self.db.execute(statement, *values)

    @property
    def in_transaction(self) -> bool:
        return self.db.in_transaction


@pytest.mark.parametrize("state", ["waiting", "done", "failed"])
@pytest.mark.parametrize("killed", [False, True])
def test_a_corrected_image_whose_row_could_not_be_written_is_new_when_it_is_sent_again(
    state: Any, killed: bool, store: JobStore, tmp_path: Path
) -> None:
    job, _ = store.add("a", "dicom", b"Doe")
    if state != "waiting":
        store.take()
        store.results_of(job.id).parent.mkdir()
        store.results_of(job.id).write_bytes(b"of Doe")
        store.finish(job.id, state, {})
    database: Any = store._database
    database._db, whole = FullDisk(database._db), database._db
    with pytest.raises(StorageError, match="disk is full"):
        store.add("a", "dicom", b"Roe")
    database._db = whole
    if killed:
        store.close()
        store = JobStore(tmp_path)
        store.recover()
    assert not store.results_of(job.id).exists()
    again, new = store.add("a", "dicom", b"Roe")
    assert (again.id, again.state, new) == (job.id, "waiting", True)
    assert store.input_of(job.id).read_bytes() == b"Roe"
    assert not store.add("a", "dicom", b"Roe")[1]
