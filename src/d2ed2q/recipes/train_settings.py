"""The settings of ``d2ed2q train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from d2ed2q.data import Resolution
from d2ed2q.recipes.checks import check_training
from d2ed2q.recipes.learning_rate import learning_rate

__all__ = ["ONE_DEVICE", "WHERE", "TestTimeAugmentation", "TrainSettings"]

TestTimeAugmentation = Literal["none", "flips", "dihedral"]


WHERE = ("data", "out", "resume", "checkpoint_seconds", "devices", "nodes")
"""Settings that say where a training is and how it is saved, and not what is trained."""

ONE_DEVICE: Mapping[str, Any] = {"devices": 1, "nodes": 1}
"""What is short, or runs on another machine than the training it takes its settings from, is not shared by several."""


@dataclass(frozen=True)
class TrainSettings:
    """Train an ensemble in full precision, then quantize it step by step, retraining in between."""

    data: Path
    """Folder of the dataset."""
    out: Path
    """Run folder to write; must not exist unless --resume."""
    dataset: str = "auto"
    """Layout of the data, such as drive, nnunet or folder; auto finds out."""
    folds: int | None = None
    """Number of folds for cross-validation by patient; with --fold."""
    fold: int | None = None
    """Which fold to leave out of training and score afterwards, from 0."""
    budget: str | None = None
    """Time to be ready in, such as 60m or 2h: sets everything that is not given, as d2ed2q plan would."""
    time_limit: float | None = None
    """Seconds the whole training may take; when it falls behind, the epochs that are left are shortened to fit."""
    fill_time: bool = False
    """Whether training goes on for more epochs where it is well ahead of --time-limit."""
    backbone: str = "unet-s"
    """Architecture of every learner, such as unet-s or ce-net; or module:function, a network of your own."""
    taps: tuple[str, ...] = ()
    """Of a network of your own, the submodules whose features are fused, such as encoder.1."""
    imagenet_weights: Path | None = None
    """Weights in torchvision's format, a local file: ResNet-34 for ce-net and deeplabv3plus-34, ResNet-18 for -18."""
    learners: int = 3
    """Number K of base learners; the meta learner comes on top. 0 trains one plain network, to compare with."""
    fuse: bool = True
    """Whether the meta learner fuses the base learners' features; without, all learners are trained side by side."""
    epochs: int = 300
    """Epochs in full precision; one epoch sees a crop of every training image."""
    epoch_images: int | None = None
    """Images an epoch, in turn, for large sets; by default all."""
    epochs_q: int = 75
    """Epochs of retraining after each quantization step."""
    quantize: bool = True
    """Whether to quantize at all."""
    bits: tuple[int, ...] = (4,)
    """Bits of the weights, 2 to 8: one number for all, or one each for the meta learner and base learners 1 to K."""
    codebook: str = "geometric"
    """The values weights may take: geometric (exact in int8 engines), log, pow2, linear, minmax or tanh."""
    fractions: tuple[float, ...] = (0.3, 0.3, 0.2, 0.2)
    """Share of the weights that each quantization step takes; they add up to 1."""
    random: bool = True
    """Draw at random among the largest weights (second stage); off is plain incremental quantization."""
    alpha: float | None = None
    """Weight of the diversity term; by default 0.01, of the released form 0.005, of cosine 0.1."""
    diversity: Literal["unit", "normalised", "released", "cosine"] = "unit"
    """Form of the diversity term; of unit and cosine only the features' directions count, not how large they are."""
    loss: Literal["bce", "bce_dice"] = "bce"
    """Segmentation loss of every learner."""
    teacher: Path | None = None
    """Run folder of a finished training whose learners' mean is learned beside the labels (distillation)."""
    teacher_share: float = 0.5
    """Share of the teacher in what is learned; the rest is the label."""
    batch_size: int = 4
    """Images a step."""
    crop: tuple[int, ...] = (256, 256)
    """Random crop, height and width (of volumes depth, height and width); 0 0 takes whole images; not with --resize."""
    foreground: float = 0.0
    """Share of the crops that are centred on foreground, each class as often."""
    standardize: bool = False
    """Bring every picture's channels to one mean and one spread inside its field of view: light matters less."""
    resize: tuple[int, int] | None = None
    """Resize whole images to this height and width instead, in training and in prediction."""
    scale: float = 1.0
    """Work at this multiple of the images' own resolution."""
    spacing: tuple[float, ...] | None = None
    """Work at this many millimetres per pixel along height and width (of volumes depth, height and width)."""
    lr: float | None = None
    """Peak learning rate in full precision; by default what suits the backbone."""
    lr_q: float | None = None
    """Peak learning rate of each retraining; by default a third of that in full precision."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """Optimizer, fused."""
    weight_decay: float = 1e-4
    """Weight decay of the optimizer."""
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """Learning-rate schedule of each phase."""
    clip: float = 1.0
    """Largest norm of the gradient, of all learners together; 0 does not clip."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic; auto is bf16 where the machine computes it natively."""
    compile: bool = False
    """Compile network and loss (needs a C++ compiler; pays after some minutes)."""
    device: str = "auto"
    """cpu, cuda or auto."""
    devices: int = 1
    """Devices (GPUs, or processes on the CPU) of each machine that share every batch."""
    nodes: int = 1
    """Machines that do; start the same command on each with torchrun."""
    hue: float = 30.0
    """Largest hue jitter, in units of two degrees (180 to the circle); at most 90."""
    saturation: float = 5.0
    """Largest saturation jitter, on a scale of 0 to 255."""
    value: float = 15.0
    """Largest brightness jitter, on a scale of 0 to 255."""
    brightness: float = 0.0
    """Largest change of brightness, as a share of white; for images that are not colour photographs."""
    contrast: float = 0.0
    """Contrast is multiplied by 1 ± this."""
    gamma: float = 0.0
    """The exponent of intensities is drawn from 1 ± this."""
    zoom: float = 0.1
    """Height and width are scaled by two factors drawn from 1 ± this."""
    rotate: float = 0.0
    """Largest rotation in the image plane, in degrees."""
    mirror: bool = True
    """Mirror training images along every axis, and turn square ones by quarters, at random; off where left and right
    are different classes."""
    elastic: float = 0.0
    """Standard deviation of smooth random displacements, in pixels; 0 does not bend images."""
    validation_fraction: float = 0.2
    """Share of the training patients held out to choose epoch and threshold."""
    validation_images: int | None = None
    """At most so many validation images, evenly spread over those that there are; by default all."""
    training_images: Literal["training", "all"] = "training"
    """Images that are trained on; "all" takes the validation images too, which then choose neither epoch nor view."""
    threshold_images: Literal["validation", "all"] = "validation"
    """Images that thresholds are chosen on; "all" takes the training images too, where validation images are few."""
    validate_every: int = 5
    """Epochs between validations."""
    keep: Literal["auto", "best", "last"] = "auto"
    """Weights that each phase ends with: the best validated ones or the last; auto is the last of a cosine schedule
    where fewer than 20 images validate, else the best."""
    prediction: Literal["auto", "better", "meta", "ensemble"] = "auto"
    """What predicts: the meta learner, the mean of all learners, or the better of the two on validation images; auto is
    the better where 20 or more images validate, else the meta learner (without fusion the mean)."""
    tta: Literal["auto", "none", "flips", "dihedral"] = "auto"
    """Test-time augmentation when the threshold is chosen, and by default in evaluation and prediction; auto is what
    training shows, too: dihedral for square pictures or crops, else flips, and none where nothing is mirrored."""
    clean: bool = True
    """Choose on validation images which specks of a binary mask to fill or drop; off leaves masks as thresholded."""
    checkpoint_seconds: float = 120.0
    """Least time between two checkpoints."""
    seed: int = 0
    """Seed of everything random."""
    resume: bool = False
    """Go on with the run in --out."""

    def __post_init__(self) -> None:
        check_training(self)

    @property
    def resolution(self) -> Resolution:
        """At which resolution the networks see images."""
        return Resolution(self.resize, self.scale, self.spacing)

    @property
    def bits_per_learner(self) -> tuple[int, ...]:
        """Bits of the meta learner and of base learners 1…K."""
        return self.bits if len(self.bits) > 1 else self.bits * (self.learners + 1)

    @property
    def extents(self) -> tuple[int, ...]:
        """Sizes of what is trained on; zeros where those are the images' own."""
        return self.resize or self.crop

    @property
    def turned(self) -> bool:
        """Whether quarter turns of what is trained on are surely seen in training: only squares are turned."""
        height, width = self.extents[-2:]
        return self.mirror and height == width > 0

    @property
    def test_time_augmentation(self) -> TestTimeAugmentation:
        """``tta`` with ``auto`` resolved."""
        if self.tta != "auto":
            return self.tta
        if not self.mirror:
            return "none"
        return "dihedral" if self.turned and len(self.extents) == 2 else "flips"

    @property
    def rate(self) -> float:
        """Peak learning rate in full precision."""
        return learning_rate(self.backbone, len(self.crop)) if self.lr is None else self.lr

    @property
    def rate_q(self) -> float:
        """Peak learning rate of each retraining."""
        return self.rate / 3 if self.lr_q is None else self.lr_q
