"""From probabilities to objects that are told apart, though they touch; NumPy and SciPy are all it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal

import numpy as np
from scipy import ndimage

from d2ed2q.deploy.cleaning import without_holes
from d2ed2q.errors import ConfigError, DataError
from d2ed2q.metrics import object_score

__all__ = ["ObjectRule", "choose_object_rule", "separate_objects"]

_STEP = 0.93  # from one level of the flood to the next; fine enough for the smallest depth of the grid
_LOWEST = {"distance": 0.7, "probability": 0.02}  # where the levels end
_NOISE = {"distance": 0.75, "probability": 0.05}  # what a hill must rise in any case: pixels make rough outlines
_DEPTHS = (0.08, 0.15, 0.3)
_SMOOTHING = (0.05, 0.15)  # of a typical object's radius


@dataclass(frozen=True)
class ObjectRule:
    """How a mask is cut into objects.

    The mask is seen as hills, whose height is either each pixel's distance to the outside or its probability. Two hills
    are two objects if the way from one to the other leads down by ``depth`` of the lower one's height.

    Attributes:
        height: ``distance`` (for round objects, whose outline is waisted where they touch) or ``probability`` (for
            objects with a dimmer border between them).
        depth: above 0 and up to 1; 1 separates nothing but what does not touch.
        smoothing: standard deviation, in pixels, of the Gaussian that the height is smoothed with.
        min_area: objects of fewer pixels are dropped.
        max_hole: holes of at most this many pixels are filled.

    Raises:
        ConfigError: a value is out of range.
    """

    height: Literal["distance", "probability"] = "distance"
    depth: float = 0.15
    smoothing: float = 1.0
    min_area: int = 0
    max_hole: int = 0

    def __post_init__(self) -> None:
        if self.height not in _LOWEST:
            raise ConfigError(f"the height of objects is distance or probability, not {self.height!r}")
        if not 0 < self.depth <= 1:
            raise ConfigError(f"the depth between objects must be above 0 and at most 1, got {self.depth}")
        if not 0 <= self.smoothing < np.inf or self.min_area < 0 or self.max_hole < 0:
            raise ConfigError(f"smoothing, min_area and max_hole of objects must be 0 or more, got {self}")


def separate_objects(probability: np.ndarray, threshold: float, rule: ObjectRule) -> np.ndarray:
    """Cuts the foreground into objects.

    Hills rise above a sinking level one by one and grow with it, each pixel joining the hill beside it (a watershed). A
    hill that meets a higher one too early, by the rule, becomes part of it.

    Args:
        probability: of the foreground, ``H×W`` or ``D×H×W`` in [0, 1].
        threshold: a pixel is foreground where its probability exceeds this.
        rule: how to cut.

    Returns:
        np.ndarray: int32, same shape: 0 is background, the objects are numbered 1…n.

    Raises:
        DataError: the probability has another number of axes.
    """
    if probability.ndim not in (2, 3):
        raise DataError(
            f"objects are told apart in probabilities of shape H×W or D×H×W, not {probability.shape}; give one class"
        )
    mask = without_holes(probability > threshold, rule.max_hole)
    components, count = ndimage.label(mask)
    if rule.depth < 1 and count:
        height = _height(probability, threshold, mask, rule)
        total = 0
        cut = np.zeros(mask.shape, np.int32)
        for number, place in enumerate(ndimage.find_objects(components), start=1):
            inside = components[place] == number
            hills = _flood(np.pad(np.where(inside, height[place], 0), 1), rule)[(slice(1, -1),) * mask.ndim]
            cut[place][inside] = hills[inside] + total
            total += int(hills.max())
        components = cut
    areas = np.bincount(components.ravel())
    areas[0] = 0
    kept = areas >= max(rule.min_area, 1)
    objects: np.ndarray = np.where(kept, np.cumsum(kept), 0).astype(np.int32)[components]
    return objects


def choose_object_rule(
    probabilities: Sequence[np.ndarray], objects: Sequence[np.ndarray], threshold: float
) -> ObjectRule:
    """Chooses how to cut by what works best on validation images: the highest sum of object F1 and object Dice.

    First how to separate is chosen, then how small an object and how large a hole may be. Lengths and areas to choose
    from come from the true objects; separating nothing is among the choices.

    Args:
        probabilities: for every image as for :func:`separate_objects`.
        objects: for every image the map of true objects, 0 is background.
        threshold: as for :func:`separate_objects`.

    Raises:
        DataError: no images, lists of unequal length, shapes that differ, or no true object in any of them.
    """
    if len(probabilities) != len(objects):
        raise DataError(f"there are {len(probabilities)} probability maps, but {len(objects)} maps of objects")
    counts = [np.bincount(np.unique(truth[truth > 0], return_inverse=True)[1].ravel()) for truth in objects]
    areas = np.concatenate(counts) if counts else np.zeros(0)
    if not areas.size:
        raise DataError("no validation image has an object, so there is nothing to choose a rule by; add images")

    def score(rule: ObjectRule) -> float:
        scores = [
            object_score(separate_objects(probability, threshold, rule), truth, hausdorff=False)
            for probability, truth in zip(probabilities, objects, strict=True)
        ]
        pooled = reduce(add, scores)
        return pooled.f1 + pooled.dice

    # Of equally good rules the first is taken, which is the simplest.
    rule = max(_separations(areas, objects[0].ndim), key=score)
    return max(_cleanings(areas, rule), key=score)


def _separations(areas: np.ndarray, ndim: int) -> Iterator[ObjectRule]:
    small, hole = int(np.quantile(areas, 0.05) / 2), int(np.median(areas) / 10)
    radius = float(np.median(areas)) ** (1 / ndim) / 2
    yield ObjectRule(depth=1.0, min_area=small, max_hole=hole)
    heights: tuple[Literal["distance", "probability"], ...] = ("distance", "probability")
    for height in heights:
        for smoothing in _SMOOTHING:
            for depth in reversed(_DEPTHS):
                yield ObjectRule(height, depth, max(0.5, round(smoothing * radius, 1)), small, hole)


def _cleanings(areas: np.ndarray, rule: ObjectRule) -> Iterator[ObjectRule]:
    yield rule
    small, middle = int(np.quantile(areas, 0.05)), int(np.median(areas))
    for min_area in (0, small // 4, small // 2, small):
        for max_hole in (0, middle // 10, middle):
            changed = dataclasses.replace(rule, min_area=min_area, max_hole=max_hole)
            if changed != rule:
                yield changed


def _height(probability: np.ndarray, threshold: float, mask: np.ndarray, rule: ObjectRule) -> np.ndarray:
    """Above 0 in the mask, 0 outside."""
    if rule.height == "distance":
        height = ndimage.distance_transform_edt(mask)
    else:
        height = (probability.astype(np.float64) - threshold) / max(1 - threshold, 1e-9)
    if rule.smoothing:
        height = ndimage.gaussian_filter(height, rule.smoothing)
    raised: np.ndarray = np.where(mask, np.maximum(height, 1e-9), 0)
    return raised


def _flood(height: np.ndarray, rule: ObjectRule) -> np.ndarray:
    """Cuts what is above 0, which has a margin of zeros, into numbered objects."""
    flat = height.ravel()
    steps = [stride // height.itemsize for stride in height.strides]
    labels = np.zeros(flat.size, np.int32)
    tops = np.zeros(0, np.intp)  # where each hill is highest
    numbers = np.zeros(0, np.int32)
    created = 0
    for level in _levels(float(flat.max()), _LOWEST[rule.height]):
        parts, count = ndimage.label(height > level)
        parts = parts.ravel()
        kept = _lasting(flat[tops], parts[tops], count, level, rule)
        gone = np.zeros(created + 1, np.bool_)
        gone[numbers[~kept]] = True
        labels[gone[labels]] = 0
        tops, numbers = tops[kept], numbers[kept]
        fresh = np.ones(count + 1, np.bool_)
        fresh[parts[tops]] = fresh[0] = False
        if fresh.any():
            pixels = np.flatnonzero(fresh[parts])
            pixels = pixels[np.argsort(flat[pixels], kind="stable")]
            highest = np.zeros(count + 1, np.intp)
            highest[parts[pixels]] = pixels  # of several that are written to one place, the last one stays
            found = highest[fresh]
            tops = np.concatenate((tops, found))
            numbers = np.concatenate((numbers, np.arange(created + 1, created + 1 + found.size, dtype=np.int32)))
            created += found.size
        # Where a part has one hill only, it is that hill's; elsewhere hills grow pixel by pixel.
        alone = np.bincount(parts[tops], minlength=count + 1)[parts[tops]] == 1
        only = np.zeros(count + 1, np.int32)
        only[parts[tops[alone]]] = numbers[alone]
        free = np.flatnonzero((labels == 0) & (parts > 0))
        labels[free] = only[parts[free]]
        _grow(labels, free[labels[free] == 0], steps)
    compact = np.zeros(created + 1, np.int32)
    compact[numbers] = np.arange(1, numbers.size + 1)
    objects: np.ndarray = compact[labels].reshape(height.shape)
    return objects


def _levels(highest: float, lowest: float) -> Iterator[float]:
    level = highest * _STEP
    while level > lowest:
        yield level
        level *= _STEP
    yield 0.0


def _lasting(heights: np.ndarray, parts: np.ndarray, count: int, level: float, rule: ObjectRule) -> np.ndarray:
    """Which hills stay hills of their own at a level: those that rise enough above it, and the highest of each part."""
    order = np.argsort(heights, kind="stable")
    highest = np.zeros(count + 1, np.intp)
    highest[parts[order]] = order
    enough = heights - level >= np.maximum(rule.depth * heights, _NOISE[rule.height])
    lasting: np.ndarray = enough | (highest[parts] == np.arange(heights.size))
    return lasting


def _grow(labels: np.ndarray, free: np.ndarray, steps: Sequence[int]) -> None:
    """Gives pixels the label of a neighbour, again and again, until all are taken."""
    while free.size:
        near = np.zeros(free.size, np.int32)
        for step in steps:
            np.maximum(near, labels[free + step], out=near)
            np.maximum(near, labels[free - step], out=near)
        taken = near > 0
        labels[free[taken]] = near[taken]
        free = free[~taken]
