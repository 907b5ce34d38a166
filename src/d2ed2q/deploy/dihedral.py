"""The symmetries of the square and of the box, for test-time augmentation."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np

__all__ = ["AUGMENTATIONS", "averaged", "symmetries"]

AUGMENTATIONS = ("none", "flips", "dihedral")
"""Flips take all mirror images; dihedral takes quarter turns of the image plane as well."""


def symmetries(tta: str, dims: int = 2) -> list[tuple[tuple[int, ...], int]]:
    """The transforms of a test-time augmentation, the identity first.

    Args:
        tta: one of :data:`AUGMENTATIONS`.
        dims: spatial axes.

    Returns:
        list: for each transform the axes to flip, and then the quarter turns of the plane of the last two axes: 1, 4 or
        8 in two dimensions; 1, 8 or 16 in three.
    """
    if tta == "none":
        return [((), 0)]
    flips = [
        tuple(axis for axis, chosen in zip(range(-dims, 0), choice, strict=True) if chosen)
        for choice in product((False, True), repeat=dims)
    ]
    # A half turn is two flips: with one quarter turn after each mirror image, every symmetry occurs once.
    return [(axes, turns) for turns in ((0, 1) if tta == "dihedral" else (0,)) for axes in flips]


def averaged(run: Callable[[np.ndarray], np.ndarray], image: np.ndarray, tta: str, dims: int = 2) -> np.ndarray:
    """Averages what a function returns over symmetries of its input, each turned back.

    Args:
        run: of ``…×*spatial``, the result ``…×*spatial``.
        image: ``…×*spatial``.
        tta: one of :data:`AUGMENTATIONS`.
        dims: spatial axes.

    Returns:
        np.ndarray: float32 ``…×*spatial``.
    """
    total: np.ndarray | None = None
    elements = symmetries(tta, dims)
    for axes, turns in elements:
        turned = np.rot90(np.flip(image, axes), turns, (-2, -1))
        result = np.flip(np.rot90(run(np.ascontiguousarray(turned)), -turns, (-2, -1)), axes)
        total = result.astype(np.float32) if total is None else total + result
    assert total is not None  # every augmentation has at least the identity
    mean: np.ndarray = total / np.float32(len(elements))
    return mean
