"""DICOM files of one frame: photographs, radiographs, slices, ultrasound, screen captures → pixels.

What is read follows PS3.3 (image modules) and PS3.5 (encoding). Files come from networks, so nothing in them is
believed before it was checked: sizes before pixels are decoded, the transfer syntax before anything is decompressed.
"""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d2ed2q.data.codestream import check_codestream
from d2ed2q.data.grey import grey_of, padding_range
from d2ed2q.data.rle import check_rle
from d2ed2q.errors import DataError, first_line

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset

__all__ = [
    "DICOM_CLASSES",
    "LONGEST_SIDE",
    "MOST_PIXELS",
    "TRANSFER_SYNTAXES",
    "DicomImage",
    "check_image",
    "is_dicom",
    "parse_dicom",
    "pixels_of",
    "read_dicom",
    "spacing_of",
]

DICOM_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.77.1.5.1": "Ophthalmic Photography 8 Bit Image",
    "1.2.840.10008.5.1.4.1.1.77.1.5.2": "Ophthalmic Photography 16 Bit Image",
    "1.2.840.10008.5.1.4.1.1.7": "Secondary Capture Image",
    "1.2.840.10008.5.1.4.1.1.7.2": "Multi-frame Grayscale Byte Secondary Capture Image",
    "1.2.840.10008.5.1.4.1.1.7.4": "Multi-frame True Color Secondary Capture Image",
    "1.2.840.10008.5.1.4.1.1.2": "CT Image",
    "1.2.840.10008.5.1.4.1.1.4": "MR Image",
    "1.2.840.10008.5.1.4.1.1.1": "Computed Radiography Image",
    "1.2.840.10008.5.1.4.1.1.1.1": "Digital X-Ray Image, For Presentation",
    "1.2.840.10008.5.1.4.1.1.1.1.1": "Digital X-Ray Image, For Processing",
    "1.2.840.10008.5.1.4.1.1.6.1": "Ultrasound Image",
    "1.2.840.10008.5.1.4.1.1.77.1.1": "VL Endoscopic Image",
    "1.2.840.10008.5.1.4.1.1.77.1.4": "VL Photographic Image",
}
"""SOP classes that are read, and their names; of the multi-frame ones only files of a single frame."""

MOST_PIXELS = 1 << 26
"""An image of more pixels than this (8192 × 8192) is refused before it is decoded."""

LONGEST_SIDE = 1 << 14
"""So is one with a longer side than this: a line of millions of pixels becomes huge when it is brought to a size."""

TRANSFER_SYNTAXES = {
    "1.2.840.10008.1.2": "Implicit VR Little Endian",
    "1.2.840.10008.1.2.1": "Explicit VR Little Endian",
    "1.2.840.10008.1.2.2": "Explicit VR Big Endian",
    "1.2.840.10008.1.2.4.50": "JPEG Baseline",
    "1.2.840.10008.1.2.4.51": "JPEG Extended",
    "1.2.840.10008.1.2.4.80": "JPEG-LS Lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS Near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 Lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.5": "RLE Lossless",
}
"""Transfer syntaxes that are read, and their names."""
_RLE = "1.2.840.10008.1.2.5"
_EXTENDED = "1.2.840.10008.1.2.4.51"
_JPEG = ("1.2.840.10008.1.2.4.50", _EXTENDED)
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_PHOTOMETRIC = (
    *("MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR"),
    *("YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"),
)


@dataclass(frozen=True, eq=False)
class DicomImage:
    """One decoded image.

    Attributes:
        values: ``H×W×C``. Colour: uint8 RGB. Grey: numbers after the modality transformation (of CT Hounsfield units),
            float32 ``H×W×1``; padding (PS3.3 C.7.5.1.1.2) has the darkest of the others.
        shown: the same as it is shown on a screen, uint8 ``H×W×C``: after windowing, dark is low whatever the
            photometric interpretation; padding is 0.
        dataset: everything else in the file.
        padding: bool ``H×W``, which pixels are no part of the image; None where all are.
    """

    values: np.ndarray
    shown: np.ndarray
    dataset: Dataset
    padding: np.ndarray | None = None

    @property
    def spacing(self) -> tuple[float, float] | None:
        """Millimetres per pixel along height and width, where the file tells them."""
        return spacing_of(self.dataset)

    def taken(self, rule: str) -> np.ndarray:
        """What a model is given: of ``byte`` what a person sees, else the numbers.

        Args:
            rule: of the model's :class:`~d2ed2q.data.Intensity`. Of ``window`` the numbers mean the same however they
                are shown; of ``percentile`` dark is low, as in the pictures that such a model was trained on, and
                padding is NaN, which no percentile counts.
        """
        if rule == "byte":
            return self.shown
        values = self.values
        if rule == "percentile" and self.dataset.PhotometricInterpretation == "MONOCHROME1":
            values = np.asarray(values.max() + values.min() - values)
        if rule == "percentile" and self.padding is not None:
            values = np.where(self.padding[..., None], np.float32(np.nan), values)
        return values


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins with these bytes (132 or more) is a DICOM file (PS3.10)."""
    return head[128:132] == b"DICM"


def read_dicom(path: Path) -> DicomImage:
    """Reads a DICOM file of one frame.

    Raises:
        DataError: the file is missing, damaged, of a class or an encoding that is not read, of several frames, or too
            large.
        ModuleNotFoundError: pydicom is not installed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return pixels_of(parse_dicom(data, str(path)), str(path))


def parse_dicom(data: bytes, name: str) -> FileDataset:
    """Parses a DICOM file; its pixels are not decoded.

    Args:
        data: the whole file.
        name: what it is called in messages.

    Raises:
        DataError: as :func:`read_dicom`.
    """
    import pydicom

    if not is_dicom(data[:132]):
        raise DataError(f"{name} is not a DICOM file: it lacks the letters DICM after its preamble")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stream = io.BytesIO(data)
            stream.seek(132)
            # Before anything is inflated: pydicom's public functions inflate a deflated file while they open it.
            meta = pydicom.filereader._read_file_meta_info(stream)
            syntax = str(meta.get("TransferSyntaxUID", ""))
            if syntax in TRANSFER_SYNTAXES:
                parsed = pydicom.dcmread(io.BytesIO(data))
                _ = parsed.get("Rows")
    except Exception as error:  # whatever a parser of a large format may raise on hostile bytes
        raise _damaged(name, error) from error
    if syntax not in TRANSFER_SYNTAXES:
        known = ", ".join(TRANSFER_SYNTAXES.values())
        raise DataError(f"{name} is encoded as {syntax or 'nothing it names'}, which is not read; these are: {known}")
    return parsed


def pixels_of(dataset: FileDataset, name: str) -> DicomImage:
    """Decodes the one frame of a parsed file.

    Raises:
        DataError: as :func:`read_dicom`.
    """
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    try:
        check_image(dataset, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            photometric = str(dataset.PhotometricInterpretation)
            if str(dataset.file_meta.TransferSyntaxUID) == _RLE:
                check_rle(dataset, name)
            check_codestream(dataset, name)
            pixels = pixel_array(dataset, index=0)  # of colours RGB, whatever they are stored as
            if photometric == "PALETTE COLOR":
                colour = _bytes(apply_color_lut(pixels, dataset), 16)
            elif pixels.ndim == 3:
                colour = _bytes(pixels, int(dataset.BitsStored))
            else:
                grey = grey_of(pixels, dataset, name)
                values, shown = (np.ascontiguousarray(plane[..., None]) for plane in (grey.values, grey.shown))
                return DicomImage(values, shown, dataset, grey.padding)
    except DataError:
        raise
    except Exception as error:  # as above: decoders of six codecs
        raise _damaged(name, error) from error
    return DicomImage(np.ascontiguousarray(colour), np.ascontiguousarray(colour), dataset)


def check_image(dataset: Dataset, name: str) -> None:
    """Checks that a parsed file is an image that is read, before its pixels are decoded.

    Raises:
        DataError: as :func:`read_dicom`.
    """
    try:
        _check_image(dataset, name)
    except DataError:
        raise
    except Exception as error:  # numbers that are none, or lists of them
        raise _damaged(name, error) from error


def _check_image(dataset: Dataset, name: str) -> None:
    kind = str(dataset.get("SOPClassUID", ""))
    if kind not in DICOM_CLASSES:
        raise DataError(f"{name} is of SOP class {kind or 'nothing it names'}, which is not read")
    for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation", "PixelData"):
        if keyword not in dataset:
            raise DataError(f"{name} has no {keyword}: it is no image, or damaged")
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if frames != 1:
        raise DataError(f"{name} has {frames} frames; only images of a single frame are read")
    rows, columns, samples = int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel)
    if min(rows, columns) < 1 or rows * columns > MOST_PIXELS or max(rows, columns) > LONGEST_SIDE:
        raise DataError(
            f"{name} has {columns}×{rows} pixels; from 1 to {MOST_PIXELS:,} are read, up to {LONGEST_SIDE:,} a side"
        )
    if samples not in (1, 3) or int(dataset.BitsAllocated) not in (8, 16):
        given = f"{samples} samples of {dataset.BitsAllocated} bits"
        raise DataError(f"{name} has {given}; 1 or 3 of 8 or 16 bits are read")
    if str(dataset.PhotometricInterpretation) not in _PHOTOMETRIC:
        raise DataError(f"{name} has the photometric interpretation {dataset.PhotometricInterpretation}, not read")
    if str(dataset.PhotometricInterpretation) in ("MONOCHROME1", "MONOCHROME2"):
        padding_range(dataset)
    _check_depth(dataset, samples, name)


def _check_depth(dataset: Dataset, samples: int, name: str) -> None:
    """Refuses what is encoded in a way that is read, but with more bits than a decoder takes, or cuts to 8."""
    syntax, allocated = str(dataset.file_meta.TransferSyntaxUID), int(dataset.BitsAllocated)
    stored = int(dataset.get("BitsStored", allocated))
    remedy = "send it uncompressed, or as JPEG-LS"
    if syntax in _JPEG and (allocated != 8 or (syntax == _EXTENDED and stored != 8)):
        given = f"{TRANSFER_SYNTAXES[syntax]} with {stored} bits a sample in {allocated}"
        raise DataError(f"{name} is encoded as {given}, and 8 in 8 are read; {remedy}")
    if syntax in _JPEG_2000 and samples > 1 and stored > 8:
        given = f"{TRANSFER_SYNTAXES[syntax]} with {samples} samples of {stored} bits"
        raise DataError(f"{name} is encoded as {given}, and of colours 8 are read; {remedy}")


def _bytes(colour: np.ndarray, bits: int) -> np.ndarray:
    """The eight highest of so many bits."""
    return colour if colour.dtype == np.uint8 else (colour >> max(bits - 8, 0)).astype(np.uint8)


def _damaged(name: str, error: Exception) -> DataError:
    return DataError(f"{name} is damaged, or encoded in a way that is not read here: {first_line(error)}")


def spacing_of(dataset: Dataset) -> tuple[float, float] | None:
    """Millimetres per pixel along height and width, where the file tells them."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        found: Any = dataset.get(keyword)
        try:
            height, width = map(float, found)
        except (TypeError, ValueError):  # not there, a single value, or no numbers
            continue
        if min(height, width) > 0 and max(height, width) < math.inf:
            return height, width
    return None
