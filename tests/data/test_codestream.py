from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless

from d2ed2q.data.codestream import stream_shape
from d2ed2q.data.dicom import parse_dicom, pixels_of
from d2ed2q.errors import DataError

from .dicom_files import CAPTURE, as_bytes, make_dicom

COLOUR = np.random.default_rng(0).integers(0, 256, (24, 33, 3)).astype(np.uint8)


def stream(kind: str) -> bytes:
    """A compressed image of 24×33 pixels, of three samples but in JPEG-LS."""
    if kind == "JPEG-LS":
        dataset: pydicom.Dataset = make_dicom(COLOUR[..., 0], CAPTURE)
        dataset.compress(JPEGLSLossless)
        return get_frame(dataset.PixelData, 0, number_of_frames=1)
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).save(buffer, format="JPEG2000" if kind.startswith("J") and "2000" in kind else "JPEG")
    return buffer.getvalue()


def test_streams_say_how_large_they_are() -> None:
    assert stream_shape(stream("JPEG")) == (24, 33, 3)
    assert stream_shape(stream("JPEG 2000")) == (24, 33, 3)
    assert stream_shape(stream("JPEG-LS")) == (24, 33, 1)
    assert stream_shape(b"\x01\x00\x00\x00" + bytes(100)) is None, "RLE says it elsewhere"
    for whole in (stream("JPEG"), stream("JPEG 2000"), stream("JPEG-LS")):
        for length in range(len(whole)):
            assert stream_shape(whole[:length]) in (None, stream_shape(whole))


@pytest.mark.parametrize(
    ("kind", "syntax"),
    [("JPEG", JPEGBaseline8Bit), ("JPEG 2000", JPEG2000Lossless), ("JPEG-LS", JPEGLSLossless)],
)
def test_a_stream_larger_than_its_image_is_refused_before_it_is_decoded(kind: str, syntax: pydicom.uid.UID) -> None:
    dataset = make_dicom(COLOUR[:8, :8] if kind != "JPEG-LS" else COLOUR[:8, :8, 0], CAPTURE)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream(kind)])
    dataset["PixelData"].is_undefined_length = True
    with pytest.raises(DataError, match=r"header says 8×8 pixels of . samples, its pixel data 33×24"):
        pixels_of(parse_dicom(as_bytes(dataset), "it"), "it")
