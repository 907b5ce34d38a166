"""Results on their way to peers: by C-STORE or STOW-RS, again and again until they are taken."""

from __future__ import annotations

import io
import logging
import secrets
import ssl
import threading
from collections.abc import Callable, Mapping
from itertools import groupby

import httpx2
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE

from d2ed2q.errors import D2ED2QError
from d2ed2q.serve.audit import AuditLog
from d2ed2q.serve.metrics import NodeMetrics
from d2ed2q.serve.settings import PeerSettings
from d2ed2q.serve.store import Delivery, JobStore
from d2ed2q.serve.tls import client_context
from d2ed2q.serve.worker import whereabouts

__all__ = ["Deliverer", "PeerError", "send_by_c_store", "send_by_stow"]

_SEGMENTATION, _CAPTURE = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.7"
_TIMEOUT = 30.0
_FIRST_WAIT, _LONGEST_WAIT = 2.0, 600.0
_LOG = logging.getLogger("d2ed2q.serve")


class PeerError(Exception):
    """A peer did not take a result."""


def send_by_c_store(peer: PeerSettings, own_title: str, files: Mapping[str, bytes]) -> dict[str, str | None]:
    """Sends files in one association.

    Returns:
        dict: of each file why it was not taken, or None.

    Raises:
        PeerError: there is no association.
    """
    entity = AE(own_title)
    for uid in (_SEGMENTATION, _CAPTURE):
        entity.add_requested_context(uid, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = _TIMEOUT
    arguments = {} if peer.tls is None else {"tls_args": (client_context(peer.tls), peer.host)}
    association = entity.associate(peer.host, peer.port, ae_title=peer.ae_title, **arguments)  # type: ignore[arg-type]
    if not association.is_established:
        why = "refused the association" if association.is_rejected else "cannot be reached"
        raise PeerError(f"{peer.ae_title} at {peer.host}:{peer.port} {why}")
    outcome: dict[str, str | None] = {}
    try:
        for name, data in files.items():
            try:
                status = association.send_c_store(pydicom.dcmread(io.BytesIO(data)))
            except (RuntimeError, ValueError) as error:  # the association broke, or the peer takes no such class
                outcome[name] = str(error).splitlines()[0][:200]
                continue
            code = status.get("Status")
            taken = code is not None and (code == 0 or code & 0xF000 == 0xB000)
            outcome[name] = None if taken else "no answer" if code is None else f"status 0x{code:04X}"
    finally:
        association.release()
    return outcome


def send_by_stow(
    peer: PeerSettings, files: Mapping[str, bytes], context: ssl.SSLContext | bool
) -> dict[str, str | None]:
    """Sends files in one STOW-RS request (PS3.18 10.5).

    Returns:
        dict: of each file why it was not taken, or None.

    Raises:
        PeerError: the service cannot be reached.
    """
    boundary = secrets.token_hex(16)
    parts = [
        f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + data + b"\r\n" for data in files.values()
    ]
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Accept": "application/dicom+json",
    }
    if peer.token_file is not None:
        headers["Authorization"] = f"Bearer {peer.token_file.read_text(encoding='utf-8').strip()}"
    try:
        answer = httpx2.post(
            peer.stow, content=b"".join(parts) + f"--{boundary}--\r\n".encode(), headers=headers, timeout=_TIMEOUT,
            verify=context,
        )  # fmt: skip
    except httpx2.HTTPError as error:
        raise PeerError(f"{peer.stow} cannot be reached: {error}") from error
    taken = answer.status_code in (200, 202)
    return dict.fromkeys(files, None if taken else f"HTTP {answer.status_code}")


class Deliverer:
    """Sends what is due, in a thread of its own.

    Args:
        store: the queue.
        peers: by name.
        own_title: application entity title of the node.
        render: makes a result of a job, by its number and the result's name.
        audit: is told what was sent.
        metrics: counts.
        seconds: how long a peer that does not answer is tried.

    Raises:
        ConfigError: certificates that cannot be used.
    """

    def __init__(
        self,
        store: JobStore,
        peers: Mapping[str, PeerSettings],
        own_title: str,
        render: Callable[[int, str], bytes],
        audit: AuditLog,
        metrics: NodeMetrics,
        seconds: float,
    ) -> None:
        self.store, self.peers, self.own_title, self.render = store, peers, own_title, render
        self.audit, self.metrics, self.seconds = audit, metrics, seconds
        self._contexts = {name: _context(peer) for name, peer in peers.items()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="d2ed2q-delivery", daemon=True)

    def start(self) -> None:
        """Begins, with what was left undelivered."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after what is being sent."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2 * _TIMEOUT)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                busy = self.deliver()
            except Exception as error:  # whatever happens to one round, there is another
                _LOG.error("a round of deliveries failed: %s", whereabouts(error))
                busy = False
            self._stop.wait(0.02 if busy else 0.5)

    def deliver(self) -> bool:
        """Sends everything that is due, once.

        Returns:
            bool: whether anything was.
        """
        due = [delivery for delivery in self.store.due() if delivery.peer in self.peers]
        by_peer = groupby(sorted(due, key=lambda d: (d.peer, d.job)), key=lambda d: d.peer)
        for peer, deliveries in by_peer:
            self._send(peer, list(deliveries)[:64])
        return bool(due)

    def _send(self, name: str, deliveries: list[Delivery]) -> None:
        peer = self.peers[name]
        files: dict[str, bytes] = {}
        waiting: dict[str, Delivery] = {}
        for delivery in deliveries:
            label = f"{delivery.job}/{delivery.file}"
            try:
                files[label], waiting[label] = self.render(delivery.job, delivery.file), delivery
            except (D2ED2QError, KeyError) as error:  # it will be no better the next time
                self._failed(delivery, str(error), final=True)
        if not files:
            return
        try:
            if peer.stow:
                outcome = send_by_stow(peer, files, self._contexts[name])
            else:
                outcome = send_by_c_store(peer, self.own_title, files)
        except (PeerError, OSError) as error:
            outcome = dict.fromkeys(files, str(error))
        for label, problem in outcome.items():
            if problem is None:
                self.store.delivered(waiting[label])
                self.metrics.deliveries.labels(name, "done").inc()
                self.audit.write("delivered", job=waiting[label].job, peer=name, file=waiting[label].file)
            else:
                self._failed(waiting[label], problem, final=False)

    def _failed(self, delivery: Delivery, error: str, final: bool) -> None:
        wait = min(_FIRST_WAIT * 2 ** min(delivery.attempts, 20), _LONGEST_WAIT)
        age = self.store.clock() - self.store.get(delivery.job).created
        if final or age > self.seconds:
            self.store.give_up(delivery, error)
            self.metrics.deliveries.labels(delivery.peer, "failed").inc()
            self.audit.write("undelivered", job=delivery.job, peer=delivery.peer, file=delivery.file)
            _LOG.error("job %d: %s was not taken by %s: %s", delivery.job, delivery.file, delivery.peer, error)
        else:
            self.store.retry(delivery, wait, error)
            self.metrics.deliveries.labels(delivery.peer, "retried").inc()


def _context(peer: PeerSettings) -> ssl.SSLContext | bool:
    if peer.tls is not None:
        return client_context(peer.tls)
    return ssl.create_default_context(cafile=str(peer.authority)) if peer.authority is not None else True
