from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from d2ed2q.deploy import read_bundle
from d2ed2q.deploy.dicom_results import dicom_overlay, dicom_segmentation, encoded
from d2ed2q.errors import DataError

from ..data.dicom_files import CAPTURE, OP8, make_dicom


@pytest.mark.parametrize("kind", [OP8, CAPTURE])
@pytest.mark.parametrize(
    ("keyword", "value"),
    [("SOPInstanceUID", None), ("SeriesNumber", "x"), ("SeriesNumber", [1, 2]), ("PatientName", 3), ("StudyDate", {})],
)
def test_odd_headers_are_refused_and_not_raised(kind: str, keyword: str, value: object, bundle: Path) -> None:
    manifest, mask = read_bundle(bundle).manifest, np.ones((8, 8), np.int64)
    source = make_dicom(np.zeros((8, 8, 3), np.uint8), kind)
    if value is None:
        delattr(source, keyword)
    else:  # as a parser leaves what it cannot read
        source[keyword] = pydicom.DataElement(keyword, str(source[keyword].VR), None)
        source[keyword]._value = value
    made = 0
    makers: tuple[Callable[[], pydicom.Dataset], ...] = (
        lambda: dicom_overlay(source, np.zeros((8, 8, 3), np.uint8), manifest, "ab" * 32),
        lambda: dicom_segmentation(source, mask, np.ones((1, 8, 8), np.float32), manifest, "ab" * 32),
    )
    for make in makers:
        try:
            encoded(make())
            made += 1
        except DataError:  # and nothing else
            continue
    assert made < 2, "one of them at least needs it"


@pytest.mark.parametrize("kind", [OP8, CAPTURE])
def test_warning_and_checksum_are_whole_however_long_the_models_name_is(
    kind: str, bundle: Path, tmp_path: Path
) -> None:
    manifest = replace(read_bundle(bundle).manifest, name="a model with a name that goes on " * 40)
    source, sha256 = make_dicom(np.zeros((8, 8, 3), np.uint8), kind), hashlib.sha256(b"a model").hexdigest()
    mask, probability = np.ones((8, 8), np.int64), np.ones((1, 8, 8), np.float32)
    segmentation = dicom_segmentation(source, mask, probability, manifest, sha256)
    overlay = dicom_overlay(source, np.zeros((8, 8, 3), np.uint8), manifest, sha256)
    for made in (segmentation, overlay):
        found = pydicom.dcmread(io.BytesIO(encoded(made)))
        assert found.SeriesDescription.startswith("Research use only; not a medical device: ")
        assert len(found.SeriesDescription) <= 64
        assert found.SoftwareVersions == found.DeviceSerialNumber == sha256
        assert found.Manufacturer == "d2ed2q"
        if shutil.which("dciodvfy") is not None:
            (tmp_path / "made.dcm").write_bytes(encoded(made))
            said = subprocess.run(["dciodvfy", tmp_path / "made.dcm"], capture_output=True, text=True, check=False)
            assert not [line for line in said.stderr.splitlines() if line.startswith("Error")], said.stderr
    (segment,) = segmentation.SegmentSequence
    assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == sha256
    assert "Research use only" in overlay.DerivationDescription
    assert sha256 in overlay.DerivationDescription
    assert segmentation.SeriesDescription != overlay.SeriesDescription, "which is which can be seen"
