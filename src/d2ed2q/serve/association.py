"""Connections at the DICOM door: nobody who is slow, or lies about lengths, holds up the others or the memory."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

__all__ = ["Acceptor", "abort_all"]

_SECONDS = 30.0  # for a handshake, and for the rest of a message of which the first bytes have come
_LAST = 2.0  # for a peer to close the connection of an association that is aborted
_SLACK = 1 << 18  # requests of an association may be longer than what is agreed on for data
_HANDSHAKES = 64
_CHUNK = 1 << 16
_LOG = logging.getLogger("d2ed2q.serve")


class _Handler(RequestHandler):
    def _create_association(self) -> Any:
        association = super()._create_association()
        wrapped: Any = association.dul.socket
        most = self.ae.maximum_pdu_size + _SLACK

        def receive(length: int) -> bytearray:
            return _received(wrapped, length, most)

        wrapped.recv = receive
        _ends_with_its_connection(association)
        return association


def _ends_with_its_connection(association: Any) -> None:
    """Lets an association go at once when its connection has ended, in whatever state that was.

    pynetdicom's would wait for a request until its timeout, and count as long: a few connections a minute that say
    nothing, as those of a port scan or of a load balancer, would keep everybody out. A message out of turn would end
    its thread with a traceback.
    """
    service = association.dul
    act = service.state_machine.do_action

    def do_action(event: str) -> None:
        try:
            act(event)
        except Exception as error:  # pynetdicom raises whatever a peer's bytes bring about
            _LOG.info("a DICOM connection is ended: %s", error)
            service.kill_dul()
        if service._kill_thread and association.requestor.primitive is None:
            service.to_user_queue.put(None)  # nothing will come; it waits for the first message here

    service.state_machine.do_action = do_action


def _received(connection: AssociationSocket, length: int, most: int) -> bytearray:
    """As pynetdicom's, with a deadline for all of it, and a bound on what a message says of its own length."""
    if length > most:
        raise ConnectionAbortedError(f"a message of {length} bytes was announced")
    link = connection.socket
    if link is None:
        raise ConnectionAbortedError("it is closed")
    found, end = bytearray(), time.monotonic() + _SECONDS
    while len(found) < length:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError("a message does not come to its end")
        link.settimeout(left)
        part = link.recv(min(_CHUNK, length - len(found)))
        if not part:
            break
        found += part
    link.settimeout(_SECONDS)
    return found


def abort_all(associations: Sequence[Any]) -> None:
    """Aborts associations, and waits a little for their ends: pynetdicom's threads would keep the process from its own.

    A peer that does not close its connection, or is in the middle of a message, is hung up on.
    """
    threads = []
    for association in associations:
        association.acse_timeout = _LAST
        threads.append(threading.Thread(target=association.abort, daemon=True))
        threads[-1].start()
    end = time.monotonic() + 2 * _LAST
    for thread, association in zip(threads, associations, strict=True):
        thread.join(max(0.0, end - time.monotonic()))
        if thread.is_alive():
            association.dul.kill_dul()
            if association.dul.socket is not None:
                association.dul.socket.close()


class Acceptor(ThreadedAssociationServer):
    """Accepts connections, and shakes hands in a thread of each of them.

    Attributes:
        refused: is told the host of whom no hands were shaken with.
    """

    daemon_threads = True
    refused: Callable[[str], None] = staticmethod(lambda host: None)

    def __init__(self, *args: Any, **options: Any) -> None:
        self._handshakes = threading.BoundedSemaphore(_HANDSHAKES)
        options["request_handler"] = _Handler
        super().__init__(*args, **options)

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection, TLS not yet begun."""
        assert self.socket is not None
        link, address = self.socket.accept()
        link.settimeout(_SECONDS)
        if self.ssl_context is not None:
            link = self.ssl_context.wrap_socket(link, server_side=True, do_handshake_on_connect=False)
        return link, address

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Shakes hands, and begins the association."""
        if self.ssl_context is not None:
            if not self._handshakes.acquire(blocking=False):
                self.shutdown_request(request)
                return
            try:
                request.do_handshake()  # the socket's timeout is one for the whole of it
            except OSError:
                self.refused(str(client_address[0]))
                self.shutdown_request(request)
                return
            finally:
                self._handshakes.release()
        super().process_request_thread(request, client_address)
