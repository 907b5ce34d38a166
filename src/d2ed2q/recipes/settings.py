"""The settings of the recipes: one frozen dataclass each, the same for library, TOML file and command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from d2ed2q.errors import ConfigError
from d2ed2q.recipes.checks import check_export
from d2ed2q.recipes.train_settings import TestTimeAugmentation

__all__ = [
    "SCORED_IMAGES",
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
    "ZooSettings",
]

SCORED_IMAGES = {
    "test": "test images",
    "all": "images, all of the set",
    "fold": "images of a fold that was left out",
    "validation": "validation images",
}
"""What was scored, in words, by the split of :class:`EvaluateSettings`."""

_Engine = Literal["openvino", "onnxruntime", "torch"]
EngineName = Literal["auto", _Engine]


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
    split: Literal["auto", "test", "validation", "fold", "all"] = "auto"
    """Which images to score; auto is the fold left out, if the run has one, else test. all is every image with a mask,
    of a set that none was trained on."""
    scale: float | None = None
    """Work at this multiple of the images' own resolution, for images of another resolution than those trained on."""
    tta: TestTimeAugmentation | None = None
    """Test-time augmentation; by default as in training."""
    out: Path | None = None
    """Folder for evaluation.json, the report and the picture; by default the run folder, and validation/ in it for
    those of validation images."""
    json: Path | None = None
    """Where to write the figures, besides evaluation.json."""
    full_precision: bool = True
    """Score the full-precision weights too, so that the report can compare."""

    @property
    def folder(self) -> Path:
        """Where figures and report go: those of validation images do not take the place of the test images'."""
        return self.out or (self.run / "validation" if self.split == "validation" else self.run)


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
    """Image files (DICOM too), folders of images, or patterns such as 'photos/*.png'."""
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
    refuse: Literal["model"] | float | None = None
    """Write no mask of an image whose doubt is above this (0 to 1); model takes the bound that the bundle brings."""
    overwrite: bool = False
    """Write into an output folder that holds other things, and segment all images anew."""
    json: bool = False
    """Print a summary of all images as JSON."""

    def __post_init__(self) -> None:
        _check_threads(self.threads)
        if isinstance(self.refuse, float) and not 0 <= self.refuse <= 1:
            raise ConfigError(f"refuse must be model, or a doubt from 0 to 1, got {self.refuse}")


@dataclass(frozen=True)
class BenchSettings:
    """Measure a bundle in every engine that is installed, beside one float network of its architecture."""

    model: Positional[Path]
    """A bundle (model.d2q)."""
    size: tuple[int, ...] | None = None
    """Height and width of the image (of volumes depth first); by default what the model sees, or 512 512."""
    runs: int = 20
    """Timed runs of each engine and network."""
    backbone: str | None = None
    """Of a bundle of your own network, the module:function that builds it; what a bundle names is never imported."""
    threads: int | None = None
    """Cores to use; by default all."""
    engine: Literal["all", _Engine] = "all"
    """The one engine to measure; by default every one that is installed."""
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
class ZooSettings:
    """List the models that come with d2ed2q; their names can be given wherever a bundle can."""

    json: bool = False
    """Print JSON instead of a table."""


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
