"""Masks without specks: small holes are filled and small islands dropped; NumPy and SciPy are all it needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from d2ed2q.errors import ConfigError, DataError

__all__ = ["MaskRule", "choose_mask_rule", "clean_mask", "without_holes"]

_SPECK = 0.01
"""No part of more than this share of the image counts as a speck, however much a few validation images gain by it."""


@dataclass(frozen=True)
class MaskRule:
    """Which parts of a binary mask are specks.

    Parts touch along sides, not at corners. Sizes are in pixels (of volumes voxels) at the image's own resolution.

    Attributes:
        max_hole: holes of at most this many pixels are filled; what reaches the image's border is no hole.
        min_area: after that, islands of fewer pixels are dropped.

    Raises:
        ConfigError: a value is below 0.
    """

    max_hole: int = 0
    min_area: int = 0

    def __post_init__(self) -> None:
        if self.max_hole < 0 or self.min_area < 0:
            raise ConfigError(f"max_hole and min_area of masks must be 0 or more, got {self!r}")

    def __str__(self) -> str:
        """In words; nothing where nothing is done."""
        done = [f"holes of at most {self.max_hole} pixels are filled"] if self.max_hole else []
        done += [f"islands of fewer than {self.min_area} pixels are dropped"] if self.min_area else []
        return " and ".join(done)


def clean_mask(mask: np.ndarray, rule: MaskRule) -> np.ndarray:
    """Fills holes, then drops islands.

    Args:
        mask: bool, of any shape.
        rule: which.

    Returns:
        np.ndarray: bool, same shape; cleaning it again changes nothing.
    """
    mask = without_holes(mask, rule.max_hole)
    if rule.min_area > 1:
        islands, areas = _islands(mask)
        mask = (areas >= rule.min_area)[islands]
    return mask


def without_holes(mask: np.ndarray, largest: int) -> np.ndarray:
    """Fills the holes of at most so many pixels.

    Args:
        mask: bool, of any shape.
        largest: pixels of a hole that is filled; 0 fills none.
    """
    if not largest:
        return mask
    outside, areas = _holes(mask)
    filled: np.ndarray = mask | ((areas > 0) & (areas <= largest))[outside]
    return filled


def _holes(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The parts of what is outside, numbered, and the pixels of each; 0 for the mask, and for what is no hole."""
    outside, areas = _islands(~mask)
    for axis in range(mask.ndim):  # what reaches the image's border may go on beyond it
        for end in (0, -1):
            areas[outside.take(end, axis)] = 0
    return outside, areas


def _islands(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The parts of the mask, numbered, and the pixels of each; 0 for what is outside."""
    islands, _ = ndimage.label(mask)
    areas = np.bincount(islands.ravel())
    areas[0] = 0
    return islands, areas


def choose_mask_rule(
    masks: Sequence[np.ndarray], labels: Sequence[np.ndarray], regions: Sequence[np.ndarray | None]
) -> MaskRule | None:
    """Chooses what counts as a speck by the Dice of all validation pixels pooled: of all sizes the best one.

    First up to which size holes are filled, then below which size islands are dropped.

    Args:
        masks: for every validation image the bool mask, nothing outside its region.
        labels: for every image the true mask, bool.
        regions: for every image bool, which pixels count; None counts all.

    Returns:
        MaskRule: None where no cleaning is better than none.

    Raises:
        DataError: no images, lists of unequal length, or shapes that differ.
    """
    if not masks or not len(masks) == len(labels) == len(regions):
        raise DataError(
            f"a rule is chosen by as many masks as labels and regions, and one at least; "
            f"got {len(masks)}, {len(labels)} and {len(regions)}"
        )
    for mask, label, region in zip(masks, labels, regions, strict=True):
        if mask.shape != label.shape or (region is not None and region.shape != mask.shape):
            raise DataError(f"a mask of shape {mask.shape} needs a label and a region of that shape")
    inside = [
        np.ones(mask.shape, np.bool_) if region is None else region for mask, region in zip(masks, regions, strict=True)
    ]
    truths = [label & counted for label, counted in zip(labels, inside, strict=True)]
    max_hole = _best_size(masks, map(_holes, masks), truths, inside, 1)
    filled = [without_holes(mask, max_hole) for mask in masks]
    dropped = _best_size(filled, map(_islands, filled), truths, inside, -1)
    rule = MaskRule(max_hole, dropped + 1 if dropped else 0)
    return None if rule == MaskRule() else rule


def _best_size(
    masks: Sequence[np.ndarray],
    parts: Iterable[tuple[np.ndarray, np.ndarray]],
    truths: Sequence[np.ndarray],
    inside: Sequence[np.ndarray],
    sign: Literal[1, -1],
) -> int:
    """Up to which size filling (+1) or dropping (−1) parts raises Dice most; 0 where none does.

    All sizes are tried by numbering the parts of each image once: each part adds its own pixels and true pixels.
    """
    found = sum(int((mask & counted).sum()) for mask, counted in zip(masks, inside, strict=True))
    both = sum(int((mask & truth).sum()) for mask, truth in zip(masks, truths, strict=True))
    true = sum(int(truth.sum()) for truth in truths)
    largest = _SPECK * min(mask.size for mask in masks)
    columns = []  # of every speck its area, the pixels of it that count, and those that are true
    for (numbers, areas), truth, counted in zip(parts, truths, inside, strict=True):
        pixels = [np.bincount(numbers[where], minlength=len(areas)) for where in (counted, truth)]
        columns.append(np.stack((areas, *pixels))[:, (areas > 0) & (areas <= largest)])
    area, size, hit = (specks := np.concatenate(columns, axis=1))[:, np.argsort(specks[0], kind="stable")]
    if not true or not area.size:
        return 0
    dice = 2 * (both + sign * hit.cumsum()) / (found + sign * size.cumsum() + true)
    last = np.flatnonzero(np.append(area[1:] != area[:-1], True))  # parts of one size change together
    best = last[dice[last].argmax()]
    return int(area[best]) if dice[best] > 2 * both / (found + true) else 0
