"""What docs/node.md says that a node does not take, it does not take."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import UID
from starlette.testclient import TestClient

from d2ed2q.data.dicom import DICOM_CLASSES, TRANSFER_SYNTAXES
from d2ed2q.serve.node import Node
from d2ed2q.serve.settings import DicomSettings, HttpSettings, WatchSettings

from ..data.dicom_files import CAPTURE, OP8, as_bytes, make_dicom
from ..pages import text_of
from .helpers import client_of, needs, wait
from .test_dicom_node import send

TABLE = text_of("docs/node.md").split("What it does not take")[1].split("By C-STORE")[0]
SAID = "{} is a result of d2ed2q itself and not segmented"
UIDS = re.findall(r"`(1\.2\.840\.[\d.]+)`", TABLE)


def test_what_the_page_names_is_refused_with_what_is_read(client: TestClient, picture: np.ndarray) -> None:
    assert len(UIDS) == 9
    for uid in UIDS:
        image = make_dicom(picture, CAPTURE)
        if UID(uid).is_transfer_syntax:
            image.file_meta.TransferSyntaxUID = UID(uid)
            if UID(uid).is_encapsulated:
                image.PixelData = encapsulate([b"no matter what"])
                image["PixelData"].VR = "OB"
                image["PixelData"].is_undefined_length = True
            said = ", ".join(TRANSFER_SYNTAXES.values())
        else:
            image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = UID(uid)
            said = "SOP class"
        answer = client.post("/segment", content=as_bytes(image))
        assert answer.status_code == 422, uid
        assert uid in answer.json()["error"]
        assert said in answer.json()["error"]
    assert not {*UIDS} & {*TRANSFER_SYNTAXES, *DICOM_CLASSES}, "and none is agreed on by C-STORE"
    frames = client.post("/segment", content=as_bytes(make_dicom(picture, CAPTURE, NumberOfFrames=2)))
    assert frames.status_code == 422
    assert "2 frames" in frames.json()["error"]


def test_what_a_node_made_is_not_segmented_through_any_door(
    make_node: Callable[..., Node], picture: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "camera").mkdir()
    watch = (WatchSettings(tmp_path / "camera", settled_seconds=0.1),)
    node = make_node(dicom=DicomSettings(port=0), watch=watch)
    with node.running():
        photograph = as_bytes(make_dicom(picture, OP8))
        answer = client_of(node).post("/segment?result=overlay.dcm", content=photograph)
        overlay = pydicom.dcmread(io.BytesIO(answer.content))
        assert overlay.SOPClassUID == CAPTURE
        status = send(node, overlay)
        assert (status.Status, status.ErrorComment) == (0xC000, SAID.format("the instance"))
        assert client_of(node).post("/segment", content=answer.content).json()["error"] == SAID.format("the image")
        assert client_of(node).post("/segment", content=answer.content).status_code == 422
        (tmp_path / "camera" / "overlay.dcm").write_bytes(answer.content)
        said = tmp_path / "camera" / "failed" / "overlay.dcm.txt"
        wait(said.is_file)
        assert said.read_text().splitlines()[0] == SAID.format("the image")
        overlay.Manufacturer = "another"
        assert send(node, overlay).Status == 0, "others' derived images are taken"
        assert send(node, make_dicom(picture, OP8, Manufacturer="d2ed2q")).Status == 0


@pytest.mark.integration
@pytest.mark.parametrize("way", ["+e1", "+el"])
def test_jpeg_lossless_is_refused_and_what_dcmdjpeg_makes_of_it_is_taken(
    way: str, make_node: Callable[..., Node], picture: np.ndarray, tmp_path: Path
) -> None:
    dcmcjpeg, storescu, dcmdjpeg = needs("dcmcjpeg"), needs("storescu"), needs("dcmdjpeg")
    plain, lossless, again = tmp_path / "plain.dcm", tmp_path / "lossless.dcm", tmp_path / "again.dcm"
    plain.write_bytes(as_bytes(make_dicom(picture, CAPTURE)))
    subprocess.run([dcmcjpeg, way, str(plain), str(lossless)], check=True, capture_output=True)
    subprocess.run([dcmdjpeg, str(lossless), str(again)], check=True, capture_output=True)
    node = make_node(http=HttpSettings(), dicom=DicomSettings(port=0))
    with node.running():

        def send(path: Path, *options: str) -> int:
            command = [storescu, *options, "-aec", "D2ED2Q", "127.0.0.1", str(node.dicom.port), str(path)]
            return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode

        assert send(lossless, "-xs") != 0
        refused = client_of(node).post("/segment", content=lossless.read_bytes())
        assert refused.status_code == 422
        assert "JPEG 2000 Lossless" in refused.json()["error"]
        assert send(again) == 0
        taken = client_of(node).post("/segment", content=again.read_bytes())
        assert taken.json()["state"] == "done"
