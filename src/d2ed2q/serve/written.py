"""Which files of watched folders have their results: others may take these away, and are not given them again."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path

from d2ed2q.serve.database import Database

__all__ = ["Mark", "Source", "Written"]

Mark = tuple[int, int, int, int]
"""Size of a file, times of its content and of its inode, and the inode's number: another file has another."""

Source = tuple[Mark, str]
"""Of which file results are: how it stood, and the SHA-256 of what was in it."""


class Written:
    """What results were written of.

    Args:
        database: of the queue.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, results: Path, name: str) -> Source | None:
        """Of what the results of a file were written; None where none were.

        Args:
            results: folder that they went to.
            name: of the file.
        """
        with self._database.reading() as db:
            row = db.execute(
                "SELECT mark, sha256 FROM written WHERE results = ? AND name = ?",
                (os.fsencode(results), os.fsencode(name)),
            ).fetchone()
        if row is None:
            return None
        size, content, inode, number = json.loads(row[0])
        return (size, content, inode, number), row[1]

    def put(self, results: Path, name: str, source: Source) -> None:
        """Notes that the results of a file were written."""
        mark, sha256 = source
        with self._database.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO written (results, name, sha256, mark) VALUES (?, ?, ?, ?)",
                (os.fsencode(results), os.fsencode(name), sha256, json.dumps(mark)),
            )

    def drop(self, results: Path, name: str) -> None:
        """Forgets a file."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM written WHERE results = ? AND name = ?", (os.fsencode(results), os.fsencode(name)))

    def keep(self, results: Path, names: Collection[str]) -> None:
        """Forgets all files but those that are there."""
        where = os.fsencode(results)
        there = {os.fsencode(name) for name in names}
        with self._database.transaction() as db:
            found = {row[0] for row in db.execute("SELECT name FROM written WHERE results = ?", (where,))}
            db.executemany(
                "DELETE FROM written WHERE results = ? AND name = ?", [(where, name) for name in found - there]
            )
