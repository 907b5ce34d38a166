"""Training augmentation: a deterministic function of a sample and a seed."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.transforms import Compose, MapTransform, Transform
from torch import Tensor
from torch.nn import functional as F

from d2ed2q.data.color import RandHueSaturationValued, RandIntensityd
from d2ed2q.data.geometry import POINTS, RandDihedrald, RandShiftScaled, RandWindowd
from d2ed2q.data.sample import Sample
from d2ed2q.errors import ConfigError, DataError

__all__ = ["TrainingAugmentation", "aspect_of"]

_KEYS = ("image", "label", "roi")
_MODES = ("bilinear", "nearest", "nearest")
_SQUARE = 1.1  # of which a pixel's sides may differ and still be turned by quarters


@dataclass(frozen=True)
class TrainingAugmentation:
    """Random flips, quarter turns, shift, scale, aspect and colour; the defaults are the paper's recipe.

    Attributes:
        crop: extents of a random crop, one for each axis; smaller images are padded, and padding is outside the region
            of interest.
        resize: height and width to resize whole images to, instead of ``crop``; without both, images keep their size.
        foreground: share of the crops that are centred on foreground, each class as often.
        flip: probability of each of the two flips.
        turn: probability of one to three quarter turns; only square results of (nearly) square pixels are turned, as
            others would change shape.
        affine: probability of shift, scale and aspect.
        shift: largest shift, as a share of height and of width.
        scale: each axis is scaled by its own factor drawn from 1 ± ``scale``: this is scale and aspect in one.
        rotate: largest rotation in the plane of the last two axes, in degrees; comes with ``affine``.
        elastic: standard deviation of smooth displacements, in pixels; comes with ``affine``.
        color: probability of a change in hue, saturation and value.
        hue: its largest change, in OpenCV's units of 180 to the circle.
        saturation: its largest change, in units of 1/255.
        value: its largest change, in units of 1/255.
        intensity: probability of a change in brightness, contrast and gamma.
        brightness: its largest change, as a share of white.
        contrast: contrast is multiplied by 1 ± ``contrast``.
        gamma: the exponent is drawn from 1 ± ``gamma``.

    Raises:
        ConfigError: a number is out of range, or both ``crop`` and ``resize`` are given.
    """

    crop: tuple[int, ...] | None = None
    resize: tuple[int, ...] | None = None
    foreground: float = 0.0
    flip: float = 0.5
    turn: float = 0.5
    affine: float = 0.5
    shift: float = 0.1
    scale: float = 0.1
    rotate: float = 0.0
    elastic: float = 0.0
    color: float = 0.5
    hue: float = 30.0
    saturation: float = 5.0
    value: float = 15.0
    intensity: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0

    def __post_init__(self) -> None:
        if self.crop is not None and self.resize is not None:
            raise ConfigError("crop and resize exclude each other; give one of them")
        for name in ("crop", "resize"):
            size = getattr(self, name)
            if size is not None and (len(size) not in ((2, 3) if name == "crop" else (2,)) or min(size) < 1):
                raise ConfigError(f"{name} must be a height and a width of at least 1 pixel, got {size}")
        for name, largest in _LARGEST.items():
            number = getattr(self, name)
            if not 0 <= number <= largest:
                raise ConfigError(f"{name} must lie between 0 and {largest:g}, got {number}")

    def build(self, size: tuple[int, ...], aspect: float = 1.0) -> Compose:
        """The transforms for results of one size, as MONAI dictionary transforms.

        They take ``image`` ``C×*size`` (float in [0, 1], or uint8), ``label`` and ``roi`` ``1×*size`` of any type, and
        expect an image already resized if it is to be resized. They give float32. ``aspect`` is a pixel's width divided
        by its height.
        """
        moves = self.affine > 0 and max(self.shift, self.scale, self.rotate, self.elastic) > 0
        steps: list[Transform] = []
        if self.crop is not None:
            margin = [self._reach(size, axis, aspect) if moves else 0 for axis in range(len(size))]
            steps.append(RandWindowd(_KEYS, size, margin, self.foreground))
        # Large images are cut before they are converted: this is most of what makes it fast.
        steps.append(_AsFloatd(_KEYS))
        square = size[-2] == size[-1] and max(aspect, 1 / aspect) <= _SQUARE
        steps.append(RandDihedrald(_KEYS, self.flip, self.turn if square else 0.0))
        if moves:
            moved = (self.shift, self.scale, self.affine, self.rotate, self.elastic, aspect)
            steps.append(RandShiftScaled(_KEYS, _MODES, size, *moved))
        if self.hue or self.saturation or self.value:
            steps.append(RandHueSaturationValued(("image",), self.hue, self.saturation, self.value, self.color))
        if self.brightness or self.contrast or self.gamma:
            steps.append(RandIntensityd(("image",), self.brightness, self.contrast, self.gamma, self.intensity))
        return Compose(steps)

    def _reach(self, size: tuple[int, ...], axis: int, aspect: float) -> int:
        """How far outside a crop pixels are fetched from.

        A pixel at the crop's edge comes from up to (1 + scale) / 2 + shift of its size from the middle; one in a
        corner, rotated, from further away.
        """
        extra = 0.0
        if self.rotate and axis >= len(size) - 2:
            other = size[-1] * aspect if axis == len(size) - 2 else size[-2] / aspect
            angle = math.radians(min(self.rotate, 90.0))
            furthest = math.hypot(size[axis], other)
            # The rotated half-extent is largest where the corner points along the axis, if the angle gets that far.
            if angle < math.atan2(other, size[axis]):
                furthest = size[axis] * math.cos(angle) + other * math.sin(angle)
            extra = (1 + self.scale) * (furthest - size[axis]) / 2
        # Of a normal distribution's draws hardly one in 700 is further than three standard deviations on one side.
        return int((self.scale / 2 + self.shift) * size[axis] + extra + 3 * self.elastic) + 2

    def augment(self, sample: Sample, seed: int) -> Sample:
        """Augments one sample; the same sample and seed always give the same result.

        Args:
            sample: with a label.
            seed: 0 or more.

        Returns:
            Sample: image float32 ``C×*spatial`` in [0, 1], label int64 and region of interest bool; where the
            sample has no region, all of the image is inside, and padding is outside.

        Raises:
            DataError: the sample has no label.
        """
        if sample.label is None:
            raise DataError(f"image {sample.id!r} has no mask; leave it out of the training images")
        roi = torch.ones_like(sample.label, dtype=torch.bool) if sample.roi is None else sample.roi
        given = {"image": sample.image, "label": sample.label, "roi": roi, "aspect": aspect_of(sample.spacing)}
        data = self.augment_tensors(given, seed)
        return Sample(data["image"], data["label"], data["roi"], sample.id, sample.patient, sample.spacing)

    def augment_tensors(self, tensors: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
        """As :meth:`augment`, on bare tensors that may be as compact as the files they come from.

        Args:
            tensors: ``image`` ``C×*spatial``, float in [0, 1] or uint8 in 0…255; ``label`` of any integer type and
                ``roi`` bool, both of the spatial shape; and, where ``foreground`` is above 0, ``points``: for each
                class that occurs, positions ``n×dims``. ``aspect``, a pixel's width divided by its height, is 1 where
                it is not given.
            seed: 0 or more.

        Returns:
            dict: ``image`` float32 ``C×*size`` in [0, 1], ``label`` int64 and ``roi`` bool, both ``*size``.
        """
        data: dict[str, Any] = {
            "image": tensors["image"],
            "label": tensors["label"][None],
            "roi": tensors["roi"][None],
        }
        if self.resize is not None:
            data = _resized(data, self.resize)
        if POINTS in tensors:
            data[POINTS] = tensors[POINTS]
        size = self.crop or tuple(data["image"].shape[1:])
        # A pipeline of its own for each call: the transforms hold their random state, and threads may call at once.
        data = self.build(size, tensors.get("aspect", 1.0)).set_random_state(seed)(data)
        return {
            "image": data["image"].contiguous(),
            "label": data["label"][0].long(),
            "roi": data["roi"][0].bool(),
        }


class _AsFloatd(MapTransform):  # type: ignore[misc]
    """Converts to float32, and 8-bit images to [0, 1]."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            tensor = result[key]
            result[key] = tensor.float().div_(255) if key == "image" and tensor.dtype == torch.uint8 else tensor.float()
        return result


def _resized(data: Mapping[str, Tensor], size: tuple[int, ...]) -> dict[str, Tensor]:
    if tuple(data["image"].shape[-2:]) == tuple(size):
        return dict(data)
    image = _AsFloatd(("image",))({"image": data["image"]})["image"]
    image = F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
    masks = {
        key: F.interpolate(data[key][None].to(torch.uint8), size, mode="nearest-exact")[0] for key in ("label", "roi")
    }
    return {"image": image, **masks}


def aspect_of(spacing: Sequence[float] | None) -> float:
    """A pixel's width divided by its height; 1 where millimetres are unknown."""
    return 1.0 if spacing is None else spacing[-1] / spacing[-2]


_LARGEST = {
    "foreground": 1.0,
    "rotate": 180.0,
    "elastic": 100.0,
    "flip": 1.0,
    "turn": 1.0,
    "affine": 1.0,
    "shift": 0.5,
    "scale": 0.5,
    "color": 1.0,
    "hue": 90.0,
    "saturation": 255.0,
    "value": 255.0,
    "intensity": 1.0,
    "brightness": 1.0,
    "contrast": 1.0,
    "gamma": 0.9,
}
