"""The door for cameras that speak nothing but files: a folder that is looked at again and again."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from d2ed2q.data.images import EXTENSIONS
from d2ed2q.errors import D2ED2QError
from d2ed2q.files import atomic_path, write_text
from d2ed2q.serve.audit import AuditLog
from d2ed2q.serve.settings import WatchSettings
from d2ed2q.serve.store import Job, JobStore, QueueFullError
from d2ed2q.serve.worker import Worker

__all__ = ["Watcher"]

_RESULTS = ("overlay.png", "probability.png", "doubt.png", "summary.json", "mask.png")  # the mask last
_SUFFIXES = EXTENSIONS | {".dcm", ".dicom"}
_LARGEST = 256_000_000
_LOG = logging.getLogger("d2ed2q.serve")


class Watcher:
    """Looks at folders, in a thread of its own.

    A file is taken when it has not changed for a while, and done when its mask is there; so nothing has to be
    remembered, and a node that was killed goes on. A file that is replaced by another of the same name is done again.
    Files that cannot be segmented are moved aside, with the reason beside them.

    Args:
        folders: what is watched.
        store: the queue.
        worker: behind it.
        render: makes a result of a job, by its number and the result's name.
        audit: is told of every file.
        model: SHA-256 of the model.
        seconds: between two looks.
    """

    def __init__(
        self,
        folders: Sequence[WatchSettings],
        store: JobStore,
        worker: Worker,
        render: Callable[[int, str], bytes],
        audit: AuditLog,
        model: str,
        seconds: float = 1.0,
    ) -> None:
        self.folders, self.store, self.worker, self.render = tuple(folders), store, worker, render
        self.audit, self.model, self.seconds = audit, model, seconds
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}
        self._keys: dict[Path, tuple[tuple[int, int], str]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="d2ed2q-watch", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Ends."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(self.seconds)

    def look(self) -> None:
        """Looks at every folder once."""
        for folder in self.folders:
            try:
                files = sorted(path for path in folder.folder.iterdir() if _is_candidate(path))
            except OSError as error:
                _LOG.error("the folder %s cannot be read: %s", folder.folder, error.strerror)
                continue
            for path in files:
                try:
                    self._look_at(path, folder)
                except QueueFullError:
                    break  # the next look finds room
                except (D2ED2QError, OSError) as error:
                    _LOG.error("a file of %s has to wait: %s", folder.folder, type(error).__name__)
            self._seen = {
                path: seen for path, seen in self._seen.items() if path.parent != folder.folder or path in files
            }

    def _look_at(self, path: Path, folder: WatchSettings) -> None:
        state = path.stat()
        now, mark = time.monotonic(), (state.st_size, state.st_mtime_ns)
        known = self._seen.get(path)
        if known is None or known[0] != mark:
            self._seen[path] = known = (mark, now)
        if now - known[1] < folder.settled_seconds or state.st_size == 0:
            return
        mask = _results(folder) / f"{path.stem}_mask.png"
        if mask.is_file() and mask.stat().st_mtime_ns >= state.st_mtime_ns:
            return
        if state.st_size > _LARGEST:
            self._move_aside(path, folder, f"the file has {state.st_size:,} bytes; {_LARGEST:,} are taken")
            return
        job = self._job(path, mark)
        if job.state == "failed":
            self._move_aside(path, folder, job.error or "it could not be segmented")
        elif job.finished:
            self._write(path, folder, job)

    def _job(self, path: Path, mark: tuple[int, int]) -> Job:
        """The job of a file, new or known."""
        known = self._keys.get(path)
        if known is not None and known[0] == mark:
            job = self.store.find(known[1])
            if job is not None:
                return job
        data = path.read_bytes()
        key = hashlib.sha256(f"{self.model} {path.name} ".encode("utf-8", "surrogateescape") + data).hexdigest()
        job, new = self.store.add(key, "watch", data)
        self._keys[path] = (mark, key)
        if new:
            self.audit.write("received", job=job.id, door="watch", key=key)
            self.worker.wake()
        return job

    def _write(self, path: Path, folder: WatchSettings, job: Job) -> None:
        out = _results(folder)
        for name in _RESULTS:
            target = out / f"{path.stem}_{name}"
            data = self.render(job.id, name)
            with atomic_path(target) as temporary:
                temporary.write_bytes(data)
        if job.state == "refused":
            write_text(out / f"{path.stem}_refused.txt", "refused: too uncertain; look at the image yourself\n")

    def _move_aside(self, path: Path, folder: WatchSettings, reason: str) -> None:
        aside = folder.failed or folder.folder / "failed"
        aside.mkdir(parents=True, exist_ok=True)
        write_text(aside / f"{path.name}.txt", f"{reason}\n")
        os.replace(path, aside / path.name)
        self._keys.pop(path, None)
        self.audit.write("moved aside", door="watch")


def _results(folder: WatchSettings) -> Path:
    return folder.results or folder.folder / "results"


def _is_candidate(path: Path) -> bool:
    return (
        path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file() and not path.is_symlink()
    )
