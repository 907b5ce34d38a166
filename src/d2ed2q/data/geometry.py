"""Random moves of an image together with its masks: window, flips and quarter turns, shift and scale.

They are MONAI dictionary transforms on plain tensors ``C×H×W``: no record is kept of what was done, which on images of
this size would cost more than the transforms themselves.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from monai.transforms import MapTransform, Randomizable
from torch import Tensor
from torch.nn import functional as F

__all__ = ["RandDihedrald", "RandShiftScaled", "RandWindowd"]


class RandWindowd(Randomizable, MapTransform):  # type: ignore[misc]
    """Cuts a window at random, with a margin around it for the transforms that follow.

    The window without its margin lies inside the image wherever it fits, every position being equally likely; along a
    side on which the image is smaller, it is centred. What lies outside the image is 0 (for a region of interest:
    outside).

    Args:
        keys: tensors ``C×H×W`` of one height and width.
        size: height and width of the window.
        margin: rows above and below, and columns left and right of it.
    """

    def __init__(self, keys: Sequence[str], size: tuple[int, int], margin: tuple[int, int]) -> None:
        MapTransform.__init__(self, keys)
        self.size = size
        self.margin = margin

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Cuts the same window from all keys."""
        result = dict(data)
        shape = result[self.keys[0]].shape[-2:]
        spans = []
        for length, size, margin in zip(shape, self.size, self.margin, strict=True):
            room = length - size
            start = (int(self.R.randint(room + 1)) if room >= 0 else room // 2) - margin
            stop = start + size + 2 * margin
            spans.append((max(start, 0), min(stop, length), max(-start, 0), max(stop - length, 0)))
        (top, bottom, above, below), (left, right, before, after) = spans
        for key in self.key_iterator(result):
            window = result[key][..., top:bottom, left:right]
            result[key] = F.pad(window, (before, after, above, below)) if before + after + above + below else window
        return result


class RandDihedrald(Randomizable, MapTransform):  # type: ignore[misc]
    """Flips up–down, flips left–right, and turns by one to three quarters, independently of each other.

    Args:
        keys: tensors ``C×H×W``.
        flip: probability of each flip.
        turn: probability of a turn; odd quarters swap height and width.
    """

    def __init__(self, keys: Sequence[str], flip: float, turn: float) -> None:
        MapTransform.__init__(self, keys)
        self.flip = flip
        self.turn = turn

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Moves all keys alike."""
        result = dict(data)
        axes = [axis for axis in (-2, -1) if self.R.rand() < self.flip]
        quarters = 1 + int(self.R.randint(3)) if self.R.rand() < self.turn else 0
        for key in self.key_iterator(result):
            moved = result[key].flip(axes) if axes else result[key]
            result[key] = torch.rot90(moved, quarters, (-2, -1)) if quarters else moved
        return result


class RandShiftScaled(Randomizable, MapTransform):  # type: ignore[misc]
    """Shifts, and scales height and width by two factors, about the middle; gives the middle part of a chosen size.

    A pixel at offset (y, x) from the middle of the result is fetched from offset (a·y + s, b·x + t) of the middle of
    the input, with the two factors drawn uniformly from 1 ± ``scale`` and the shifts from ± ``shift`` of the result's
    height and width. Without a change the middle part is cut out, and no value changes.

    Args:
        keys: float32 tensors ``C×H×W``.
        modes: ``bilinear`` or ``nearest``, for each key.
        size: height and width of the result; the input exceeds them by even numbers.
        shift: largest shift, as a share of ``size``.
        scale: largest change of scale.
        prob: probability of a change.
    """

    def __init__(
        self,
        keys: Sequence[str],
        modes: Sequence[str],
        size: tuple[int, int],
        shift: float,
        scale: float,
        prob: float,
    ) -> None:
        MapTransform.__init__(self, keys)
        self.modes = tuple(modes)
        self.size = size
        self.shift = shift
        self.scale = scale
        self.prob = prob

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Moves all keys alike."""
        result = dict(data)
        full = result[self.keys[0]].shape[-2:]
        if self.R.rand() >= self.prob:
            top, left = ((have - want) // 2 for have, want in zip(full, self.size, strict=True))
            for key in self.key_iterator(result):
                result[key] = result[key][..., top : top + self.size[0], left : left + self.size[1]]
            return result
        vertical, horizontal = (
            (
                want / have * (1 + self.R.uniform(-self.scale, self.scale)),
                2 * want / have * self.R.uniform(-self.shift, self.shift),
            )
            for want, have in zip(self.size, full, strict=True)
        )
        # Rows give x, then y, in units of half the input's width and height.
        theta = torch.tensor([[horizontal[0], 0.0, horizontal[1]], [0.0, vertical[0], vertical[1]]])
        grid = F.affine_grid(theta[None], [1, 1, *self.size], align_corners=False)
        for key, mode in self.key_iterator(result, self.modes):
            result[key] = F.grid_sample(result[key][None], grid, mode, "zeros", align_corners=False)[0]
        return result
