r"""Whether objects are found, told apart and outlined: object-level F1, Dice and Hausdorff distance.

After Sirinukunwattana et al. (Medical Image Analysis 35, 2017), as in the GlaS challenge. Each object is compared with
its *partner*, the object of the other map that it shares most pixels with.

- Detection: a found object counts if it covers at least half of its partner; F1 is made of these counts.
- Object Dice: :math:`\frac12 \bigl(\sum_i \frac{|S_i|}{\sum |S|} D(S_i, G(S_i)) + \sum_j \frac{|G_j|}{\sum |G|}
  D(G_j, S(G_j))\bigr)` over the found objects :math:`S_i` and the true ones :math:`G_j`; without partner D is 0.
- Object Hausdorff: the same sum of Hausdorff distances; an object that overlaps none is measured to the one that is
  nearest by this distance.

Over several images the sums run over the objects of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from scipy import ndimage

from d2ed2q.errors import ConfigError, DataError
from d2ed2q.metrics.checks import require_same_shape
from d2ed2q.metrics.summary import defined, summary

__all__ = ["ObjectScore", "object_figures", "object_score"]


@dataclass(frozen=True)
class ObjectScore:
    """Counts and area-weighted sums over the objects of an image; two add up to those of both images pooled.

    Where neither map has objects, F1 and Dice are 1 and the Hausdorff distance is 0.

    Attributes:
        tp: found objects that cover at least half of their partner; each true object counts once.
        fp: other found objects.
        fn: true objects that were not found.
        found_area: pixels of all found objects.
        true_area: pixels of all true objects.
        found_dice: sum of area × Dice over found objects.
        true_dice: the same over true objects.
        found_distance: sum of area × Hausdorff distance over found objects; NaN where it was not measured.
        true_distance: the same over true objects.

    Example:
        >>> ObjectScore(tp=3, fp=1, fn=1, found_area=9, true_area=9, found_dice=6.0, true_dice=6.0).f1
        0.75
    """

    tp: int
    fp: int
    fn: int
    found_area: int
    true_area: int
    found_dice: float
    true_dice: float
    found_distance: float = math.nan
    true_distance: float = math.nan

    def __add__(self, other: ObjectScore) -> ObjectScore:
        """Counts and sums of both, pooled."""
        return ObjectScore(
            self.tp + other.tp,
            self.fp + other.fp,
            self.fn + other.fn,
            self.found_area + other.found_area,
            self.true_area + other.true_area,
            self.found_dice + other.found_dice,
            self.true_dice + other.true_dice,
            self.found_distance + other.found_distance,
            self.true_distance + other.true_distance,
        )

    @property
    def precision(self) -> float:
        """Fraction of found objects that are right; NaN without any."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else math.nan

    @property
    def recall(self) -> float:
        """Fraction of true objects that are found; NaN without any."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall: 2·TP / (2·TP + FP + FN); 1 without any objects."""
        total = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / total if total else 1.0

    @property
    def dice(self) -> float:
        """Object Dice, in [0, 1]; 1 without any objects, 0 where only one map has some."""
        if not self.found_area and not self.true_area:
            return 1.0
        return sum(
            weighted / (2 * area)
            for weighted, area in ((self.found_dice, self.found_area), (self.true_dice, self.true_area))
            if area
        )

    @property
    def hausdorff(self) -> float:
        """Object Hausdorff distance; 0 without any objects. Where only one map has some, their mean distance."""
        terms = [
            weighted / area
            for weighted, area in ((self.found_distance, self.found_area), (self.true_distance, self.true_area))
            if area
        ]
        return sum(terms) / len(terms) if terms else 0.0


def object_score(
    found: np.ndarray, truth: np.ndarray, *, hausdorff: bool = True, spacing: Sequence[float] | None = None
) -> ObjectScore:
    """Compares two maps of objects.

    Args:
        found: ``H×W`` or ``D×H×W``, whole numbers: 0 is background, each other number is one object.
        truth: likewise, same shape.
        hausdorff: whether to measure distances, which takes longest.
        spacing: millimetres per pixel along each axis; None to measure in pixels.

    Returns:
        ObjectScore: of this image. Where one map has no object at all, there is nothing to measure a distance to; the
        other's objects then get the image's diagonal, which no distance exceeds.

    Raises:
        ConfigError: the spacing does not fit the image or is not positive.
        DataError: shapes differ, or something holds anything but whole numbers from 0.
    """
    found, n_found = _numbered(found, "found")
    truth, n_true = _numbered(truth, "truth")
    require_same_shape(found=found, truth=truth)
    if spacing is not None and (len(spacing) != found.ndim or not all(0 < step < np.inf for step in spacing)):
        raise ConfigError(f"spacing {tuple(spacing)} must be {found.ndim} positive numbers, one for each axis")
    # overlap[i, j]: pixels that found object i shares with true object j; row and column 0 are the background.
    pairs = found.ravel().astype(np.int64) * (n_true + 1) + truth.ravel()
    overlap = np.bincount(pairs, minlength=(n_found + 1) * (n_true + 1)).reshape(n_found + 1, n_true + 1)
    found_areas, true_areas = overlap.sum(1)[1:], overlap.sum(0)[1:]
    overlap = overlap[1:, 1:]
    if not n_found or not n_true:
        steps = (1,) * found.ndim if spacing is None else spacing
        diagonal = math.hypot(*(length * step for length, step in zip(found.shape, steps, strict=True)))
        far = diagonal if hausdorff else math.nan
        areas = int(found_areas.sum()), int(true_areas.sum())
        return ObjectScore(0, n_found, n_true, *areas, 0.0, 0.0, areas[0] * far, areas[1] * far)
    of_found, of_true = overlap.argmax(1), overlap.argmax(0)
    shared = overlap[np.arange(n_found), of_found]
    covering = (shared > 0) & (2 * shared >= true_areas[of_found])
    tp = len(np.unique(of_found[covering]))  # two halves of one object are one object found
    dice = 2 * overlap / (found_areas[:, None] + true_areas)
    distances = _distances(found, truth, overlap, of_found, of_true, spacing) if hausdorff else (math.nan, math.nan)
    return ObjectScore(
        tp,
        n_found - tp,
        n_true - tp,
        int(found_areas.sum()),
        int(true_areas.sum()),
        float(found_areas @ dice[np.arange(n_found), of_found]),
        float(true_areas @ dice[of_true, np.arange(n_true)]),
        float((found_areas * distances[0]).sum()),
        float((true_areas * distances[1]).sum()),
    )


def object_figures(
    found: Sequence[np.ndarray], truth: Sequence[np.ndarray], spacing: Sequence[float] | None = None
) -> dict[str, Any]:
    """Scores the objects of several images.

    Args:
        found: for every image the map of found objects, as for :func:`object_score`.
        truth: for every image the map of true objects.
        spacing: millimetres per pixel along each axis, the same for all images; None to measure in pixels.

    Returns:
        dict[str, Any]: JSON-ready, with None for what is undefined. Of the objects of all images pooled: ``object_f1``,
        ``object_precision``, ``object_recall``, ``object_dice``, ``object_hausdorff``, and ``objects_found`` and
        ``objects_true``, their numbers. ``per_image`` holds ``{"mean", "std", "values"}`` of the first five. And
        ``object_distance_unit``.

    Raises:
        ConfigError: the spacing does not fit the images or is not positive.
        DataError: no images, lists of unequal length, shapes that differ, or no maps of objects.
    """
    if len(found) != len(truth) or not len(truth):
        raise DataError(
            f"there must be one map of true objects for each map of found ones, and one at least, got {len(truth)} "
            f"and {len(found)}"
        )
    scores = [object_score(*maps, spacing=spacing) for maps in zip(found, truth, strict=True)]
    pooled = reduce(add, scores)
    names = ("f1", "precision", "recall", "dice", "hausdorff")
    return {
        **{f"object_{name}": defined(getattr(pooled, name)) for name in names},
        "objects_found": pooled.tp + pooled.fp,
        "objects_true": pooled.tp + pooled.fn,
        "object_distance_unit": "pixels" if spacing is None else "mm",
        "per_image": {f"object_{name}": summary([getattr(score, name) for score in scores]) for name in names},
    }


def _numbered(objects: np.ndarray, name: str) -> tuple[np.ndarray, int]:
    """The objects numbered 1…n, and n."""
    objects = np.asarray(objects)
    if not np.issubdtype(objects.dtype, np.integer):
        raise DataError(f"{name} must be a map of whole object numbers, not {objects.dtype}; number the objects first")
    if not objects.size or objects.min() < 0:
        raise DataError(f"{name} must hold object numbers from 0, the background; it is empty or holds less")
    present = np.unique(objects)
    present = present[present > 0]
    return np.where(objects > 0, np.searchsorted(present, objects) + 1, 0), len(present)


def _distances(
    found: np.ndarray,
    truth: np.ndarray,
    overlap: np.ndarray,
    of_found: np.ndarray,
    of_true: np.ndarray,
    spacing: Sequence[float] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Hausdorff distance of each found and each true object to its partner, or to the nearest without one."""
    places = ndimage.find_objects(found), ndimage.find_objects(truth)
    known: dict[tuple[int, int], float] = {}

    def between(i: int, j: int) -> float:
        if (i, j) not in known:
            # Both lie inside their common bounding box; the distance transform need not see the rest.
            box = tuple(
                slice(min(a.start, b.start), max(a.stop, b.stop))
                for a, b in zip(places[0][i], places[1][j], strict=True)
            )
            one, other = found[box] == i + 1, truth[box] == j + 1
            known[i, j] = max(
                ndimage.distance_transform_edt(~other, sampling=spacing)[one].max(),
                ndimage.distance_transform_edt(~one, sampling=spacing)[other].max(),
            )
        return known[i, j]

    lonely_found, lonely_true = overlap.sum(1) == 0, overlap.sum(0) == 0
    nearest_found = _nearest(found, truth, np.flatnonzero(lonely_found), spacing)
    nearest_true = _nearest(truth, found, np.flatnonzero(lonely_true), spacing)
    return (
        np.array([nearest_found[i] if lonely_found[i] else between(i, j) for i, j in enumerate(of_found)]),
        np.array([nearest_true[j] if lonely_true[j] else between(i, j) for j, i in enumerate(of_true)]),
    )


def _nearest(
    objects: np.ndarray, others: np.ndarray, lonely: np.ndarray, spacing: Sequence[float] | None
) -> dict[int, float]:
    """Of some objects, the least Hausdorff distance to any of the others."""
    if not lonely.size:
        return {}
    n_others = int(others.max())
    there = np.stack(  # from each of the objects to each other: its farthest pixel
        [
            ndimage.maximum(ndimage.distance_transform_edt(others != j, sampling=spacing), objects, lonely + 1)
            for j in range(1, n_others + 1)
        ],
        axis=1,
    )
    back = np.stack(
        [
            ndimage.maximum(
                ndimage.distance_transform_edt(objects != i + 1, sampling=spacing), others, np.arange(1, n_others + 1)
            )
            for i in lonely
        ]
    )
    return dict(zip(lonely.tolist(), np.maximum(there, back).min(1).tolist(), strict=True))
