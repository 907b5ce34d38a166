from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from d2ed2q.errors import BundleError, StorageError
from d2ed2q.serve import worker as room
from d2ed2q.serve.audit import AuditLog
from d2ed2q.serve.model import Outcome
from d2ed2q.serve.results import Kept
from d2ed2q.serve.store import Job, JobStore
from d2ed2q.serve.worker import Worker

from .helpers import wait


class FakeModel:
    """What a worker asks of a model; ``segment`` is what the test puts there."""

    def __init__(self) -> None:
        self.sound, self.heals, self.asked = True, True, 0
        self.bundle = SimpleNamespace(sha256="ab" * 32, path=Path("/srv/model.d2q"))
        self.manifest, self.refuse = SimpleNamespace(input=None), None
        self.does: Callable[[], None] = lambda: None

    def segment(self, *_: Any) -> Outcome:
        self.asked += 1
        self.does()
        prediction: Any = None
        return Outcome(prediction, False, {"model_sha256": "ab" * 32, "doubt": 0.1, "seconds": 0.1})

    def recovered(self) -> bool:
        self.sound = self.heals
        return self.sound


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def worker(model: FakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    given = SimpleNamespace(image=np.zeros((4, 4, 3), np.uint8), spacing=None)
    monkeypatch.setattr(room, "read_input", lambda *_: given)
    monkeypatch.setattr(room, "_PAUSE", 0.05)
    monkeypatch.setattr(Kept, "of", lambda *_: SimpleNamespace(save=lambda path: None))
    asked: Any = model
    made = Worker(asked, JobStore(tmp_path), AuditLog(tmp_path / "audit.jsonl"))
    yield made
    made.stop()
    made.store.close()


def fails(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def state(worker: Worker, job: Job) -> str:
    return worker.store.get(job.id).state


def test_a_failing_engine_keeps_the_queue(worker: Worker, model: FakeModel) -> None:
    first, second = (worker.store.add(key, "http", b"x")[0] for key in "ab")

    def break_down() -> None:
        model.sound = False
        raise BundleError("the engine failed")

    model.heals, model.does = False, break_down
    worker.start()
    wait(lambda: model.asked == 1)
    time.sleep(0.3)
    assert model.asked == 1, "an engine that is broken gets no images"
    assert [state(worker, job) for job in (first, second)] == ["waiting", "waiting"]
    assert worker.store.get(first.id).attempts == 1
    model.heals, model.does = True, lambda: None
    wait(lambda: state(worker, second) == "done")
    assert state(worker, first) == "done"


def test_an_image_that_the_engine_cannot_take_is_given_up_but_may_come_again(worker: Worker, model: FakeModel) -> None:
    job, _ = worker.store.add("a", "http", b"x")
    model.does = fails(BundleError("/srv/model.d2q: its graph cannot be run on 8×8 pixels"))
    told = threading.Event()
    worker.when_ended(job.id, told.set)
    worker.start()
    assert told.wait(30)
    assert (state(worker, job), model.asked) == ("failed", worker.store.attempts)
    assert worker.store.get(job.id).error == "the model: its graph cannot be run on 8×8 pixels"
    model.does = lambda: None
    assert worker.store.add("a", "http", b"x")[1]
    worker.wake()
    wait(lambda: state(worker, job) == "done")


def test_a_job_that_is_done_stays_so_when_the_audit_log_cannot_be_written(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d2ed2q.serve.audit.append_line", lambda *_, **__: fails(StorageError("full"))())
    job, _ = worker.store.add("a", "http", b"x")
    worker.start()
    wait(lambda: state(worker, job) == "done")
    monkeypatch.undo()
    time.sleep(0.2)
    assert state(worker, job) == "done"
    worker.audit.write("stopped")
    assert '"segmented"' in worker.audit.path.read_text()


def test_a_full_disk_is_waited_for_and_seen(worker: Worker, model: FakeModel) -> None:
    job, _ = worker.store.add("a", "http", b"x")
    model.does = fails(StorageError("the disk is full"))
    worker.start()
    wait(lambda: model.asked > 0)
    worker.wake()
    before = model.asked
    wait(lambda: not worker.alive)
    time.sleep(0.5)
    assert 0 < model.asked - before < 20, "it does not run hot"
    assert worker.store.get(job.id).attempts <= 1, "no attempt is counted"
    model.does = lambda: None
    wait(lambda: state(worker, job) == "done")
    wait(lambda: worker.alive)


def test_a_job_that_takes_too_long_at_the_end_waits_for_the_next_start(worker: Worker, model: FakeModel) -> None:
    job, _ = worker.store.add("a", "http", b"x")
    go_on = threading.Event()
    model.does = lambda: (go_on.wait(30), None)[1]
    worker.start()
    wait(lambda: model.asked == 1)
    worker.stop(seconds=0.1)
    assert (state(worker, job), worker.store.get(job.id).attempts) == ("waiting", 0)
    go_on.set()
    worker._thread.join(30)


def test_a_worker_that_makes_no_progress_is_seen(
    worker: Worker, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_LONGEST", 0.5)
    worker.store.add("a", "http", b"x")
    go_on = threading.Event()
    model.does = lambda: (go_on.wait(30), None)[1]
    worker.start()
    wait(lambda: model.asked == 1)
    wait(lambda: not worker.alive)
    go_on.set()
    wait(lambda: worker.alive)


def test_what_kept_killing_the_node_is_told(model: FakeModel, worker: Worker) -> None:
    told: list[Job] = []
    worker.told.append(told.append)
    job, _ = worker.store.add("a", "http", b"x")
    for _ in range(worker.store.attempts):
        worker.store.take()
        worker.store.postpone(job.id, counted=True)
    worker.store.take()  # and the node is killed
    worker.start()
    assert [(one.id, one.state) for one in told] == [(job.id, "failed")]
    assert '"given up"' in worker.audit.path.read_text()
