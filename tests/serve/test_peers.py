"""Real peers: Triton's client, dcmtk, Orthanc, mosquitto."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from d2ed2q.serve.node import Node
from d2ed2q.serve.settings import DicomSettings, MqttSettings, PeerSettings, TlsSettings

from ..data.dicom_files import OP8, as_bytes, make_dicom
from .helpers import audited, free_port, listens, needs, program, served, wait

pytestmark = pytest.mark.integration


def test_tritons_client(make_node: Callable[..., Node], picture: np.ndarray) -> None:
    triton = pytest.importorskip("tritonclient.http")
    node = make_node()
    name, version = node.model.manifest.name, node.model.bundle.sha256[:16]
    image = picture.transpose(2, 0, 1)[None].astype(np.float32) / 255
    with served(node) as port, triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(name)
        assert client.is_model_ready(name, version)
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        assert client.get_model_metadata(name)["inputs"][0]["name"] == "image"
        given = triton.InferInput("image", list(image.shape), "FP32")
        for binary in (True, False):
            given.set_data_from_numpy(image, binary_data=binary)
            wanted = [triton.InferRequestedOutput(o, binary_data=binary) for o in ("learners", "mask", "doubt")]
            answer = client.infer(name, [given], outputs=wanted, request_id="1")
            expected = node.model.predictor(picture, "none")
            assert np.allclose(answer.as_numpy("learners")[0], expected.learners, atol=1e-6)
            assert answer.as_numpy("mask").shape == (1, *picture.shape[:2])
        given = triton.InferInput("image", [1, 1, 8, 8], "FP32")
        given.set_data_from_numpy(np.zeros((1, 1, 8, 8), np.float32))
        with pytest.raises(Exception, match="3 channels"):
            client.infer(name, [given])
        with pytest.raises(Exception, match="no such model"):
            client.infer("other", [given])


@pytest.mark.parametrize("secure", [False, True])
def test_dcmtk_sends_with_and_without_tls(
    secure: bool, make_node: Callable[..., Node], picture: np.ndarray, certificates: Path, tmp_path: Path
) -> None:
    storescu, echoscu = needs("storescu"), needs("echoscu")
    for number, kind in enumerate((OP8, "1.2.840.10008.5.1.4.1.1.7")):
        (tmp_path / f"{number}.dcm").write_bytes(as_bytes(make_dicom(picture, kind)))
    files = [str(path) for path in sorted(tmp_path.glob("*.dcm"))]
    tls = TlsSettings(certificates / "node.pem", certificates / "node.key", certificates / "ca.pem")
    node = make_node(http=None, dicom=DicomSettings(port=0, tls=tls if secure else None))
    with node.running():

        def run(command: str, who: str | None, *rest: str) -> int:
            files = [str(certificates / f"{who}.key"), str(certificates / f"{who}.pem")]
            options = [] if who is None else ["+tls", *files, "+cf", str(certificates / "ca.pem")]
            called = [command, *options, "-aec", "D2ED2Q", "127.0.0.1", str(node.dicom.port), *rest]
            return subprocess.run(called, capture_output=True, check=False, timeout=60).returncode

        who = "camera" if secure else None
        assert run(echoscu, who) == 0
        assert run(storescu, who, *files) == 0
        wait(lambda: node.store.counts()["done"] == 2)
        if secure:
            assert run(echoscu, "stranger") != 0
            assert run(echoscu, None) != 0
    entries = audited(node)
    denied = [(entry["reason"], entry["client"]) for entry in entries if entry["event"] == "denied"]
    assert denied == ([("tls", "127.0.0.1")] * 2 if secure else [])


@contextlib.contextmanager
def orthanc(folder: Path, dicom: int, http: int, modality: int) -> Iterator[None]:
    """A real archive; started again with the same folder it has what it had."""
    settings = {
        "Name": "ORTHANC", "StorageDirectory": str(folder), "IndexDirectory": str(folder), "DicomAet": "ORTHANC",
        "DicomPort": dicom, "HttpPort": http, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True, "DicomModalities": {"node": ["D2ED2Q", "127.0.0.1", modality]},
        "Plugins": ["/usr/share/orthanc/plugins"], "OverwriteInstances": False,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    path = folder / "orthanc.json"
    path.write_text(json.dumps(settings))
    with program(needs("Orthanc"), str(path), port=http):
        wait(lambda: listens(dicom))
        yield


def stored(http: int) -> list[str]:
    """Classes of everything in the archive."""
    expand: list[dict[str, Any]] = httpx2.get(f"http://127.0.0.1:{http}/instances?expand").json()
    base = f"http://127.0.0.1:{http}/instances"
    return [httpx2.get(f"{base}/{one['ID']}/metadata/SopClassUid").text for one in expand]


@pytest.mark.parametrize("way", ["c-store", "stow"])
def test_orthanc_stores_lists_and_returns_results(
    way: str, make_node: Callable[..., Node], picture: np.ndarray, tmp_path: Path
) -> None:
    dicom, http, port = free_port(), free_port(), free_port()
    peer = PeerSettings("ORTHANC", "127.0.0.1", dicom)
    if way == "stow":
        peer = PeerSettings(stow=f"http://127.0.0.1:{http}/dicom-web/studies")
    node = make_node(http=None, dicom=DicomSettings(port=port, peers={"archive": peer}))
    photograph = make_dicom(picture, OP8)
    with orthanc(tmp_path / "archive", dicom, http, port), node.running():
        base = f"http://127.0.0.1:{http}"
        sent = httpx2.post(f"{base}/instances", content=as_bytes(photograph)).json()
        assert sent["Status"] == "Success"
        # The archive itself sends its image to the node, as a router would.
        httpx2.post(f"{base}/modalities/node/store", content=sent["ID"], timeout=60).raise_for_status()
        wait(lambda: len(stored(http)) == 3)
        studies = httpx2.get(f"{base}/studies").json()
        assert len(studies) == 1, "results are in the study of the image"
        series = httpx2.get(f"{base}/studies/{studies[0]}/series").json()
        modalities = {one["MainDicomTags"]["Modality"]: one["ID"] for one in series}
        assert set(modalities) == {"OP", "SEG", "OT"}
        (instance,) = httpx2.get(f"{base}/series/{modalities['SEG']}").json()["Instances"]
        import io

        import pydicom

        result = pydicom.dcmread(io.BytesIO(httpx2.get(f"{base}/instances/{instance}/file").content))
        expected = node.model.segment(picture).prediction.mask
        assert np.array_equal(result.pixel_array.reshape(expected.shape) > 0, expected > 0)


def test_a_broker_that_is_killed_is_told_everything_afterwards(
    make_node: Callable[..., Node], photo: bytes, tmp_path: Path
) -> None:
    mosquitto, listener = needs("mosquitto"), needs("mosquitto_sub")
    port = free_port()
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    node = make_node(mqtt=MqttSettings("127.0.0.1", port, "clinic"))

    def messages(count: int, topic: str) -> list[str]:
        command = [listener, "-V", "5", "-p", str(port), "-t", topic, "-C", str(count), "-W", "60"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=90).stdout.splitlines()

    teller = node.parts[-1]
    with served(node) as http:

        def segment(data: bytes) -> None:
            httpx2.post(f"http://127.0.0.1:{http}/segment", content=data, timeout=60).raise_for_status()

        with program(mosquitto, "-c", str(config), port=port):
            assert teller.connected.wait(30)
            assert messages(1, "clinic/status") == ["online"], "retained"
            heard: list[str] = []
            thread = threading.Thread(target=lambda: heard.extend(messages(1, "clinic/results")))
            thread.start()
            time.sleep(1)
            segment(photo)
            thread.join()
        told = json.loads(heard[0])
        assert (told["state"], told["job"], told["node"]) == ("done", 1, "d2ed2q")
        of_the_job = {"node", "job", "key", "door", "state", "created", "results", "note"}
        assert set(told) == of_the_job | {"model", "model_sha256", "pixels", "doubt"}
        from .conftest import png

        segment(png(np.zeros((40, 40, 3), np.uint8)))  # nobody hears it
        with program(mosquitto, "-c", str(config), port=port):
            thread = threading.Thread(target=lambda: heard.extend(messages(1, "clinic/results")))
            thread.start()
            thread.join()
            assert json.loads(heard[1])["job"] == 2
            node.parts[-1].stop()
            assert messages(1, "clinic/status") == ["offline"]


def test_the_command_line_serves_and_stops(bundle: Path, tmp_path: Path, photo: bytes) -> None:
    port = free_port()
    config = tmp_path / "node.toml"
    config.write_text(f'state = "{tmp_path / "state"}"\nthreads = 1\n[http]\nport = {port}\n')
    command = [sys.executable, "-m", "d2ed2q", "serve", str(bundle), "--config", str(config)]
    checked = subprocess.run([*command, "--check"], capture_output=True, text=True, check=True, timeout=120)
    assert "can be had" in checked.stdout
    with program(*command, port=port) as process:
        answer = httpx2.post(f"http://127.0.0.1:{port}/segment", content=photo, timeout=60)
        assert answer.json()["state"] == "done"
        second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert second.returncode == 2
        assert "another node is running" in second.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    log = tmp_path / "state" / "audit.jsonl"
    assert [json.loads(line)["event"] for line in log.read_text().splitlines()][-1] == "stopped"
    verify = [sys.executable, "-m", "d2ed2q", "audit", "verify", str(log)]
    verified = subprocess.run(verify, capture_output=True, check=True)
    assert b"none changed" in verified.stdout
