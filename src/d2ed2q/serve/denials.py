"""Whom a door sends away, and what comes twice: all of it is counted, and some of it is in the audit log."""

from __future__ import annotations

from d2ed2q.serve.access import RateLimit
from d2ed2q.serve.audit import AuditLog
from d2ed2q.serve.metrics import NodeMetrics
from d2ed2q.serve.store import Job

__all__ = ["Denials"]

_AUDITED = 10  # of one host a minute, and of one sender: strangers must not fill the disk


class Denials:
    """What one door refuses.

    Args:
        door: its name.
        audit: is told of ten of each host a minute.
        metrics: counts all.
    """

    def __init__(self, door: str, audit: AuditLog, metrics: NodeMetrics) -> None:
        self.door, self.audit, self.metrics = door, audit, metrics
        self._limit = RateLimit(_AUDITED)

    def deny(self, reason: str, client: str, **more: str) -> None:
        """Notes that somebody was sent away.

        Args:
            reason: ``token``, ``origin``, ``rate``, ``size``, ``tls``, ``association`` or ``image``.
            client: address of the host.
            more: what else is known of who it was.
        """
        self.metrics.denied.labels(self.door, reason).inc()
        if self._limit.allow(client) == 0:
            self.audit.note("denied", door=self.door, reason=reason, client=client, **more)

    def repeat(self, job: Job, key: str, client: str) -> None:
        """Notes that an image came that the node has already: it is answered, and nothing is computed again.

        Args:
            job: that it belongs to.
            key: of the image.
            client: who sent it.
        """
        self.metrics.repeated.labels(self.door).inc()
        if self._limit.allow(f"repeats of {client}") == 0:
            self.audit.note("repeated", job=job.id, door=self.door, client=client, key=key)
