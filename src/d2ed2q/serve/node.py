"""A node: one model, one queue, and the doors that its settings open."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from d2ed2q.deploy import read_bundle
from d2ed2q.errors import ConfigError, D2ED2QError, StorageError
from d2ed2q.files import hold
from d2ed2q.serve.audit import AuditLog
from d2ed2q.serve.database import MQTT_PEER
from d2ed2q.serve.denials import Denials
from d2ed2q.serve.health import LOCK
from d2ed2q.serve.inputs import read_input
from d2ed2q.serve.metrics import NodeMetrics
from d2ed2q.serve.model import Model
from d2ed2q.serve.results import Kept
from d2ed2q.serve.settings import HttpSettings, NodeSettings
from d2ed2q.serve.store import Job, JobStore
from d2ed2q.serve.worker import Trouble, Worker, whereabouts

__all__ = ["Node"]

_DAY = 86_400.0
_PATIENCE = 120.0  # seconds that an engine may fail before a node whose health nobody can ask ends
_LOG = logging.getLogger("d2ed2q.serve")


class Node:
    """Everything of a node, put together.

    Args:
        model: path of the bundle.
        settings: checked, of :func:`~d2ed2q.serve.settings.read_node_settings`.

    Raises:
        BundleError: the bundle is not sound, or gives other results here than where it was made.
        ConfigError: certificates or addresses that cannot be used, or a model that a node cannot serve.
        StorageError: the state's folder cannot be written to.
        DataError: the audit log was changed.
    """

    def __init__(self, model: Path, settings: NodeSettings) -> None:
        quiet_libraries()
        self.settings = settings
        bundle = read_bundle(model)
        if bundle.manifest.input.dims != 2:
            raise ConfigError(f"{model} takes volumes; a node takes single images")
        self.model = Model(bundle, settings.engine, settings.threads, settings.refuse)
        self.store = JobStore(settings.state, settings.queue.waiting, settings.queue.attempts, model=bundle.sha256)
        self.audit = AuditLog(settings.state / "audit.jsonl")
        self.metrics = NodeMetrics(
            bundle.manifest.name, bundle.sha256, self.store.counts, lambda: self.trouble is None,
            lambda: self.model.sound,
        )  # fmt: skip
        self.denials = Denials("http", self.audit, self.metrics)
        dicom = settings.dicom
        peers = () if dicom is None else tuple(dicom.peers)
        listeners = () if settings.mqtt is None else (MQTT_PEER,)
        self.worker = Worker(
            self.model, self.store, self.audit, peers, listeners, dicom is None or dicom.overlay, [self._count]
        )
        self.parts: list[Any] = []
        self.dicom: Any = None
        if dicom is not None:
            from d2ed2q.serve.delivery import Deliverer
            from d2ed2q.serve.dicom import DicomDoor

            self.dicom = DicomDoor(dicom, self.store, self.worker, self.audit, self.metrics)
            seconds = settings.queue.delivery_hours * 3600
            self.parts.append(self.dicom)
            self.parts.append(
                Deliverer(self.store, dicom.peers, dicom.ae_title, self.render, self.audit, self.metrics, seconds)
            )
        if settings.mqtt is not None:
            from d2ed2q.serve.mqtt import Teller

            self.parts.append(Teller(settings.mqtt, self.store, self.metrics, settings.name, lambda: self.trouble))
        if settings.watch:
            from d2ed2q.serve.watch import Watcher

            self.parts.append(Watcher(settings.watch, self.store, self.worker, self.render, self.audit, bundle.sha256))
        self._stop = threading.Event()

    @property
    def trouble(self) -> Trouble | None:
        """Why images had better not be sent now; None where the node is well."""
        if not self.model.sound:
            return "engine"
        if not self.worker.alive:
            return "queue"
        return None if all(part.alive for part in self.parts) else "part"

    def greeting(self) -> list[str]:
        """What the node says when it starts: which model, which doors."""
        settings, bundle = self.settings, self.model.bundle
        engine = self.model.predictor.engine
        lines = [
            f"node {settings.name}: {bundle.manifest.name} {bundle.sha256[:16]}, {engine.name} {engine.version}",
            "research use only; not a medical device",
        ]
        if settings.http is not None:
            scheme = "http" if settings.http.tls is None else "https"
            lines.append(f"{scheme}://{settings.http.host}:{settings.http.port}/")
        if settings.dicom is not None:
            lines.append(f"DICOM {settings.dicom.ae_title} at {settings.dicom.host}:{settings.dicom.port}")
        if settings.mqtt is not None:
            lines.append(f"MQTT {settings.mqtt.topic} at {settings.mqtt.host}:{settings.mqtt.port}")
        lines += [f"folder {watch.folder}" for watch in settings.watch]
        return lines

    def app(self) -> Any:
        """The HTTP application.

        Raises:
            ConfigError: the HTTP door is closed.
        """
        from d2ed2q.serve.door import HttpDoor
        from d2ed2q.serve.http import make_app

        if self.settings.http is None:
            raise ConfigError("the HTTP door is closed: the settings have no [http]")
        door = HttpDoor(
            settings=self.settings.http,
            model=self.model,
            store=self.store,
            worker=self.worker,
            audit=self.audit,
            denials=self.denials,
            metrics=self.metrics,
            trouble=lambda: self.trouble,
            node=self.settings.name,
            render=self.render,
        )
        return make_app(door)

    def http_context(self) -> ssl.SSLContext | None:
        """For the HTTP door's connections; None without TLS. Whom hands are not shaken with is audited.

        Raises:
            ConfigError: certificates that cannot be used.
        """
        from d2ed2q.serve.tls import server_context

        if self.settings.http is None or self.settings.http.tls is None:
            return None
        return server_context(self.settings.http.tls, lambda: self.denials.deny("tls", "unknown"))

    def render(self, job: int, name: str) -> bytes:
        """One result of a job, by its name.

        Raises:
            D2ED2QError: it cannot be made.
            KeyError: there is no such result, or no such job any more.
        """
        manifest = self.model.manifest
        try:
            given = read_input(self.store.input_of(job), manifest.input, "the image")
            kept = Kept.load(self.store.results_of(job))
        except (FileNotFoundError, StorageError) as error:
            self.store.get(job)  # a KeyError where it was forgotten meanwhile
            raise StorageError(f"image or results of job {job} are missing or damaged; send it again") from error
        segmentation = "binary" if self.settings.dicom is None else self.settings.dicom.segmentation
        tta, ended = self.store.get(job).options.get("tta"), self.store.ended(job)
        made = None if ended is None else datetime.fromtimestamp(ended, timezone.utc)
        return kept.render(name, given, manifest, self.model.bundle.sha256, segmentation, tta, made)

    def _count(self, job: Job) -> None:
        self.metrics.jobs.labels(job.door, job.state).inc()
        if job.summary is not None:
            self.metrics.seconds.observe(job.summary["seconds"])
            self.metrics.doubt.observe(job.summary["doubt"])

    def _give_up_unknown(self) -> None:
        """Results for peers that the settings no longer name would wait, and keep their images, for ever."""
        peers = [*self.worker.peers, *self.worker.listeners]
        for delivery in self.store.outbox.give_up_unknown(peers):
            self.audit.note("undelivered", job=delivery.job, peer=delivery.peer, file=delivery.file)

    @contextlib.contextmanager
    def running(self) -> Iterator[Node]:
        """Opens all doors but HTTP; at the end closes them, finishes the job in work, and lets the rest wait.

        Raises:
            ConfigError: another node has the state's folder, or an address cannot be had.
        """
        with hold(self.settings.state / LOCK) as free:
            if not free:
                raise ConfigError(f"another node is running with the state in {self.settings.state}")
            self.audit.write("started", model=self.model.bundle.sha256, node=self.settings.name)
            self._give_up_unknown()
            if self.dicom is not None:
                self.dicom.adopt()
            self.worker.start()
            janitor = threading.Thread(target=self._tidy, name="d2ed2q-janitor", daemon=True)
            janitor.start()
            started: list[Any] = []
            try:
                for part in self.parts:
                    part.start()
                    started.append(part)
                yield self
            finally:
                self._stop.set()
                for part in reversed(started):
                    part.stop()
                self.worker.stop()
                self.audit.note("stopped", node=self.settings.name)
                self.store.close()

    def run(self, opened: Callable[[], None] = lambda: None) -> None:
        """Serves until SIGTERM or Ctrl-C.

        Args:
            opened: called once, when all doors are open.

        Raises:
            D2ED2QError: the HTTP door closed by itself, or, without one that could say so, something else ended or the
                engine failed for two minutes.
        """
        # Signals are caught before any door opens: what came through one must never be cut off.
        with _signals() as asked, self.running():
            if self.settings.http is not None:
                self._serve_http(self.settings.http, asked, opened)
                return
            opened()
            if not _wait(asked, self._does_its_work()):
                raise D2ED2QError(
                    "a part of the node has ended by itself, or the engine has failed for too long; what it logged "
                    "says why; start it again"
                )

    def _does_its_work(self, clock: Callable[[], float] = time.monotonic) -> Callable[[], bool]:
        """What says whether a node without an HTTP door goes on: nobody can ask it, so it ends to be seen."""
        sound = clock()

        def look() -> bool:
            nonlocal sound
            sound = clock() if self.model.sound else sound
            failed = clock() - sound > _PATIENCE
            return not (failed or self.worker.ended) and all(part.alive for part in self.parts)

        return look

    def _serve_http(self, http: HttpSettings, asked: threading.Event, opened: Callable[[], None]) -> None:
        import uvicorn

        from d2ed2q.serve.connections import MOST_CONNECTIONS, PromptProtocol

        config = uvicorn.Config(
            self.app(), log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=30,
            http=PromptProtocol, limit_concurrency=MOST_CONNECTIONS, h11_max_incomplete_event_size=65536,
        )  # fmt: skip
        config.load()
        config.ssl = self.http_context()
        server = uvicorn.Server(config)
        with _listening(http.host, http.port) as listener:
            # In a thread of its own, it leaves signals to us: they have to close the other doors too.
            thread = threading.Thread(target=lambda: server.run(sockets=[listener]), name="d2ed2q-http", daemon=True)
            thread.start()
            while thread.is_alive() and not server.started:  # asked to end before, it would leave requests unanswered
                time.sleep(0.01)
            if server.started:
                opened()
            stopped = _wait(asked, thread.is_alive)
            server.should_exit = True
            thread.join(60)
        if not stopped:
            raise D2ED2QError("the HTTP door has closed by itself; what it logged says why; start the node again")

    def _tidy(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(60):
            now = time.monotonic()
            before, passed = now, now - before
            try:
                self.store.outbox.expire_news(self.settings.queue.delivery_hours * 3600, passed)
                self.store.forget(self.settings.queue.keep_days * _DAY, passed)
            except Exception as error:
                _LOG.error("old results could not be removed: %s", whereabouts(error))


def quiet_libraries() -> None:
    """Keeps libraries from writing what they see in patients' files into logs."""
    for name in ("pydicom", "pynetdicom", "highdicom", "PIL", "multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        warnings.filterwarnings("ignore", module=name)  # they quote values too


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise ConfigError(f"cannot listen for HTTP at {host}:{port}: {error.strerror or error}") from error


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """Notes SIGTERM and Ctrl-C, in place of ending at once, until the node has ended in order."""
    asked = threading.Event()
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(asked: threading.Event, alive: Callable[[], bool]) -> bool:
    """Waits until the node is asked to end, or what is served is no longer alive; says whether it was asked."""
    while not asked.is_set() and alive():
        asked.wait(0.5)
    return asked.is_set()
