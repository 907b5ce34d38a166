"""The node's durable queue: jobs and deliveries in SQLite, their files beside it; nothing accepted is ever lost.

A job is accepted when its file and its row are on the disk. It is done once, whatever door it came through and however
often it is sent: its key (the SHA-256 of its bytes with the model's, or a DICOM instance's UID) is unique. When the
node is killed, what was in work waits again; a job that keeps killing the node is given up.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from d2ed2q.errors import StorageError
from d2ed2q.files import atomic_path, storage_error

__all__ = ["MQTT_PEER", "Delivery", "Job", "JobStore", "QueueFullError"]

MQTT_PEER = "@mqtt"
"""Name of the broker among the peers of deliveries; no peer of the settings can have it."""

State = Literal["waiting", "running", "done", "refused", "failed"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    door TEXT NOT NULL,
    state TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    options TEXT NOT NULL,
    summary TEXT,
    error TEXT
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, id);
CREATE TABLE IF NOT EXISTS deliveries (
    job INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    peer TEXT NOT NULL,
    file TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL,
    error TEXT,
    PRIMARY KEY (job, peer, file)
);
CREATE INDEX IF NOT EXISTS deliveries_due ON deliveries (state, due);
"""


class QueueFullError(Exception):
    """As many jobs wait as may; the sender has to come back later."""


@dataclass(frozen=True)
class Job:
    """One image to segment.

    Attributes:
        id: number, in the order of arrival.
        key: what makes it the same job as another.
        door: ``http``, ``dicom`` or ``watch``.
        state: ``waiting``, ``running``, ``done``, ``refused`` (too uncertain) or ``failed``.
        created: seconds since 1970.
        attempts: how often it was begun.
        options: what its door needs to know of it.
        summary: what came out, without pixels and without anything of the patient; None before it is done.
        error: why it failed.
    """

    id: int
    key: str
    door: str
    state: str
    created: float
    attempts: int
    options: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    error: str | None

    @property
    def finished(self) -> bool:
        """Whether nothing more will be done."""
        return self.state in ("done", "refused", "failed")


@dataclass(frozen=True)
class Delivery:
    """One result file on its way to one peer.

    Attributes:
        job: number of the job.
        peer: name of the peer in the node's settings.
        file: name of the result in the job's folder.
        attempts: how often it was tried.
    """

    job: int
    peer: str
    file: str
    attempts: int


class JobStore:
    """The queue.

    Args:
        folder: of the database and the files.
        limit: how many jobs may wait.
        attempts: how often a job is begun before it is given up.
        clock: seconds since 1970.

    Raises:
        StorageError: the folder cannot be written to, or its database is damaged.
    """

    def __init__(
        self, folder: Path, limit: int = 256, attempts: int = 3, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder, self.limit, self.attempts, self.clock = folder, limit, attempts, clock
        self._lock = threading.RLock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(folder, error) from error
        self._path = folder / "queue.sqlite"
        try:
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=30)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # what was acknowledged survives a power cut
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise StorageError(f"the queue {self._path} cannot be opened ({error}); restore it from a copy") from error

    def close(self) -> None:
        """Closes the database."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise StorageError(
                    f"the queue {self._path} cannot be written ({error}); see that the disk is not full"
                ) from error

    def input_of(self, job: int) -> Path:
        """Where a job's image lies."""
        return self.folder / "inputs" / f"{job:012}"

    def results_of(self, job: int) -> Path:
        """The file of a job's results."""
        return self.folder / "results" / f"{job:012}"

    def add(self, key: str, door: str, data: bytes, options: Mapping[str, Any] | None = None) -> tuple[Job, bool]:
        """Accepts a job, unless it is known.

        Returns:
            tuple: the job, and whether it is new.

        Raises:
            QueueFullError: too many wait.
            StorageError: it could not be written; it is not accepted.
        """
        with self._transaction() as db:
            row = db.execute("SELECT id FROM jobs WHERE key = ?", (key,)).fetchone()
            if row is not None:
                return self._get(row[0]), False
            waiting = db.execute("SELECT count(*) FROM jobs WHERE state IN ('waiting', 'running')").fetchone()[0]
            if waiting >= self.limit:
                raise QueueFullError
            cursor = db.execute(
                "INSERT INTO jobs (key, door, state, created, options) VALUES (?, ?, 'waiting', ?, ?)",
                (key, door, self.clock(), json.dumps(dict(options or {}))),
            )
            number = int(cursor.lastrowid or 0)
            with atomic_path(self.input_of(number)) as temporary:  # before the row is, or neither is
                temporary.write_bytes(data)
        return self.get(number), True

    def take(self) -> Job | None:
        """The job that has waited longest, from now on in work; None where none waits."""
        with self._transaction() as db:
            row = db.execute("SELECT id FROM jobs WHERE state = 'waiting' ORDER BY id LIMIT 1").fetchone()
            if row is None:
                return None
            db.execute(
                "UPDATE jobs SET state = 'running', started = ?, attempts = attempts + 1 WHERE id = ?",
                (self.clock(), row[0]),
            )
            return self._get(row[0])

    def finish(
        self,
        job: int,
        state: State,
        summary: Mapping[str, Any] | None = None,
        error: str | None = None,
        deliveries: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Notes how a job ended, and what is to be sent where, at once.

        Args:
            job: its number.
            state: ``done``, ``refused`` or ``failed``.
            summary: what came out.
            error: why it failed.
            deliveries: peer and file of each.
        """
        now = self.clock()
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET state = ?, finished = ?, summary = ?, error = ? WHERE id = ?",
                (state, now, None if summary is None else json.dumps(dict(summary)), error, job),
            )
            db.executemany(
                "INSERT OR IGNORE INTO deliveries (job, peer, file, state, due) VALUES (?, ?, ?, 'waiting', ?)",
                [(job, peer, file, now) for peer, file in deliveries],
            )

    def postpone(self, job: int) -> None:
        """Lets a job that was begun wait again, without counting the attempt."""
        with self._transaction() as db:
            db.execute("UPDATE jobs SET state = 'waiting', attempts = attempts - 1 WHERE id = ?", (job,))

    def recover(self) -> int:
        """Lets what a killed node had in work wait again, and gives up what was begun too often.

        Returns:
            int: how many jobs wait again.
        """
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET state = 'failed', finished = ?, error = 'the node stopped each time it was begun' "
                "WHERE state = 'running' AND attempts >= ?",
                (self.clock(), self.attempts),
            )
            found = db.execute("UPDATE jobs SET state = 'waiting' WHERE state = 'running'").rowcount
        self._sweep()
        return found

    def _sweep(self) -> None:
        """Removes files without a row: those of a job that was not accepted after all."""
        with self._lock:
            known = {row[0] for row in self._db.execute("SELECT id FROM jobs")}
        for file in (self.folder / "inputs").glob("*"):
            if not file.name.isdigit() or int(file.name) not in known:
                file.unlink(missing_ok=True)

    def get(self, job: int) -> Job:
        """A job by its number.

        Raises:
            KeyError: there is none.
        """
        with self._lock:
            return self._get(job)

    def find(self, key: str) -> Job | None:
        """A job by its key."""
        with self._lock:
            row = self._db.execute("SELECT id FROM jobs WHERE key = ?", (key,)).fetchone()
            return None if row is None else self._get(row[0])

    def _get(self, job: int) -> Job:
        row = self._db.execute(
            "SELECT id, key, door, state, created, attempts, options, summary, error FROM jobs WHERE id = ?", (job,)
        ).fetchone()
        if row is None:
            raise KeyError(job)
        summary = None if row[7] is None else json.loads(row[7])
        number, key, door, state, created, attempts, options, _, error = row
        return Job(number, key, door, state, created, attempts, json.loads(options), summary, error)

    def counts(self) -> dict[str, int]:
        """Jobs by state, and deliveries that wait or were given up."""
        with self._lock:
            found = dict.fromkeys(("waiting", "running", "done", "refused", "failed"), 0)
            found |= dict(self._db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
            sent = dict(self._db.execute("SELECT state, count(*) FROM deliveries GROUP BY state").fetchall())
        return found | {f"deliveries_{state}": sent.get(state, 0) for state in ("waiting", "done", "failed")}

    def due(self) -> list[Delivery]:
        """Deliveries whose time has come, those that wait longest first."""
        query = "SELECT job, peer, file, attempts FROM deliveries WHERE state = 'waiting' AND due <= ? ORDER BY due"
        with self._lock:
            rows = self._db.execute(query, (self.clock(),)).fetchall()
        return [Delivery(*row) for row in rows]

    def delivered(self, delivery: Delivery) -> None:
        """Notes that a peer has taken a file."""
        self._set(delivery, "done", self.clock(), None)

    def retry(self, delivery: Delivery, seconds: float, error: str) -> None:
        """Notes that a peer did not take a file, and tries again after some time."""
        self._set(delivery, "waiting", self.clock() + seconds, error)

    def give_up(self, delivery: Delivery, error: str) -> None:
        """Notes that a peer will not take a file."""
        self._set(delivery, "failed", self.clock(), error)

    def _set(self, delivery: Delivery, state: str, due: float, error: str | None) -> None:
        with self._transaction() as db:
            db.execute(
                "UPDATE deliveries SET state = ?, due = ?, error = ?, attempts = attempts + 1 "
                "WHERE job = ? AND peer = ? AND file = ?",
                (state, due, error, delivery.job, delivery.peer, delivery.file),
            )

    def forget(self, before: float) -> list[int]:
        """Removes finished jobs, with their files, that ended before a time and have nothing left to deliver.

        Returns:
            list[int]: their numbers.
        """
        with self._transaction() as db:
            rows = db.execute(
                "SELECT id FROM jobs WHERE finished < ? AND state IN ('done', 'refused', 'failed') AND NOT EXISTS "
                "(SELECT 1 FROM deliveries WHERE job = jobs.id AND state = 'waiting')",
                (before,),
            ).fetchall()
            db.executemany("DELETE FROM jobs WHERE id = ?", rows)
        for (number,) in rows:
            self.remove_files(number)
        return [row[0] for row in rows]

    def remove_files(self, job: int) -> None:
        """Removes a job's image and results."""
        self.input_of(job).unlink(missing_ok=True)
        self.results_of(job).unlink(missing_ok=True)
