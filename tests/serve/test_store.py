from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from d2ed2q.errors import StorageError
from d2ed2q.serve.database import MQTT_PEER
from d2ed2q.serve.outbox import Delivery
from d2ed2q.serve.store import JobStore, QueueFullError


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
    assert store.add("a", "dicom", b"one") == (first, False)
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
        given_up = store.recover([(MQTT_PEER, "summary.json")])
        assert [one.id for one in given_up] == ([] if attempt < 3 else [job.id])
    assert store.get(job.id).state == "failed"
    assert "stopped each time" in str(store.get(job.id).error)
    assert [delivery.peer for delivery in store.outbox.due()] == [MQTT_PEER], "the broker is told of it"
    (tmp_path / "results").mkdir()
    for folder in ("inputs", "results"):
        (tmp_path / folder / "000000000077").write_bytes(b"of nobody")
        (tmp_path / folder / ".000000000001-half").write_bytes(b"half written")
    store.results_of(job.id).write_bytes(b"of somebody")
    store.recover()
    for folder in ("inputs", "results"):
        assert [file.name for file in (tmp_path / folder).iterdir()] == ["000000000001"]


def test_deliveries_wait_are_retried_and_given_up(store: JobStore, clock: Clock) -> None:
    job, _ = store.add("a", "dicom", b"x")
    store.take()
    store.finish(job.id, "done", {}, deliveries=[("pacs", "seg.dcm"), ("web", "seg.dcm")])
    store.finish(job.id, "done", {}, deliveries=[("pacs", "seg.dcm"), ("web", "seg.dcm")])  # once more
    pacs, web = store.outbox.due()
    assert (pacs, web) == (Delivery(job.id, "pacs", "seg.dcm", 0), Delivery(job.id, "web", "seg.dcm", 0))
    store.outbox.delivered(pacs)
    store.outbox.retry(web, 60, "connection refused")
    assert store.outbox.due() == []
    assert store.forget(keep=0, passed=60) == [], "something is left to deliver"
    clock.now += 61
    (web,) = store.outbox.due()
    assert (web.attempts, web.due) == (1, 1060.0)
    store.outbox.give_up(web, "no such peer")
    assert store.counts()["deliveries_failed"] == 1
    assert store.forget(keep=0, passed=0) == [job.id]
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
    store.postpone(again.id, counted=True)
    assert (store.take() or taken).attempts == 2
    store.finish(taken.id, "done", {})
    store.postpone(taken.id)
    assert store.get(taken.id).state == "done", "what has ended stays so"


def test_numbers_are_never_used_twice(store: JobStore, clock: Clock, tmp_path: Path) -> None:
    job, _ = store.add("a", "http", b"x")
    store.finish(job.id, "done", {})
    assert store.forget(keep=0, passed=0) == [job.id]
    store.close()
    store = JobStore(tmp_path)
    assert store.add("b", "http", b"y")[0].id == job.id + 1


def test_a_queue_of_an_older_node_is_gone_on_with(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "queue.sqlite")
    old.executescript("""
        CREATE TABLE jobs (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, door TEXT NOT NULL, state TEXT NOT NULL,
            created REAL NOT NULL, started REAL, finished REAL, attempts INTEGER NOT NULL DEFAULT 0,
            options TEXT NOT NULL, summary TEXT, error TEXT);
        CREATE INDEX jobs_by_state ON jobs (state, id);
        CREATE TABLE deliveries (job INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, peer TEXT NOT NULL,
            file TEXT NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL,
            error TEXT, PRIMARY KEY (job, peer, file));
        INSERT INTO jobs (id, key, door, state, created, finished, options, summary)
            VALUES (7, 'a', 'dicom', 'done', 1, 2, '{}', '{"pixels": 1}');
        INSERT INTO deliveries (job, peer, file, state, due) VALUES (7, 'pacs', 'seg.dcm', 'waiting', 3);
    """)
    old.close()
    for _ in range(2):
        store = JobStore(tmp_path)
        assert store.get(7).summary == {"pixels": 1}
        assert store.outbox.due() == [Delivery(7, "pacs", "seg.dcm", 0)]
        store.close()
    store = JobStore(tmp_path)
    (delivery,) = store.outbox.due()
    store.outbox.delivered(delivery)
    assert store.forget(keep=10, passed=9) == []
    assert store.forget(keep=10, passed=1) == [7]
    assert store.outbox.due() == []
    assert store.counts()["deliveries_done"] == 0, "deliveries go with their jobs"
    assert store.add("b", "http", b"y")[0].id == 8
    store.close()
    newer = sqlite3.connect(tmp_path / "queue.sqlite")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(StorageError, match="newer version"):
        JobStore(tmp_path)


def test_what_failed_for_no_fault_of_the_image_is_begun_anew(store: JobStore) -> None:
    job, _ = store.add("a", "http", b"x")
    store.take()
    store.finish(job.id, "failed", error="the engine failed", deliveries=[(MQTT_PEER, "summary.json")], again=True)
    store.outbox.delivered(store.outbox.due()[0])
    anew, new = store.add("a", "http", b"x")
    assert (new, anew.id, anew.state, anew.attempts, anew.error) == (True, job.id, "waiting", 0, None)
    assert not anew.again
    store.take()
    store.finish(job.id, "failed", error="no image", deliveries=[(MQTT_PEER, "summary.json")])
    assert len(store.outbox.due()) == 1, "the broker is told again"
    assert not store.add("a", "http", b"x")[1], "an image that cannot be segmented stays one"


def test_an_instance_that_comes_again_with_other_bytes_is_done_again(store: JobStore, clock: Clock) -> None:
    def add(data: bytes) -> tuple[int, bool]:
        job, new = store.add("a", "dicom", data)
        return job.id, new

    number, _ = add(b"Doe")
    for key in "bc":  # the queue is full
        store.add(key, "http", b"x")
    assert add(b"Roe") == (number, True)
    assert store.input_of(number).read_bytes() == b"Roe", "it had not begun"
    store.take()
    assert add(b"Roe") == (number, False)
    with pytest.raises(QueueFullError):
        add(b"Poe")
    assert store.input_of(number).read_bytes() == b"Roe", "it is in work"
    store.results_of(number).parent.mkdir()
    store.results_of(number).write_bytes(b"of Roe")
    store.finish(number, "done", {}, deliveries=[("pacs", "seg.dcm"), ("web", "seg.dcm"), (MQTT_PEER, "summary.json")])
    sending, sent, _ = store.outbox.due()
    store.outbox.delivered(sent)
    assert add(b"Roe") == (number, False)
    store.add("d", "http", b"x")
    with pytest.raises(QueueFullError):
        add(b"Poe")
    assert store.results_of(number).read_bytes() == b"of Roe"
    store.take()
    store.finish(2, "done", {})
    assert add(b"Poe") == (number, True)
    assert not store.results_of(number).exists()
    store.outbox.delivered(sending)  # whose sender knew nothing of it
    clock.now += 1
    assert (store.take() or store.get(2)).id == number
    store.finish(number, "done", {}, deliveries=[("pacs", "seg.dcm"), ("web", "seg.dcm")])
    assert {delivery.peer for delivery in store.outbox.due()} == {"pacs", "web"}
    store.outbox.delivered(sending)  # only now: of the first end, whose results are not these
    assert {delivery.peer for delivery in store.outbox.due()} == {"pacs", "web"}
    assert add(b"Poe") == (number, True), "its results are gone, as after a kill in the middle of the above"
    store.take()
    store.finish(number, "failed", error="no image")
    assert add(b"Poe") == (number, False)
    assert add(b"Doe") == (number, True)


def test_what_was_given_up_is_sent_to_who_is_asked_for_it_again(store: JobStore, clock: Clock) -> None:
    job, _ = store.add("a", "dicom", b"x")
    store.finish(job.id, "done", {}, deliveries=[("pacs", "seg.dcm"), ("web", "seg.dcm")])
    pacs, web = store.outbox.due()
    store.outbox.delivered(pacs)
    store.outbox.give_up(web, "it was away")
    clock.now += 100
    store.outbox.renew(job.id, [(peer, "seg.dcm") for peer in ("pacs", "web", "new")])
    assert store.outbox.due() == [Delivery(job.id, peer, "seg.dcm", 0) for peer in ("web", "new")]


def test_an_image_that_kills_the_node_is_not_begun_anew_though_the_engine_once_failed_on_it(store: JobStore) -> None:
    job, _ = store.add("a", "http", b"x")
    store.take()
    store.finish(job.id, "failed", error="the engine failed", again=True)
    assert store.get(job.id).again
    store.add("a", "http", b"x")
    for _ in range(store.attempts):  # and each time the node is killed
        store.take()
        given_up = store.recover()
    assert [one.id for one in given_up] == [job.id]
    assert not store.add("a", "http", b"x")[1]


def test_what_another_model_found_and_was_not_sent_yet_is_segmented_anew(store: JobStore) -> None:
    sent, left = store.add("a", "dicom", b"x")[0].id, store.add("b", "dicom", b"y")[0].id
    for number in (sent, left):
        store.take()
        deliveries = [("pacs", "seg.dcm"), ("web", "seg.dcm"), (MQTT_PEER, "summary.json")]
        store.finish(number, "done", {"model_sha256": "old"}, deliveries=deliveries)
    for delivery in store.outbox.due():
        if delivery.job == sent or delivery.peer == "pacs":
            store.outbox.delivered(delivery)
    assert store.reopen_outdated("old") == 0
    assert store.reopen_outdated("new") == 1
    assert store.get(left).state == "waiting"
    assert store.outbox.due() == [], "nothing of the old model's is sent"
    store.take()
    store.finish(left, "done", {"model_sha256": "new"}, deliveries=deliveries)
    assert {delivery.peer for delivery in store.outbox.due()} == {"web", MQTT_PEER}
    assert store.reopen_outdated("newer") == 1
    store.take()
    store.finish(left, "refused", {"model_sha256": "newer"}, deliveries=[(MQTT_PEER, "summary.json")])
    assert {delivery.peer for delivery in store.outbox.due()} == {MQTT_PEER}, "what is refused now is not sent"


def test_what_nobody_will_take_does_not_stay_for_ever(store: JobStore, clock: Clock) -> None:
    job, _ = store.add("a", "dicom", b"x")
    store.finish(job.id, "done", {}, deliveries=[("gone", "seg.dcm"), ("pacs", "seg.dcm"), (MQTT_PEER, "summary.json")])
    assert [one.peer for one in store.outbox.give_up_unknown(["pacs", MQTT_PEER])] == ["gone"]
    store.outbox.delivered(next(one for one in store.outbox.due() if one.peer == "pacs"))
    clock.now += 100
    for _ in range(2):
        store.outbox.expire_news(120, passed=60)
    clock.now += 10_000_000
    store.outbox.expire_news(120, passed=0)  # a clock that is set makes nothing old
    assert store.forget(keep=0, passed=0) == []
    store.outbox.expire_news(120, passed=60)
    assert store.forget(keep=0, passed=0) == [job.id]


def test_a_queue_that_cannot_be_read_is_a_storage_error(store: JobStore) -> None:
    store.close()
    for ask in (lambda: store.get(1), lambda: store.find("a"), store.counts, store.outbox.due):
        with pytest.raises(StorageError, match="cannot be read"):
            ask()
    with pytest.raises(StorageError, match="cannot be written"):
        store.take()


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
