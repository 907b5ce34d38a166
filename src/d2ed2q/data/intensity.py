"""From the values in image files to numbers between 0 and 1: the only form in which images leave this room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from d2ed2q.errors import ConfigError

__all__ = ["BYTE", "PERCENTILE", "Intensity", "foreground_window"]

_PERCENTILES = (0.5, 99.5)  # as nnU-Net clips (Isensee et al., Nature Methods 2021)
_ENOUGH = 1_000_000  # values; percentiles of more do not differ


@dataclass(frozen=True)
class Intensity:
    """How values become numbers from 0 to 1.

    Attributes:
        rule: ``byte`` divides by 255. ``percentile`` takes each channel of each image from its own 0.5th percentile
            (0) to its 99.5th (1), or to its largest where both are one, for scanners without a common unit, such as
            MR; NaN is no part of the image (padding), does not count, and becomes 0. ``window`` takes each channel from
            ``low`` (0) to ``high`` (1), for values with a unit, such as Hounsfield's in CT.
        low: of ``window``, one number for each channel.
        high: likewise; above ``low``.

    Raises:
        ConfigError: a window that is empty.
    """

    rule: Literal["byte", "percentile", "window"]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high) or not all(a < b for a, b in zip(self.low, self.high, strict=True)):
            raise ConfigError(f"an intensity window needs low < high for each channel, got {self.low} and {self.high}")

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Scales an image.

        Args:
            values: ``C×…``, any numbers; for ``byte`` uint8.

        Returns:
            np.ndarray: float32, same shape, in [0, 1]; a channel that is the same everywhere becomes 0.
        """
        if self.rule == "byte":
            scaled: np.ndarray = values.astype(np.float32) / np.float32(255)
            return scaled
        if self.rule == "percentile":
            ends = [_percentiles(_counted(channel)) for channel in values]
        else:
            ends = list(zip(self.low, self.high, strict=True))
        channels = []
        for channel, (low, high) in zip(values, ends, strict=True):
            span = high - low
            scaled = (channel.astype(np.float32) - np.float32(low)) / np.float32(span if span > 0 else 1)
            channels.append(_clipped(scaled) if span > 0 else np.zeros_like(scaled))
        return np.stack(channels)


BYTE = Intensity("byte")
PERCENTILE = Intensity("percentile")


def foreground_window(values: list[list[np.ndarray]]) -> Intensity:
    """The window that holds what is labelled as foreground, from its 0.5th percentile to its 99.5th.

    Args:
        values: for each channel, arrays of the values of foreground pixels.
    """
    ends = [_percentiles(np.concatenate(channel)) for channel in values]
    return Intensity("window", tuple(low for low, _ in ends), tuple(max(high, low + 1e-6) for low, high in ends))


def _counted(values: np.ndarray) -> np.ndarray:
    """The values that are numbers; all, where none is."""
    if not np.isnan(values.min()):  # which it is where any is; most images are not looked at twice
        return values
    counted = values[~np.isnan(values)]
    return counted if counted.size else np.zeros(1, values.dtype)


def _clipped(scaled: np.ndarray) -> np.ndarray:
    clipped: np.ndarray = np.clip(scaled, 0, 1)
    if np.isnan(clipped.min()):
        clipped[np.isnan(clipped)] = 0
    return clipped


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    step = max(1, values.size // _ENOUGH)
    low, high = np.percentile(values.reshape(-1)[::step], _PERCENTILES)
    if low == high:  # nearly everything is background, as after a skull was stripped
        low, high = values.min(), values.max()
    return float(low), float(high)
