from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import pixel_array
from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSLossless, RLELossless

from d2ed2q.data.dicom import check_image, is_dicom, parse_dicom, pixels_of, read_dicom, spacing_of
from d2ed2q.errors import DataError

from .dicom_files import CAPTURE, CT, DX, MR, OP8, US, as_bytes, make_dicom

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (24, 33, 3)).astype(np.uint8)
GREY = RNG.integers(0, 256, (24, 33)).astype(np.uint8)


def read(dataset: pydicom.Dataset) -> Any:
    data = as_bytes(dataset)
    return pixels_of(parse_dicom(data, "it"), "it")


def test_a_photograph_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "photo.dcm").write_bytes(as_bytes(make_dicom(COLOUR)))
    image = read_dicom(tmp_path / "photo.dcm")
    assert np.array_equal(image.values, COLOUR)
    assert np.array_equal(image.shown, COLOUR)
    assert str(image.dataset.PatientID) == "MU-1"
    assert spacing_of(image.dataset) == (0.01, 0.01)
    assert spacing_of(make_dicom(GREY, US)) is None


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_photographs_are_read(syntax: pydicom.uid.UID) -> None:
    dataset = make_dicom(COLOUR)
    dataset.compress(syntax)
    assert np.array_equal(read(dataset).values, COLOUR)


@pytest.mark.parametrize(
    ("syntax", "options", "photometric"),
    [
        (JPEG2000Lossless, {"format": "JPEG2000"}, "YBR_RCT"),
        (JPEGBaseline8Bit, {"format": "JPEG", "quality": 98}, "YBR_FULL_422"),
    ],
)
def test_jpegs_are_read(syntax: pydicom.uid.UID, options: dict[str, Any], photometric: str) -> None:
    smooth = np.asarray(Image.fromarray(COLOUR[:3, :4]).resize((64, 48), Image.Resampling.BICUBIC))
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, **options)
    dataset = make_dicom(smooth, PhotometricInterpretation=photometric)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([buffer.getvalue()])
    difference = np.abs(read(dataset).values.astype(int) - smooth)
    assert np.median(difference) <= (0 if syntax == JPEG2000Lossless else 6)


def test_a_slice_is_in_hounsfield_units_and_shown_in_its_window() -> None:
    stored = np.linspace(0, 2048, 24 * 33).reshape(24, 33).astype(np.int16)
    image = read(make_dicom(stored, CT))
    assert np.array_equal(image.values[..., 0], stored.astype(np.float32) - 1024)
    shown = image.shown[..., 0]
    assert shown.dtype == np.uint8
    assert (shown[image.values[..., 0] < -160] == 0).all()
    assert (shown[image.values[..., 0] > 240] == 255).all()


def test_what_is_shown_depends_on_the_window_and_on_no_other_pixel() -> None:
    flat = make_dicom(np.full((24, 33), 1024 + 40, np.int16), CT)  # 40 HU is the middle of its window
    assert set(np.unique(read(flat).shown)) == {128}
    grey = (GREY // 2 + 60).astype(np.uint8)
    whole = make_dicom(grey, DX, WindowCenter=128, WindowWidth=256)
    assert np.abs(read(whole).shown[..., 0].astype(int) - grey).max() <= 1, "a window of all bytes changes nothing"
    empty = make_dicom(grey, DX, WindowCenter="", WindowWidth="")
    assert np.array_equal(read(empty).shown[..., 0], grey), "as anonymizers leave it"
    table = pydicom.Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table.LUTData = (257 * np.arange(255, -1, -1)).astype("<u2").tobytes()
    turned = make_dicom(grey, DX, VOILUTSequence=[table])
    assert np.array_equal(read(turned).shown[..., 0], 255 - grey), "a table of the screen's values"


def test_dark_is_low_whatever_the_photometric_interpretation() -> None:
    inverted = make_dicom(255 - GREY, DX, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read(inverted).shown[..., 0], GREY)
    assert np.array_equal(read(make_dicom(GREY, DX)).shown[..., 0], GREY)
    # So it is for a model that was trained on pictures; what has a unit keeps it.
    assert np.array_equal(
        read(inverted).taken("percentile")[..., 0], GREY.astype(np.float32) + 255 - GREY.max() - GREY.min()
    )
    assert np.array_equal(read(inverted).taken("window")[..., 0], 255.0 - GREY)
    deep = (GREY.astype(np.uint16) << 4) + 7
    shown = read(make_dicom(deep, MR, BitsStored=12, HighBit=11)).shown[..., 0]
    assert (shown.min(), shown.max()) == (0, 255)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NumberOfFrames": 3}, "3 frames"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, "SOP class"),
        ({"PixelData": None}, "no PixelData"),
        ({"Rows": None}, "no Rows"),
        ({"Rows": 60000, "Columns": 60000}, "60000×60000 pixels"),
        ({"Rows": 0}, "pixels"),
        ({"Rows": 25}, "damaged"),
        ({"SamplesPerPixel": 4}, "4 samples"),
        ({"BitsAllocated": 32}, "32 bits"),
        ({"PhotometricInterpretation": "HSV"}, "photometric interpretation HSV"),
    ],
)
def test_what_is_not_read_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(make_dicom(COLOUR, OP8, **changes))


def test_a_file_that_is_none_or_would_inflate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_dicom(tmp_path / "nothing.dcm")
    with pytest.raises(DataError, match="not a DICOM file"):
        parse_dicom(b"PNG" * 100, "it")
    assert not is_dicom(b"short")
    dataset = make_dicom(GREY, US)
    data = as_bytes(dataset)
    bomb = data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"[:20].ljust(20, b"\0"))
    deflated = bomb + zlib.compress(bytes(10_000_000))
    with pytest.raises(DataError):
        parse_dicom(deflated, "it")


FILE = as_bytes(make_dicom(COLOUR))


@settings(max_examples=150)
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(data: st.DataObject) -> None:
    file = bytearray(FILE)
    for _ in range(data.draw(st.integers(1, 8))):
        file[data.draw(st.integers(128, 900))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(132, len(file)))
    try:
        image = pixels_of(parse_dicom(bytes(file[:cut]), "it"), "it")
    except DataError:
        return
    assert image.shown.dtype == np.uint8


@pytest.mark.parametrize(
    ("keyword", "value"), [("NumberOfFrames", "two"), ("Rows", [8, 8]), ("SamplesPerPixel", []), ("Columns", 1 << 15)]
)
def test_odd_numbers_are_refused_and_not_raised(keyword: str, value: object) -> None:
    dataset = make_dicom(GREY, US)
    # As a parser leaves what it cannot read: the value as it is.
    dataset[keyword] = pydicom.DataElement(keyword, "UN" if keyword == "NumberOfFrames" else "US", None)
    dataset[keyword]._value = value
    with pytest.raises(DataError, match="it "):
        check_image(dataset, "it")


def compressed(syntax: pydicom.uid.UID, stored: int, allocated: int, samples: int, deep: bool) -> pydicom.Dataset:
    """An image whose stream is, where it is ``deep``, of 12 bits a sample, or else of 8."""
    depth = np.uint8 if allocated == 8 else np.uint16
    pixels = np.zeros((24, 33, 3) if samples == 3 else (24, 33), depth)
    dataset = make_dicom(pixels, CAPTURE if samples == 3 else DX, BitsStored=stored, HighBit=stored - 1)
    if samples == 3:
        dataset.PhotometricInterpretation = "YBR_RCT" if syntax.name.startswith("JPEG 2000") else "YBR_FULL_422"
    buffer = io.BytesIO()
    picture = Image.fromarray(COLOUR if samples == 3 else GREY)
    if syntax.name.startswith("JPEG 2000"):
        if samples == 1 and deep:
            picture = Image.fromarray(GREY.astype(np.uint16) << 8)
        picture.save(buffer, format="JPEG2000")
        stream = bytearray(buffer.getvalue())
        if samples == 3 and deep:  # the precision of each component (ITU-T T.800 A.5.1)
            start = stream.find(b"\xff\x4f\xff\x51")
            stream[start + 42 : start + 51 : 3] = bytes([11, 11, 11])
    else:
        picture.save(buffer, format="JPEG")
        stream = bytearray(buffer.getvalue())
        if deep:  # an extended sequential frame, of 12 bits (ITU-T T.81 B.2.2)
            start = stream.find(b"\xff\xc0")
            stream[start + 1], stream[start + 4] = 0xC1, 12
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([bytes(stream)])
    return dataset


@pytest.mark.parametrize(
    ("syntax", "stored", "allocated", "samples", "deep", "said"),
    [
        (JPEGBaseline8Bit, 8, 8, 1, False, None),
        (JPEGBaseline8Bit, 6, 8, 1, False, None),
        (JPEGBaseline8Bit, 8, 8, 3, False, None),
        (JPEGBaseline8Bit, 8, 16, 1, False, "JPEG Baseline with 8 bits a sample in 16"),
        (JPEGExtended12Bit, 8, 8, 1, False, None),
        (JPEGExtended12Bit, 8, 8, 3, False, None),
        (JPEGExtended12Bit, 12, 16, 1, True, "JPEG Extended with 12 bits a sample in 16"),
        (JPEGExtended12Bit, 12, 16, 3, True, "JPEG Extended with 12 bits a sample in 16"),
        (JPEGExtended12Bit, 6, 8, 1, False, "JPEG Extended with 6 bits a sample in 8"),
        (JPEG2000Lossless, 12, 16, 1, True, None),
        (JPEG2000Lossless, 8, 8, 3, False, None),
        (JPEG2000Lossless, 12, 16, 3, True, "JPEG 2000 Lossless with 3 samples of 12 bits"),
        (JPEG2000, 12, 16, 1, True, None),
        (JPEG2000, 8, 16, 3, False, None),
        (JPEG2000, 12, 16, 3, True, "JPEG 2000 with 3 samples of 12 bits"),
    ],
)
def test_depths_that_no_decoder_reads_are_refused_before_it_is_tried(
    syntax: pydicom.uid.UID, stored: int, allocated: int, samples: int, deep: bool, said: str | None
) -> None:
    dataset = parse_dicom(as_bytes(compressed(syntax, stored, allocated, samples, deep)), "it")
    if said is None:
        check_image(dataset, "it")
        assert pixels_of(dataset, "it").shown.shape[:2] == (24, 33)
        return
    with pytest.raises(DataError, match=f"it is encoded as {said}"):
        check_image(dataset, "it")
    with pytest.raises(Exception, match=r"Unable to decode|could not broadcast"):
        pixel_array(dataset)


@pytest.mark.parametrize("value", [["0.5"], None, ["0.5", "0"], ["0.5", "0.5", "0.5"]])
def test_a_spacing_that_is_none_is_none(value: object) -> None:
    dataset = make_dicom(GREY, US)
    dataset.PixelSpacing = value
    assert spacing_of(dataset) is None
