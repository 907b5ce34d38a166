"""What a finished run says of its weights: ``model.json``, and the ensemble that they fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from d2ed2q.backbones import build_backbone
from d2ed2q.data import Intensity, Resolution
from d2ed2q.data.intensity import BYTE
from d2ed2q.deploy.cleaning import MaskRule
from d2ed2q.deploy.manifest import InputSpec
from d2ed2q.deploy.objects import ObjectRule
from d2ed2q.ensemble import DeepEnsemble
from d2ed2q.recipes.train_settings import TestTimeAugmentation

__all__ = ["FORMAT", "ModelCard"]

FORMAT = 1


@dataclass(frozen=True)
class ModelCard:
    """What ``model.json`` says of the weights beside it.

    Attributes:
        backbone: name of the learners' architecture.
        learners: number K of base learners; 0 of a single network.
        in_channels: channels of the images.
        classes: names of the classes, background first.
        resize: height and width that images are resized to, or None for their own resolution.
        tta: test-time augmentation that the threshold was chosen with.
        tubular: whether the foreground is a tree of tubes (scored by clDice).
        region: what counts in an image that comes without a region of interest: ``field_of_view`` (the bright disc of
            a fundus camera, see :func:`~d2ed2q.data.field_of_view`) or ``whole``.
        bits: of the meta learner and each base learner; None where not quantized.
        codebook: name of the codebook; None where not quantized.
        prediction: the view that is the model's prediction.
        thresholds: of every view, chosen on validation images.
        validation_dice: pooled Dice of every view on the validation images, at its threshold.
        training_seconds: how long the training took, all sessions together.
        sha256: of each weights file.
        dims: 2 for pictures, 3 for volumes.
        scale: factor at which the networks see images.
        spacing: millimetres per pixel at which the networks see images; None as they are.
        window: extents of sliding windows for images too large to be taken whole; None for the defaults.
        intensity: how the values of image files become 0 to 1.
        standardize: whether the networks see pictures :func:`~d2ed2q.data.standardization.standardized`.
        taps: of a network of the user's own, see :func:`~d2ed2q.backbones.build_backbone`.
        objects: how masks are cut into objects, chosen on validation images; None where objects are not told apart.
        fuse: whether the meta learner fuses the base learners' features.
        cleaning: which specks of a mask are filled or dropped, chosen on validation images; None for none.
        format: version of this description.
    """

    backbone: str
    learners: int
    in_channels: int
    classes: tuple[str, ...]
    resize: tuple[int, int] | None
    tta: TestTimeAugmentation
    tubular: bool
    region: Literal["field_of_view", "whole"]
    bits: tuple[int, ...] | None
    codebook: str | None
    prediction: str
    thresholds: dict[str, float]
    validation_dice: dict[str, float]
    training_seconds: float
    sha256: dict[str, str]
    dims: int = 2
    scale: float = 1.0
    spacing: tuple[float, ...] | None = None
    window: tuple[int, ...] | None = None
    intensity: Intensity = BYTE
    standardize: bool = False
    taps: tuple[str, ...] = ()
    objects: ObjectRule | None = None
    fuse: bool = True
    cleaning: MaskRule | None = None
    format: int = FORMAT

    @property
    def resolution(self) -> Resolution:
        """At which resolution the networks see images."""
        return Resolution(self.resize, self.scale, self.spacing)

    @property
    def rule(self) -> ObjectRule | MaskRule | None:
        """What is done to a mask after the threshold."""
        return self.objects or self.cleaning

    @property
    def n_outputs(self) -> int:
        """Output channels of each learner: 1 for two classes, else the number of classes."""
        return 1 if len(self.classes) == 2 else len(self.classes)

    def input_spec(self, ensemble: DeepEnsemble) -> InputSpec:
        """What an exported graph of these weights takes."""
        meta = ensemble.meta
        return InputSpec(
            self.in_channels,
            meta.stride,
            meta.minimum,
            self.resize,
            2 if self.dims == 2 else 3,
            self.scale,
            self.spacing,
            self.window,
            self.intensity,
            self.standardize,
        )

    def build(self, imagenet_weights: Path | None = None) -> DeepEnsemble:
        """Builds the ensemble with new random weights."""
        return DeepEnsemble(
            lambda: build_backbone(
                self.backbone, self.in_channels, self.n_outputs, imagenet_weights, self.dims, self.taps
            ),
            n_base=self.learners,
            fuse=self.fuse,
        )
