"""From a file that somebody sent to an image as the model takes it; nothing in it is believed before it was checked."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from d2ed2q.data import read_image
from d2ed2q.data.dicom import LONGEST_SIDE, MOST_PIXELS, is_dicom, parse_dicom, pixels_of
from d2ed2q.data.images import FORMATS, read_numbers
from d2ed2q.deploy.dicom_headers import MANUFACTURER
from d2ed2q.deploy.manifest import InputSpec
from d2ed2q.errors import DataError
from d2ed2q.report import as_rgb

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset

__all__ = ["Input", "check_source", "read_input"]


@dataclass(frozen=True, eq=False)
class Input:
    """One image.

    Attributes:
        image: as :class:`~d2ed2q.deploy.Predictor` takes it, ``H×W×C``.
        shown: the same for people, uint8 ``H×W×3``.
        dicom: all else in a DICOM file; None of any other.
        spacing: millimetres per pixel along height and width, where the file tells them.
    """

    image: np.ndarray
    shown: np.ndarray
    dicom: Dataset | None = None
    spacing: tuple[float, float] | None = None


def read_input(path: Path, given: InputSpec, name: str) -> Input:
    """Reads a picture (PNG, JPEG, TIFF, BMP) or a DICOM image.

    Args:
        path: the file, whatever it is called.
        given: what the model takes.
        name: what the image is called in messages.

    Raises:
        DataError: it is neither, damaged, too large, a result of a node, or not such as the model takes.
    """
    if given.dims != 2:
        raise DataError("the model takes volumes, and a node takes single images")
    with open(path, "rb") as file:
        head = file.read(132)
    if is_dicom(head):
        decoded = pixels_of(check_source(parse_dicom(path.read_bytes(), name), name), name)
        taken = decoded.taken(given.intensity.rule)
        return Input(taken, as_rgb(decoded.shown), decoded.dataset, decoded.spacing)
    _check_size(path, name)
    try:
        image = read_image(path) if given.intensity.rule == "byte" else read_numbers(path)
    except DataError as error:  # the sender knows nothing of where the node keeps it
        raise DataError(str(error).replace(str(path), name)) from error
    return Input(image, as_rgb(image))


def check_source(dataset: FileDataset, name: str) -> FileDataset:
    """Checks that a DICOM image is none that this software made, and returns it.

    An overlay is an image, too. An archive that sends on what it stores, or a second node, would get overlays of
    overlays of it without end.

    Raises:
        DataError: it is a result.
    """
    try:
        kinds = dataset.get("ImageType") or ""
        kind = kinds if isinstance(kinds, str) else kinds[0]
        own = str(dataset.get("Manufacturer", "")).strip() == MANUFACTURER and str(kind).strip() == "DERIVED"
    except Exception:  # values that are none, which this software does not write
        own = False
    if own:
        raise DataError(f"{name} is a result of {MANUFACTURER} itself and not segmented")
    return dataset


def _check_size(path: Path, name: str) -> None:
    """Refuses a picture by its header, before it is unpacked; what cannot be opened is named by whoever reads it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as picture:
                width, height = picture.size
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} has too many pixels: {MOST_PIXELS:,} are taken") from error
    except Exception:  # whatever Pillow's readers raise
        return
    if width * height > MOST_PIXELS or max(width, height) > LONGEST_SIDE:
        raise DataError(
            f"{name} has {width}×{height} pixels; {MOST_PIXELS:,} are taken, up to {LONGEST_SIDE:,} along a side"
        )
