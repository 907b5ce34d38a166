"""Random changes of colour: hue, saturation and value; brightness, contrast and gamma."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

__all__ = ["RandHueSaturationValued", "RandIntensityd", "shift_hsv"]


def shift_hsv(image: Tensor, hue: float, saturation: float, value: float) -> Tensor:
    r"""Shifts hue, saturation and value of every pixel.

    With the hexcone model (Smith, SIGGRAPH 1978), :math:`V = \max(R, G, B)` and :math:`C = V - \min(R, G, B)`, the
    new hue :math:`h` (in sixths of the circle), saturation :math:`s` and value :math:`v` give each channel as
    :math:`v - v s \max(0, \min(k, 4 - k, 1))` with :math:`k = (n + h) \bmod 6` and n = 5, 3, 1 for R, G, B.

    Args:
        image: float32 in [0, 1], ``3×H×W``; an image of another shape (grey, volumes) has a value only.
        hue: in OpenCV's 8-bit units, 180 to the full circle; it wraps around.
        saturation: in units of 1/255, clipped to the possible range.
        value: in units of 1/255, clipped to the possible range.

    Returns:
        Tensor: of the same shape, values in [0, 1].
    """
    if image.ndim != 3 or image.shape[0] != 3:
        return (image + value / 255).clamp_(0, 1)
    red, green, blue = image
    top = image.amax(0)
    chroma = top - image.amin(0)
    safe = chroma.clamp_min(1e-6)  # grey pixels have any hue, as their saturation is 0
    sixths = torch.where(
        top == red, (green - blue) / safe, torch.where(top == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    )
    sixths = sixths + hue / 30
    s = (chroma / top.clamp_min(1e-6) + saturation / 255).clamp_(0, 1)
    # Black stays colourless when it is made brighter; in OpenCV, too, its saturation is 0.
    v = (top + value / 255).clamp_(0, 1)
    k = (sixths + torch.tensor([5.0, 3.0, 1.0])[:, None, None]).remainder_(6)
    return v - v * s * torch.minimum(k, 4 - k).clamp_(0, 1)


class RandHueSaturationValued(RandomizableTransform, MapTransform):  # type: ignore[misc]
    """Shifts hue, saturation and value by amounts drawn uniformly from ±``hue``, ±``saturation``, ±``value``.

    Args:
        keys: the images, float32 ``3×H×W`` in [0, 1]; others have a value only.
        hue: largest shift in OpenCV's 8-bit units, 180 to the circle.
        saturation: largest shift in units of 1/255.
        value: largest shift in units of 1/255.
        prob: probability of any change.
    """

    def __init__(self, keys: Sequence[str], hue: float, saturation: float, value: float, prob: float) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.limits = (hue, saturation, value)

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Applies the same random shifts to all keys."""
        result = dict(data)
        self.randomize(None)
        if self._do_transform:
            shifts = [self.R.uniform(-limit, limit) for limit in self.limits]
            for key in self.key_iterator(result):
                result[key] = shift_hsv(result[key], *shifts)
        return result


class RandIntensityd(RandomizableTransform, MapTransform):  # type: ignore[misc]
    r"""Changes gamma, then contrast, then brightness: :math:`c\,(x^\gamma - \bar{x}) + \bar{x} + b`, clipped to [0, 1].

    Here :math:`\bar{x}` is the mean of :math:`x^\gamma` over the image.

    Args:
        keys: the images, float32 ``C×…`` in [0, 1].
        brightness: largest absolute value of b.
        contrast: c is drawn from 1 ± ``contrast``.
        gamma: γ is drawn from 1 ± ``gamma``.
        prob: probability of any change.
    """

    def __init__(self, keys: Sequence[str], brightness: float, contrast: float, gamma: float, prob: float) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.limits = (brightness, contrast, gamma)

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Applies the same random change to all keys."""
        result = dict(data)
        self.randomize(None)
        if self._do_transform:
            brightness, contrast, gamma = (self.R.uniform(-limit, limit) for limit in self.limits)
            for key in self.key_iterator(result):
                image = result[key] ** (1 + gamma)
                mean = image.mean()
                result[key] = ((image - mean) * (1 + contrast) + mean + brightness).clamp_(0, 1)
        return result
