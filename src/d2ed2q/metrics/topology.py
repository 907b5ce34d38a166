"""Whether a tubular structure hangs together: centreline Dice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.morphology import skeletonize

from d2ed2q.metrics.checks import as_binary, require_same_shape

__all__ = ["CentrelineOverlap", "centreline_overlap", "cl_dice"]


@dataclass(frozen=True)
class CentrelineOverlap:
    """Pixel counts of the centrelines; two add up to the counts of both images pooled.

    Attributes:
        found_in_label: pixels of the mask's centreline inside the label.
        found: pixels of the mask's centreline.
        true_in_mask: pixels of the label's centreline inside the mask.
        true: pixels of the label's centreline.
    """

    found_in_label: int
    found: int
    true_in_mask: int
    true: int

    def __add__(self, other: CentrelineOverlap) -> CentrelineOverlap:
        """Counts of both, pooled."""
        return CentrelineOverlap(
            self.found_in_label + other.found_in_label,
            self.found + other.found,
            self.true_in_mask + other.true_in_mask,
            self.true + other.true,
        )

    @property
    def cl_dice(self) -> float:
        """Harmonic mean of topology precision and topology sensitivity; 1 where both are empty, 0 where one is."""
        if not self.found and not self.true:
            return 1.0
        if not self.found_in_label or not self.true_in_mask:
            return 0.0
        precision, sensitivity = self.found_in_label / self.found, self.true_in_mask / self.true
        return 2 * precision * sensitivity / (precision + sensitivity)


def centreline_overlap(mask: np.ndarray, label: np.ndarray) -> CentrelineOverlap:
    """Counts how much of each centreline lies inside the other structure.

    Args:
        mask: what was predicted; ``H×W`` or ``D×H×W``, booleans or 0 and 1.
        label: the truth, same shape.

    Returns:
        CentrelineOverlap: the four counts.

    Raises:
        DataError: shapes differ, or something holds anything but 0 and 1.
    """
    mask, label = as_binary(mask, "mask"), as_binary(label, "label")
    require_same_shape(mask=mask, label=label)
    found, true = _centreline(mask), _centreline(label)
    return CentrelineOverlap(
        found_in_label=int(np.count_nonzero(found & label)),
        found=int(np.count_nonzero(found)),
        true_in_mask=int(np.count_nonzero(true & mask)),
        true=int(np.count_nonzero(true)),
    )


def _centreline(structure: np.ndarray) -> np.ndarray:
    """The skeleton; in volumes thinning may leave nothing of a part whose sides are even, which then stays whole."""
    skeleton: np.ndarray = skeletonize(structure) > 0
    if structure.ndim < 3:
        return skeleton
    parts, count = ndimage.label(structure, np.ones((3,) * structure.ndim))
    lost = np.bincount(parts.ravel(), skeleton.ravel(), count + 1) == 0
    skeleton |= lost[parts] & structure
    return skeleton


def cl_dice(mask: np.ndarray, label: np.ndarray) -> float:
    """Centreline Dice (clDice, Shit et al. 2021).

    Args:
        mask: what was predicted; ``H×W`` or ``D×H×W``, booleans or 0 and 1.
        label: the truth, same shape.

    Returns:
        float: in [0, 1]; 1 where both are empty, 0 where one is.

    Raises:
        DataError: shapes differ, or something holds anything but 0 and 1.
    """
    return centreline_overlap(mask, label).cl_dice
