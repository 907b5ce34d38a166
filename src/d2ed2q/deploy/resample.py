"""Resizing of arrays as PyTorch's ``interpolate`` does it, without PyTorch."""

from __future__ import annotations

import functools

import numpy as np

__all__ = ["resize_bilinear"]


def resize_bilinear(array: np.ndarray, size: tuple[int, int], antialias: bool = False) -> np.ndarray:
    """Bilinear resizing; pixels are areas (``align_corners=False``).

    Args:
        array: float32 ``…×H×W``.
        size: new height and width.
        antialias: widen the filter when shrinking, so that every pixel counts.

    Returns:
        np.ndarray: float32 ``…×size[0]×size[1]``.
    """
    if array.shape[-2:] == tuple(size):
        return array
    rows = _weights(array.shape[-2], size[0], antialias)
    columns = _weights(array.shape[-1], size[1], antialias)
    resized: np.ndarray = rows @ (array @ columns.T)
    return resized


@functools.lru_cache(maxsize=16)
def _weights(old: int, new: int, antialias: bool) -> np.ndarray:
    """The ``new×old`` matrix whose row i holds the weights of all old pixels in new pixel i."""
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale
    if not antialias or scale <= 1:
        position = np.clip(centres - 0.5, 0, old - 1)
        lower = np.floor(position).astype(int)
        upper = np.minimum(lower + 1, old - 1)
        share = position - lower
        matrix = np.zeros((new, old))
        np.add.at(matrix, (np.arange(new), lower), 1 - share)
        np.add.at(matrix, (np.arange(new), upper), share)
        return matrix.astype(np.float32)
    distance = np.abs(np.arange(old)[None] + 0.5 - centres[:, None]) / scale
    triangle = np.maximum(1 - distance, 0)
    return np.asarray(triangle / triangle.sum(1, keepdims=True), np.float32)
