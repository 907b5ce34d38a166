"""Masks and uncertainties as pictures, in colours that colour-blind readers can tell apart."""

from __future__ import annotations

import functools

import numpy as np

from d2ed2q.errors import DataError

__all__ = [
    "FALSE_NEGATIVE",
    "FALSE_POSITIVE",
    "PREDICTED",
    "TRUE_POSITIVE",
    "as_bytes",
    "as_rgb",
    "colormap",
    "overlay",
    "uncertainty_map",
]

# Chosen to differ in lightness as well as in hue, so that they stay apart under protan, deutan and tritan vision.
TRUE_POSITIVE = (168, 246, 226)
"""Pale teal: marked by the annotator and found."""
FALSE_POSITIVE = (255, 165, 0)
"""Orange: found, but not marked by the annotator."""
FALSE_NEGATIVE = (200, 30, 180)
"""Magenta: marked by the annotator, but missed."""
PREDICTED = (0, 229, 190)
"""Teal: the prediction where there is no ground truth; set off from skin, mucosa and retina."""

# Every 17th of the 256 colours of magma (N. Smith and S. van der Walt, 2015; CC0).
_MAGMA = (
    *((0, 0, 3), (11, 8, 36), (31, 17, 75), (59, 15, 111), (87, 20, 125), (113, 31, 129), (140, 41, 128)),
    *((167, 49, 125), (195, 59, 116), (221, 73, 104), (240, 96, 93), (250, 127, 94), (253, 159, 108)),
    *((254, 190, 131), (253, 221, 159), (251, 252, 191)),
)
_FILL = 0.55  # share of the colour inside a region; its border is opaque


def overlay(image: np.ndarray, mask: np.ndarray, label: np.ndarray | None = None) -> np.ndarray:
    """Draws a mask over its photograph: borders opaque, the inside see-through.

    Without a label the mask lies in teal over the photograph in its own colours. With a label the photograph is
    dimmed to grey, and colours tell hits (pale teal), false alarms (orange) and misses (magenta).

    Args:
        image: uint8 ``H×W×3``, RGB.
        mask: bool ``H×W``, the prediction.
        label: bool ``H×W``, the ground truth, if there is any.

    Returns:
        np.ndarray: uint8 ``H×W×3``; the inputs are left as they are.

    Raises:
        DataError: wrong dtypes or shapes.
    """
    from scipy.ndimage import binary_erosion  # slow to import

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"the image must be uint8 of shape H×W×3, not {image.dtype} of shape {image.shape}")
    for name, region in (("mask", mask), ("label", label)):
        if region is not None and (region.dtype != np.bool_ or region.shape != image.shape[:2]):
            raise DataError(
                f"the {name} must be bool of shape {image.shape[:2]} like its image, "
                f"not {region.dtype} of shape {region.shape}"
            )
    canvas: np.ndarray = image.copy()
    if label is None:
        regions = [(mask, PREDICTED)]
    else:
        grey = 0.6 * (image @ np.array([0.299, 0.587, 0.114]))  # ITU-R BT.601 luma, dimmed
        canvas = np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=2)
        regions = [(mask & label, TRUE_POSITIVE), (mask & ~label, FALSE_POSITIVE), (~mask & label, FALSE_NEGATIVE)]
    width = max(1, round(max(image.shape[:2]) / 600))  # borders stay visible when a large photograph is scaled down
    for region, color in regions:
        inside = binary_erosion(region, iterations=width, border_value=1)
        blend = (1 - _FILL) * canvas[inside] + _FILL * np.array(color)
        canvas[region] = color
        canvas[inside] = blend.round().astype(np.uint8)
    return canvas


def uncertainty_map(uncertainty: np.ndarray) -> np.ndarray:
    """Colours an uncertainty map: black is certain, pale yellow most uncertain, in perceptually even steps.

    Args:
        uncertainty: ``H×W``; values are clipped to [0, 1].

    Returns:
        np.ndarray: uint8 ``H×W×3``.

    Raises:
        DataError: not two dimensions, or NaN.
    """
    if uncertainty.ndim != 2 or np.isnan(uncertainty).any():
        raise DataError(f"an uncertainty map must be H×W without NaN, got shape {uncertainty.shape}")
    index = np.round(np.clip(uncertainty, 0, 1) * 255).astype(np.uint8)
    colors: np.ndarray = colormap()[index]
    return colors


@functools.cache
def colormap() -> np.ndarray:
    """The uncertainty colours from 0 to 1, uint8 ``256×3``: matplotlib's magma, at most 3 of 255 off, without it."""
    knots = np.arange(0, 256, 17)
    values = np.arange(256)
    colors = np.stack([np.interp(values, knots, channel) for channel in np.transpose(_MAGMA)], axis=1)
    result: np.ndarray = colors.round().astype(np.uint8)
    result.flags.writeable = False
    return result


def as_rgb(values: np.ndarray) -> np.ndarray:
    """An image as RGB bytes; what is no photograph is stretched from its darkest to its brightest value.

    Args:
        values: ``H×W`` or ``H×W×C``.
    """
    if values.ndim == 2:
        values = values[..., None]
    if values.dtype != np.uint8:
        low, high = float(values.min()), float(values.max())
        values = as_bytes((values - low) / max(high - low, 1e-9))
    return np.ascontiguousarray(values if values.shape[-1] == 3 else np.repeat(values[..., :1], 3, axis=-1))


def as_bytes(values: np.ndarray) -> np.ndarray:
    """Values from 0 to 1 as bytes."""
    scaled: np.ndarray = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return scaled
