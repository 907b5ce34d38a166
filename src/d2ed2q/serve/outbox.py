"""Deliveries: which results are on their way to whom, and how often that was tried."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from d2ed2q.serve.database import MQTT_PEER, Database

__all__ = ["LONGEST_WAIT", "Delivery", "Outbox"]

LONGEST_WAIT = 600.0
"""Seconds from one attempt to the next, at most."""


@dataclass(frozen=True)
class Delivery:
    """One result file on its way to one peer.

    Attributes:
        job: number of the job.
        peer: name of the peer in the node's settings.
        file: name of the result in the job's folder.
        attempts: how often it was tried.
        spent: seconds that it has been tried for.
        due: when it was to be tried next, in seconds since 1970.
        finished: when its job ended: of one that has ended again since, other results are to be sent.
    """

    job: int
    peer: str
    file: str
    attempts: int
    spent: float = 0.0
    due: float = field(default=0.0, compare=False)
    finished: float | None = field(default=None, compare=False)


class Outbox:
    """What is to be sent.

    Args:
        database: of the queue.
        clock: seconds since 1970.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self.clock = database, clock

    def due(self) -> list[Delivery]:
        """Deliveries whose time has come, those that wait longest first.

        None waits longer than the longest wait: one that seems to is of a time before the clock was set back.
        """
        query = (
            "SELECT job, peer, file, deliveries.attempts, spent, due, finished FROM deliveries JOIN jobs ON id = job "
            # Of a job that is segmented anew, nothing is sent before that is done.
            "WHERE deliveries.state = 'waiting' AND (due <= ? OR due > ?) "
            "AND jobs.state IN ('done', 'refused', 'failed') ORDER BY due"
        )
        now = self.clock()
        with self._database.reading() as db:
            rows = db.execute(query, (now, now + LONGEST_WAIT)).fetchall()
        return [Delivery(*row) for row in rows]

    def renew(self, job: int, deliveries: Sequence[tuple[str, str]]) -> None:
        """Lets what was given up of a job wait again, and what peers are to have that were not there before.

        Args:
            job: its number.
            deliveries: peer and file of each.
        """
        with self._database.transaction() as db:
            db.executemany(
                "INSERT INTO deliveries (job, peer, file, state, due) VALUES (?, ?, ?, 'waiting', ?) "
                "ON CONFLICT DO UPDATE SET state = 'waiting', due = excluded.due, attempts = 0, spent = 0, "
                "error = NULL WHERE state = 'failed'",
                [(job, peer, file, self.clock()) for peer, file in deliveries],
            )

    def delivered(self, delivery: Delivery) -> None:
        """Notes that a peer has taken a file."""
        self._set(delivery, "done", self.clock(), None)

    def retry(self, delivery: Delivery, seconds: float, error: str, spent: float = 0.0) -> None:
        """Notes that a peer did not take a file, and tries again after some time.

        Args:
            delivery: that was tried.
            seconds: until it is tried again, :data:`LONGEST_WAIT` at most.
            error: why it was not taken.
            spent: seconds that it has been tried for by now.
        """
        self._set(delivery, "waiting", self.clock() + seconds, error, spent)

    def give_up(self, delivery: Delivery, error: str) -> None:
        """Notes that a peer will not take a file."""
        self._set(delivery, "failed", self.clock(), error)

    def _set(self, delivery: Delivery, state: str, due: float, error: str | None, spent: float = 0.0) -> None:
        """Notes how a try ended, unless the job has ended anew meanwhile: what it gave then was not sent."""
        with self._database.transaction() as db:
            db.execute(
                "UPDATE deliveries SET state = ?, due = ?, error = ?, attempts = attempts + 1, "
                "spent = ? WHERE job = ? AND peer = ? AND file = ? "
                "AND (? IS NULL OR EXISTS (SELECT 1 FROM jobs WHERE id = job AND finished = ?))",
                (
                    *(state, due, error, spent, delivery.job, delivery.peer, delivery.file),
                    *(delivery.finished, delivery.finished),
                ),
            )

    def give_up_unknown(self, peers: Collection[str]) -> list[Delivery]:
        """Gives up what waits for peers that there are no more.

        Args:
            peers: names of those that there are.

        Returns:
            list[Delivery]: what was given up.
        """
        with self._database.transaction() as db:
            rows = db.execute("SELECT job, peer, file, attempts, spent FROM deliveries WHERE state = 'waiting'")
            gone = [found for found in (Delivery(*row) for row in rows.fetchall()) if found.peer not in peers]
            db.executemany(
                "UPDATE deliveries SET state = 'failed', error = 'no such peer' "
                "WHERE job = ? AND peer = ? AND file = ?",
                [(found.job, found.peer, found.file) for found in gone],
            )
        return gone

    def expire_news(self, seconds: float, passed: float) -> None:
        """Gives up what the broker could not be told for so long: it must not keep images on the disk for ever.

        Args:
            seconds: that it is told for.
            passed: seconds since this was asked the last time.
        """
        with self._database.transaction() as db:
            db.execute(
                "UPDATE deliveries SET spent = spent + ? WHERE state = 'waiting' AND peer = ?", (passed, MQTT_PEER)
            )
            db.execute(
                "UPDATE deliveries SET state = 'failed', error = 'too old' WHERE state = 'waiting' AND peer = ? "
                "AND spent > ?",
                (MQTT_PEER, seconds),
            )
