"""What a job of the queue is, and the statements on its row that belong together."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from d2ed2q.serve.database import MQTT_PEER

__all__ = ["ENDED", "Job", "State", "add_deliveries", "is_of", "read_job", "reopen"]

State = Literal["waiting", "running", "done", "refused", "failed"]
ENDED = ("done", "refused", "failed")
"""States in which nothing more will be done."""


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
        again: whether it failed for no fault of its image, and is begun anew when it is sent again.
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
    again: bool = False

    @property
    def finished(self) -> bool:
        """Whether nothing more will be done."""
        return self.state in ENDED


def read_job(db: sqlite3.Connection, number: int) -> Job:
    """A job by its number.

    Raises:
        KeyError: there is none.
    """
    row = db.execute(
        "SELECT id, key, door, state, created, attempts, options, summary, error, again FROM jobs WHERE id = ?",
        (number,),
    ).fetchone()
    if row is None:
        raise KeyError(number)
    summary = None if row[7] is None else json.loads(row[7])
    _, key, door, state, created, attempts, options, _, error, again = row
    return Job(number, key, door, state, created, attempts, json.loads(options), summary, error, bool(again))


def is_of(model: str, ended_with: str | None, summary: str | None) -> bool:
    """Whether a job that has ended did so with this model.

    Args:
        model: SHA-256 of the node's model.
        ended_with: SHA-256 of the job's; None of a job of an older node, of which its summary tells it if it has one.
        summary: the job's, as it lies in the database.
    """
    return model == (ended_with or json.loads(summary or "{}").get("model_sha256"))


def reopen(db: sqlite3.Connection, number: int) -> None:
    """Lets a job that ended be begun anew; what waits for peers waits on, and the broker will be told once more."""
    db.execute(
        "UPDATE jobs SET state = 'waiting', attempts = 0, finished = NULL, summary = NULL, error = NULL, again = 0 "
        "WHERE id = ?",
        (number,),
    )
    db.execute("DELETE FROM deliveries WHERE job = ? AND peer = ?", (number, MQTT_PEER))


def add_deliveries(db: sqlite3.Connection, job: int, deliveries: Sequence[tuple[str, str]], now: float) -> None:
    """Adds what is to be sent of a job, from now on: peer and file of each; what is there already stays as it is."""
    db.executemany(
        "INSERT OR IGNORE INTO deliveries (job, peer, file, state, due) VALUES (?, ?, ?, 'waiting', ?)",
        [(job, peer, file, now) for peer, file in deliveries],
    )
