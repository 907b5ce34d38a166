"""How far two outlines are apart: Hausdorff distance (95 %) and average symmetric surface distance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from d2ed2q.errors import ConfigError
from d2ed2q.metrics.checks import as_binary, require_same_shape

__all__ = ["assd", "hd95", "surface_distances"]


def surface_distances(
    mask: np.ndarray, label: np.ndarray, spacing: Sequence[float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of every outline pixel to the other outline.

    A structure's outline is its pixels that touch the outside through an edge (in 3-D: a face); beyond the image's
    border is outside.

    Args:
        mask: what was predicted; ``H×W`` or ``D×H×W``, booleans or 0 and 1.
        label: the truth, same shape.
        spacing: millimetres per pixel along each axis; None to measure in pixels.

    Returns:
        tuple[np.ndarray, np.ndarray]: float64 distances from the mask's outline to the label's, and from the label's
        to the mask's; both empty where mask or label is empty, for then there is no distance.

    Raises:
        ConfigError: the spacing does not fit the image or is not positive.
        DataError: shapes differ, or something holds anything but 0 and 1.
    """
    mask, label = as_binary(mask, "mask"), as_binary(label, "label")
    require_same_shape(mask=mask, label=label)
    if spacing is not None and (len(spacing) != mask.ndim or not all(0 < step < np.inf for step in spacing)):
        raise ConfigError(f"spacing {tuple(spacing)} must be {mask.ndim} positive numbers, one for each axis")
    if not mask.any() or not label.any():
        return np.empty(0), np.empty(0)
    # Both outlines lie inside their common bounding box; the distance transform need not see the rest.
    box = ndimage.find_objects((mask | label).astype(np.uint8))[0]
    found, true = _outline(mask[box]), _outline(label[box])
    to_true = ndimage.distance_transform_edt(~true, sampling=spacing)
    to_found = ndimage.distance_transform_edt(~found, sampling=spacing)
    return to_true[found], to_found[true]


def _outline(mask: np.ndarray) -> np.ndarray:
    outline: np.ndarray = mask & ~ndimage.binary_erosion(mask)
    return outline


def hd95(mask: np.ndarray, label: np.ndarray, spacing: Sequence[float] | None = None) -> float:
    """95 % Hausdorff distance: the larger of the two directions' 95th percentiles.

    Args:
        mask: what was predicted; ``H×W`` or ``D×H×W``, booleans or 0 and 1.
        label: the truth, same shape.
        spacing: millimetres per pixel along each axis; None to measure in pixels.

    Returns:
        float: in millimetres, or in pixels without ``spacing``; NaN where mask or label is empty.

    Raises:
        ConfigError: the spacing does not fit the image or is not positive.
        DataError: shapes differ, or something holds anything but 0 and 1.
    """
    return hd95_of(*surface_distances(mask, label, spacing))


def assd(mask: np.ndarray, label: np.ndarray, spacing: Sequence[float] | None = None) -> float:
    """Average symmetric surface distance: the mean over the pixels of both outlines together.

    Args:
        mask: what was predicted; ``H×W`` or ``D×H×W``, booleans or 0 and 1.
        label: the truth, same shape.
        spacing: millimetres per pixel along each axis; None to measure in pixels.

    Returns:
        float: in millimetres, or in pixels without ``spacing``; NaN where mask or label is empty.

    Raises:
        ConfigError: the spacing does not fit the image or is not positive.
        DataError: shapes differ, or something holds anything but 0 and 1.
    """
    return assd_of(*surface_distances(mask, label, spacing))


def hd95_of(from_mask: np.ndarray, from_label: np.ndarray) -> float:
    if not from_mask.size:
        return float("nan")
    return float(max(np.percentile(from_mask, 95), np.percentile(from_label, 95)))


def assd_of(from_mask: np.ndarray, from_label: np.ndarray) -> float:
    if not from_mask.size:
        return float("nan")
    return float((from_mask.sum() + from_label.sum()) / (from_mask.size + from_label.size))
