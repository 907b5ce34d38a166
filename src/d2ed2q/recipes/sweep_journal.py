"""The journal of a search, Optuna's: a worker that is killed leaves it neither locked nor with half a record."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from d2ed2q.errors import ConfigError
from d2ed2q.files import hold, storage_error

__all__ = ["open_journal"]


def open_journal(folder: Path) -> JournalStorage:
    """Opens the journal that all workers of a search write, or begins it.

    Args:
        folder: of the search.

    Raises:
        ConfigError: a record in it cannot be read.
        StorageError: it cannot be written.
    """
    path = folder / "journal.log"
    try:
        return JournalStorage(_Journal(path))
    except OSError as error:
        raise storage_error(path, error) from error
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"{path} is damaged ({error}); restore it from a copy, or begin the search anew in another folder"
        ) from error


class _Journal(JournalFileBackend):
    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(str(path), _Lock(path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        try:
            super().append_logs(logs)
        except OSError as error:
            raise storage_error(self._path, error) from error


class _Lock(JournalFileOpenLock):
    """A lock that the system takes from a process that ends; Optuna's own are files, which a killed one leaves."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._held = contextlib.ExitStack()

    def acquire(self) -> bool:
        self._held.enter_context(hold(self._journal.with_name(".journal"), wait=True))
        _cut_unfinished(self._journal)
        return True

    def release(self) -> None:
        self._held.close()


def _cut_unfinished(journal: Path) -> None:
    """Removes half a record from the end: the next one would be written behind it, into the same line."""
    with open(journal, "rb+") as file:
        if not file.seek(0, os.SEEK_END):
            return
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
