"""What a dataset looks like in numbers: sizes, spacing, classes, and how large and how thin what is to be found is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from scipy import ndimage

from d2ed2q.data.dataset import Case, Dataset
from d2ed2q.data.sample import Sample
from d2ed2q.errors import DataError

__all__ = ["ClassShape", "Fingerprint", "evenly_spread", "fingerprint"]

Item = TypeVar("Item")

_MOST_CASES = 60
_MOST_PIXELS = 1_500_000  # shapes are measured in a window of so many: distances of more take long and tell no more
_SPECK = 4  # pixels; smaller components are noise of the annotation
# A class is thin if what it covers is narrow beside the image and many times longer than it is wide. Vessels, membranes
# and their like are 0.5 to 3 % of the image's side wide and 30 to 1000 widths long; round objects, however small,
# are 1 to 3 of their own widths long.
_THIN_WIDTH = 0.04
_THIN_LENGTH = 20.0


@dataclass(frozen=True)
class ClassShape:
    """One class: how much of it there is, and its shape.

    Lengths are shares of the image's side, which is the mean of its extents (geometric).

    Attributes:
        name: of the class.
        share: of the pixels that count.
        cases: share of the cases in which it occurs.
        components: median number of connected components of a case in which it occurs.
        diameter: median equivalent diameter; each component counts with its size.
        thickness: median inscribed thickness, likewise.
        thickness_pixels: the same in pixels.
        length: how many times longer than thick the components are, likewise; 1 to 3 is round.
        thin: whether it is a net of tubes or walls.
    """

    name: str
    share: float
    cases: float
    components: float
    diameter: float
    thickness: float
    thickness_pixels: float
    length: float
    thin: bool


@dataclass(frozen=True)
class Fingerprint:
    """What a dataset looks like in numbers.

    Attributes:
        layout: name of the layout.
        dims: 2 for pictures, 3 for volumes.
        channels: of every image.
        color: whether pictures are in colour, rather than grey in three channels.
        n_cases: number of training cases.
        n_patients: number of their patients.
        n_read: how many of them were read for this.
        size: smallest, median and largest extent along each axis.
        spacing: median millimetres per pixel along each axis; None where unknown.
        spacing_varies: whether the spacing differs between cases by more than 5 %.
        intensity: rule by which values become 0 to 1.
        mean: of the scaled intensities.
        std: of the scaled intensities.
        has_roi: whether there are regions of interest.
        classes: all classes, the background first.
        tubular: whether the layout says that the foreground is thin tubes.
    """

    layout: str
    dims: int
    channels: int
    color: bool
    n_cases: int
    n_patients: int
    n_read: int
    size: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    spacing: tuple[float, ...] | None
    spacing_varies: bool
    intensity: str
    mean: float
    std: float
    has_roi: bool
    classes: tuple[ClassShape, ...]
    tubular: bool

    @property
    def thin(self) -> bool:
        """Whether tubes or walls are to be found; walls between cells may be the background."""
        foreground = any(shape.thin for shape in self.classes[1:])
        # Background between tubes is narrow as well: walls are what is left of it where most is foreground.
        return self.tubular or foreground or (self.classes[0].thin and self.classes[0].share < 0.5)

    @property
    def thickness_pixels(self) -> float:
        """Thickness in pixels of what is thin; of the thinnest class where there are several, 0 where there is none."""
        thin = [shape.thickness_pixels for shape in self.classes if shape.thin and shape.share < 0.5]
        if not thin and self.tubular:
            thin = [shape.thickness_pixels for shape in self.classes[1:]]
        return min(thin, default=0.0)

    @property
    def median_size(self) -> tuple[int, ...]:
        """Median extent along each axis."""
        return self.size[1]

    @property
    def diameter(self) -> float:
        """Diameter of the smallest foreground class that was seen, as a share of the image's side; 0 if none was."""
        return min((shape.diameter for shape in self.classes[1:] if shape.diameter > 0), default=0.0)

    @property
    def foreground(self) -> float:
        """Share of the pixels that are foreground."""
        return sum(shape.share for shape in self.classes[1:])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)


def evenly_spread(items: Sequence[Item], count: int) -> tuple[Item, ...]:
    """At most ``count`` of the items, evenly spread over all, in their order.

    So neighbours in the list (one patient, one day) do not crowd out the rest.
    """
    count = min(count, len(items))
    return tuple(items[index * len(items) // count] for index in range(count))


def fingerprint(dataset: Dataset, cases: Sequence[Case] | None = None) -> Fingerprint:
    """Reads up to 60 cases, evenly spread, and measures them; the same dataset always gives the same numbers.

    Args:
        dataset: what the cases belong to.
        cases: the cases to look at; by default the training cases.

    Raises:
        DataError: there are no cases, one cannot be read, or none has any foreground.
    """
    cases = dataset.train if cases is None else cases
    if not cases:
        raise DataError(f"there are no training images in {dataset.root}; add some")
    chosen = evenly_spread(cases, _MOST_CASES)
    sizes, spacings, moments, colorfulness = [], [], [], []
    tallies = [_Tally() for _ in dataset.classes]
    for case in chosen:
        sample = dataset.read(case)
        sizes.append(sample.image.shape[1:])
        if sample.spacing is not None:
            spacings.append(sample.spacing)
        moments.append((float(sample.image.mean()), float(sample.image.square().mean())))
        colorfulness.append(float((sample.image.amax(0) - sample.image.amin(0)).mean()))
        _measure(sample, tallies)
    if not any(tally.pixels for tally in tallies[1:]):
        raise DataError(f"all {len(chosen)} masks read from {dataset.root} are background only; correct the masks")
    total = sum(tally.pixels for tally in tallies)
    mean, square = np.mean(moments, axis=0)
    ends = [np.quantile(sizes, q, axis=0, method="nearest") for q in (0, 0.5, 1)]
    spacing, varies = _spacing(spacings) if len(spacings) == len(chosen) else (None, False)
    shapes = zip(dataset.classes, tallies, strict=True)
    return Fingerprint(
        layout=dataset.name,
        dims=dataset.dims,
        channels=dataset.channels,
        color=dataset.in_colour and float(np.mean(colorfulness)) > 0.02,
        n_cases=len(cases),
        n_patients=len({case.patient for case in cases}),
        n_read=len(chosen),
        size=tuple(tuple(int(extent) for extent in end) for end in ends),  # type: ignore[arg-type]
        spacing=spacing,
        spacing_varies=varies,
        intensity=dataset.intensity.rule,
        mean=round(float(mean), 4),
        std=round(float(max(square - mean**2, 0.0) ** 0.5), 4),
        has_roi=dataset.has_roi,
        classes=tuple(tally.shape(name, total, len(chosen)) for name, tally in shapes),
        tubular=dataset.tubular,
    )


class _Tally:
    """What was seen of one class so far."""

    def __init__(self) -> None:
        self.pixels = 0
        self.components: list[int] = []  # of each case
        self.objects: list[tuple[float, float, float, float, float]] = []  # of each component, its size first

    def shape(self, name: str, total: int, cases: int) -> ClassShape:
        columns = np.array(self.objects).T if self.objects else np.zeros((5, 1))
        diameter, thickness, pixels, length = (_weighted_median(column, columns[0]) for column in columns[1:])
        return ClassShape(
            name=name,
            share=round(self.pixels / max(total, 1), 5),
            cases=round(len(self.components) / cases, 4),
            components=float(np.median(self.components)) if self.components else 0.0,
            diameter=round(diameter, 4),
            thickness=round(thickness, 4),
            thickness_pixels=round(pixels, 2),
            length=round(length, 1),
            thin=bool(self.objects) and thickness < _THIN_WIDTH and length > _THIN_LENGTH,
        )


def _measure(sample: Sample, tallies: list[_Tally]) -> None:
    if sample.label is None:
        raise DataError(f"image {sample.id!r} has no mask; leave it out of the training images")
    label = sample.label.numpy()
    inside = np.ones(label.shape, bool) if sample.roi is None else sample.roi.numpy()
    side = float(np.prod(label.shape) ** (1 / label.ndim))
    window = _window(label > 0)
    seen, counts = label[window], inside[window]
    for number, tally in enumerate(tallies):
        pixels = int(np.count_nonzero((label == number) & inside))
        if not pixels:
            continue
        tally.pixels += pixels
        mask = (seen == number) & counts
        if number and sample.objects is not None:
            parts = np.where(mask, sample.objects.numpy()[window], 0)
        else:
            # Diagonal neighbours too, or a vessel one pixel wide falls into pieces.
            parts, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
        objects = _objects(mask, parts, side)
        tally.components.append(len(objects))
        tally.objects += objects


def _window(foreground: np.ndarray) -> tuple[slice, ...]:
    """The whole image, or a window of it around the middle of the foreground if it is very large."""
    shape = foreground.shape
    if foreground.size <= _MOST_PIXELS or not foreground.any():
        return tuple(slice(None) for _ in shape)
    factor = (_MOST_PIXELS / foreground.size) ** (1 / len(shape))
    spans = []
    for axis, extent in enumerate(shape):
        others = tuple(other for other in range(len(shape)) if other != axis)
        profile = np.cumsum(foreground.sum(axis=others))
        middle = int(np.searchsorted(profile, profile[-1] / 2))
        length = max(1, int(extent * factor))
        start = min(max(middle - length // 2, 0), extent - length)
        spans.append(slice(start, start + length))
    return tuple(spans)


def _objects(mask: np.ndarray, parts: np.ndarray, side: float) -> list[tuple[float, float, float, float, float]]:
    """Of each component: pixels, equivalent diameter, thickness (both relative to the side), thickness, length."""
    dims = mask.ndim
    # Half a pixel less, because the distance is to the middle of the nearest pixel outside. The image's edge is no
    # border: what it cuts is not thinner for that.
    depth = (
        np.maximum(ndimage.distance_transform_edt(mask) - 0.5, 0.25) if not mask.all() else np.full(mask.shape, side)
    )
    sizes = np.bincount(parts.ravel())
    depths = np.bincount(parts.ravel(), weights=depth.ravel())
    found = []
    for size, total in zip(sizes[1:], depths[1:], strict=True):
        if size < _SPECK:
            continue
        # The mean depth of a strip or wall is a quarter of its width, of a cylinder a sixth.
        thickness = 2 * dims * total / size
        diameter = 2 * (size / np.pi) ** 0.5 if dims == 2 else 2 * (3 * size / (4 * np.pi)) ** (1 / 3)
        found.append((float(size), diameter / side, thickness / side, float(thickness), float(size / thickness**dims)))
    return found


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values, kind="stable")
    cumulated = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulated, cumulated[-1] / 2)])


def _spacing(spacings: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], bool]:
    values = np.array(spacings)
    median = np.median(values, axis=0)
    varies = bool((values.max(0) / values.min(0) > 1.05).any())
    return tuple(float(f"{step:.5g}") for step in median), varies
