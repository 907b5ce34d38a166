"""What a bundle says of itself: ``manifest.json``. The specification is docs/bundle.md."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from d2ed2q.data.intensity import BYTE, Intensity
from d2ed2q.data.resolution import Resolution
from d2ed2q.deploy.cleaning import MaskRule
from d2ed2q.deploy.objects import ObjectRule
from d2ed2q.ensemble import view_names
from d2ed2q.errors import BundleError, ConfigError

__all__ = [
    "FORMAT",
    "VERSION",
    "Accuracy",
    "Activations",
    "InputSpec",
    "Manifest",
    "OutputSpec",
    "Part",
    "Refusal",
    "Weights",
]

FORMAT = "d2ed2q-bundle"
VERSION = 4
_LARGEST_SIDE = 16384


@dataclass(frozen=True)
class InputSpec:
    """What the graph takes: float32 ``1×C×*spatial`` in [0, 1], named ``image``; normalisation is part of the graph.

    Attributes:
        channels: channels C; 3 is RGB.
        stride: every extent is a multiple of this; images are padded at the far ends by their last row or column.
        minimum: least extent.
        resize: height and width that images are resized to (antialiased, bilinear), or None for their own resolution.
        dims: spatial axes: 2 (H, W) for pictures, 3 (D, H, W) for volumes: to superior, to anterior, to right.
        scale: factor that images are resampled by before the graph (antialiased, linear).
        spacing: millimetres per pixel that images are resampled to, or None.
        window: extents of sliding windows for images too large to be taken whole; None for the reader's choice.
        intensity: how stored values become numbers from 0 to 1.
        standardize: whether pictures are :func:`~d2ed2q.data.standardization.standardized` before they are resampled.
    """

    channels: int
    stride: int
    minimum: int
    resize: tuple[int, int] | None
    dims: Literal[2, 3] = 2
    scale: float = 1.0
    spacing: tuple[float, ...] | None = None
    window: tuple[int, ...] | None = None
    intensity: Intensity = BYTE
    standardize: bool = False

    @property
    def resolution(self) -> Resolution:
        """At which resolution the graph sees images.

        Raises:
            ConfigError: the three ways to say it contradict each other.
        """
        return Resolution(self.resize, self.scale, self.spacing)

    def taken(self, extents: Sequence[int]) -> tuple[int, ...]:
        """Extents of an image after padding: multiples of the stride, none below the least."""
        return tuple(max(self.minimum, -(-extent // self.stride) * self.stride) for extent in extents)

    def windows(self, extent: int | None) -> tuple[int, ...] | None:
        """Sliding windows of one extent along every axis, where they are asked for.

        Raises:
            ConfigError: the model resizes whole images, or cannot take windows so small.
        """
        if extent is None:
            return None
        if self.resize is not None:
            raise ConfigError(f"the model resizes whole images to {self.resize}; leave the windows out")
        if extent < self.minimum:
            raise ConfigError(f"windows must be at least {self.minimum} pixels for this model, got {extent}")
        return (extent,) * self.dims


@dataclass(frozen=True)
class OutputSpec:
    """What the graph gives: float32 ``(K+1)×1×C×*spatial``, named ``probabilities``, and what is made of it.

    Attributes:
        classes: names, the background first; two classes are one foreground channel.
        learners: number K of base learners; the meta learner is index 0. With 0 it is alone, a plain network.
        prediction: the view that is the prediction.
        thresholds: of every view, for calibrated probabilities.
        temperature: T of the calibration of a view: ``σ(logit(p)/T)``, or softmax(log p / T) of several classes.
        region: ``field_of_view`` (the bright disc of a fundus photograph) or ``whole``: what counts in an image.
        tta: test-time augmentation that the threshold was chosen with.
        objects: how the foreground is cut into objects; None where objects are not told apart.
        fuse: whether the meta learner fuses the base learners' features.
        cleaning: which specks of a mask are filled or dropped, where objects are not told apart; None for none.
    """

    classes: tuple[str, ...]
    learners: int
    prediction: str
    thresholds: dict[str, float]
    temperature: float
    region: Literal["field_of_view", "whole"]
    tta: Literal["none", "flips", "dihedral"]
    objects: ObjectRule | None = None
    fuse: bool = True
    cleaning: MaskRule | None = None

    @property
    def rule(self) -> ObjectRule | MaskRule | None:
        """What is done to a mask after the threshold."""
        return self.objects or self.cleaning

    @property
    def channels(self) -> int:
        """Output channels of a learner: 1 for two classes, else the number of classes."""
        return 1 if len(self.classes) == 2 else len(self.classes)


@dataclass(frozen=True)
class Weights:
    """How the weights are held.

    Attributes:
        bits: of the meta learner and each base learner; None where they were not quantized in training.
        codebook: name; None where they were not quantized in training.
        exact: whether int8 × scale gives back every trained weight (BatchNorm folded), but for float32 rounding.
        tensors: number of convolution and linear weights.
        error: largest ``‖int8·scale − w‖₂ / ‖w‖₂`` of any tensor: what the second rounding cost.
        entropy: bits a weight that a perfect compressor would need.
        parameters: of the whole ensemble, as trained.
        learner_parameters: of one base learner.
    """

    bits: tuple[int, ...] | None
    codebook: str | None
    exact: bool
    tensors: int
    error: float
    entropy: float
    parameters: int
    learner_parameters: int


@dataclass(frozen=True)
class Activations:
    """How the activations are held.

    Attributes:
        precision: ``int8`` or ``float32``.
        method: how their ranges were found; None for float32.
        images: number of training images they were found on.
        float_layers: layers that are kept in float32.
    """

    precision: Literal["int8", "float32"]
    method: str | None
    images: int
    float_layers: tuple[str, ...]


@dataclass(frozen=True)
class Accuracy:
    """What the export cost, on validation images.

    Attributes:
        images: number of validation images.
        dice: pooled Dice of the trained model and of this bundle, at the stored threshold.
        auc: pooled AUC of both; None where there are several classes.
        ece: expected calibration error of the prediction before and after the temperature; None for several classes.
        learner_dice: pooled Dice of base learner 1 alone, as trained; of a plain network its own.
    """

    images: int
    dice: tuple[float, float]
    auc: tuple[float, float] | None
    ece: tuple[float, float] | None
    learner_dice: float


@dataclass(frozen=True)
class Refusal:
    """From which doubt on an image is better not segmented, found on validation images and spoilt copies of them.

    Attributes:
        doubt: the bound, in [0, 1]; a larger :attr:`~d2ed2q.deploy.Prediction.doubt` is refused.
        dice: least Dice of a mask that was counted as usable.
        images: number of images, spoilt ones too.
        refused: share of the unusable ones that the bound refuses.
        kept: share of the usable ones that it keeps.
    """

    doubt: float
    dice: float
    images: int
    refused: float
    kept: float


@dataclass(frozen=True)
class Part:
    """One part of a bundle.

    Attributes:
        bytes: size, uncompressed.
        sha256: of the uncompressed part, 64 hexadecimal digits.
        compressed: whether it is stored as gzip (RFC 1952), with ``.gz`` after its name.
    """

    bytes: int
    sha256: str
    compressed: bool


@dataclass(frozen=True)
class Manifest:
    """The manifest of a bundle.

    Attributes:
        name: of the model.
        created: date and time, ISO 8601, UTC.
        backbone: architecture of every learner, as ``build_backbone`` knows it.
        input: see :class:`InputSpec`.
        output: see :class:`OutputSpec`.
        weights: see :class:`Weights`.
        activations: see :class:`Activations`.
        accuracy: see :class:`Accuracy`.
        provenance: seed, settings, versions, machine, and SHA-256 of the data and of the trained weights.
        parts: of every part but the manifest.
        refusal: see :class:`Refusal`; None where no bound is known.
        format: always ``d2ed2q-bundle``.
        version: of the format.
    """

    name: str
    created: str
    backbone: str
    input: InputSpec
    output: OutputSpec
    weights: Weights
    activations: Activations
    accuracy: Accuracy
    provenance: dict[str, Any]
    parts: dict[str, Part]
    refusal: Refusal | None = None
    format: str = FORMAT
    version: int = VERSION

    def to_json(self) -> bytes:
        """As UTF-8 JSON.

        Raises:
            BundleError: a number is NaN or infinite, which no reader would take.
        """
        try:
            return (json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n").encode()
        except ValueError as error:
            raise BundleError(f"a number of the bundle is NaN or infinite ({error}): the training diverged") from error

    @staticmethod
    def from_json(text: bytes, origin: str) -> Manifest:
        """Reads and checks a manifest.

        Raises:
            BundleError: not a manifest, of a newer version, or contradictory.
        """
        try:
            content = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{origin}: its manifest is not JSON ({error}); export it again") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise BundleError(f"{origin} is not a d2ed2q bundle: its manifest does not say so")
        version = content.get("version")
        if not isinstance(version, int) or version < 1:
            raise BundleError(f"{origin}: its manifest has no format version; export it again")
        if version > VERSION:
            raise BundleError(
                f"{origin} has format version {version}, this d2ed2q reads up to {VERSION}; upgrade d2ed2q to read it"
            )
        try:
            manifest = msgspec.convert(content, Manifest)
            _ = manifest.input.resolution  # which checks itself
        except (msgspec.ValidationError, ConfigError) as error:
            raise BundleError(f"{origin}: its manifest is damaged: {error}; export it again") from error
        manifest.check(origin)
        return manifest

    def check(self, origin: str) -> None:
        """Checks that the parts of the description fit each other.

        Raises:
            BundleError: they do not.
        """
        given, output = self.input, self.output
        views = view_names(output.learners) if 0 <= output.learners <= 64 and output.learners != 1 else ()
        sizes = (given.channels, given.stride, given.minimum, *(given.resize or ()), *(given.window or ()))
        axes = [len(extents) for extents in (given.window, given.spacing) if extents is not None]
        sound = (
            output.prediction in views
            and set(output.thresholds) == set(views)
            and all(0 <= threshold <= 1 for threshold in output.thresholds.values())
            and 2 <= len(set(output.classes)) == len(output.classes)
            and 0.05 <= output.temperature <= 100
            and all(0 < size <= _LARGEST_SIDE for size in sizes)
            and given.minimum % given.stride == 0
            and all(count == given.dims for count in axes)
            and ((given.resize is None and not given.standardize) or given.dims == 2)
            and len(given.intensity.low) == (given.channels if given.intensity.rule == "window" else 0)
            and self.weights.learner_parameters > 0
            and (self.refusal is None or 0 <= self.refusal.doubt <= 1)
            and _sound_rules(output)
        )
        if not sound:
            raise BundleError(f"{origin}: its manifest contradicts itself; export it again")


def _sound_rules(output: OutputSpec) -> bool:
    """Whether what is done to a mask fits it: holes, islands and objects are those of one foreground."""
    if output.rule is None:
        return True
    smoothing = output.objects.smoothing if output.objects is not None else 0
    return (output.objects is None or output.cleaning is None) and len(output.classes) == 2 and smoothing <= 1000


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # of a number that no double holds
        raise ValueError(f"{text} is too large")
    return number
