"""The symmetries of the square, for test-time augmentation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["AUGMENTATIONS", "ELEMENTS", "averaged"]

# (quarter turns, mirrored): the identity, the three other flips, then the four with a quarter turn.
ELEMENTS = ((0, False), (0, True), (2, False), (2, True), (1, False), (1, True), (3, False), (3, True))
AUGMENTATIONS = {"none": 1, "flips": 4, "dihedral": 8}
"""How many of the eight symmetries each test-time augmentation takes."""


def averaged(run: Callable[[np.ndarray], np.ndarray], image: np.ndarray, tta: str) -> np.ndarray:
    """Averages what a function returns over symmetries of its input, each turned back.

    Args:
        run: of ``…×h×w``, the result ``…×h×w``.
        image: ``…×H×W``.
        tta: one of :data:`AUGMENTATIONS`.

    Returns:
        np.ndarray: float32 ``…×H×W``.
    """
    total: np.ndarray | None = None
    for turns, mirror in ELEMENTS[: AUGMENTATIONS[tta]]:
        turned = np.rot90(image, turns, (-2, -1))
        result = run(np.ascontiguousarray(turned[..., ::-1] if mirror else turned))
        result = np.rot90(result[..., ::-1] if mirror else result, -turns, (-2, -1))
        total = result.astype(np.float32) if total is None else total + result
    assert total is not None  # every augmentation has at least the identity
    mean: np.ndarray = total / np.float32(AUGMENTATIONS[tta])
    return mean
