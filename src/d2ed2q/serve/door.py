"""What the routes of the HTTP door share: what they lead to, and how a body is read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import anyio
from fastapi import HTTPException, Request

from d2ed2q.serve.audit import AuditLog
from d2ed2q.serve.denials import Denials
from d2ed2q.serve.metrics import NodeMetrics
from d2ed2q.serve.model import Model
from d2ed2q.serve.settings import HttpSettings
from d2ed2q.serve.store import JobStore
from d2ed2q.serve.worker import Trouble, Worker

__all__ = ["HttpDoor", "place", "read_body"]

_SECONDS = 120.0  # for a whole body


@dataclass(frozen=True)
class HttpDoor:
    """What the door leads to.

    Attributes:
        settings: of the door.
        model: that answers.
        store: the queue.
        worker: behind it.
        audit: is told of every request for an image.
        denials: is told whom it sends away.
        metrics: counts.
        node: name of the node.
        render: makes a result of a job, by its number and the result's name.
        trouble: why images had better not be sent now; None where the node is well.
    """

    settings: HttpSettings
    model: Model
    store: JobStore
    worker: Worker
    audit: AuditLog
    denials: Denials
    metrics: NodeMetrics
    node: str
    render: Callable[[int, str], bytes]
    trouble: Callable[[], Trouble | None]


@contextlib.contextmanager
def place(places: anyio.Semaphore, metrics: NodeMetrics) -> Iterator[None]:
    """One of so many places; taken before a body is read, it bounds how many bodies are in the memory.

    Raises:
        HTTPException: all of them are taken.
    """
    try:
        places.acquire_nowait()
    except anyio.WouldBlock as error:
        metrics.denied.labels("http", "full").inc()
        raise HTTPException(429, "too many requests at once", {"Retry-After": "1"}) from error
    try:
        yield
    finally:
        places.release()


async def read_body(request: Request, largest_mb: int) -> bytes:
    """The whole body, as long as it is no longer than it may be, whatever its header said, and comes in time.

    Raises:
        HTTPException: it does not.
    """
    most = largest_mb * 1_000_000
    parts, size = [], 0
    with anyio.move_on_after(_SECONDS) as scope:
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise HTTPException(413, f"a request may have {most:,} bytes")
            parts.append(part)
    if scope.cancelled_caught:
        raise HTTPException(408, f"the body did not come within {_SECONDS:.0f} seconds")
    return b"".join(parts)
