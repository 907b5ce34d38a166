"""What docs/node.md says that a node does not take, it does not take."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import UID
from starlette.testclient import TestClient

from d2ed2q.data.dicom import DICOM_CLASSES, TRANSFER_SYNTAXES
from d2ed2q.serve.node import Node
from d2ed2q.serve.settings import DicomSettings, HttpSettings

from ..data.dicom_files import CAPTURE, as_bytes, make_dicom
from ..pages import text_of
from .helpers import client_of, needs

TABLE = text_of("docs/node.md").split("What it does not take")[1].split("By C-STORE")[0]
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
