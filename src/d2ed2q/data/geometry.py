"""Random moves of an image together with its masks: window, flips and quarter turns, shift, scale and rotation.

They are MONAI dictionary transforms on plain tensors ``C×H×W`` or ``C×D×H×W``: no record is kept of what was done,
which on images of this size would cost more than the transforms themselves.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform, Randomizable
from torch import Tensor
from torch.nn import functional as F

__all__ = ["POINTS", "RandDihedrald", "RandShiftScaled", "RandWindowd"]

_NODES_APART = 64  # pixels between the places where displacements are drawn, about

POINTS = "points"
"""Key of the places that windows may be drawn around: for each class that occurs, ``n×dims`` positions."""


class RandWindowd(Randomizable, MapTransform):  # type: ignore[misc]
    """Cuts a window at random, with a margin around it for the transforms that follow.

    The window without its margin lies inside the image wherever it fits, every position being equally likely; along a
    side on which the image is smaller, it is centred. What lies outside the image is 0 (for a region of interest:
    outside).

    Args:
        keys: tensors ``C×*spatial`` of one spatial shape.
        size: of the window along each axis.
        margin: what is added on both sides of each axis.
        foreground: probability that the window is centred, as far as it stays inside the image, on one of the
            positions in :data:`POINTS`, of a class drawn at random; 0 does not look there.
    """

    def __init__(
        self, keys: Sequence[str], size: Sequence[int], margin: Sequence[int], foreground: float = 0.0
    ) -> None:
        MapTransform.__init__(self, keys)
        self.size = tuple(size)
        self.margin = tuple(margin)
        self.foreground = foreground

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Cuts the same window from all keys."""
        result = dict(data)
        shape = result[self.keys[0]].shape[1:]
        centre = self._centre(result.get(POINTS)) if self.foreground else None
        index: list[slice] = [slice(None)]
        padding: list[int] = []
        for axis, (length, size, margin) in enumerate(zip(shape, self.size, self.margin, strict=True)):
            room = length - size
            if room < 0:
                start = room // 2
            elif centre is None:
                start = int(self.R.randint(room + 1))
            else:
                start = min(max(int(centre[axis]) - size // 2, 0), room)
            start -= margin
            stop = start + size + 2 * margin
            index.append(slice(max(start, 0), min(stop, length)))
            padding = [max(-start, 0), max(stop - length, 0), *padding]  # F.pad begins with the last axis
        for key in self.key_iterator(result):
            window = result[key][tuple(index)]
            result[key] = F.pad(window, padding) if any(padding) else window
        return result

    def _centre(self, points: Sequence[Tensor] | None) -> Tensor | None:
        if self.R.rand() >= self.foreground or not points:
            return None
        of_class = points[int(self.R.randint(len(points)))]
        return of_class[int(self.R.randint(len(of_class)))]


class RandDihedrald(Randomizable, MapTransform):  # type: ignore[misc]
    """Flips along every axis, and turns by one to three quarters in the plane of the last two, independently.

    Args:
        keys: tensors ``C×*spatial``.
        flip: probability of each flip.
        turn: probability of a turn; odd quarters swap height and width.
    """

    def __init__(self, keys: Sequence[str], flip: float, turn: float) -> None:
        MapTransform.__init__(self, keys)
        self.flip = flip
        self.turn = turn

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Moves all keys alike."""
        result = dict(data)
        dims = result[self.keys[0]].ndim - 1
        axes = [axis for axis in range(-dims, 0) if self.R.rand() < self.flip]
        quarters = 1 + int(self.R.randint(3)) if self.R.rand() < self.turn else 0
        for key in self.key_iterator(result):
            moved = result[key].flip(axes) if axes else result[key]
            result[key] = torch.rot90(moved, quarters, (-2, -1)) if quarters else moved
        return result


class RandShiftScaled(Randomizable, MapTransform):  # type: ignore[misc]
    """Shifts, scales each axis by its own factor, rotates the plane of the last two, about the middle, and bends.

    A pixel at offset x (a vector) from the middle of the result is fetched from offset S·R·x + t of the middle of the
    input: S is diagonal with factors drawn uniformly from 1 ± ``scale``, R rotates by an angle drawn from ± ``rotate``
    (in millimetres, where ``aspect`` tells them from pixels), and the shift t is drawn from ± ``shift`` of the result's
    size along each axis. Bending adds smooth displacements, drawn from a normal distribution on a coarse grid and
    interpolated between (Ronneberger et al., 2015). Without a change the middle part is cut out, and no value changes.

    Args:
        keys: float32 tensors ``C×*spatial``.
        modes: ``bilinear`` (of volumes trilinear) or ``nearest``, for each key.
        size: of the result along each axis; the input exceeds it by even numbers.
        shift: largest shift, as a share of ``size``.
        scale: largest change of scale.
        prob: probability of a change.
        rotate: largest angle, in degrees.
        elastic: standard deviation of the displacements, in pixels; 0 does not bend.
        aspect: a pixel's width divided by its height, in millimetres, so that what is rotated keeps its shape.
    """

    def __init__(
        self,
        keys: Sequence[str],
        modes: Sequence[str],
        size: Sequence[int],
        shift: float,
        scale: float,
        prob: float,
        rotate: float = 0.0,
        elastic: float = 0.0,
        aspect: float = 1.0,
    ) -> None:
        MapTransform.__init__(self, keys)
        self.modes = tuple(modes)
        self.size = tuple(size)
        self.shift = shift
        self.scale = scale
        self.prob = prob
        self.rotate = rotate
        self.elastic = elastic
        self.aspect = aspect

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Moves all keys alike."""
        result = dict(data)
        full = tuple(result[self.keys[0]].shape[1:])
        if self.R.rand() >= self.prob:
            starts = [(have - want) // 2 for have, want in zip(full, self.size, strict=True)]
            middle = (slice(None), *(slice(start, start + want) for start, want in zip(starts, self.size, strict=True)))
            for key in self.key_iterator(result):
                result[key] = result[key][middle]
            return result
        grid = F.affine_grid(self._theta(full)[None], [1, 1, *self.size], align_corners=False)
        if self.elastic:
            grid = grid + self._displacements(full)
        for key, mode in self.key_iterator(result, self.modes):
            result[key] = F.grid_sample(result[key][None], grid, mode, "zeros", align_corners=False)[0]
        return result

    def _displacements(self, full: Sequence[int]) -> Tensor:
        """Smooth random displacements ``1×*size×dims`` in the units of ``grid_sample``, the last axis first."""
        dims = len(full)
        nodes = [max(3, round(extent / _NODES_APART) + 1) for extent in self.size]
        drawn = torch.from_numpy(self.R.normal(0.0, self.elastic, (1, dims, *nodes))).float()
        mode = "bicubic" if dims == 2 else "trilinear"
        field = F.interpolate(drawn, self.size, mode=mode, align_corners=True)
        units = torch.tensor([2 / have for have in reversed(full)])
        return field.movedim(1, -1) * units

    def _theta(self, full: Sequence[int]) -> Tensor:
        """The matrix and shift that ``affine_grid`` takes: of the last axis first, in units of half an extent."""
        factors, shifts = [], []
        for want, have in zip(self.size, full, strict=True):
            factors.append(1 + self.R.uniform(-self.scale, self.scale))
            shifts.append(2 * want / have * self.R.uniform(-self.shift, self.shift))
        dims = len(full)
        turned = [[float(row == column) for column in range(dims)] for row in range(dims)]
        if self.rotate:
            angle = math.radians(self.R.uniform(-self.rotate, self.rotate))
            turned[-2][-2:] = [math.cos(angle), -math.sin(angle) * self.aspect]
            turned[-1][-2:] = [math.sin(angle) / self.aspect, math.cos(angle)]
        rows = [
            [self.size[column] / full[row] * factors[row] * turned[row][column] for column in reversed(range(dims))]
            + [shifts[row]]
            for row in reversed(range(dims))
        ]
        return torch.tensor(rows)
