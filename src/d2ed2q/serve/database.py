"""The database of a node's queue: how it is opened, brought up to date, read and written."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from d2ed2q.errors import StorageError
from d2ed2q.files import storage_error

__all__ = ["MQTT_PEER", "Database"]

MQTT_PEER = "@mqtt"
"""Name of the broker among the peers of deliveries; no peer of the settings can have it."""

_VERSION = 3
# A number is never given twice (AUTOINCREMENT), or what is asked for by an old number would be another image's.
_JOBS = """
CREATE TABLE {name} (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    door TEXT NOT NULL,
    state TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    options TEXT NOT NULL,
    summary TEXT,
    error TEXT,
    again INTEGER NOT NULL DEFAULT 0
);
"""
_REST = """
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
_VERSION_2 = (
    # SHA-256 of a job's image: the file of it is replaced before the row is, and a kill may come between.
    "ALTER TABLE jobs ADD COLUMN input TEXT",
    # SHA-256 of the model that a job ended with, which may be another than the node had when its image came.
    "ALTER TABLE jobs ADD COLUMN model TEXT",
    # Seconds that a delivery has been tried for: two times of a clock that is set meanwhile would not tell them.
    "ALTER TABLE deliveries ADD COLUMN spent REAL NOT NULL DEFAULT 0",
    # Files of watched folders whose results were written, by where they went and by name; both as the system has them.
    "CREATE TABLE written (results BLOB NOT NULL, name BLOB NOT NULL, sha256 TEXT NOT NULL, mark TEXT NOT NULL, "
    "PRIMARY KEY (results, name))",
)
_VERSION_3 = (
    # Seconds that nodes have run with this queue: a clock that is set, or begins in 1970 again, makes nothing old.
    "CREATE TABLE running (seconds REAL NOT NULL)",
    "INSERT INTO running VALUES (0)",
    # What they had run when a job ended; what an older node ended is as old as this table.
    "ALTER TABLE jobs ADD COLUMN ended_at REAL",
    "UPDATE jobs SET ended_at = 0 WHERE finished IS NOT NULL",
)
_OLD = "id, key, door, state, created, started, finished, attempts, options, summary, error"


class Database:
    """An SQLite file that several threads of one process share.

    Args:
        path: the file; it is made where there is none, and one of an older node is brought up to date.

    Raises:
        StorageError: it is damaged, of a newer node, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(path.parent, error) from error
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # what was acknowledged survives a power cut
            self._bring_up_to_date()
            self._db.execute("PRAGMA foreign_keys = ON")
        except sqlite3.Error as error:
            raise StorageError(f"the queue {path} cannot be opened ({error}); restore it from a copy") from error

    def _bring_up_to_date(self) -> None:
        if self._version() == _VERSION:
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            version = self._version()  # once more: another process may have been faster
            if version > _VERSION:
                raise StorageError(f"the queue {self._path} was made by a newer version; use that one")
            if version < 1:
                self._rebuild()
            for number, statements in ((2, _VERSION_2), (3, _VERSION_3)):
                for statement in statements if version < number else ():
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {_VERSION}")
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _rebuild(self) -> None:
        """Makes the tables of version 1, with what older ones hold; SQLite cannot change a primary key in place."""
        db = self._db
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "jobs" in tables:
            db.execute(_JOBS.format(name="new_jobs"))
            db.execute(f"INSERT INTO new_jobs ({_OLD}) SELECT {_OLD} FROM jobs")
            db.execute("DROP TABLE jobs")
            db.execute("ALTER TABLE new_jobs RENAME TO jobs")
        else:
            db.execute(_JOBS.format(name="jobs"))
        for statement in _REST.split(";"):
            db.execute(statement)

    def close(self) -> None:
        """Closes it."""
        with self._lock:
            self._db.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """For statements that read.

        Raises:
            StorageError: it cannot be read.
        """
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise StorageError(f"the queue {self._path} cannot be read ({error})") from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """For statements that all are written, or none of them.

        Raises:
            StorageError: they could not be written.
        """
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:  # some errors have rolled it back already
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise StorageError(
                    f"the queue {self._path} cannot be written ({error}); see that the disk is not full"
                ) from error
