from __future__ import annotations

from collections.abc import Callable
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
