"""Jobs whose image or whose model is another than before."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import UID

from d2ed2q.errors import StorageError
from d2ed2q.serve.database import _JOBS, _REST
from d2ed2q.serve.dicom import job_key, key_of
from d2ed2q.serve.store import Job, JobStore

from ..data.dicom_files import as_bytes, make_dicom


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


ARCHIVE = [("archive", "segmentation.dcm")]


def work(store: JobStore, model: str, state: Any = "done") -> Job:
    """Ends the job that waits longest."""
    job = store.take()
    assert job is not None
    store.results_of(job.id).parent.mkdir(exist_ok=True)
    store.results_of(job.id).write_bytes(b"results")
    summary = None if state == "failed" else {"model_sha256": model}
    store.finish(job.id, state, summary, deliveries=ARCHIVE if state == "done" else ())
    return job


def started(folder: Path, model: str) -> JobStore:
    """A node's store after the node has started with a model."""
    store = JobStore(folder, model=model)
    store.rekey(key_of)
    store.recover()
    store.reopen_outdated(model)
    return store


@pytest.mark.parametrize("state", ["done", "refused", "failed"])
@pytest.mark.parametrize("door", ["http", "dicom", "watch"])
def test_what_another_model_ended_is_done_again_when_it_is_sent_again(state: Any, door: str, tmp_path: Path) -> None:
    store = started(tmp_path, "A")
    job, _ = store.add("a", door, b"x")  # it waits when the node is stopped
    store.close()
    store = started(tmp_path, "B")
    work(store, "B", state)
    for delivery in store.outbox.due():
        store.outbox.delivered(delivery)
    assert not store.add("a", door, b"x")[1]
    store.close()
    store = started(tmp_path, "A")  # B was no good
    again, new = store.add("a", door, b"x")
    assert (again.id, again.state, new) == (job.id, "waiting", True)
    assert not store.results_of(job.id).exists()
    work(store, "A")
    assert [delivery.job for delivery in store.outbox.due()] == [job.id], "the archive has not got these"
    assert not store.add("a", door, b"x")[1]
    store.close()


def test_a_job_of_an_image_that_failed_in_an_older_node_is_begun_anew(tmp_path: Path) -> None:
    store = started(tmp_path, "A")
    store.add("a", "http", b"x")
    work(store, "A", "failed")
    with store._database.transaction() as db:
        db.execute("UPDATE jobs SET model = NULL, input = NULL")  # as of a node that did not know them
    assert store.add("a", "http", b"x")[1]
    store.close()


def test_one_instance_has_one_job_whatever_models_the_node_had(tmp_path: Path) -> None:
    wrong, right = (as_bytes(made) for made in two_of_one_instance())
    store = started(tmp_path, "A")
    store.add(job_key("1.2.3"), "dicom", wrong)
    work(store, "A")
    store.close()
    store = started(tmp_path, "B")
    job, new = store.add(job_key("1.2.3"), "dicom", right)
    assert new
    work(store, "B")
    assert [store.input_of(delivery.job).read_bytes() for delivery in store.outbox.due()] == [right]
    assert (job.id, store.take()) == (1, None)
    store.close()


def two_of_one_instance() -> tuple[Any, Any]:
    wrong = make_dicom(np.zeros((8, 8, 3), np.uint8), PatientID="MU-1", SOPInstanceUID="1.2.3")
    right = make_dicom(np.zeros((8, 8, 3), np.uint8), PatientID="MU-2", SOPInstanceUID="1.2.3")
    for dataset in (wrong, right):
        dataset.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    return wrong, right


@pytest.mark.parametrize("last", [0, 1])
def test_of_an_older_nodes_jobs_of_one_instance_the_one_that_came_last_stays(last: int, tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    images = [as_bytes(made) for made in two_of_one_instance()]
    for number, image in enumerate(images):
        job, _ = store.add(f"of model {number}", "dicom", image)
        work(store, "A")
        os.utime(store.input_of(job.id), (1000, 1000 + (number == last)))
    damaged, _ = store.add("damaged", "dicom", b"x")
    store.add("photo", "http", images[0])
    with store._database.transaction() as db:
        db.execute("UPDATE jobs SET model = NULL, input = NULL")
    store.close()
    for _ in range(2):
        store = started(tmp_path, "A")
        kept = store.find(job_key("1.2.3"))
        assert kept is not None
        assert store.input_of(kept.id).read_bytes() == images[last]
        assert [delivery.job for delivery in store.outbox.due()] == [kept.id]
        assert len(list((tmp_path / "inputs").iterdir())) == 3
        assert store.find("damaged") == damaged
        assert store.find("photo")
        assert not store.add(job_key("1.2.3"), "dicom", images[last])[1]
        store.close()


def test_a_queue_of_the_version_before_is_gone_on_with(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "queue.sqlite")
    old.executescript(_JOBS.format(name="jobs") + _REST + "ALTER TABLE deliveries ADD COLUMN first REAL;")
    old.executescript("""
        INSERT INTO jobs (id, key, door, state, created, finished, options, summary)
            VALUES (7, 'a', 'http', 'done', 1, 2, '{}', '{"model_sha256": "A"}');
        INSERT INTO deliveries (job, peer, file, state, attempts, due, first) VALUES (7, 'p', 'f', 'waiting', 3, 3, 1);
        PRAGMA user_version = 1;
    """)
    old.close()
    (tmp_path / "inputs").mkdir()
    (tmp_path / "results").mkdir()
    for folder in ("inputs", "results"):
        (tmp_path / folder / "000000000007").write_bytes(b"x")
    for _ in range(2):
        store = started(tmp_path, "A")
        assert [(one.job, one.attempts, one.spent) for one in store.outbox.due()] == [(7, 3, 0)]
        assert not store.add("a", "http", b"x")[1]
        store.close()
    store = started(tmp_path, "B")
    assert store.get(7).state == "waiting", "it has yet to be sent"
    store.close()


def test_results_are_kept_for_so_long_as_a_node_has_run(tmp_path: Path) -> None:
    now = [1000.0]
    store = JobStore(tmp_path, clock=lambda: now[0])
    job, _ = store.add("a", "http", b"x")
    store.forget(keep=100, passed=1000)
    store.finish(job.id, "done", {})
    now[0] += 10_000_000  # a clock that is set makes nothing old
    assert store.forget(keep=100, passed=60) == []
    store.close()
    now[0] = 0
    store = JobStore(tmp_path, clock=lambda: now[0])
    assert store.forget(keep=100, passed=39) == []
    assert store.forget(keep=100, passed=1) == [job.id]
    store.close()
