"""Large images in overlapping windows, blended by a Gaussian, as nnU-Net and MONAI do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np

__all__ = ["in_windows", "window_starts"]

_SIGMA = 0.125  # of the window's size, as nnU-Net has it (Isensee et al., 2021)


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Where the windows along one side begin: evenly spread, the last one ending at the end.

    Args:
        length: of the side, at least 1.
        window: of a window; a longer one than the side gives one start, 0.
        overlap: least share of a window that the next one covers again, 0 ≤ overlap < 1.
    """
    if window >= length:
        return [0]
    stride = max(1, int(window * (1 - overlap)))
    count = -(-(length - window) // stride) + 1
    return [round(index * (length - window) / (count - 1)) for index in range(count)]


def in_windows(
    run: Callable[[np.ndarray], np.ndarray], image: np.ndarray, window: Sequence[int], overlap: float = 0.25
) -> np.ndarray:
    """Applies a function to windows of an image and blends what it returns.

    Args:
        run: of ``…×*window``, the result ``…×*window`` (other leading dimensions are its own).
        image: ``…×*spatial``.
        window: extents of a window along the last axes; smaller where the image is.
        overlap: see :func:`window_starts`.

    Returns:
        np.ndarray: float32 ``…×*spatial``.
    """
    dims = len(window)
    spatial = image.shape[-dims:]
    size = [min(want, have) for want, have in zip(window, spatial, strict=True)]
    bump = np.ones((), np.float64)
    for extent in size:
        bump = np.multiply.outer(bump, _gaussian(extent))
    # At four standard deviations the corners of a box still have a weight that float32 can divide by. A least weight
    # would be reached by most of a box, and there the edge of one window would count as much as another's middle.
    weight = (bump / bump.max()).astype(np.float32)
    total: np.ndarray | None = None
    norm = np.zeros(spatial, np.float32)
    starts = [window_starts(have, want, overlap) for have, want in zip(spatial, size, strict=True)]
    for corner in product(*starts):
        spans = (slice(start, start + extent) for start, extent in zip(corner, size, strict=True))
        part: Any = (Ellipsis, *spans)
        result = run(image[part])
        if total is None:
            total = np.zeros((*result.shape[:-dims], *spatial), np.float32)
        total[part] += result * weight
        norm[part] += weight
    assert total is not None  # an image has at least one window
    return total / norm


def _gaussian(size: int) -> np.ndarray:
    offset = (np.arange(size) - (size - 1) / 2) / (_SIGMA * size)
    return np.asarray(np.exp(-0.5 * offset**2))
