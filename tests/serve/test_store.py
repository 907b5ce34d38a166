from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from d2ed2q.errors import StorageError
from d2ed2q.serve.store import Delivery, JobStore, QueueFullError


class Clock:
    """A time that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> JobStore:
    return JobStore(tmp_path, limit=3, clock=clock)


def test_jobs_are_done_in_order_and_once(store: JobStore) -> None:
    first, new = store.add("a", "http", b"one", {"type": "image/png"})
    assert new
    assert (first.state, first.options) == ("waiting", {"type": "image/png"})
    assert store.input_of(first.id).read_bytes() == b"one"
    assert store.add("a", "dicom", b"other") == (first, False)
    second, _ = store.add("b", "watch", b"two")
    taken = store.take()
    assert taken is not None
    assert (taken.id, taken.state, taken.attempts) == (first.id, "running", 1)
    store.finish(first.id, "done", {"pixels": 7})
    found = store.find("a")
    assert found is not None
    assert found.finished
    assert found.summary == {"pixels": 7}
    assert (store.take() or first).id == second.id
    assert store.take() is None
    assert store.find("c") is None
    with pytest.raises(KeyError):
        store.get(99)


def test_more_than_may_wait_are_sent_away(store: JobStore) -> None:
    for key in "abc":
        store.add(key, "http", b"")
    with pytest.raises(QueueFullError):
        store.add("d", "http", b"")
    assert not store.add("a", "http", b"")[1], "what is known is not sent away"
    taken = store.take()
    assert taken is not None
    with pytest.raises(QueueFullError):
        store.add("d", "http", b"")
    store.finish(taken.id, "failed", error="no")
    assert store.add("d", "http", b"")[1]
    assert len(list((store.folder / "inputs").iterdir())) == 4
    assert store.counts()["waiting"] == 3


def test_what_a_killed_node_had_in_work_waits_again_but_not_for_ever(store: JobStore, tmp_path: Path) -> None:
    job, _ = store.add("a", "dicom", b"x")
    for attempt in (1, 2, 3):
        taken = store.take()
        assert taken is not None
        assert taken.attempts == attempt
        store.close()
        store = JobStore(tmp_path)
        assert store.recover() == (1 if attempt < 3 else 0)
    assert store.get(job.id).state == "failed"
    assert "stopped each time" in str(store.get(job.id).error)
    (tmp_path / "inputs" / "000000000077").write_bytes(b"of nobody")
    store.recover()
    assert [file.name for file in (tmp_path / "inputs").iterdir()] == ["000000000001"]


def test_deliveries_wait_are_retried_and_given_up(store: JobStore, clock: Clock) -> None:
    job, _ = store.add("a", "dicom", b"x")
    store.take()
    store.finish(job.id, "done", {}, deliveries=[("pacs", "seg.dcm"), ("web", "seg.dcm")])
    store.finish(job.id, "done", {}, deliveries=[("pacs", "seg.dcm")])  # once more, after a kill
    pacs, web = store.due()
    assert (pacs, web) == (Delivery(job.id, "pacs", "seg.dcm", 0), Delivery(job.id, "web", "seg.dcm", 0))
    store.delivered(pacs)
    store.retry(web, 60, "connection refused")
    assert store.due() == []
    assert store.forget(before=clock.now + 1) == [], "something is left to deliver"
    clock.now += 61
    (web,) = store.due()
    assert web.attempts == 1
    store.give_up(web, "no such peer")
    assert store.counts()["deliveries_failed"] == 1
    assert store.forget(before=clock.now + 1) == [job.id]
    assert store.counts()["done"] == 0
    assert not store.input_of(job.id).exists()


def test_a_job_can_be_put_back(store: JobStore) -> None:
    store.add("a", "watch", b"x")
    taken = store.take()
    assert taken is not None
    store.postpone(taken.id)
    again = store.take()
    assert again is not None
    assert again.attempts == 1


def test_a_damaged_queue_is_named(tmp_path: Path) -> None:
    (tmp_path / "queue.sqlite").write_bytes(b"no database at all" * 1000)
    with pytest.raises(StorageError, match=r"queue\.sqlite cannot be opened"):
        JobStore(tmp_path)
    with pytest.raises(StorageError):
        JobStore(tmp_path / "queue.sqlite" / "folder")


def test_every_accepted_job_outlives_a_kill(tmp_path: Path) -> None:
    code = f"""
    from pathlib import Path
    from d2ed2q.serve.store import JobStore
    store = JobStore(Path({str(tmp_path)!r}), limit=10**6)
    number = 0
    while True:
        store.add(str(number), "http", str(number).encode())
        print(number, flush=True)
        number += 1
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    accepted = [int(process.stdout.readline()) for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    rest, _ = process.communicate()
    accepted += [int(line) for line in rest.splitlines()]
    store = JobStore(tmp_path)
    store.recover()
    for number in accepted:
        job = store.find(str(number))
        assert job is not None
        assert store.input_of(job.id).read_bytes() == str(number).encode()
