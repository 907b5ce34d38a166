"""Grey pixels of DICOM → numbers, and what a screen shows of them: padding (PS3.3 C.7.5.1.1.2), windows (C.11)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from d2ed2q.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["Grey", "grey_of", "padding_range"]

_ANYTHING = 1e9  # no pixel is brighter, and none darker than less this


@dataclass(frozen=True, eq=False)
class Grey:
    """What grey pixels mean.

    Attributes:
        values: float32 ``H×W``, after the modality transformation (PS3.3 C.11.1); padding has the darkest of the
            others.
        shown: uint8 ``H×W``, after windowing (C.11.2); dark is low whatever the photometric interpretation, and padding
            is 0.
        padding: bool ``H×W``, which pixels are no part of the image; None where all are.
    """

    values: np.ndarray
    shown: np.ndarray
    padding: np.ndarray | None


def grey_of(pixels: np.ndarray, dataset: Dataset, name: str) -> Grey:
    """Transforms stored pixels.

    Args:
        pixels: ``H×W``, as stored.
        dataset: their image.
        name: what it is called in messages.

    Raises:
        DataError: the modality transformation gives values that are none.
    """
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    dataset = _without_empty_function(dataset)
    padding = _padding(pixels, dataset)
    values = np.asarray(apply_modality_lut(pixels, dataset), np.float32)
    windowed = np.asarray(apply_voi_lut(values, dataset), np.float32)
    if not (np.isfinite(values).all() and np.isfinite(windowed).all()):
        raise DataError(f"{name} gives NaN or infinite values after its modality transformation; it is damaged")
    inverted = str(dataset.PhotometricInterpretation) == "MONOCHROME1"
    real = slice(None) if padding is None else ~padding
    of_bytes = int(dataset.BitsStored) == 8 and values[real].min() >= 0 and values[real].max() <= 255
    if of_bytes and (windowed[real] == values[real]).all():  # bytes are shown as they are
        shown = np.clip(values, 0, 255).astype(np.uint8)
    else:
        low, high = _window_range(dataset) or (float(windowed[real].min()), float(windowed[real].max()))
        shown = np.round(np.clip((windowed - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8)
    if inverted:
        shown = 255 - shown
    if padding is not None:
        values = np.where(padding, values[real].max() if inverted else values[real].min(), values)
        shown[padding] = 0
    return Grey(values, shown, padding)


def padding_range(dataset: Dataset) -> tuple[int, int] | None:
    """The least and the greatest stored value that stand for padding; None where the image names none.

    Raises:
        DataError: what it names are no two numbers.
    """
    ends = []
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        found = dataset.get(keyword)
        if found is None or found == "":
            break  # a limit alone is the limit of nothing
        try:
            end = int(found)
        except (TypeError, ValueError) as error:
            raise DataError(f"the image is damaged: its {keyword} is {str(found)[:40]!r}, not one number") from error
        # It is of two bytes, signed as the pixels are, which not all writers heed.
        signed = int(dataset.get("PixelRepresentation") or 0) == 1
        ends.append((end + (1 << 15)) % (1 << 16) - (1 << 15) if signed else end % (1 << 16))
    return (min(ends), max(ends)) if ends else None


def _padding(pixels: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    ends = padding_range(dataset)
    if ends is None:
        return None
    padding: np.ndarray = (pixels >= ends[0]) & (pixels <= ends[1])
    return padding if padding.any() and not padding.all() else None  # what is true of every pixel says nothing


def _without_empty_function(dataset: Dataset) -> Dataset:
    """The same where VOILUTFunction is empty, which it may be (type 3) and pydicom takes for an unknown one."""
    from pydicom import Dataset

    if "VOILUTFunction" not in dataset or dataset.VOILUTFunction:
        return dataset
    copied = Dataset()
    copied.update(dataset)
    copied.file_meta = dataset.file_meta
    del copied.VOILUTFunction
    return copied


def _window_range(dataset: Dataset) -> tuple[float, float] | None:
    """What the darkest and the brightest value on a screen are after windowing; None where no window is given."""
    from pydicom.pixels.processing import apply_voi_lut

    if dataset.get("VOILUTSequence"):
        entries = apply_voi_lut(np.arange(-(1 << 15), 1 << 16), dataset)
        return float(entries.min()), float(entries.max())
    if "WindowCenter" not in dataset or "WindowWidth" not in dataset:
        return None
    low, high = map(float, apply_voi_lut(np.array([-_ANYTHING, _ANYTHING]), dataset))
    return None if (low, high) == (-_ANYTHING, _ANYTHING) else (low, high)  # of an empty window nothing is changed
