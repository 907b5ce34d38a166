"""Training augmentation: a deterministic function of a sample and a seed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from monai.transforms import Compose, MapTransform, Transform
from torch import Tensor
from torch.nn import functional as F

from d2ed2q.data.color import RandHueSaturationValued, RandIntensityd
from d2ed2q.data.geometry import RandDihedrald, RandShiftScaled, RandWindowd
from d2ed2q.data.sample import Sample
from d2ed2q.errors import ConfigError, DataError

__all__ = ["TrainingAugmentation"]

_KEYS = ("image", "label", "roi")
_MODES = ("bilinear", "nearest", "nearest")


@dataclass(frozen=True)
class TrainingAugmentation:
    """Random flips, quarter turns, shift, scale, aspect and colour; the defaults are the paper's recipe.

    Attributes:
        crop: height and width of a random crop at the image's own resolution; smaller images are padded, and padding
            is outside the region of interest.
        resize: height and width to resize whole images to, instead of ``crop``; without both, images keep their size.
        flip: probability of each of the two flips.
        turn: probability of one to three quarter turns; only square results are turned, as others would change shape.
        affine: probability of shift, scale and aspect.
        shift: largest shift, as a share of height and of width.
        scale: height and width are scaled by two factors drawn from 1 ± ``scale``: this is scale and aspect in one.
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
    flip: float = 0.5
    turn: float = 0.5
    affine: float = 0.5
    shift: float = 0.1
    scale: float = 0.1
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
            if size is not None and (len(size) != 2 or min(size) < 1):
                raise ConfigError(f"{name} must be a height and a width of at least 1 pixel, got {size}")
        for name, largest in _LARGEST.items():
            number = getattr(self, name)
            if not 0 <= number <= largest:
                raise ConfigError(f"{name} must lie between 0 and {largest:g}, got {number}")

    def build(self, height: int, width: int) -> Compose:
        """The transforms for results of one size, as MONAI dictionary transforms.

        They take ``image`` ``C×H×W`` (float32 in [0, 1], or uint8), ``label`` and ``roi`` ``1×H×W`` of any type, and
        expect an image already resized if it is to be resized. They give float32.
        """
        size = (height, width)
        moves = self.affine > 0 and (self.shift > 0 or self.scale > 0)
        steps: list[Transform] = []
        if self.crop is not None:
            # A pixel at the crop's edge is fetched from up to (1 + scale) / 2 + shift of its size from the middle.
            reach = self.scale / 2 + self.shift if moves else 0.0
            margin = (int(reach * height) + 2, int(reach * width) + 2) if moves else (0, 0)
            steps.append(RandWindowd(_KEYS, size, margin))
        # Large images are cut before they are converted: this is most of what makes it fast.
        steps.append(_AsFloatd(_KEYS))
        steps.append(RandDihedrald(_KEYS, self.flip, self.turn if height == width else 0.0))
        if moves:
            steps.append(RandShiftScaled(_KEYS, _MODES, size, self.shift, self.scale, self.affine))
        if self.hue or self.saturation or self.value:
            steps.append(RandHueSaturationValued(("image",), self.hue, self.saturation, self.value, self.color))
        if self.brightness or self.contrast or self.gamma:
            steps.append(RandIntensityd(("image",), self.brightness, self.contrast, self.gamma, self.intensity))
        return Compose(steps)

    def augment(self, sample: Sample, seed: int) -> Sample:
        """Augments one sample; the same sample and seed always give the same result.

        Args:
            sample: with a label.
            seed: 0 or more.

        Returns:
            Sample: image float32 ``C×h×w`` in [0, 1], label int64 and region of interest bool ``h×w``; where the
            sample has no region, all of the image is inside, and padding is outside.

        Raises:
            DataError: the sample has no label.
        """
        if sample.label is None:
            raise DataError(f"image {sample.id!r} has no mask; leave it out of the training images")
        roi = torch.ones_like(sample.label, dtype=torch.bool) if sample.roi is None else sample.roi
        data = self.augment_tensors({"image": sample.image, "label": sample.label, "roi": roi}, seed)
        return Sample(data["image"], data["label"], data["roi"], sample.id, sample.patient, sample.spacing)

    def augment_tensors(self, tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """As :meth:`augment`, on bare tensors that may be as compact as the files they come from.

        Args:
            tensors: ``image`` ``C×H×W``, float32 in [0, 1] or uint8 in 0…255; ``label`` ``H×W`` of any integer type;
                ``roi`` bool ``H×W``.
            seed: 0 or more.

        Returns:
            dict: ``image`` float32 ``C×h×w`` in [0, 1], ``label`` int64 ``h×w``, ``roi`` bool ``h×w``.
        """
        data = {"image": tensors["image"], "label": tensors["label"][None], "roi": tensors["roi"][None]}
        if self.resize is not None:
            data = _resized(data, self.resize)
        height, width = self.crop or tuple(data["image"].shape[-2:])
        # A pipeline of its own for each call: the transforms hold their random state, and threads may call at once.
        data = self.build(height, width).set_random_state(seed)(data)
        return {
            "image": data["image"].contiguous(),
            "label": data["label"][0].long(),
            "roi": data["roi"][0].bool(),
        }


class _AsFloatd(MapTransform):  # type: ignore[misc]
    """Converts to float32, and 8-bit images to [0, 1]."""

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        return {
            key: tensor.float().div_(255) if key == "image" and tensor.dtype == torch.uint8 else tensor.float()
            for key, tensor in data.items()
        }


def _resized(data: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    if tuple(data["image"].shape[-2:]) == tuple(size):
        return dict(data)
    image = _AsFloatd(_KEYS)({"image": data["image"]})["image"]
    image = F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
    masks = {
        key: F.interpolate(data[key][None].to(torch.uint8), size, mode="nearest-exact")[0] for key in ("label", "roi")
    }
    return {"image": image, **masks}


_LARGEST = {
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
