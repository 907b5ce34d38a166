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
from pydicom.uid import UID
from pynetdicom import AE, build_context, evt
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
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


def request() -> bytes:
    """A request for an association, as its bytes (PS3.8 9.3.2)."""
    asked = A_ASSOCIATE()
    asked.application_context_name = UID("1.2.840.10008.3.1.1.1")
    asked.calling_ae_title, asked.called_ae_title = "SOMEBODY", "DOOR"
    context = build_context(Verification)
    context.context_id = 1
    asked.presentation_context_definition_list = [context]
    most, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    most.maximum_length_received = 16382
    implementation.implementation_class_uid = UID("1.2.3")
    asked.user_information = [most, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(asked)
    return pdu.encode()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_who_does_not_shake_hands_holds_up_nobody(
    doors: list[Door], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_SECONDS", 2.0)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    door = Door(context)
    doors.append(door)
    refused: list[str] = []
    door.server.refused = refused.append
    with socket.create_connection(door.address) as silent, socket.create_connection(door.address) as rude:
        rude.sendall(b"this is no handshake" * 10)
        start = time.monotonic()
        assert door.echo(ssl.create_default_context(cafile=str(certificate)))
        assert time.monotonic() - start < 1.9, "nobody waits for who is silent"
        assert closed(rude)
        assert closed(silent)
    assert refused == ["127.0.0.1"] * 2


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


def test_connections_that_end_early_do_not_count(doors: list[Door]) -> None:
    door = Door()
    door.server.ae.maximum_associations = 2
    doors.append(door)
    reject = b"\x03\x00" + struct.pack(">I", 4) + b"\x00\x01\x01\x01"
    for hello in (b"", b"\x01", b"GET / HTTP/1.1\r\n\r\n", reject) * 3:
        with socket.create_connection(door.address) as link:
            link.sendall(hello)
    start = time.monotonic()
    wait(door.echo, 10)
    assert time.monotonic() - start < 10 < room._SECONDS


def test_messages_out_of_turn_end_a_connection_without_a_traceback(
    doors: list[Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", ended.append)
    door = Door()
    doors.append(door)
    with socket.create_connection(door.address) as link:
        link.sendall(request() + b"\x02\x00" + struct.pack(">I", 2) + b"\x00\x01")
        assert closed(link)
    assert door.echo()
    wait(lambda: not door.server.active_associations, 10)
    assert ended == []


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
