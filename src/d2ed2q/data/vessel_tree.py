"""Arteries and veins of a made-up retina: four pairs of trunks from the optic disc, branching by Murray's law."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

import numpy as np
from scipy.interpolate import CubicSpline

__all__ = ["Eye", "Vessel", "grow_vessels"]

_STEP = 0.015
_CELL = 0.04  # of the grid that keeps vessels of one kind apart
_FOVEA = 0.13  # radius that no vessel enters
_TRUNK_WIDTH = 0.033
_THINNEST = 0.0065
# Way points of trunks from the disc, x to the temple, y upwards: the arcade around the macula, and the nasal side.
_TEMPORAL = ((0.0, 0.0), (0.07, 0.24), (0.34, 0.50), (0.75, 0.62), (1.10, 0.57), (1.45, 0.42))
_NASAL = ((0.0, 0.0), (-0.10, 0.16), (-0.26, 0.40), (-0.38, 0.70), (-0.46, 1.1))


@dataclass(frozen=True)
class Eye:
    """Where things are, in units of the field of view's radius about its middle, x to the right and y upwards.

    Attributes:
        disc: middle of the optic disc.
        disc_radius: its radius.
        macula: middle of the macula, 2.5 disc diameters towards the temple.
        temple: 1 if the temple is on the right, −1 if on the left.
    """

    disc: tuple[float, float]
    disc_radius: float
    macula: tuple[float, float]
    temple: int


@dataclass(frozen=True)
class Vessel:
    """One vessel between its parent and its end.

    Attributes:
        points: float64 ``N×2``, x and y as in :class:`Eye`.
        widths: float64 ``N``, in the same units; they shrink along the vessel.
        vein: whether it is a vein.
    """

    points: np.ndarray
    widths: np.ndarray
    vein: bool


@dataclass(order=True)
class _Bud:
    priority: float  # the widest grow first and take the best places
    number: int
    position: tuple[float, float] = field(compare=False)
    heading: float = field(compare=False)
    width: float = field(compare=False)
    parent: int = field(compare=False)


def grow_vessels(rng: np.random.Generator, eye: Eye, thinnest: float) -> list[Vessel]:
    """Grows all vessels of an eye.

    At each branching the cubes of the two widths add up to the cube of the width before it (Murray, PNAS 1926).

    Args:
        rng: source of randomness.
        eye: where the disc and the macula are.
        thinnest: width below which vessels end, at least; in units of the field of view's radius.

    Returns:
        list: vessels, wide ones before the branches that leave them.
    """
    thinnest = max(thinnest, _THINNEST)
    vessels = []
    # Neighbours cross over the disc, arteries now inside and now outside of the vein.
    quadrants = [
        (way, side, rng.uniform(0.08, 0.13) * rng.choice((-1, 1))) for way in (_TEMPORAL, _NASAL) for side in (-1, 1)
    ]
    taken: dict[tuple[int, int], int] = {}
    for vein in (True, False):
        grower = _Grower(rng, eye, thinnest, vein, taken)
        for way, side, apart in quadrants:
            stretch = 1 + (apart if vein else -apart)
            share = 1.0 if way is _TEMPORAL else rng.uniform(0.5, 0.8)
            grower.trunk(np.array(way) * ((2 - stretch) if way is _TEMPORAL else stretch, side * stretch), share)
        grower.small_vessels_of_disc()
        vessels += grower.grow()
        taken = grower.taken
    return vessels


class _Grower:
    """Grows the vessels of one kind; they branch, wind, keep apart from each other, and stop at fovea and rim."""

    def __init__(
        self, rng: np.random.Generator, eye: Eye, thinnest: float, vein: bool, others: dict[tuple[int, int], int]
    ) -> None:
        self.rng = rng
        self.eye = eye
        self.thinnest = thinnest
        self.vein = vein
        self.vessels: list[Vessel] = []
        self.buds: list[_Bud] = []
        self.n_buds = 0
        self.others = others  # the grid of the other kind, which may be crossed, but not followed
        self.taken: dict[tuple[int, int], int] = {}
        self.tortuosity = rng.uniform(0.6, 1.3) * (1.0 if vein else 0.8)

    def trunk(self, way: np.ndarray, share: float) -> None:
        """Lays a smooth trunk along way points about the disc; ``share`` is its part of a trunk's full width."""
        way = way + np.cumsum(self.rng.normal(0, 0.02, way.shape), axis=0) * (np.arange(len(way)) > 0)[:, None]
        way = way * (self.eye.temple, 1.0) + self.eye.disc
        chord = np.r_[0, np.cumsum(np.hypot(*np.diff(way, axis=0).T))]
        along = np.arange(0, chord[-1], _STEP)
        curve = CubicSpline(chord, way)
        points = curve(along)
        tangent = curve(along, 1)
        normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1) / np.linalg.norm(tangent, axis=1, keepdims=True)
        for wavelength in (0.45, 0.22, 0.11):
            phase, turn = self.rng.uniform(0, 2 * math.pi, 2)
            wave = np.sin(2 * math.pi * along / wavelength + phase + np.sin(3 * along + turn))
            points += normal * (0.022 * self.tortuosity * wavelength * wave * np.minimum(along / 0.15, 1))[:, None]
        inside = np.hypot(points[:, 0], points[:, 1]) < 1.03
        end = len(points) if inside.all() else int(np.argmin(inside))
        width = _TRUNK_WIDTH * (1.0 if self.vein else 0.74) * self.rng.uniform(0.85, 1.1) * share
        self._finish([(x, y) for x, y in points[:end].tolist()], width, first_branch=0.2, spacing=(0.05, 0.15))

    def small_vessels_of_disc(self) -> None:
        """Lets a few small vessels leave the disc straight, most of them towards the macula."""
        for towards in (0.0, 0.0, math.pi):
            angle = towards + self.rng.uniform(-0.7, 0.7)
            angle = angle if self.eye.temple > 0 else math.pi - angle
            start = [
                self.eye.disc[axis] + 1.02 * self.eye.disc_radius * part
                for axis, part in enumerate((math.cos(angle), math.sin(angle)))
            ]
            self._bud((start[0], start[1]), angle, self.rng.uniform(0.010, 0.015), parent=-1)

    def _bud(self, position: tuple[float, float], heading: float, width: float, parent: int) -> None:
        self.n_buds += 1
        heapq.heappush(self.buds, _Bud(-width, self.n_buds, position, heading, width, parent))

    def grow(self) -> list[Vessel]:
        """Grows all buds, and the buds of these."""
        while self.buds:
            bud = heapq.heappop(self.buds)
            points = self._path(bud)
            if len(points) >= 4:
                self._finish(points, bud.width, first_branch=0.08, spacing=(0.07, 0.2))
        return self.vessels

    def _path(self, bud: _Bud) -> list[tuple[float, float]]:
        x, y = bud.position
        heading = bud.heading
        steps = int((0.16 + 42 * bud.width * self.rng.uniform(0.7, 1.3)) / _STEP)
        bends = self.rng.normal(0, 1, steps) * 0.11 * self.tortuosity
        bend = 0.0
        beside = 0
        points = [(x, y)]
        for step in range(steps):
            away = math.atan2(y - self.eye.disc[1], x - self.eye.disc[0])
            bend = 0.75 * bend + bends[step]
            heading += bend * 0.5 + 0.05 * math.sin(away - heading)
            x += _STEP * math.cos(heading)
            y += _STEP * math.sin(heading)
            cell = (math.floor(x / _CELL), math.floor(y / _CELL))
            owner = self.taken.get(cell)
            if owner is not None and (owner != bud.parent or step > 6):
                break
            beside = beside + 1 if cell in self.others else 0
            if beside > 6:
                break
            if math.hypot(x, y) > 1.03 or math.hypot(x - self.eye.macula[0], y - self.eye.macula[1]) < _FOVEA:
                break
            if math.hypot(x - self.eye.disc[0], y - self.eye.disc[1]) < self.eye.disc_radius:
                break
            points.append((x, y))
        return points

    def _finish(
        self, points: list[tuple[float, float]], width: float, first_branch: float, spacing: tuple[float, float]
    ) -> None:
        """Gives a path its widths and its buds, and takes its place on the grid."""
        number = len(self.vessels)
        widths = np.empty(len(points))
        next_branch = first_branch + self.rng.uniform(0, 0.06)
        side = self.rng.choice((-1, 1))
        for index in range(len(points)):
            width *= 1 - 0.10 * _STEP  # vessels taper a little between branchings
            widths[index] = max(width, self.thinnest)
            if index * _STEP < next_branch or index + 1 == len(points):
                continue
            next_branch = index * _STEP + self.rng.uniform(*spacing)
            share = self.rng.uniform(0.40, 0.76) * width
            if share < self.thinnest * 0.75:
                continue
            width = (width**3 - share**3) ** (1 / 3)
            (x0, y0), (x1, y1) = points[index - 1], points[index + 1]
            angle = math.radians(self.rng.uniform(32, 72)) * side
            side = -side if self.rng.random() < 0.75 else side
            heading = math.atan2(y1 - y0, x1 - x0) + angle
            self._bud(points[index], heading, share, number)
        for x, y in points:
            self.taken[math.floor(x / _CELL), math.floor(y / _CELL)] = number
        self.vessels.append(Vessel(np.array(points), widths, self.vein))
