"""Peers that ask for certificates: mosquitto with a password too, dcmtk's storescp, and a STOW-RS service."""

from __future__ import annotations

import contextlib
import io
import subprocess
import threading
from collections.abc import Callable, Iterator
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pydicom
import pytest

from d2ed2q.serve.node import Node
from d2ed2q.serve.settings import DicomSettings, MqttSettings, PeerSettings, TlsSettings
from d2ed2q.serve.tls import server_context

from ..data.dicom_files import OP8, as_bytes, make_dicom
from .helpers import free_port, needs, program, wait

# pynetdicom leaves the socket open of an association that nobody took.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
CLASSES = {"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.7"}


@pytest.fixture
def shows(certificates: Path) -> Callable[..., TlsSettings]:
    """What a node shows to a peer: whose certificate, and whose authority it believes."""

    def make(who: str, authority: str = "ca") -> TlsSettings:
        return TlsSettings(certificates / f"{who}.pem", certificates / f"{who}.key", certificates / f"{authority}.pem")

    return make


def test_a_broker_with_tls_and_a_password_is_told_by_who_has_both(
    make_node: Callable[..., Node], certificates: Path, shows: Callable[..., TlsSettings], photo: bytes, tmp_path: Path
) -> None:
    mosquitto, listener, passwords = needs("mosquitto"), needs("mosquitto_sub"), needs("mosquitto_passwd")
    port, known = free_port(), tmp_path / "known"
    subprocess.run([passwords, "-b", "-c", str(known), "clinic", "a secret"], check=True, capture_output=True)
    (tmp_path / "right").write_text("a secret\n")
    (tmp_path / "wrong").write_text("another\n")
    config = tmp_path / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\ncafile {certificates / 'ca.pem'}\ncertfile {certificates / 'node.pem'}\n"
        f"keyfile {certificates / 'node.key'}\nrequire_certificate true\nallow_anonymous false\n"
        f"password_file {known}\npersistence false\nuser root\n"  # who may read the key, where a root starts it
    )

    def heard(topic: str) -> str:
        mine = ["--cafile", "ca.pem", "--cert", "camera.pem", "--key", "camera.key", "-u", "clinic", "-P", "a secret"]
        command = [listener, "-V", "5", "-h", "127.0.0.1", "-p", str(port), *mine, "-t", topic, "-C", "1", "-W", "30"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=certificates)
        return done.stdout.strip()

    def settings(password: str, tls: TlsSettings | None) -> MqttSettings:
        return MqttSettings("127.0.0.1", port, "clinic", "clinic", tmp_path / password, tls)

    with program(mosquitto, "-c", str(config), port=port):
        for number, (password, tls) in enumerate(
            (
                ("wrong", shows("camera")),
                ("right", shows("stranger")),
                ("right", shows("camera", authority="other")),
                ("right", None),
            )
        ):
            node = make_node(mqtt=settings(password, tls), state=tmp_path / f"state-{number}")
            with node.running():
                retried = node.metrics.deliveries.labels("mqtt", "retried")
                wait(lambda retried=retried: retried._value.get() > 0)  # type: ignore[misc]
                assert not node.parts[-1].connected.is_set(), (password, tls)
        node = make_node(mqtt=settings("right", shows("camera")))
        with node.running():
            assert node.parts[-1].connected.wait(30)
            assert heard("clinic/status") == "online"
            node.store.add("a", "http", photo)
            node.worker.wake()
            wait(lambda: node.store.counts()["deliveries_done"] == 1)
        assert heard("clinic/status") == "offline"


def results_arrive(node: Node, picture: np.ndarray, refused: tuple[str, ...], count: Callable[[], int]) -> None:
    """An image's two results come to the peer that node and peer know each other of, and none by the others' names."""
    with node.running():
        node.store.add("a", "dicom", as_bytes(make_dicom(picture, OP8)))
        node.worker.wake()

        def delivered(peer: str, outcome: str) -> float:
            return float(node.metrics.deliveries.labels(peer, outcome)._value.get())

        wait(lambda: delivered("known", "done") == 2 and all(delivered(peer, "retried") >= 2 for peer in refused))
        assert count() == 2
        assert all(delivered(peer, "done") == 0 for peer in refused)


def test_storescp_takes_results_over_mutual_tls(
    make_node: Callable[..., Node],
    certificates: Path,
    shows: Callable[..., TlsSettings],
    picture: np.ndarray,
    tmp_path: Path,
) -> None:
    port, folder = free_port(), tmp_path / "taken"
    folder.mkdir()
    own = ["+tls", str(certificates / "node.key"), str(certificates / "node.pem"), "+cf", str(certificates / "ca.pem")]
    peers = {
        name: PeerSettings("STORESCP", "127.0.0.1", port, tls)
        for name, tls in (
            ("stranger", shows("stranger")),
            ("unbelieved", shows("camera", authority="other")),
            ("plain", None),
            ("known", shows("camera")),
        )
    }
    node = make_node(http=None, dicom=DicomSettings(port=0, peers=peers))
    with program(needs("storescp"), *own, "-aet", "STORESCP", "-od", str(folder), str(port), port=port):
        results_arrive(
            node,
            picture,
            ("stranger", "unbelieved", "plain"),
            lambda: len([p for p in folder.iterdir() if p.is_file()]),
        )
    assert {str(pydicom.dcmread(path).SOPClassUID) for path in folder.iterdir()} == CLASSES


@contextlib.contextmanager
def stow_service(port: int, tls: TlsSettings) -> Iterator[list[pydicom.Dataset]]:
    """A service that asks for certificates, and keeps what it is sent; Orthanc 1.10 crashes where it has to ask."""
    found: list[pydicom.Dataset] = []

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            whole = message_from_bytes(f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + body)
            for part in whole.walk():
                if part.get_content_type() == "application/dicom":
                    found.append(pydicom.dcmread(io.BytesIO(bytes(part.get_payload(decode=True)))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Service) as server:
        server.socket = server_context(tls).wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield found
        server.shutdown()
        thread.join(30)


def test_results_go_by_stow_over_mutual_tls(
    make_node: Callable[..., Node], certificates: Path, shows: Callable[..., TlsSettings], picture: np.ndarray
) -> None:
    port = free_port()
    peers = {
        name: PeerSettings(stow=f"https://127.0.0.1:{port}/dicom-web/studies", tls=tls, authority=authority)
        for name, tls, authority in (
            ("stranger", shows("stranger"), None),
            ("unbelieved", shows("camera", authority="other"), None),
            ("without", None, certificates / "ca.pem"),
            ("known", shows("camera"), None),
        )
    }
    node = make_node(http=None, dicom=DicomSettings(port=0, peers=peers))
    with stow_service(port, shows("node")) as found:
        results_arrive(node, picture, ("stranger", "unbelieved", "without"), lambda: len(found))
    assert {str(one.SOPClassUID) for one in found} == CLASSES
