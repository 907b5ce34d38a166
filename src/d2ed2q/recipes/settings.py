"""The settings of every recipe: one frozen dataclass each, the same for library, TOML file and command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from d2ed2q.data import Resolution
from d2ed2q.errors import ConfigError
from d2ed2q.recipes.checks import check_export, check_training

__all__ = [
    "BenchSettings",
    "DataCheckSettings",
    "DemoSettings",
    "EngineName",
    "EvaluateSettings",
    "ExportSettings",
    "FoldsSettings",
    "InspectSettings",
    "PlanSettings",
    "PredictSettings",
    "TestTimeAugmentation",
    "TrainSettings",
]

TestTimeAugmentation = Literal["none", "flips", "dihedral"]
EngineName = Literal["auto", "openvino", "onnxruntime", "torch"]


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
    backbone: str = "unet-s"
    """Architecture of every learner, such as unet-s or ce-net; or module:function, a network of your own."""
    taps: tuple[str, ...] = ()
    """Of a network of your own, the submodules whose features are fused, such as encoder.1."""
    imagenet_weights: Path | None = None
    """ResNet-34 weights in torchvision's format, for ce-net; a local file."""
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
    """Weight of the diversity term; by default 0.1 (normalised) or 0.005 (released)."""
    diversity: Literal["normalised", "released"] = "normalised"
    """Form of the diversity term; the released one grows with batch and image size."""
    loss: Literal["bce", "bce_dice"] = "bce"
    """Segmentation loss of every learner."""
    batch_size: int = 4
    """Images a step."""
    crop: tuple[int, ...] = (256, 256)
    """Random crop, height and width (of volumes depth, height and width); 0 0 takes whole images; not with --resize."""
    foreground: float = 0.0
    """Share of the crops that are centred on foreground, each class as often."""
    resize: tuple[int, int] | None = None
    """Resize whole images to this height and width instead, in training and in prediction."""
    scale: float = 1.0
    """Work at this multiple of the images' own resolution."""
    spacing: tuple[float, ...] | None = None
    """Work at this many millimetres per pixel along height and width (of volumes depth, height and width)."""
    lr: float = 3e-3
    """Peak learning rate in full precision."""
    lr_q: float | None = None
    """Peak learning rate of each retraining; by default a third of --lr."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """Optimizer, fused."""
    weight_decay: float = 1e-4
    """Weight decay of the optimizer."""
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """Learning-rate schedule of each phase."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic; auto is bf16 where the machine computes it natively."""
    compile: bool = False
    """Compile network and loss (needs a C++ compiler; pays after some minutes)."""
    device: str = "auto"
    """cpu, cuda or auto."""
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
    validation_fraction: float = 0.2
    """Share of the training patients held out to choose epoch and threshold."""
    validation_images: int | None = None
    """At most so many validation images, evenly spread over those that there are; by default all."""
    validate_every: int = 5
    """Epochs between validations."""
    tta: TestTimeAugmentation = "dihedral"
    """Test-time augmentation when the threshold is chosen, and by default in evaluation and prediction."""
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
    def rate_q(self) -> float:
        """Peak learning rate of each retraining."""
        return self.lr / 3 if self.lr_q is None else self.lr_q


@dataclass(frozen=True)
class PlanSettings:
    """Look at images and machine and write training settings that fit both and a budget of time, with the reasons."""

    data: Path
    """Folder of the dataset."""
    dataset: str = "auto"
    """Layout of the data, such as drive, nnunet or folder; auto finds out."""
    budget: str = "60m"
    """Time that the training may take, such as 90s, 10m, 1h or 1h30m."""
    out: Annotated[Path, arg(aliases=["-o"])] = Path("plan.toml")
    """File to write."""
    backbone: str | None = None
    """Architecture of every learner, if it is not to be chosen."""
    folds: int | None = None
    """Number of folds for cross-validation by patient; with --fold."""
    fold: int | None = None
    """Which fold to leave out of training and score afterwards, from 0."""
    seed: int = 0
    """Seed of everything random."""
    overwrite: bool = False
    """Replace a file that exists."""


@dataclass(frozen=True)
class EvaluateSettings:
    """Score a trained run on a dataset, in full precision and few bits, and write its report."""

    run: Positional[Path]
    """Run folder of a finished training."""
    data: Path | None = None
    """Folder of the dataset; by default the one the run was trained on."""
    dataset: str = "auto"
    """Layout of the data, such as drive, nnunet or folder; auto finds out."""
    split: Literal["auto", "test", "validation", "fold"] = "auto"
    """Which images to score; auto is the fold left out, if the run has one, else test."""
    scale: float | None = None
    """Work at this multiple of the images' own resolution, for images of another resolution than those trained on."""
    tta: TestTimeAugmentation | None = None
    """Test-time augmentation; by default as in training."""
    out: Path | None = None
    """Folder for evaluation.json, the report and the picture; by default the run folder."""
    json: Path | None = None
    """Where to write the figures, besides evaluation.json."""
    full_precision: bool = True
    """Score the full-precision weights too, so that the report can compare."""


@dataclass(frozen=True)
class FoldsSettings:
    """Summarize a cross-validation: the figures of every fold that was left out, their mean and spread."""

    runs: Positional[tuple[Path, ...]]
    """Run folders, one a fold, each evaluated."""
    json: Path | None = None
    """Where to write the summary."""


@dataclass(frozen=True)
class ExportSettings:
    """Write a trained run as one file that runs without PyTorch, weights in int8 without a second rounding."""

    run: Positional[Path]
    """Run folder of a finished training."""
    out: Annotated[Path, arg(aliases=["-o"])]
    """File to write: model.d2q, or .onnx, or .xml with a .bin beside it."""
    format: Literal["d2q", "onnx", "openvino"] = "d2q"
    """A bundle, or only the graph for a runtime of your own."""
    data: Path | None = None
    """Folder of the dataset; by default the one the run was trained on."""
    activations: Literal["int8", "float32"] = "int8"
    """Precision of the activations."""
    calibration: Literal["mean-min-max", "min-max", "percentile", "histogram"] = "mean-min-max"
    """How the ranges of int8 activations are found, on training images."""
    images: int = 16
    """Number of training images to find the ranges on; fewer if there are fewer."""
    tolerance: float = 0.2
    """Points of Dice (hundredths) that int8 activations may cost on the validation images."""
    auto: bool = False
    """Keep layers in float32 until the tolerance is met, those first whose rounding costs most."""
    float_layers: tuple[str, ...] = ()
    """Layers to keep in float32; a name stands for all layers that begin with it."""
    name: str | None = None
    """Name of the model; by default that of the run folder."""
    overwrite: bool = False
    """Replace a file that exists."""

    def __post_init__(self) -> None:
        check_export(self)


def _check_threads(threads: int | None) -> None:
    if threads is not None and not 1 <= threads <= 1024:
        raise ConfigError(f"threads must be a number from 1 to 1024, got {threads}")


@dataclass(frozen=True)
class PredictSettings:
    """Segment images with a bundle or a run: mask, probability, uncertainty and overlay of each; can be resumed."""

    model: Positional[Path]
    """A bundle (model.d2q), or the run folder of a finished training."""
    inputs: Positional[tuple[Path, ...]]
    """Image files, folders of images, or patterns such as 'photos/*.png'."""
    out: Path
    """Folder to write the results to; called again, the same command goes on where it stopped."""
    tta: TestTimeAugmentation | None = None
    """Test-time augmentation; by default as in training."""
    window: int | None = None
    """Height and width of sliding windows; by default only images above 2.4 million pixels are cut (into 1024)."""
    engine: EngineName = "auto"
    """What runs a bundle: openvino, onnxruntime or torch; auto takes the first that is installed."""
    threads: int | None = None
    """Cores to use; by default all."""
    full_precision: bool = False
    """Of a run folder, use the full-precision weights instead of the few-bit ones."""
    overwrite: bool = False
    """Write into an output folder that holds other things, and segment all images anew."""
    json: bool = False
    """Print a summary of all images as JSON."""

    def __post_init__(self) -> None:
        _check_threads(self.threads)


@dataclass(frozen=True)
class BenchSettings:
    """Measure a bundle in every engine that is installed, beside one float network of its architecture."""

    model: Positional[Path]
    """A bundle (model.d2q)."""
    size: tuple[int, ...] | None = None
    """Height and width of the image (of volumes depth first); by default what the model sees, or 512 512."""
    runs: int = 20
    """Timed runs of each engine and network."""
    threads: int | None = None
    """Cores to use; by default all."""
    out: Path | None = None
    """File to write the figures to (JSON), with a picture of the same name (.png) beside it."""

    def __post_init__(self) -> None:
        _check_threads(self.threads)
        if self.out is not None and self.out.suffix != ".json":
            raise ConfigError(f"--out must end in .json, got {self.out}; the picture goes beside it")
        if self.runs < 3:
            raise ConfigError(f"runs must be at least 3, got {self.runs}")
        if self.size is not None and (len(self.size) not in (2, 3) or min(self.size) < 1):
            raise ConfigError(f"size must be two or three positive numbers, got {self.size}")


@dataclass(frozen=True)
class InspectSettings:
    """Show what is really in a run or a bundle: learners, bits, sizes, checksums; a bundle is tested on its sample."""

    model: Positional[Path]
    """A bundle (model.d2q), or the run folder of a finished training."""
    engine: EngineName = "auto"
    """What runs the sample of a bundle."""
    json: bool = False
    """Print JSON instead of tables."""


@dataclass(frozen=True)
class DataCheckSettings:
    """Check a dataset: every pair, orphan, size mismatch and mask that is not what the set promises."""

    path: Positional[Path]
    """Folder of the dataset."""
    dataset: str = "auto"
    """Layout of the data, such as drive, nnunet or folder; auto finds out."""
    json: bool = False
    """Print JSON instead of tables."""


@dataclass(frozen=True)
class DemoSettings:
    """Show everything on made-up retinas: train, quantize, evaluate, report; minutes on two cores, no download."""

    out: Path = Path("demo")
    """Folder for images, run and report; an earlier demo there is replaced."""
    seed: int = 0
    """Seed of the images and the training."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"the seed must be 0 or more and below 2^63, got {self.seed}")
