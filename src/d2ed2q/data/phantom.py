"""A made-up colour fundus photograph whose vessels are known exactly: for demonstrations and tests without data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from d2ed2q.data.images import write_png
from d2ed2q.data.vessel_tree import Eye, Vessel, grow_vessels
from d2ed2q.errors import ConfigError

__all__ = ["Phantom", "make_phantom", "write_phantom_dataset"]

_SUPERSAMPLING = 4
_SMALLEST = 64


@dataclass(frozen=True)
class Phantom:
    """A made-up photograph.

    Attributes:
        image: uint8 ``H×W×3``, RGB.
        mask: bool ``H×W``, True on vessels, inside the field of view only.
        roi: bool ``H×W``, True inside the circular field of view.
    """

    image: np.ndarray
    mask: np.ndarray
    roi: np.ndarray


def make_phantom(seed: int, size: tuple[int, int] = (256, 256)) -> Phantom:
    """Draws a fundus photograph centred on the macula, as of DRIVE's camera, with a field of view of 45°.

    The mask is drawn from the same vessel tree as the picture: a pixel is a vessel if at least half of it is covered.

    Args:
        seed: 0 or more; the same seed and size always give the same phantom.
        size: height and width in pixels, at least 64 each.

    Raises:
        ConfigError: the seed or the size is out of range.
    """
    if seed < 0:
        raise ConfigError(f"the seed must be 0 or more, got {seed}")
    if min(size) < _SMALLEST:
        raise ConfigError(f"a phantom is at least {_SMALLEST} pixels high and wide, got {size}")
    rng = np.random.default_rng(seed)
    canvas = _Canvas(rng, size)
    eye = _draw_eye(rng)
    vessels = grow_vessels(rng, eye, thinnest=0.9 / canvas.radius)
    coverage, depth, reflex = _draw_vessels(canvas, vessels)
    image = _fundus(rng, canvas, eye)
    image *= _transmission(depth, reflex)
    image = _finish(rng, canvas, image)
    roi = canvas.distance < 1
    return Phantom(image, (coverage >= 0.5) & roi, roi)


def write_phantom_dataset(root: Path, n_train: int, n_test: int, size: tuple[int, int], seed: int) -> None:
    """Writes phantoms as a dataset in the plain folder layout, with regions of interest.

    Args:
        root: the folder; ``images/``, ``masks/`` and ``roi/`` are made in it, and again in ``test/``.
        n_train: number of training images, at least 1.
        n_test: number of test images; with 0 there is no ``test/``.
        size: height and width in pixels.
        seed: 0 or more; images of different seeds have nothing in common.

    Raises:
        ConfigError: a number is out of range.
        StorageError: a file could not be written.
    """
    if n_train < 1 or n_test < 0:
        raise ConfigError(f"a dataset has at least 1 training and 0 test images, got {n_train} and {n_test}")
    if seed < 0:
        raise ConfigError(f"the seed must be 0 or more, got {seed}")
    seeds = np.random.SeedSequence(seed).generate_state(n_train + n_test, np.uint64)
    for index, own in enumerate(seeds.tolist()):
        folder = root if index < n_train else root / "test"
        phantom = make_phantom(own, size)
        name = f"phantom_{index + 1:03d}.png"
        write_png(folder / "images" / name, phantom.image)
        write_png(folder / "masks" / name, phantom.mask)
        write_png(folder / "roi" / name, phantom.roi)


class _Canvas:
    """Maps the eye's units to pixels.

    Attributes:
        size: height and width in pixels.
        radius: of the field of view, in pixels.
        x: float32 ``H×W``, in units of the radius about the middle of the field, to the right.
        y: float32 ``H×W``, upwards.
        distance: float32 ``H×W``, from the middle of the field; 1 at its rim.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.size = size
        self.radius = min(size) * rng.uniform(0.465, 0.485)
        self.middle = (np.array(size)[::-1] - 1) / 2 + rng.uniform(-0.01, 0.01, 2) * min(size)
        rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
        self.x = (columns - np.float32(self.middle[0])) / np.float32(self.radius)
        self.y = (np.float32(self.middle[1]) - rows) / np.float32(self.radius)
        self.distance = np.hypot(self.x, self.y)

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Points ``N×2`` in units of the radius to x and y on the supersampled grid."""
        pixels = self.middle + points * (self.radius, -self.radius)
        return np.asarray((pixels + 0.5) * _SUPERSAMPLING - 0.5)

    def from_eye(self, place: tuple[float, float]) -> np.ndarray:
        """Distance of every pixel from a place, float32 ``H×W``."""
        return np.asarray(np.hypot(self.x - np.float32(place[0]), self.y - np.float32(place[1])))

    def clouds(self, rng: np.random.Generator, grain: float) -> np.ndarray:
        """Smooth noise of unit variance, float32 ``H×W``; ``grain`` is its scale in units of the radius."""
        cells = [max(int(length / (grain * self.radius)) + 2, 3) for length in self.size]
        coarse = Image.fromarray(rng.standard_normal(cells).astype(np.float32))
        fine = np.asarray(coarse.resize(self.size[::-1], Image.Resampling.BICUBIC))
        return np.asarray((fine - fine.mean()) / fine.std())


def _draw_eye(rng: np.random.Generator) -> Eye:
    temple = int(rng.choice((-1, 1)))
    radius = rng.uniform(0.135, 0.16)
    disc = (-temple * rng.uniform(0.58, 0.70), rng.uniform(-0.06, 0.08))
    macula = (disc[0] + temple * 5 * radius, disc[1] - rng.uniform(0.03, 0.10))
    return Eye(disc, radius, macula, temple)


def _draw_vessels(canvas: _Canvas, vessels: list[Vessel]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coverage of pixels by vessels, optical depth of the blood, and reflex on the vessels, each float32 ``H×W``."""
    height, width = (length * _SUPERSAMPLING for length in canvas.size)
    layers = [Image.new("L", (width, height)) for _ in range(3)]
    coverage, depth, reflex = (ImageDraw.Draw(layer) for layer in layers)
    scale = canvas.radius * _SUPERSAMPLING
    # Thin vessels first: where vessels cross, the wide one is seen.
    for vessel in sorted(vessels, key=lambda vessel: float(vessel.widths[0])):
        points = canvas.to_pixels(vessel.points)
        for (x0, y0), (x1, y1), wide in zip(points[:-1], points[1:], vessel.widths[1:], strict=True):
            pixels = wide * scale
            thickness = min(wide / 0.03, 1.0)
            darkness = (0.24 + 0.76 * thickness**0.8) * (1.0 if vessel.vein else 0.72)
            _stroke(coverage, x0, y0, x1, y1, pixels, 255)
            _stroke(depth, x0, y0, x1, y1, pixels, int(255 * darkness))
            shine = 0 if wide < 0.013 else int(255 * min((wide - 0.013) / 0.015, 1) * (0.6 if vessel.vein else 1.0))
            _stroke(reflex, x0, y0, x1, y1, pixels, 0)
            if shine:
                _stroke(reflex, x0, y0, x1, y1, 0.3 * pixels, shine)
    reduced = [np.asarray(layer.reduce(_SUPERSAMPLING), dtype=np.float32) / 255 for layer in layers]
    return reduced[0], reduced[1], reduced[2]


def _stroke(draw: ImageDraw.ImageDraw, x0: float, y0: float, x1: float, y1: float, width: float, fill: int) -> None:
    half = width / 2
    draw.line((x0, y0, x1, y1), fill=fill, width=max(round(width), 1))
    draw.ellipse((x1 - half, y1 - half, x1 + half, y1 + half), fill=fill)


def _transmission(depth: np.ndarray, reflex: np.ndarray) -> np.ndarray:
    """What the blood leaves of the light: most of the red and least of the green, float32 ``H×W×3``."""
    soft = gaussian_filter(depth, 0.5)
    absorbed = np.maximum(soft - 0.32 * gaussian_filter(reflex, 0.5), 0)
    return np.asarray(np.exp(-absorbed[:, :, None] * np.array([0.38, 0.72, 0.48], np.float32)))


def _fundus(rng: np.random.Generator, canvas: _Canvas, eye: Eye) -> np.ndarray:
    """The retina without vessels: pigment, choroid, macula, lesions and disc; float32 ``H×W×3``, 1 is white."""
    colour = np.array([rng.uniform(0.76, 0.90), rng.uniform(0.39, 0.50), rng.uniform(0.20, 0.30)], np.float32)
    lamp = rng.uniform(-0.25, 0.25, 2)
    light = 1.12 - 0.30 * canvas.from_eye((lamp[0], lamp[1])) ** 2
    light += 0.05 * canvas.clouds(rng, 0.5)
    pigment = 0.030 * canvas.clouds(rng, 0.12) + 0.018 * canvas.clouds(rng, 0.03)
    macula = canvas.from_eye(eye.macula)
    shade = rng.uniform(0.20, 0.34) * np.exp(-((macula / 0.24) ** 2)) + 0.16 * np.exp(-((macula / 0.07) ** 2))
    tone = (light + pigment - _choroid(rng, canvas))[:, :, None] - shade[:, :, None] * np.array([0.6, 1.0, 0.9])
    image = np.asarray(tone * colour, dtype=np.float32)
    # Around the disc the nerve fibres shine.
    image *= 1 + 0.20 * np.exp(-((canvas.from_eye(eye.disc) / (2.2 * eye.disc_radius)) ** 2))[:, :, None]
    _add_lesions(rng, canvas, eye, image)
    _add_disc(rng, canvas, eye, image)
    return image


def _choroid(rng: np.random.Generator, canvas: _Canvas) -> np.ndarray:
    """Faint broad streaks of the vessels behind the retina, float32 ``H×W``."""
    direction = rng.uniform(0, math.pi)
    across = canvas.x * math.sin(direction) + canvas.y * math.cos(direction) + 0.08 * canvas.clouds(rng, 0.3)
    streaks = np.maximum(np.sin(2 * math.pi * across / rng.uniform(0.12, 0.2)), 0) ** 2
    strength = rng.uniform(0.01, 0.05) * (0.5 + 0.5 * np.tanh(canvas.clouds(rng, 0.4)))
    return np.asarray(strength * streaks, dtype=np.float32)


def _add_lesions(rng: np.random.Generator, canvas: _Canvas, eye: Eye, image: np.ndarray) -> None:
    """Small haemorrhages and exudates, which are not vessels."""
    for bright, count in ((False, int(rng.integers(1, 6))), (True, int(rng.integers(0, 9)))):
        hue = np.array([0.95, 0.80, 0.45] if bright else [0.45, 0.13, 0.09], np.float32)
        group = rng.uniform(-0.5, 0.5, 2)
        for _ in range(count):
            spot = group + rng.normal(0, 0.12, 2) if bright else rng.uniform(-0.65, 0.65, 2)
            if math.hypot(spot[0] - eye.disc[0], spot[1] - eye.disc[1]) < 2 * eye.disc_radius:
                continue
            radius = rng.uniform(0.008, 0.018) if bright else rng.uniform(0.008, 0.03)
            stretch, turn, lobes = rng.uniform(0.5, 1.0), rng.uniform(0, math.pi), rng.uniform(0, 2 * math.pi, 2)
            dx, dy = canvas.x - spot[0], canvas.y - spot[1]
            along = dx * math.cos(turn) + dy * math.sin(turn)
            across = (dy * math.cos(turn) - dx * math.sin(turn)) / stretch
            angle = np.arctan2(across, along)
            edge = radius * (1 + 0.25 * np.sin(2 * angle + lobes[0]) + 0.2 * np.sin(3 * angle + lobes[1]))
            weight = rng.uniform(0.3, 0.75) * np.exp(-((np.hypot(along, across) / edge) ** 3))
            image += weight[:, :, None].astype(np.float32) * (hue - image)


def _add_disc(rng: np.random.Generator, canvas: _Canvas, eye: Eye, image: np.ndarray) -> None:
    """The optic disc, a little higher than wide, with its pale cup."""
    x, y = canvas.x - eye.disc[0], canvas.y - eye.disc[1]
    wobble = 1 + 0.03 * np.sin(3 * np.arctan2(y, x) + rng.uniform(0, 6))
    distance = np.hypot(x * 1.08, y) / (eye.disc_radius * wobble)
    nasal = np.clip(-eye.temple * x / eye.disc_radius, -1, 1)[:, :, None]
    rim = np.array([0.98, 0.70, 0.36]) - nasal * np.array([0.02, 0.08, 0.05])
    cup = np.array([1.0, 0.90, 0.66])
    cup_distance = np.hypot((x - eye.temple * 0.15 * eye.disc_radius) * 1.08, y) / eye.disc_radius
    pale = _step(rng.uniform(0.35, 0.55) - cup_distance, 0.5)[:, :, None]
    disc = rim + pale * (cup - rim)
    weight = (_step(1 - distance, 0.25) * rng.uniform(0.75, 0.95))[:, :, None].astype(np.float32)
    image += weight * (disc.astype(np.float32) - image)


def _step(value: np.ndarray, softness: float) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(np.clip(-value / (softness / 4), -60, 60))))


def _finish(rng: np.random.Generator, canvas: _Canvas, image: np.ndarray) -> np.ndarray:
    """Lens and camera: slight blur, vignette, the aperture's soft rim, sensor noise and 8 bits."""
    blur = rng.uniform(0.25, 0.45) * max(canvas.radius / 120, 1)
    image = gaussian_filter(image, (blur, blur, 0))
    vignette = 1 - 0.22 * canvas.distance**6
    aperture = _step(1 - canvas.distance, 3 / canvas.radius)
    image *= (vignette * aperture)[:, :, None].astype(np.float32)
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    grain = 0.6 * grain + 0.8 * gaussian_filter(grain, (0.7, 0.7, 0))
    image += rng.uniform(0.010, 0.018) * grain * (0.25 + 0.75 * aperture[:, :, None].astype(np.float32))
    return np.asarray((np.clip(image, 0, 1) * 255).round(), dtype=np.uint8)
