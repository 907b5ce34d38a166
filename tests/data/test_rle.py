from __future__ import annotations

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from d2ed2q.data.dicom import parse_dicom, pixels_of
from d2ed2q.data.rle import unpacked_size
from d2ed2q.errors import DataError

from .dicom_files import CAPTURE, as_bytes, make_dicom


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=128), st.tuples(st.integers(2, 128), st.integers(0, 255)))))
def test_sizes_are_those_of_what_comes_out(parts: list[bytes | tuple[int, int]]) -> None:
    packed, size = b"", 0
    for part in parts:
        if isinstance(part, bytes):
            packed, size = packed + bytes([len(part) - 1]) + part, size + len(part)
        else:
            packed, size = packed + bytes([257 - part[0], part[1]]), size + part[0]
    assert unpacked_size(packed, 1 << 30) == size
    assert unpacked_size(packed, size) == size
    if size:
        assert unpacked_size(packed, size - 1) > size - 1


def frame(segment: bytes, count: int = 1, start: int = 64) -> bytes:
    return count.to_bytes(4, "little") + start.to_bytes(4, "little") + bytes(56) + segment


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (frame(b"\x81\x00" * 100_000), "more than the 64 bytes"),
        (frame(b"\x81\x00", count=7), "7 RLE segments, not 1"),
        (frame(b"\x81\x00", start=5000), "not where its header says"),
        (b"\x01\x00\x00\x00", "cut off"),
    ],
)
def test_bombs_are_refused_before_they_are_unpacked(content: bytes, message: str) -> None:
    dataset = make_dicom(np.zeros((8, 8), np.uint8), CAPTURE)
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.PixelData = encapsulate([content])
    dataset["PixelData"].is_undefined_length = True
    with pytest.raises(DataError, match=message):
        pixels_of(parse_dicom(as_bytes(dataset), "it"), "it")


def test_what_is_whole_is_read() -> None:
    grey = np.arange(63, dtype=np.uint8).reshape(7, 9)
    dataset: pydicom.Dataset = make_dicom(grey, CAPTURE)
    dataset.compress(RLELossless, grey, generate_instance_uid=False)
    assert np.array_equal(pixels_of(parse_dicom(as_bytes(dataset), "it"), "it").values[..., 0], grey)
