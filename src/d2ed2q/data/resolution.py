"""At which resolution a network sees images: all of one size, scaled, or at one spacing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from d2ed2q.errors import ConfigError, DataError

__all__ = ["Resolution"]

_LARGEST_CHANGE = 16.0


@dataclass(frozen=True)
class Resolution:
    """How an image's size changes before the network sees it; probabilities are brought back to the image's own.

    Attributes:
        resize: height and width that all pictures are brought to, whatever their shape.
        scale: factor of height and width (and depth), for images without a spacing.
        spacing: millimetres per pixel along each axis that images are resampled to.

    Raises:
        ConfigError: more than one of the three is given, or one is out of range.
    """

    resize: tuple[int, ...] | None = None
    scale: float = 1.0
    spacing: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.resize is not None) + (self.scale != 1) + (self.spacing is not None) > 1:
            raise ConfigError("resize, scale and spacing exclude each other; give one of them")
        if not 1 / _LARGEST_CHANGE <= self.scale <= _LARGEST_CHANGE:
            raise ConfigError(f"scale must lie between 1/16 and 16, got {self.scale}")
        if self.spacing is not None and not all(0 < step < 1e6 for step in self.spacing):
            raise ConfigError(f"spacing must be positive numbers of millimetres, got {self.spacing}")
        if self.resize is not None and (len(self.resize) != 2 or min(self.resize) < 8):
            raise ConfigError(f"resize must be at least 8 pixels high and wide, got {self.resize}")

    def size(self, shape: Sequence[int], spacing: Sequence[float] | None, name: str = "the image") -> tuple[int, ...]:
        """The size at which the network sees an image.

        Args:
            shape: the image's own, without channels.
            spacing: its millimetres per pixel along each axis; None where unknown.
            name: of the image, for the message.

        Raises:
            DataError: the model works at a spacing, and the image has none or another number of axes.
        """
        if self.resize is not None:
            if len(shape) != len(self.resize):
                raise DataError(f"{name} has {len(shape)} dimensions, but resize takes pictures; use spacing or scale")
            return self.resize
        if self.spacing is not None:
            if spacing is None:
                raise DataError(f"{name} does not say how many millimetres a pixel has, which this model needs")
            if len(spacing) != len(self.spacing):
                raise DataError(f"{name} has {len(spacing)} dimensions, but spacing has {len(self.spacing)} numbers")
            factors = [have / want for have, want in zip(spacing, self.spacing, strict=True)]
        else:
            factors = [self.scale] * len(shape)
        if not all(1 / _LARGEST_CHANGE <= factor <= _LARGEST_CHANGE for factor in factors):
            raise DataError(
                f"{name} has {'×'.join(f'{step:g}' for step in spacing or ())} mm a pixel, which is more than 16 times "
                f"finer or coarser than this model's {self.spacing}; correct its header"
            )
        return tuple(max(1, round(extent * factor)) for extent, factor in zip(shape, factors, strict=True))
