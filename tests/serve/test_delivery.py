from __future__ import annotations

import io
import itertools
import json
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pydicom
import pytest
from pynetdicom import AE, evt

from d2ed2q.errors import ConfigError, StorageError
from d2ed2q.serve import delivery as room
from d2ed2q.serve import peers
from d2ed2q.serve.audit import AuditLog
from d2ed2q.serve.delivery import Deliverer
from d2ed2q.serve.metrics import NodeMetrics
from d2ed2q.serve.outbox import Delivery
from d2ed2q.serve.peers import PeerError, send_by_c_store, send_by_stow, stow_context
from d2ed2q.serve.settings import PeerSettings, TlsSettings
from d2ed2q.serve.store import JobStore

from ..data.dicom_files import CAPTURE, as_bytes, make_dicom

PEERS = {"a": PeerSettings("A", "127.0.0.1", 1), "b": PeerSettings("B", "127.0.0.1", 2)}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path, clock=Clock())


@pytest.fixture
def make(store: JobStore, tmp_path: Path) -> Callable[..., Deliverer]:
    def made(render: Callable[[int, str], bytes] = lambda job, name: b"x", seconds: float = 100) -> Deliverer:
        metrics = NodeMetrics("m", "s", store.counts, lambda: True, lambda: True)
        return Deliverer(store, PEERS, "OWN", render, AuditLog(tmp_path / "audit.jsonl"), metrics, seconds)

    return made


def add(store: JobStore, *deliveries: tuple[str, str]) -> int:
    job, _ = store.add(str(store.counts()["done"]), "dicom", b"x")
    store.take()
    store.finish(job.id, "done", {}, deliveries=deliveries)
    return job.id


def takes(calls: list[tuple[str, list[str]]], away: str = "") -> Callable[..., dict[str, str | None]]:
    def send(peer: PeerSettings, title: str, files: Mapping[str, bytes]) -> dict[str, str | None]:
        calls.append((peer.ae_title, list(files)))
        if peer.ae_title == away:
            raise PeerError("it is away")
        return dict.fromkeys(files)

    return send


def test_one_odd_image_does_not_stop_the_others(
    store: JobStore, make: Callable[..., Deliverer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    odd, unreadable, good = (add(store, ("a", "seg.dcm")) for _ in range(3))

    def render(job: int, name: str) -> bytes:
        if job == odd:
            raise TypeError("Doe^Jane is no number")
        if job == unreadable:
            raise StorageError("the disk is away")
        return b"x"

    calls: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(room, "send_by_c_store", takes(calls))
    make(render).deliver()
    counts = store.counts()
    assert (counts["deliveries_failed"], counts["deliveries_done"], counts["deliveries_waiting"]) == (1, 1, 1)
    assert calls == [("A", ["seg.dcm"])]
    assert good
    assert "TypeError" in caplog.text
    assert "Doe" not in caplog.text


def test_a_peer_that_is_away_or_odd_keeps_nothing_from_the_others(
    store: JobStore, make: Callable[..., Deliverer], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        add(store, ("a", "seg.dcm"), ("a", "overlay.dcm"), ("b", "seg.dcm"))
    calls: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(room, "send_by_c_store", takes(calls, away="A"))
    make().deliver()
    assert [title for title, _ in calls] == ["A", "B", "B", "B"], "it is asked once a round, and one image at a time"
    assert set(calls[0][1]) == {"overlay.dcm", "seg.dcm"}
    assert store.counts()["deliveries_waiting"] == 6
    assert store.outbox.due() == []

    def odd(peer: PeerSettings, *_: Any) -> dict[str, str | None]:
        if peer.ae_title == "A":
            raise RuntimeError
        return {"seg.dcm": None}

    store.clock.now += 100  # type: ignore[attr-defined]
    add(store, ("b", "seg.dcm"))
    monkeypatch.setattr(room, "send_by_c_store", odd)
    make().deliver()
    assert store.counts()["deliveries_done"] == 4


def test_what_cannot_be_noted_down_is_not_sent_again_at_once(
    store: JobStore, make: Callable[..., Deliverer], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, ("a", "seg.dcm"))
    deliverer = make()

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    def odd(*_: object) -> dict[str, str | None]:
        raise RuntimeError

    monkeypatch.setattr(room, "send_by_c_store", takes([]))
    with monkeypatch.context() as broken:
        broken.setattr(store.outbox, "delivered", full)
        assert not deliverer.deliver()
    with monkeypatch.context() as broken:
        broken.setattr(room, "send_by_c_store", odd)
        assert not deliverer.deliver()
    assert deliverer.deliver()
    assert store.counts()["deliveries_done"] == 1


def test_a_peer_that_goes_away_at_one_image_gets_the_others(
    store: JobStore, make: Callable[..., Deliverer], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = [add(store, ("a", "seg.dcm"), ("a", "overlay.dcm")) for _ in range(2)]
    good = [add(store, ("a", "seg.dcm")) for _ in range(2)]
    asked: list[str] = []

    def send(peer: PeerSettings, title: str, files: Mapping[str, bytes]) -> dict[str, str | None]:
        asked.append(files["seg.dcm"].decode())
        if asked[-1] in map(str, poison):
            raise PeerError("it does not answer", {"seg.dcm": None})
        return dict.fromkeys(files)

    monkeypatch.setattr(room, "send_by_c_store", send)
    deliverer = make(lambda job, name: str(job).encode(), 10_000)
    deliverer.deliver()
    assert asked == [str(poison[0])], "it is away for the rest of the round"
    assert store.counts()["deliveries_done"] == 1, "what it had taken before is not sent again"
    for _ in range(2):
        store.clock.now += 100  # type: ignore[attr-defined]
        for job in poison:  # they have it already, and are asked again nevertheless
            store.outbox._set(Delivery(job, "a", "seg.dcm", 1), "waiting", 0, None)
        deliverer.deliver()
    assert asked[1:] == [str(poison[1]), *map(str, good), str(poison[0])]


def test_its_age_is_counted_from_the_first_attempt(
    store: JobStore, make: Callable[..., Deliverer], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, ("a", "seg.dcm"))
    monkeypatch.setattr(room, "send_by_c_store", takes([], away="A"))
    store.clock.now += 10_000  # type: ignore[attr-defined]
    make().deliver()
    assert store.counts()["deliveries_waiting"] == 1, "the node was away, and not the peer"
    store.clock.now += 101  # type: ignore[attr-defined]
    make().deliver()
    assert store.counts()["deliveries_failed"] == 1


@pytest.mark.parametrize("jump", [20 * 365 * 86_400, -20 * 365 * 86_400])
def test_a_clock_that_is_set_neither_gives_up_nor_holds_back(
    jump: float, store: JobStore, make: Callable[..., Deliverer], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, ("a", "seg.dcm"))
    clock: Any = store.clock
    tries: list[float] = []
    running = 0.0

    def send(*_: Any) -> dict[str, str | None]:
        tries.append(running)
        raise PeerError("it is away")

    monkeypatch.setattr(room, "send_by_c_store", send)
    deliverer = make(seconds=10_000)
    while store.counts()["deliveries_waiting"]:
        deliverer.deliver()
        clock.now += 10
        running += 10
        if running == 2000:
            clock.now += jump
        assert running < 12_000
    assert 9000 < tries[-1] < 11_000
    assert max(after - before for before, after in itertools.pairwise(tries)) <= 620


@pytest.fixture
def results() -> dict[str, bytes]:
    picture = np.zeros((8, 8, 3), np.uint8)
    return {name: as_bytes(make_dicom(picture)) for name in ("seg.dcm", "overlay.dcm")}


def answers(monkeypatch: pytest.MonkeyPatch, status: int, content: bytes) -> None:
    monkeypatch.setattr("d2ed2q.serve.peers.httpx2.post", lambda *_, **__: httpx2.Response(status, content=content))


def test_what_a_service_took_is_read_from_its_answer(
    results: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = PeerSettings(stow="http://127.0.0.1/studies")
    uid = str(pydicom.dcmread(io.BytesIO(results["overlay.dcm"])).SOPInstanceUID)
    entry = {"00081155": {"vr": "UI", "Value": [uid]}, "00081197": {"vr": "US", "Value": [0xA700]}}
    said = json.dumps({"00081198": {"vr": "SQ", "Value": [entry]}}).encode()
    answers(monkeypatch, 202, said)
    assert send_by_stow(peer, results, True) == {"seg.dcm": None, "overlay.dcm": "failure reason 0xA700"}
    answers(monkeypatch, 409, said)
    assert send_by_stow(peer, results, True) == {"seg.dcm": "HTTP 409", "overlay.dcm": "failure reason 0xA700"}
    has = json.loads(said)
    has["00081198"]["Value"][0]["00081197"]["Value"] = [0x0111]
    for status in (202, 409):
        answers(monkeypatch, status, json.dumps(has).encode())
        assert send_by_stow(peer, results, True)["overlay.dcm"] is None, "it has it"
    for strange in (b"", b"[]", b"3", b"{", b'{"00081198": 3}', b'{"00081198": {"Value": [{}]}}'):
        answers(monkeypatch, 202, strange)
        assert send_by_stow(peer, results, True) == {"seg.dcm": None, "overlay.dcm": None}
    answers(monkeypatch, 200, b"")
    assert send_by_stow(peer, results, True) == {"seg.dcm": None, "overlay.dcm": None}
    answers(monkeypatch, 503, b"")
    assert set(send_by_stow(peer, results, True).values()) == {"HTTP 503"}


def test_what_is_wrong_with_a_peer_is_tried_again(results: dict[str, bytes], tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_bytes(b"\xff\xfe")
    for peer in (
        PeerSettings(stow="http://127.0.0.1/studies", token_file=token),
        PeerSettings(stow="http://127.0.0.1/studies", token_file=tmp_path / "nothing"),
        PeerSettings(stow="http://[bad/studies"),
    ):
        with pytest.raises(PeerError):
            send_by_stow(peer, results, True)
    with pytest.raises(PeerError, match="cannot be asked"):
        send_by_c_store(PeerSettings("A", "pacs..clinic", 104), "OWN", results)
    certificate = tmp_path / "node.pem"
    certificate.write_text("half of it")
    tls = TlsSettings(certificate, certificate)
    with pytest.raises(PeerError, match="cannot be used"):
        send_by_c_store(PeerSettings("A", "127.0.0.1", 1, tls=tls), "OWN", results)
    with pytest.raises(ConfigError, match="cannot be used"):
        stow_context(PeerSettings(stow="https://p/s", authority=certificate))


def test_a_peer_that_does_not_answer_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_TIMEOUT", 1.0)
    picture = np.zeros((8, 8, 3), np.uint8)
    files = {f"{number}.dcm": as_bytes(make_dicom(picture, CAPTURE)) for number in range(3)}
    seen, silent = 0, True

    def store(event: Any) -> int:
        nonlocal seen
        seen += 1
        if seen == 2 and silent:
            time.sleep(3)
        elif seen == 2:
            event.assoc.abort()
        return 0

    entity = AE("A")
    entity.add_supported_context(CAPTURE)
    handlers: Any = [(evt.EVT_C_STORE, store)]
    server: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    peer = PeerSettings("A", "127.0.0.1", server.server_address[1])
    try:
        for silent in (True, False):  # noqa: B007  # the handler looks at it
            seen = 0
            with pytest.raises(PeerError) as caught:
                send_by_c_store(peer, "OWN", files)
            assert caught.value.answered == {"0.dcm": None}
            assert seen == 2, "no time is lost on a third"
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "said"), [(0x0000, None), (0xB007, None), (0x0111, None), (0x0110, "status 0x0110")]
)
def test_what_an_archive_has_already_is_not_sent_again(status: int, said: str | None) -> None:
    entity = AE("A")
    entity.add_supported_context(CAPTURE)
    handlers: Any = [(evt.EVT_C_STORE, lambda _: status)]
    server: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    peer = PeerSettings("A", "127.0.0.1", server.server_address[1])
    try:
        file = as_bytes(make_dicom(np.zeros((8, 8, 3), np.uint8), CAPTURE))
        assert send_by_c_store(peer, "OWN", {"overlay.dcm": file}) == {"overlay.dcm": said}
    finally:
        server.shutdown()


def test_a_services_authority_counts_beside_a_certificate_of_ones_own(
    make_certificate: Callable[[str], Path], tmp_path: Path
) -> None:
    own, other = make_certificate("own"), make_certificate("other")
    tls = TlsSettings(own, own.with_suffix(".key"))
    for peer in (PeerSettings(tls=tls, authority=other), PeerSettings(tls=replace(tls, authority=other))):
        context = stow_context(peer)
        assert isinstance(context, ssl.SSLContext)
        (believed,) = context.get_ca_certs()
        assert "other" in str(believed["subject"])
