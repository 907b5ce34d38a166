"""Large images in overlapping windows, blended by a Gaussian, as nnU-Net and MONAI do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

__all__ = ["in_windows", "window_starts"]

_SIGMA = 0.125  # of the window's size, as nnU-Net has it (Isensee et al., 2021)
_FLOOR = 1e-3  # every pixel of a window counts a little, so that corners are never divided by nothing


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
    run: Callable[[np.ndarray], np.ndarray], image: np.ndarray, window: int, overlap: float = 0.25
) -> np.ndarray:
    """Applies a function to windows of an image and blends what it returns.

    Args:
        run: of ``…×h×w``, the result ``…×h×w`` (other leading dimensions are its own).
        image: ``…×H×W``.
        window: height and width of a window; smaller where the image is.
        overlap: see :func:`window_starts`.

    Returns:
        np.ndarray: float32 ``…×H×W``.
    """
    height, width = image.shape[-2:]
    size = (min(window, height), min(window, width))
    bump = _gaussian(size[0])[:, None] * _gaussian(size[1])[None]
    weight = np.maximum(bump / bump.max(), _FLOOR).astype(np.float32)
    total: np.ndarray | None = None
    norm = np.zeros((height, width), np.float32)
    for rows, columns in _windows(height, width, size, overlap):
        result = run(image[..., rows, columns])
        if total is None:
            total = np.zeros((*result.shape[:-2], height, width), np.float32)
        total[..., rows, columns] += result * weight
        norm[rows, columns] += weight
    assert total is not None  # an image has at least one window
    return total / norm


def _windows(height: int, width: int, size: tuple[int, int], overlap: float) -> Iterator[tuple[slice, slice]]:
    for top in window_starts(height, size[0], overlap):
        for left in window_starts(width, size[1], overlap):
            yield slice(top, top + size[0]), slice(left, left + size[1])


def _gaussian(size: int) -> np.ndarray:
    offset = (np.arange(size) - (size - 1) / 2) / (_SIGMA * size)
    return np.asarray(np.exp(-0.5 * offset**2))
