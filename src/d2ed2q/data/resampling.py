"""Changing the size of arrays as PyTorch's ``interpolate`` does it, without PyTorch, in any number of dimensions."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

__all__ = ["resize_linear"]

_MOST_WEIGHTS = 1 << 22  # 16 MiB, of which a few are kept


def resize_linear(array: np.ndarray, size: Sequence[int], antialias: bool = False) -> np.ndarray:
    """Linear resizing along the last axes; pixels are areas (``align_corners=False``).

    Args:
        array: float32 ``…×*spatial``.
        size: new extents of the last ``len(size)`` axes.
        antialias: widen the filter when shrinking, so that every pixel counts.

    Returns:
        np.ndarray: float32 ``…×*size``.
    """
    dims = len(size)
    for axis, (old, new) in enumerate(zip(array.shape[-dims:], size, strict=True), start=-dims):
        if old == new:
            continue
        if old * new > _MOST_WEIGHTS:
            array = _resize_long(array, axis, new, antialias)
            continue
        weights = _weights(old, new, antialias)
        if axis == -1:
            array = array @ weights.T
        elif axis == -2:
            array = weights @ array
        else:
            array = np.moveaxis(np.tensordot(weights, array, (1, array.ndim + axis)), 0, axis)
    return np.ascontiguousarray(array)


def _resize_long(array: np.ndarray, axis: int, new: int, antialias: bool) -> np.ndarray:
    """Along one axis, without a matrix of all weights: each new pixel is the sum of its few old ones."""
    moved = np.moveaxis(array, axis, -1)
    old = moved.shape[-1]
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale
    if not antialias or scale <= 1:
        position = np.clip(centres - 0.5, 0, old - 1)
        first = np.floor(position).astype(np.int64)
        shares = np.stack([1 - (position - first), position - first])
    else:
        first = np.floor(centres - scale - 0.5).astype(np.int64)
        taps = first + np.arange(math.ceil(2 * scale) + 2)[:, None]
        shares = np.maximum(1 - np.abs(taps + 0.5 - centres) / scale, 0) * ((taps >= 0) & (taps < old))
        shares /= shares.sum(0)
    resized = np.zeros((*moved.shape[:-1], new), np.float32)
    for tap, share in enumerate(shares.astype(np.float32)):
        resized += moved[..., np.clip(first + tap, 0, old - 1)] * share
    return np.moveaxis(resized, -1, axis)


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
