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
    resized = np.zeros((*moved.shape[:-1], new), np.float32)
    for tap, share in zip(*_taps(moved.shape[-1], new, antialias), strict=True):
        resized += moved[..., tap] * share.astype(np.float32)
    return np.moveaxis(resized, -1, axis)


@functools.lru_cache(maxsize=16)
def _weights(old: int, new: int, antialias: bool) -> np.ndarray:
    """The ``new×old`` matrix whose row i holds the weights of all old pixels in new pixel i."""
    matrix = np.zeros((new, old))
    for tap, share in zip(*_taps(old, new, antialias), strict=True):
        np.add.at(matrix, (np.arange(new), tap), share)
    return matrix.astype(np.float32)


def _taps(old: int, new: int, antialias: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of every new pixel the few old ones that count, and their shares, which add up to 1; each ``taps×new``."""
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale
    if not antialias or scale <= 1:
        position = np.clip(centres - 0.5, 0, old - 1)
        taps = np.floor(position).astype(np.int64) + np.arange(2)[:, None]
        shares = np.stack([1 - (position - taps[0]), position - taps[0]])
    else:
        taps = np.floor(centres - scale - 0.5).astype(np.int64) + np.arange(math.ceil(2 * scale) + 2)[:, None]
        shares = np.maximum(1 - np.abs(taps + 0.5 - centres) / scale, 0) * ((taps >= 0) & (taps < old))
        shares /= shares.sum(0)
    return np.clip(taps, 0, old - 1), shares
