"""The region of interest of a photograph that comes without one: the bright disc of a camera's field of view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # runs where PyTorch is not installed
    from d2ed2q.data.sample import Sample

__all__ = ["field_of_view", "finds_regions", "region_of_input"]

_DARK = 0.1  # of full brightness: what a camera's mask leaves is black, give or take noise and JPEG
_AGREEMENT = 0.95  # intersection over union; edges of hand-made regions differ by a pixel or two


def field_of_view(image: np.ndarray) -> np.ndarray:
    """Finds the field of view: the largest connected part that is not black, its holes filled.

    Args:
        image: uint8 ``H×W×C``.

    Returns:
        np.ndarray: bool ``H×W``; all True where nothing is bright enough to tell.
    """
    from scipy import ndimage  # slow to import

    # The brightest channel: the red of a fundus stays bright where green and blue are nearly black.
    brightness = ndimage.median_filter(image.max(axis=2), size=5)
    parts, count = ndimage.label(brightness > _DARK * 255)
    if count == 0:
        return np.ones(image.shape[:2], dtype=bool)
    sizes = np.bincount(parts.ravel())
    largest = parts == 1 + int(np.argmax(sizes[1:]))
    filled: np.ndarray = ndimage.binary_fill_holes(largest)
    return filled


def region_of_input(image: np.ndarray) -> np.ndarray:
    """As :func:`field_of_view`, of an image as models take it.

    Args:
        image: float32 ``C×H×W`` in [0, 1].
    """
    return field_of_view((image * 255).round().astype(np.uint8).transpose(1, 2, 0))


def finds_regions(samples: Sequence[Sample]) -> bool:
    """Whether :func:`field_of_view` finds the regions of interest that samples came with, each of them nearly exactly.

    Args:
        samples: with or without regions; without any, and for volumes, the answer is False.
    """
    if any(sample.image.ndim != 3 for sample in samples):
        return False
    regions = [(sample, sample.roi.numpy()) for sample in samples if sample.roi is not None]
    for sample, region in regions:
        image = (sample.image * 255).round().byte().permute(1, 2, 0).numpy()
        found = field_of_view(image)
        if (found & region).sum() < _AGREEMENT * (found | region).sum():
            return False
    return bool(regions)
