"""Connections at the HTTP door, as the node itself opens it."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from d2ed2q.serve import connections
from d2ed2q.serve import node as room
from d2ed2q.serve.node import Node
from d2ed2q.serve.settings import HttpSettings, TlsSettings

from .helpers import free_port, listens, wait

ROOT = Path(__file__).resolve().parents[2]
LIVE = "/v2/health/live"
Run = Callable[..., None]


@pytest.fixture
def run(make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a node as the command line does, and in place of a wait for a signal what is to be done meanwhile."""

    def call(ask: Callable[[int], None], tls: TlsSettings | None = None) -> None:
        port = free_port()

        def asked(_: threading.Event, alive: Callable[[], bool]) -> bool:
            wait(lambda: listens(port))
            ask(port)
            assert alive(), "the door is open still"
            return True

        monkeypatch.setattr(room, "_wait", asked)
        make_node(http=HttpSettings(port=port, tls=tls)).run()

    return call


def get(port: int) -> httpx2.Response:
    return httpx2.get(f"http://127.0.0.1:{port}{LIVE}", headers={"Connection": "close"}, timeout=60)


def answers(port: int) -> bool:
    with contextlib.suppress(httpx2.HTTPError):
        return get(port).status_code == 200
    return False


@contextlib.contextmanager
def opened(port: int, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(count)]


def test_more_connections_than_allowed_are_answered_with_503_and_the_node_lives_on(run: Run, photo: bytes) -> None:
    most = connections.MOST_CONNECTIONS
    page = (ROOT / "docs" / "node.md").read_text(encoding="utf-8")
    assert re.search(rf"of any other: .*{most} connections or more", page)

    def ask(port: int) -> None:
        with opened(port, most - 2):
            wait(lambda: answers(port))
            with opened(port, 1):
                wait(lambda: get(port).status_code == 503)
                assert get(port).status_code == 503, "nobody is left without an answer"
        wait(lambda: answers(port))
        answer = httpx2.post(f"http://127.0.0.1:{port}/segment", content=photo, timeout=60)
        assert answer.json()["state"] == "done"

    run(ask)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        f"GET {LIVE} HTTP/1.1\r\nHost: me\r\nX-Slow: ".encode(),
        b"POST /segment HTTP/1.1\r\nHost: me\r\nContent-Length: 999999999999\r\n\r\n",
    ],
    ids=["silent", "half a head", "a body after its refusal"],
)
def test_who_does_not_go_on_is_let_go(said: bytes, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_SECONDS", 0.5)
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 3)

    def ask(port: int) -> None:
        with opened(port, 3) as links:
            for link in links:
                link.sendall(said)
            end = time.monotonic() + 60
            for link in links:
                link.settimeout(0.1)
                while not closed_while_dripping(link):
                    assert time.monotonic() < end, "it is open still"
            wait(lambda: answers(port))

    run(ask)


def closed_while_dripping(link: socket.socket) -> bool:
    """Whether a connection has been closed; a byte now and then does not keep it open."""
    try:
        link.sendall(b"x")
        return link.recv(4096) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_who_takes_nothing_of_its_answer_is_let_go_and_who_is_slow_is_not(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_SECONDS", 1.0)
    monkeypatch.setattr(Node, "app", lambda self: large)

    def ask(port: int) -> None:
        with opened(port, 2) as (stuck, slow):
            for link in (stuck, slow):
                link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
                link.sendall(b"GET / HTTP/1.1\r\nHost: me\r\nConnection: close\r\n\r\n")
            found = 0
            while part := slow.recv(1 << 20):
                found += len(part)
                time.sleep(0.02)
            assert found > LARGE
            taken = 0
            with contextlib.suppress(ConnectionError):
                while part := stuck.recv(1 << 20):
                    taken += len(part)
            assert taken < LARGE

    run(ask)


LARGE = 24_000_000


async def large(scope: dict[str, object], receive: object, send: Callable[..., object]) -> None:
    """An application with a large answer to everything."""
    headers = [(b"content-length", str(LARGE).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})  # type: ignore[misc]
    await send({"type": "http.response.body", "body": bytes(LARGE)})  # type: ignore[misc]


def test_with_an_authority_only_who_shows_a_certificate_of_it_is_answered(
    run: Run, make_certificate: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_SECONDS", 1.0)
    own, other = make_certificate("own"), make_certificate("other")

    def shown(certificate: Path | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(own))
        if certificate is not None:
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        return context

    def ask(port: int) -> None:
        place = f"https://127.0.0.1:{port}{LIVE}"
        assert httpx2.get(place, verify=shown(own), timeout=60).json() == {"live": True}
        for stranger in (None, other):
            with pytest.raises(httpx2.TransportError):
                httpx2.get(place, verify=shown(stranger), timeout=60)
        with pytest.raises(httpx2.TransportError):
            httpx2.get(place.replace("https", "http"), timeout=60)
        with (
            opened(port, 1) as (plain,),
            shown(own).wrap_socket(plain, server_hostname="127.0.0.1") as silent,
            contextlib.suppress(ssl.SSLEOFError, ConnectionError),  # it is closed without a word
        ):
            assert silent.recv(1) == b"", "who is silent is let go here too"

    run(ask, TlsSettings(own, own.with_suffix(".key"), own))
