"""The audit log: one JSON object a line, each with the hash of the one before, so that nothing can be changed unseen.

It records who asked for what, which model answered, and what was refused; never a name, a patient's identifier or a
pixel. (EU AI Act, Articles 12 and 26: logs are kept for at least six months.)
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from d2ed2q.errors import DataError, StorageError
from d2ed2q.files import append_line, storage_error

__all__ = ["AuditLog", "verify_audit"]

_FIRST = "0" * 64
_MOST_OWED = 10_000
_LOG = logging.getLogger("d2ed2q.serve")


class AuditLog:
    """An append-only log.

    Nothing is written before the first entry is: a log can be looked at while another node writes to it.

    Args:
        path: the file; a new one is begun where there is none, an old one is gone on with.
        now: the time.

    Raises:
        DataError: the file was changed.
        StorageError: it cannot be written to.
    """

    def __init__(self, path: Path, now: Callable[[], datetime.datetime] | None = None) -> None:
        self.path = path
        self._now = now or (lambda: datetime.datetime.now(datetime.timezone.utc))
        self._lock = threading.Lock()
        self._owed: deque[dict[str, Any]] = deque()
        self._lost = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o640)
        except OSError as error:
            raise storage_error(path, error) from error
        self._number, self._hash = _verified(path, cut=True)
        self._begun = False

    def write(self, event: str, **facts: Any) -> None:
        """Writes one entry; when this returns it is on the disk.

        Args:
            event: what happened, such as ``segmented`` or ``denied``.
            **facts: about it; without anything of a patient.

        Raises:
            StorageError: the entry could not be written.
            DataError: the file was changed before the first entry was written.
        """
        with self._lock:
            self._settle()
            self._append(self._entry(event, facts))

    def note(self, event: str, **facts: Any) -> None:
        """As :meth:`write`, of what has happened and cannot be taken back: it does not fail.

        What cannot be written now is kept in memory, and written before the next entry that can be.
        """
        with self._lock:
            entry = self._entry(event, facts)
            try:
                self._settle()
                self._append(entry)
            except (StorageError, DataError) as error:
                _LOG.error("the audit log cannot be written now: %s", error)
                if len(self._owed) < _MOST_OWED:
                    self._owed.append(entry)
                else:
                    self._lost += 1

    def _entry(self, event: str, facts: dict[str, Any]) -> dict[str, Any]:
        return {"time": self._now().isoformat(timespec="milliseconds"), "event": event, **facts}

    def _settle(self) -> None:
        """Writes what is owed."""
        if not self._begun:
            try:
                _drop_cut_line(self.path)
            except OSError as error:
                raise storage_error(self.path, error) from error
            self._number, self._hash = verify_audit(self.path)
            self._begun = True
        while self._owed:
            self._append(self._owed[0])
            self._owed.popleft()
        if self._lost:
            self._append(self._entry("lost", {"entries": self._lost}))
            self._lost = 0

    def _append(self, entry: dict[str, Any]) -> None:
        entry = {"number": self._number + 1, **entry}
        digest = _digest(self._hash, entry)
        append_line(self.path, json.dumps({**entry, "hash": digest}, ensure_ascii=False), sync=True)
        self._number, self._hash = self._number + 1, digest


def verify_audit(path: Path) -> tuple[int, str]:
    """Checks every entry of a log.

    Returns:
        tuple: the number of entries, and the hash of the last one, which stands for all of them: kept elsewhere, it
        also shows when entries are cut off at the end.

    Raises:
        DataError: an entry was changed, removed, added or put elsewhere; the message names its line.
        StorageError: the file cannot be read.
    """
    return _verified(path)


def _verified(path: Path, cut: bool = False) -> tuple[int, str]:
    """As :func:`verify_audit`; ``cut`` lets a last line be that is not whole, or not yet."""
    number, before = 0, _FIRST
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                if cut and not line.endswith("\n"):
                    return number - 1, before
                try:
                    entry = json.loads(line)
                    digest = entry.pop("hash")
                except (ValueError, KeyError, AttributeError) as error:
                    raise DataError(f"{path}, line {number}: this is no entry of an audit log") from error
                if entry.get("number") != number or digest != _digest(before, entry):
                    raise DataError(
                        f"{path}, line {number}: this entry, or the one before it, is not the one that was written"
                    )
                before = digest
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    return number, before


def _digest(before: str, entry: dict[str, Any]) -> str:
    text = json.dumps(entry, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(f"{before}{text}".encode("utf-8", "surrogateescape")).hexdigest()


def _drop_cut_line(path: Path) -> None:
    """Takes back a last line that a power cut left unfinished: it was never acknowledged."""
    data = path.read_bytes()
    whole = data.rpartition(b"\n")
    if whole[2]:
        with open(path, "rb+") as file:
            file.truncate(len(data) - len(whole[2]))
