"""The DICOM door's connections, without a model behind them."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from d2ed2q.serve import association as room
from d2ed2q.serve.association import Acceptor, _received

from .helpers import wait


class Door:
    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        entity = AE("DOOR")
        entity.add_supported_context(Verification)
        address: Any = ("127.0.0.1", 0)
        handlers: Any = [(evt.EVT_C_ECHO, lambda event: 0)]
        self.server: Any = entity.make_server(
            address, evt_handlers=handlers, ssl_context=context, server_class=Acceptor
        )
        entity._servers.append(self.server)
        self.address: Any = self.server.server_address
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def echo(self, context: ssl.SSLContext | None = None) -> bool:
        entity = AE("CAMERA")
        entity.add_requested_context(Verification)
        arguments: Any = {} if context is None else {"tls_args": (context, "127.0.0.1")}
        association = entity.associate(*self.address, **arguments)
        if not association.is_established:
            return False
        status = association.send_c_echo().Status
        association.release()
        return bool(status == 0)


@pytest.fixture
def doors() -> Iterator[list[Door]]:
    made: list[Door] = []
    yield made
    for door in made:
        door.server.shutdown()


def closed(link: socket.socket) -> bool:
    """Whether the other side closes a connection soon."""
    link.settimeout(20)
    try:
        while link.recv(4096):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_who_does_not_shake_hands_holds_up_nobody(
    doors: list[Door], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_SECONDS", 2.0)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    door = Door(context)
    doors.append(door)
    with socket.create_connection(door.address) as silent, socket.create_connection(door.address) as rude:
        rude.sendall(b"this is no handshake" * 10)
        start = time.monotonic()
        assert door.echo(ssl.create_default_context(cafile=str(certificate)))
        assert time.monotonic() - start < 1.9, "nobody waits for who is silent"
        assert closed(rude)
        assert closed(silent)


def test_lengths_that_cannot_be_and_half_messages_end_a_connection(
    doors: list[Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_SECONDS", 1.0)
    door = Door()
    doors.append(door)
    with socket.create_connection(door.address) as liar, socket.create_connection(door.address) as slow:
        liar.sendall(struct.pack(">BBL", 1, 0, 2**32 - 1) + b"x")
        slow.sendall(struct.pack(">BBL", 1, 0, 100) + b"x")
        assert closed(liar)
        assert closed(slow)
    wait(door.echo)


def test_drops_do_not_put_off_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_SECONDS", 0.5)
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.1):
            theirs.send(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    connection: Any = SimpleNamespace(socket=ours)
    try:
        assert _received(connection, 2, 10) == b"xx"
        with pytest.raises(TimeoutError):
            _received(connection, 1000, 1000)
        with pytest.raises(ConnectionAbortedError, match="announced"):
            _received(connection, 11, 10)
    finally:
        stop.set()
        thread.join()
        ours.close()
        theirs.close()
