"""The node's durable queue: jobs and deliveries in SQLite, their files beside it; nothing accepted is ever lost.

A job is accepted when its file and its row are on the disk. It is done once, whatever door it came through and however
often it is sent: its key (the SHA-256 of its bytes with the model's, or of a DICOM instance's UID) is unique; what
comes again with other bytes, or to a node that has another model by now, is done again. When the node is killed, what
was in work waits again; a job that keeps killing the node is given up.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from d2ed2q.errors import StorageError
from d2ed2q.files import atomic_path
from d2ed2q.serve.database import MQTT_PEER, Database
from d2ed2q.serve.jobs import ENDED, Job, State, add_deliveries, is_of, read_job, reopen
from d2ed2q.serve.outbox import Outbox
from d2ed2q.serve.outdated import is_outdated
from d2ed2q.serve.written import Written

__all__ = ["Job", "JobStore", "QueueFullError"]

_KNOWN = "SELECT id, state, again, input, model, summary FROM jobs WHERE key = ?"
_PROBE = 1_000_000  # bytes, about an image: a disk with room for a few of them only is full


class QueueFullError(Exception):
    """As many jobs wait as may; the sender has to come back later."""


class JobStore:
    """The queue.

    Args:
        folder: of the database and the files.
        limit: how many jobs may wait.
        attempts: how often a job is begun before it is given up.
        clock: seconds since 1970.
        model: SHA-256 of the node's model; None does not tell models apart.

    Raises:
        StorageError: the folder cannot be written to, or its database is damaged.
    """

    def __init__(
        self,
        folder: Path,
        limit: int = 256,
        attempts: int = 3,
        clock: Callable[[], float] = time.time,
        model: str | None = None,
    ) -> None:
        self.folder, self.limit, self.attempts, self.clock, self.model = folder, limit, attempts, clock, model
        self._database = Database(folder / "queue.sqlite")
        self.outbox = Outbox(self._database, clock)
        self.written = Written(self._database)
        self.writable = True
        """Whether what came last could be written; :meth:`probe` finds out whether the next can."""

    def close(self) -> None:
        """Closes the database."""
        self._database.close()

    def input_of(self, job: int) -> Path:
        """Where a job's image lies."""
        return self.folder / "inputs" / f"{job:012}"

    def results_of(self, job: int) -> Path:
        """The file of a job's results."""
        return self.folder / "results" / f"{job:012}"

    def add(self, key: str, door: str, data: bytes, options: Mapping[str, Any] | None = None) -> tuple[Job, bool]:
        """Accepts a job, unless it is known.

        One that failed for no fault of its image is begun anew, and so is one whose image comes again changed under the
        same key, as an instance that was corrected, and one that another model ended.

        Returns:
            tuple: the job, and whether it is new.

        Raises:
            QueueFullError: too many wait, or the image that has changed is in work.
            StorageError: it could not be written; it is not accepted.
        """
        try:
            number, new = self._added(key, door, data, options)
        except StorageError:
            self.writable = False
            raise
        self.writable = True
        return self.get(number), new

    def _added(self, key: str, door: str, data: bytes, options: Mapping[str, Any] | None) -> tuple[int, bool]:
        sha256 = hashlib.sha256(data).hexdigest()
        with self._database.transaction() as db:
            row = db.execute(_KNOWN, (key,)).fetchone()
            changed = row is not None and self._differs(int(row[0]), row[1], data, sha256, row[3])
            if row is not None and row[1] in ENDED and self.model is not None:
                changed = changed or not is_of(self.model, row[4], row[5])  # which is as good as another image
            if row is not None and not changed and not (row[1] == "failed" and row[2]):
                return int(row[0]), False
            if changed and row[1] == "running":
                raise QueueFullError
            waiting = db.execute("SELECT count(*) FROM jobs WHERE state IN ('waiting', 'running')").fetchone()[0]
            if waiting >= self.limit and not (changed and row[1] == "waiting"):
                raise QueueFullError
            if row is not None:
                number = int(row[0])
                reopen(db, number)
                if changed:  # what is being sent at this moment is of the old image, and must not count as sent
                    db.execute("DELETE FROM deliveries WHERE job = ?", (number,))
                    self.results_of(number).unlink(missing_ok=True)  # before: they never are beside another's image
            else:
                cursor = db.execute(
                    "INSERT INTO jobs (key, door, state, created, options) VALUES (?, ?, 'waiting', ?, ?)",
                    (key, door, self.clock(), json.dumps(dict(options or {}))),
                )
                number = int(cursor.lastrowid or 0)
            db.execute("UPDATE jobs SET input = ? WHERE id = ?", (sha256, number))
            with atomic_path(self.input_of(number)) as temporary:  # before the row is, or neither is
                temporary.write_bytes(data)
        return number, True

    def _differs(self, number: int, state: str, data: bytes, sha256: str, known: str | None) -> bool:
        """Whether a job's image is not this one, or was replaced by it just before its row could not be written.

        Args:
            number: of the job.
            state: of the job.
            data: the image.
            sha256: of the image.
            known: SHA-256 of the image that the row is of; None of a job of an older node.
        """
        try:
            same = self.input_of(number).read_bytes() == data and known in (None, sha256)
        except OSError:  # it is as good as gone
            same = False
        return not same or (state in ("done", "refused") and not self.results_of(number).is_file())

    def probe(self) -> None:
        """Tries whether jobs can be written again: nobody may send any to a node that says it cannot take them.

        Raises:
            StorageError: they cannot.
        """
        place = self.folder / "inputs" / "probe"
        with self._database.transaction() as db, atomic_path(place) as temporary:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            db.execute(f"PRAGMA user_version = {version}")  # which is written, though it is the same
            temporary.write_bytes(bytes(_PROBE))
        place.unlink(missing_ok=True)
        self.writable = True

    def take(self) -> Job | None:
        """The job that has waited longest, from now on in work; None where none waits."""
        with self._database.transaction() as db:
            row = db.execute("SELECT id FROM jobs WHERE state = 'waiting' ORDER BY id LIMIT 1").fetchone()
            if row is None:
                return None
            db.execute(
                "UPDATE jobs SET state = 'running', started = ?, attempts = attempts + 1 WHERE id = ?",
                (self.clock(), row[0]),
            )
            return read_job(db, row[0])

    def finish(
        self,
        job: int,
        state: State,
        summary: Mapping[str, Any] | None = None,
        error: str | None = None,
        deliveries: Sequence[tuple[str, str]] = (),
        again: bool = False,
    ) -> None:
        """Notes how a job ended, and what is to be sent where, at once.

        What an earlier end of the job left to be sent, and this one does not name, is not sent.

        Args:
            job: its number.
            state: ``done``, ``refused`` or ``failed``.
            summary: what came out.
            error: why it failed.
            deliveries: peer and file of each.
            again: whether it is begun anew when it is sent again, because it was not the image that made it fail.
        """
        now = self.clock()
        with self._database.transaction() as db:
            db.execute(
                "UPDATE jobs SET state = ?, finished = ?, summary = ?, error = ?, again = ?, model = ?, "
                "ended_at = (SELECT seconds FROM running) WHERE id = ?",
                (state, now, None if summary is None else json.dumps(dict(summary)), error, again, self.model, job),
            )
            db.execute("DELETE FROM deliveries WHERE job = ? AND state = 'waiting'", (job,))
            add_deliveries(db, job, deliveries, now)

    def postpone(self, job: int, counted: bool = False) -> None:
        """Lets a job that was begun, and has not ended, wait again.

        Args:
            job: its number.
            counted: whether the attempt counts.
        """
        with self._database.transaction() as db:
            db.execute(
                "UPDATE jobs SET state = 'waiting', attempts = attempts - ? WHERE id = ? AND state = 'running'",
                (0 if counted else 1, job),
            )

    def recover(self, news: Sequence[tuple[str, str]] = ()) -> list[Job]:
        """Lets what a killed node had in work wait again, and gives up what was begun too often.

        Args:
            news: peer and file of what is to be sent of each job that is given up.

        Returns:
            list[Job]: what was given up.
        """
        now = self.clock()
        with self._database.transaction() as db:
            rows = db.execute("SELECT id FROM jobs WHERE state = 'running' AND attempts >= ?", (self.attempts,))
            given_up = [int(row[0]) for row in rows.fetchall()]
            for number in given_up:
                db.execute(
                    "UPDATE jobs SET state = 'failed', finished = ?, model = ?, "
                    "ended_at = (SELECT seconds FROM running), "
                    "error = 'the node stopped each time it was begun' WHERE id = ?",
                    (now, self.model, number),
                )
                add_deliveries(db, number, news, now)
            db.execute("UPDATE jobs SET state = 'waiting' WHERE state = 'running'")
        self._sweep()
        return [self.get(number) for number in given_up]

    def reopen_outdated(self, model: str, refuse: float | None = None) -> int:
        """Lets jobs wait again whose results are outdated, as :func:`is_outdated` says, and returns how many."""
        with self._database.transaction() as db:
            rows = db.execute(
                "SELECT id, state, summary, EXISTS "
                "(SELECT 1 FROM deliveries WHERE job = jobs.id AND state = 'waiting' AND peer != ?) "
                "FROM jobs WHERE state IN ('done', 'refused')",
                (MQTT_PEER,),
            ).fetchall()
            again = [row[0] for row in rows if is_outdated(row[1], json.loads(row[2] or "{}"), row[3], model, refuse)]
            for number in again:
                reopen(db, number)
        return len(again)

    def rekey(self, key_of: Callable[[Path], str | None]) -> None:
        """Gives DICOM jobs of an older node, of whose keys the model was a part, the keys of their instances.

        Of several jobs of one instance, that stays whose image came last: the others' results would take its place.

        Args:
            key_of: the key of an image, by its file; None where it cannot be told.
        """
        with self._database.transaction() as db:
            rows = db.execute("SELECT id FROM jobs WHERE door = 'dicom' AND input IS NULL").fetchall()
            files = [(number, self.input_of(number)) for (number,) in rows if self.input_of(number).is_file()]
            for number, file in sorted(files, key=lambda known: (known[1].stat().st_mtime_ns, known[0])):
                key = key_of(file)
                if key is not None:
                    db.execute("DELETE FROM jobs WHERE key = ? AND id != ? AND input IS NULL", (key, number))
                    db.execute("UPDATE OR IGNORE jobs SET key = ? WHERE id = ?", (key, number))

    def _sweep(self) -> None:
        """Removes files without a row: of a job that was not accepted after all, or is forgotten; and half-written."""
        with self._database.reading() as db:
            known = {row[0] for row in db.execute("SELECT id FROM jobs")}
        for folder in ("inputs", "results"):
            for file in (self.folder / folder).glob("*"):
                if not file.name.isdigit() or int(file.name) not in known:
                    file.unlink(missing_ok=True)

    def get(self, job: int) -> Job:
        """A job by its number.

        Raises:
            KeyError: there is none.
        """
        with self._database.reading() as db:
            return read_job(db, job)

    def find(self, key: str) -> Job | None:
        """A job by its key."""
        with self._database.reading() as db:
            row = db.execute("SELECT id FROM jobs WHERE key = ?", (key,)).fetchone()
            return None if row is None else read_job(db, row[0])

    def ended(self, job: int) -> float | None:
        """When a job ended, in seconds since 1970; None where it has not."""
        with self._database.reading() as db:
            row = db.execute("SELECT finished FROM jobs WHERE id = ?", (job,)).fetchone()
        return None if row is None else row[0]

    def counts(self) -> dict[str, int]:
        """Jobs by state, and deliveries that wait or were given up."""
        with self._database.reading() as db:
            found = dict.fromkeys(get_args(State), 0)
            found |= dict(db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
            sent = dict(db.execute("SELECT state, count(*) FROM deliveries GROUP BY state").fetchall())
        return found | {f"deliveries_{state}": sent.get(state, 0) for state in ("waiting", "done", "failed")}

    def forget(self, keep: float, passed: float) -> list[int]:
        """Removes finished jobs, with their files, that ended so long ago and have nothing left to deliver.

        Args:
            keep: seconds that they are kept for; those count in which a node runs.
            passed: seconds since this was asked the last time.

        Returns:
            list[int]: their numbers.
        """
        with self._database.transaction() as db:
            db.execute("UPDATE running SET seconds = seconds + ?", (passed,))
            rows = db.execute(
                "SELECT id FROM jobs WHERE ended_at + ? <= (SELECT seconds FROM running) "
                "AND state IN ('done', 'refused', 'failed') "
                "AND NOT EXISTS (SELECT 1 FROM deliveries WHERE job = jobs.id AND state = 'waiting')",
                (keep,),
            ).fetchall()
            db.executemany("DELETE FROM jobs WHERE id = ?", rows)
        for (number,) in rows:  # no other job has had, or will have, this number; what a kill leaves is swept at start
            self.input_of(number).unlink(missing_ok=True)
            self.results_of(number).unlink(missing_ok=True)
        return [row[0] for row in rows]
