"""The DICOM door: a service class provider for C-STORE and C-ECHO (PS3.4 A and B, PS3.7)."""

from __future__ import annotations

import hashlib
import logging
import threading
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.filereader import read_file_meta_info
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made when it is imported

from d2ed2q.data.dicom import DICOM_CLASSES, TRANSFER_SYNTAXES, check_image, parse_dicom
from d2ed2q.errors import ConfigError, DataError, StorageError
from d2ed2q.serve.association import Acceptor, abort_all
from d2ed2q.serve.audit import AuditLog
from d2ed2q.serve.denials import Denials
from d2ed2q.serve.inputs import check_source
from d2ed2q.serve.metrics import NodeMetrics
from d2ed2q.serve.settings import DicomSettings
from d2ed2q.serve.store import JobStore, QueueFullError
from d2ed2q.serve.tls import server_context
from d2ed2q.serve.worker import Worker

__all__ = ["DicomDoor", "job_key", "key_of"]

_SUCCESS, _FULL, _MISMATCH, _NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
_TIMEOUT = 30.0
_LOG = logging.getLogger("d2ed2q.serve")


def job_key(uid: str) -> str:
    """The key of an instance: however often it is sent, changed or to whatever model, there is one job of it.

    Its results have the same UIDs each time a model makes them, so two jobs would overwrite each other's.
    """
    return hashlib.sha256(f"dicom {uid}".encode()).hexdigest()


def key_of(file: Path) -> str | None:
    """The key of an instance that was taken before; None where its file is damaged."""
    try:
        return job_key(str(read_file_meta_info(file).MediaStorageSOPInstanceUID))
    except Exception:  # whatever a parser may raise on a file that was half lost
        return None


class DicomDoor:
    """Takes images and puts them into the queue; what is acknowledged is on the disk.

    Args:
        settings: of the door.
        store: the queue.
        worker: behind it.
        audit: is told who sends what.
        metrics: counts.

    Raises:
        ConfigError: certificates that cannot be used.
    """

    def __init__(
        self,
        settings: DicomSettings,
        store: JobStore,
        worker: Worker,
        audit: AuditLog,
        metrics: NodeMetrics,
    ) -> None:
        self.settings, self.store, self.worker = settings, store, worker
        self.audit, self.metrics = audit, metrics
        self._context = None if settings.tls is None else server_context(settings.tls)
        self._most = settings.largest_mb * 1_000_000
        self._server: Any = None
        self._thread = threading.Thread(target=self._serve, name="d2ed2q-dicom", daemon=True)
        self.denials = Denials("dicom", audit, metrics)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def adopt(self) -> None:
        """Knows instances again that an older node has taken; nothing may be in work yet."""
        self.store.rekey(key_of)

    def start(self) -> None:
        """Begins to listen.

        Raises:
            ConfigError: the address cannot be had.
        """
        entity = AE(self.settings.ae_title)
        entity.add_supported_context(Verification)
        for uid in DICOM_CLASSES:
            entity.add_supported_context(uid, list(TRANSFER_SYNTAXES))
        entity.require_called_aet = True
        entity.require_calling_aet = list(self.settings.allowed)
        entity.maximum_associations = self.settings.associations
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = _TIMEOUT
        handlers = [
            (evt.EVT_C_ECHO, lambda event: _SUCCESS),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_REJECTED, self._rejected),
            (evt.EVT_DATA_RECV, self._received),
        ]
        address = (self.settings.host, self.settings.port)
        try:
            self._server = entity.make_server(
                address, evt_handlers=handlers, ssl_context=self._context, server_class=Acceptor  # type: ignore[arg-type]
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(f"cannot listen for DICOM at {address[0]}:{address[1]}: {error.strerror}") from error
        self._server.refused = lambda host: self.denials.deny("tls", host)
        entity._servers.append(self._server)  # from where it takes itself when it is shut down
        self._thread.start()

    def _serve(self) -> None:
        self._server.serve_forever()

    @property
    def alive(self) -> bool:
        """Whether associations are accepted."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Ends; associations in work are aborted, and their senders send again."""
        if self._server is not None:
            entity = self._server.ae
            self._server.shutdown()
            self._thread.join(_TIMEOUT)
            self._server = None
            abort_all(entity.active_associations)

    def _received(self, event: Any) -> None:
        """Gives up an association whose message grows beyond what may be sent: it is all held in memory."""
        association = event.assoc
        association.d2ed2q_bytes = getattr(association, "d2ed2q_bytes", 0) + len(event.data)
        if association.d2ed2q_bytes > self._most:
            association.abort()
            self._denied(association, "size")

    def _rejected(self, event: Any) -> None:
        self._denied(event.assoc, "association")

    def _denied(self, association: Any, reason: str) -> None:
        requestor = association.requestor
        self.denials.deny(reason, requestor.address, entity=requestor.ae_title)

    def _store(self, event: Any) -> int | Dataset:
        event.assoc.d2ed2q_bytes = 0
        try:
            data: bytes = event.encoded_dataset()
            dataset = parse_dicom(data, "the instance")
            check_image(check_source(dataset, "the instance"), "the instance")
            uid = str(dataset.get("SOPInstanceUID", ""))
            if uid != str(event.request.AffectedSOPInstanceUID):
                return _status(_MISMATCH, "the instance is not the one that was announced")
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
                if not dataset.get(keyword):
                    raise DataError(f"the instance has no {keyword}, which its results need")
            key = job_key(uid)
            job, new = self.store.add(key, "dicom", data)
            if job.state == "done":  # whoever sends it again may miss its results
                self.store.outbox.renew(job.id, self.worker.results_for_peers())
        except DataError as error:
            self._denied(event.assoc, "image")
            return _status(_NOT_UNDERSTOOD, str(error))
        except QueueFullError:
            self.metrics.denied.labels("dicom", "full").inc()
            return _status(_FULL, "the queue is full, or this is in work; send it again later")
        except StorageError as error:
            _LOG.error("%s", error)
            return _status(_FULL, "the node cannot store it; send it again later")
        entity = event.assoc.requestor.ae_title
        if new:
            self.audit.note("received", job=job.id, door="dicom", client=entity, key=key)
            self.worker.wake()
        else:
            self.denials.repeat(job, key, entity)
        return _SUCCESS


def _status(code: int, comment: str) -> Dataset:
    answer = Dataset()
    answer.Status = code
    answer.ErrorComment = comment.encode("ascii", "replace").decode().replace("\\", "/")[:64]
    return answer
