"""The worker behind the queue: takes jobs one after the other, and leaves their results where the doors find them."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from d2ed2q.errors import BundleError, D2ED2QError, StorageError
from d2ed2q.serve.audit import AuditLog
from d2ed2q.serve.inputs import read_input
from d2ed2q.serve.model import Model
from d2ed2q.serve.results import Kept
from d2ed2q.serve.store import Job, JobStore

__all__ = ["Trouble", "Worker", "whereabouts"]

Trouble = Literal["engine", "queue", "part"]
"""Why a node had better not be sent images: its engine has failed, its queue is not worked off, a part has ended."""

_PAUSE = 5.0  # seconds until an engine that failed, or a full disk, is tried again
_LONGEST = 600.0  # seconds that one image may take before the node no longer counts as ready
_LOG = logging.getLogger("d2ed2q.serve")


def whereabouts(error: BaseException) -> str:
    """Kind and place of an error, without its message, which may quote what is in a patient's file."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


class Worker:
    """Works off the queue in a thread of its own.

    Args:
        model: that is asked.
        store: the queue.
        audit: is told of every job.
        peers: to whom the results of DICOM images go.
        listeners: peers of deliveries who are told of every job.
        overlay: whether an overlay goes with it.
        told: called with every job that ended, in the worker's thread; what it raises is logged.
    """

    def __init__(
        self,
        model: Model,
        store: JobStore,
        audit: AuditLog,
        peers: Sequence[str] = (),
        listeners: Sequence[str] = (),
        overlay: bool = True,
        told: Sequence[Callable[[Job], None]] = (),
    ) -> None:
        self.model, self.store, self.audit = model, store, audit
        self.peers, self.listeners, self.overlay = tuple(peers), tuple(listeners), overlay
        self.told = list(told)
        self._wake = threading.Event()
        self._stopping = False
        self._waiting: dict[int, list[Callable[[], None]]] = {}
        self._lock = threading.Lock()
        self._running: int | None = None
        self._beat = time.monotonic()
        self._blocked = False
        self._thread = threading.Thread(target=self._run, name="d2ed2q-worker", daemon=True)

    def start(self) -> None:
        """Begins, with what an earlier node left behind."""
        for job in self.store.recover(self._news()):
            self.audit.note("failed", job=job.id, door=job.door, key=job.key, reason="given up")
            self._tell_of(job)
        anew = self.store.reopen_outdated(self.model.bundle.sha256, self.model.refuse)
        if anew:
            _LOG.warning(
                "%d images are segmented anew: their results were another model's and not sent, or refuse has changed",
                anew,
            )
        self._thread.start()

    def stop(self, seconds: float = 60.0) -> None:
        """Ends after the job in work; one that takes longer waits for the next start, as if it had not been begun."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        running = self._running
        if running is not None and self._thread.is_alive():
            with contextlib.suppress(StorageError):
                self.store.postpone(running)
        self._tell(None)

    @property
    def alive(self) -> bool:
        """Whether jobs are worked off: not while the queue cannot be written, nor when one job takes for ever."""
        written = self.store.writable and not self._blocked
        return self._thread.is_alive() and written and time.monotonic() - self._beat < _LONGEST

    @property
    def ended(self) -> bool:
        """Whether jobs will not be worked off any more, whatever is waited for."""
        return not self._thread.is_alive()

    def wake(self) -> None:
        """Says that there is a new job."""
        self._wake.set()

    def when_ended(self, job: int, call: Callable[[], None]) -> None:
        """Calls somebody, in the worker's thread, when a job has ended or the worker does; at once if it has."""
        with self._lock:
            try:
                ended = self.store.get(job).finished
            except KeyError:  # it is forgotten already
                ended = True
            if not ended and not self._stopping:
                self._waiting.setdefault(job, []).append(call)
                return
        call()

    def _tell(self, job: int | None) -> None:
        """Calls those who wait for a job, or all."""
        with self._lock:
            jobs = list(self._waiting) if job is None else [job]
            calls = [call for number in jobs for call in self._waiting.pop(number, ())]
        for call in calls:
            call()

    def _run(self) -> None:
        while not self._stopping:
            self._beat = time.monotonic()
            if not self.model.sound and not self.model.recovered():
                self._pause(_PAUSE)  # the queue keeps what an engine that has failed would only spoil
                continue
            try:
                if not self.store.writable:
                    self.store.probe()
                job = self.store.take()
            except StorageError as error:  # a full disk may have room again
                _LOG.error("%s", error)
                self._blocked = True
                self._pause(_PAUSE)
                continue
            if job is None:
                self._blocked = False
                self._pause(1)
                continue
            self._running, ended = job.id, True
            try:
                ended = self._work(job)
            except Exception as error:  # the disk is full, most likely, and a restarted node takes the job up again
                _LOG.error("job %d cannot be ended: %s", job.id, whereabouts(error))
                self._blocked = True
                self._put_back(job)
            self._running = None
            if ended:
                self._tell(job.id)

    def _pause(self, seconds: float) -> None:
        """Waits, until somebody wakes the worker at most."""
        self._wake.wait(seconds)
        if not self._stopping:
            self._wake.clear()

    def _work(self, job: Job) -> bool:
        """Does a job; False where it has to wait again."""
        try:
            self._segment(job)
        except StorageError as error:
            _LOG.error("job %d waits: %s", job.id, error)
            self._blocked = True
            self._put_back(job)
            return False
        except BundleError as error:
            _LOG.error("job %d: the engine failed: %s", job.id, whereabouts(error))
            if job.attempts < self.store.attempts:
                self._put_back(job, counted=True)
                return False
            self._end(job, error, again=True)
        except D2ED2QError as error:
            self._end(job, error)
        except Exception as error:  # one job must not end the node
            _LOG.error("job %d failed in a way that nobody thought of: %s", job.id, whereabouts(error))
            self._end(job, error, again=True)
        self._blocked = False
        self._tell_of(self.store.get(job.id))
        return True

    def _tell_of(self, job: Job) -> None:
        for tell in self.told:
            try:
                tell(job)
            except Exception as error:
                _LOG.error("somebody could not be told of job %d: %s", job.id, whereabouts(error))

    def _put_back(self, job: Job, counted: bool = False) -> None:
        """Lets a job wait again, as soon as that can be written down; one that has ended stays as it is."""
        if not counted:
            self._pause(_PAUSE)
        while True:
            try:
                self.store.postpone(job.id, counted)
                return
            except StorageError:
                if self._stopping:
                    return
                self._beat = time.monotonic()
                self._pause(_PAUSE)

    def _end(self, job: Job, error: Exception, again: bool = False) -> None:
        known = isinstance(error, D2ED2QError)
        text = str(error) if known else f"internal error ({type(error).__name__})"
        text = text.replace(str(self.model.bundle.path), "the model")  # where it lies is nobody's business
        self.store.finish(job.id, "failed", error=text, deliveries=self._news(), again=again)
        self.audit.note("failed", job=job.id, door=job.door, key=job.key, reason=type(error).__name__)

    def results_for_peers(self) -> list[tuple[str, str]]:
        """Peer and file of everything that is sent of a DICOM image."""
        sent = ["segmentation.dcm", *(["overlay.dcm"] if self.overlay else [])]
        return [(peer, name) for peer in self.peers for name in sent]

    def _news(self) -> list[tuple[str, str]]:
        return [(listener, "summary.json") for listener in self.listeners]

    def _segment(self, job: Job) -> None:
        model, store = self.model, self.store
        given = read_input(store.input_of(job.id), model.manifest.input, "the image")
        outcome = model.segment(given.image, job.options.get("tta"), given.spacing)
        Kept.of(outcome.prediction, outcome.summary).save(store.results_of(job.id))
        wanted = job.door == "dicom" and not outcome.refused
        deliveries = [*(self.results_for_peers() if wanted else []), *self._news()]
        state: Literal["refused", "done"] = "refused" if outcome.refused else "done"
        store.finish(job.id, state, outcome.summary, deliveries=deliveries)
        self.audit.note(
            "refused" if outcome.refused else "segmented",
            job=job.id, door=job.door, key=job.key, model=model.bundle.sha256, doubt=outcome.summary["doubt"],
        )  # fmt: skip
