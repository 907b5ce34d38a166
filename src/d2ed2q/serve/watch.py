"""The door for cameras that speak nothing but files: a folder that is looked at again and again."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from d2ed2q.data.images import EXTENSIONS
from d2ed2q.errors import StorageError
from d2ed2q.files import atomic_path, write_text
from d2ed2q.serve.audit import AuditLog
from d2ed2q.serve.model import RESEARCH
from d2ed2q.serve.settings import WatchSettings
from d2ed2q.serve.store import Job, JobStore, QueueFullError
from d2ed2q.serve.worker import Worker, whereabouts
from d2ed2q.serve.written import Mark, Source

__all__ = ["Watcher"]

_RESULTS = ("overlay.png", "probability.png", "doubt.png", "summary.json", "mask.png")  # the mask last
_SUFFIXES = EXTENSIONS | {".dcm", ".dicom"}
_LARGEST = 256_000_000
_LOG = logging.getLogger("d2ed2q.serve")


class Watcher:
    """Looks at folders, in a thread of its own.

    A file is taken when it has not changed for a while. It is done when its results were written, which is noted down
    as long as it lies there: whoever takes them away is not given them again. A mask and a summary that names its
    content say the same, so that nothing is lost with the state. A file that is replaced by another of the same name is
    done again.
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
        self._seen: dict[Path, tuple[Mark, float]] = {}
        self._keys: dict[Path, tuple[Mark, str, str]] = {}
        self._done: dict[Path, Mark] = {}
        self._there: dict[Path, set[Path]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="d2ed2q-watch", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether folders are looked at."""
        return self._thread.is_alive()

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
            try:
                self.look()
            except Exception as error:  # whatever happens to one look, there is another
                _LOG.error("a look at the folders failed: %s", whereabouts(error))
            self._stop.wait(self.seconds)

    def look(self) -> None:
        """Looks at every folder once."""
        for folder in self.folders:
            try:
                files = sorted(path for path in folder.folder.iterdir() if _is_candidate(path))
            except OSError as error:
                _LOG.error("the folder %s cannot be read: %s", folder.folder, error.strerror)
                continue
            # All are seen before any is queued: a full queue must not keep results of other images where they are.
            for step in (self._see, self._look_at):
                for path in files:
                    try:
                        step(path, folder)
                    except QueueFullError:
                        break  # the next look finds room
                    except Exception as error:  # one file must not keep the others; its name may be a patient's
                        _LOG.error("a file of %s has to wait: %s", folder.folder, whereabouts(error))
            there = set(files)
            if there != self._there.get(folder.folder):
                self._keep(folder, there)
            for known in (self._seen, self._keys, self._done):
                for path in [path for path in known if path.parent == folder.folder and path not in there]:
                    del known[path]

    def _keep(self, folder: WatchSettings, there: set[Path]) -> None:
        """Forgets which files had their results that are gone: when they come back, they are other ones."""
        try:
            self.store.written.keep(_results(folder), [path.name for path in there])
            self._there[folder.folder] = there
        except Exception as error:  # there is another look
            _LOG.error("files of %s cannot be forgotten: %s", folder.folder, whereabouts(error))

    def _see(self, path: Path, folder: WatchSettings) -> None:
        """Notes how a file stands; results of another image, by a camera that uses names again, are removed at once."""
        mark = _mark(path.lstat())
        known = self._seen.get(path)
        if known is not None and known[0] == mark:
            return
        out = _results(folder)
        noted = self.store.written.get(out, path.name)
        source = noted or _source(out, path)
        if source is not None and not _is_of(source, path, mark):
            _remove_results(out, path)
            self.store.written.drop(out, path.name)  # the content of before may come back
        elif source is not None and (noted or (out / f"{path.name}_mask.png").is_file()):
            self._done[path] = mark  # clocks of cameras are not asked
            if noted is None or noted[0] != mark:
                self.store.written.put(out, path.name, (mark, source[1]))
        self._seen[path] = (mark, time.monotonic())

    def _look_at(self, path: Path, folder: WatchSettings) -> None:
        known = self._seen.get(path)
        if known is None:
            return
        mark, since = known
        size = mark[0]
        if time.monotonic() - since < folder.settled_seconds or size == 0:
            return
        if size > _LARGEST:
            self._move_aside(path, folder, f"the file has {size:,} bytes; {_LARGEST:,} are taken")
            return
        if self._done.get(path) == mark:
            return
        job, digest = self._job(path, mark)
        if job.state == "failed":
            self._move_aside(path, folder, job.error or "it could not be segmented")
        elif job.finished:
            self._write(path, folder, job, {"sha256": digest, "mark": list(mark)})
            self._done[path] = mark
            self.store.written.put(_results(folder), path.name, (mark, digest))

    def _job(self, path: Path, mark: Mark) -> tuple[Job, str]:
        """The job of a file, new or known, and the SHA-256 of what is in it."""
        known = self._keys.get(path)
        if known is not None and known[0] == mark:
            job = self.store.find(known[1])
            if job is not None:
                return job, known[2]
        data = _read(path, mark)
        key = _digest(f"{self.model} {path.name} ".encode("utf-8", "surrogateescape") + data)
        job, new = self.store.add(key, "watch", data)
        self._keys[path] = (mark, key, _digest(data))
        if new:
            self.audit.note("received", job=job.id, door="watch", key=key)
            self.worker.wake()
        return job, self._keys[path][2]

    def _write(self, path: Path, folder: WatchSettings, job: Job, source: dict[str, Any]) -> None:
        out = _results(folder)
        # Without the mask, nothing that is there counts as done; and who finds one has been warned before.
        for name in ("mask.png", "refused.txt"):
            (out / f"{path.name}_{name}").unlink(missing_ok=True)
        if job.state == "refused":
            write_text(
                out / f"{path.name}_refused.txt", self._said("refused: too uncertain; look at the image yourself")
            )
        for name in _RESULTS:
            data = self.render(job.id, name)
            if name == "summary.json":
                data = json.dumps({**json.loads(data), "source": source}, indent=1).encode()
            with atomic_path(out / f"{path.name}_{name}") as temporary:
                temporary.write_bytes(data)

    def _said(self, what: str) -> str:
        """A text that says of itself what it is, as every other result does."""
        return f"{what}\n{RESEARCH}\nmodel SHA-256: {self.model}\n"

    def _move_aside(self, path: Path, folder: WatchSettings, reason: str) -> None:
        _remove_results(_results(folder), path)  # of an earlier image of this name, if there are any
        aside = folder.failed or _no_link(folder.folder / "failed")
        aside.mkdir(parents=True, exist_ok=True)
        target = _free(aside, path)
        write_text(aside / f"{target.name}.txt", self._said(reason))
        try:
            os.replace(path, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with atomic_path(target) as temporary, _opened(path) as source, open(temporary, "wb") as copy:
                shutil.copyfileobj(source, copy)
            path.unlink()
        self.audit.note("moved aside", door="watch")


def _mark(state: os.stat_result) -> Mark:
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _opened(path: Path) -> BinaryIO:
    """A file that is no link and no pipe, whatever it was when it was looked at."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = open(os.open(path, flags), "rb")  # noqa: SIM115  # closed by who asks
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no file")
    return file


def _read(path: Path, mark: Mark) -> bytes:
    """The whole file, as long as it is the one that was looked at."""
    with _opened(path) as file:
        data = file.read(_LARGEST + 1)
        if len(data) != mark[0] or _mark(os.fstat(file.fileno())) != mark:
            raise OSError(errno.EBUSY, "it was changed meanwhile")
    return data


def _source(out: Path, path: Path) -> Source | None:
    """Of which file the results are that are there; None where there are none, or somebody else's."""
    try:
        source = json.loads((out / f"{path.name}_summary.json").read_bytes())["source"]
        size, content, inode, number = map(int, source["mark"])
        return (size, content, inode, number), str(source["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_of(source: Source, path: Path, mark: Mark) -> bool:
    """Whether a file is still the one that results were made of; one that was only touched is."""
    known, sha256 = source
    return known == mark or (known[0] == mark[0] and sha256 == _digest_of(path))


def _digest_of(path: Path) -> str:
    """The SHA-256 of what is in a file at the moment, though somebody be writing it."""
    digest = hashlib.sha256()
    with _opened(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _remove_results(out: Path, path: Path) -> None:
    """Removes the results of a file: the mask first, which others take, and last what says of which file they are."""
    for name in ("mask.png", "refused.txt", *_RESULTS[:-1]):
        (out / f"{path.name}_{name}").unlink(missing_ok=True)


def _results(folder: WatchSettings) -> Path:
    return folder.results or _no_link(folder.folder / "results")


def _no_link(folder: Path) -> Path:
    """A folder within the watched one, where whoever may write could have put a link to anywhere."""
    if folder.is_symlink():
        raise StorageError(f"{folder} is a link, which is not followed; name the folder itself in the settings")
    return folder


def _free(folder: Path, path: Path) -> Path:
    """A place for a file that takes none from another of the same name."""
    target, number = folder / path.name, 1
    while os.path.lexists(target) or os.path.lexists(folder / f"{target.name}.txt"):
        number += 1
        target = folder / f"{path.stem}-{number}{path.suffix}"
    return target


def _is_candidate(path: Path) -> bool:
    return (
        path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file() and not path.is_symlink()
    )
