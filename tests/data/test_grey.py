"""Grey DICOM pixels: padding is no part of an image, and windows hold for the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian

from d2ed2q.data import Intensity
from d2ed2q.data.dicom import DicomImage, check_image, parse_dicom, pixels_of
from d2ed2q.errors import DataError

from .dicom_files import CR, CT, DX, MR, US, as_bytes, make_dicom

RNG = np.random.default_rng(0)
BODY = RNG.normal(1500, 300, (48, 40)).clip(500, 3500).astype(np.uint16)
PAD = np.zeros(BODY.shape, np.bool_)
PAD[:24] = True
PAD[:, 35:] = True


def read(dataset: pydicom.Dataset) -> DicomImage:
    return pixels_of(parse_dicom(as_bytes(dataset), "it"), "it")


def padded(value: int, dtype: type = np.uint16) -> np.ndarray:
    return np.where(PAD, value, BODY).astype(dtype)


def image_alone(photometric: str) -> tuple[np.ndarray, np.ndarray]:
    """What is shown of the pixels that are no padding, and what of them a model of ``percentile`` gets, by hand."""
    real = BODY[~PAD].astype(np.float64)
    if photometric == "MONOCHROME1":
        real = real.max() + real.min() - real
    shown = np.round((real - real.min()) / (real.max() - real.min()) * 255)
    low, high = np.percentile(real, (0.5, 99.5))
    return shown, np.clip((real - low) / (high - low), 0, 1)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("value", "dtype", "changes"),
    [
        (65535, np.uint16, {"PixelPaddingValue": 65535}),
        (0, np.uint16, {"PixelPaddingValue": 0}),
        (-32768, np.int16, {"PixelPaddingValue": -32768}),
        (-2000, np.int16, {"PixelPaddingValue": 63536}),  # as files have it whose writer took US for SS
        (65533, np.uint16, {"PixelPaddingValue": 65535, "PixelPaddingRangeLimit": 65530}),
        (3, np.uint16, {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 9}),
        (-1995, np.int16, {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}),
        (65535, np.uint16, {"PixelPaddingValue": 65535, "RescaleSlope": 2, "RescaleIntercept": -1000}),
    ],
)
def test_padding_is_dark_and_changes_nothing_else(
    value: int, dtype: type, changes: dict[str, Any], photometric: str
) -> None:
    source = make_dicom(padded(value, dtype), DX, PhotometricInterpretation=photometric)
    for keyword, given in changes.items():  # not through setattr, which knows which of US and SS it should be
        kind = "US" if given >= 0 else "SS"
        source[keyword] = pydicom.DataElement(keyword, kind if keyword.startswith("PixelPadding") else "DS", given)
    image = read(source)
    shown, scaled = image_alone(photometric)
    assert (image.shown[PAD] == 0).all()
    assert np.abs(image.shown[~PAD][:, 0] - shown).max() <= 1
    found = Intensity("percentile").scaled(image.taken("percentile").transpose(2, 0, 1))[0]
    assert (found[PAD] == 0).all()
    assert np.allclose(found[~PAD], scaled, atol=1e-4)
    real = image.values[~PAD]
    assert set(np.unique(image.values[PAD])) == {real.max() if photometric == "MONOCHROME1" else real.min()}
    assert np.array_equal(image.taken("window"), image.values)


def test_padding_is_dark_under_a_window_and_among_bytes() -> None:
    source = make_dicom(padded(32767, np.int16), CT, PixelPaddingValue=32767)
    image, plain = read(source), read(make_dicom(BODY.astype(np.int16), CT))
    assert (image.shown[PAD] == 0).all(), "though it is above the window"
    assert np.array_equal(image.shown[~PAD], plain.shown[~PAD])
    assert np.array_equal(image.values[~PAD], plain.values[~PAD])
    grey = np.where(PAD, 255, BODY // 16).astype(np.uint8)
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        bytes_ = read(make_dicom(grey, US, PhotometricInterpretation=photometric, PixelPaddingValue=255)).shown[..., 0]
        assert (bytes_[PAD] == 0).all()
        real = grey[~PAD]
        assert np.array_equal(bytes_[~PAD], 255 - real if photometric == "MONOCHROME1" else real)


def test_padding_is_found_in_implicit_vr_too() -> None:
    source = make_dicom(padded(-2000, np.int16), MR, PixelPaddingValue=-2000)
    source.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    assert (read(source).shown[PAD] == 0).all()
    assert read(source).shown.max() == 255


@pytest.mark.parametrize(
    "changes",
    [
        {"PixelPaddingValue": 65535},  # that no pixel has
        {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 65535},  # that all have: it says nothing
        {"PixelPaddingValue": ""},
        {"PixelPaddingRangeLimit": 65535},  # of no value
    ],
)
def test_a_padding_that_is_none_changes_nothing(changes: dict[str, Any]) -> None:
    image, plain = read(make_dicom(BODY, DX, **changes)), read(make_dicom(BODY, DX))
    assert np.array_equal(image.shown, plain.shown)
    assert np.array_equal(image.taken("percentile"), plain.taken("percentile"))


def test_a_padding_that_cannot_be_is_refused_before_pixels_are_decoded() -> None:
    source = make_dicom(BODY, DX, PixelPaddingValue=[1, 2])
    with pytest.raises(DataError, match="PixelPaddingValue"):
        check_image(source, "it")


def test_a_function_of_the_window_that_is_empty_is_none() -> None:
    window = {"WindowCenter": 2000, "WindowWidth": 1000}
    plain, empty = make_dicom(BODY, CR, **window), make_dicom(BODY, CR, VOILUTFunction="", **window)
    assert np.array_equal(read(empty).shown, read(plain).shown)
    given = parse_dicom(as_bytes(empty), "it")
    assert "VOILUTFunction" in pixels_of(given, "it").dataset, "what is in the file stays as it is"
