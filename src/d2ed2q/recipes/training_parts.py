"""What a training is made of, apart from its data: the model's card, augmentation, devices, and network with loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from d2ed2q.data import Case, Dataset, TrainingAugmentation, TrainingSet
from d2ed2q.ensemble import DeepDiversifiedLoss, DeepEnsemble, view_names
from d2ed2q.errors import ConfigError
from d2ed2q.recipes.card import ModelCard
from d2ed2q.recipes.memory_layout import channels_last
from d2ed2q.recipes.teacher import Teacher
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.training import Batch, make_fabric

__all__ = ["Objective", "augmentation_of", "card_of", "channels_last_batches", "fabric_of", "training_images"]


def card_of(settings: TrainSettings, dataset: Dataset) -> ModelCard:
    """What is known of the model before it is trained."""
    names = view_names(settings.learners)
    return ModelCard(
        backbone=settings.backbone,
        learners=settings.learners,
        in_channels=dataset.channels,
        classes=tuple(dataset.classes),
        resize=settings.resize,
        tta=settings.test_time_augmentation,
        tubular=dataset.tubular,
        region="whole",
        bits=settings.bits_per_learner if settings.quantize else None,
        codebook=settings.codebook if settings.quantize else None,
        prediction=names[0],
        thresholds=dict.fromkeys(names, 0.5),
        validation_dice={},
        training_seconds=0.0,
        sha256={},
        dims=dataset.dims,
        scale=settings.scale,
        spacing=settings.spacing,
        # Volumes are seen in pieces of the size that the networks were trained on.
        window=settings.crop if dataset.dims == 3 and any(settings.crop) else None,
        intensity=dataset.intensity,
        standardize=settings.standardize,
        taps=settings.taps,
        fuse=settings.fuse,
    )


def fabric_of(settings: TrainSettings) -> Fabric:
    """The device and the arithmetic that a run asks for.

    Raises:
        ConfigError: an unknown device, or one that is not here.
    """
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"unknown device {settings.device!r}: choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but PyTorch sees no CUDA device here; use --device cpu")
    torch.backends.cudnn.benchmark = False  # its choice of algorithm differs from run to run
    torch.backends.cudnn.deterministic = True
    return make_fabric(device, settings.precision, settings.devices, settings.nodes, bool(settings.taps))


def augmentation_of(settings: TrainSettings) -> TrainingAugmentation:
    """What a run does to its training images."""
    mirrored = 0.5 if settings.mirror else 0.0
    return TrainingAugmentation(
        flip=mirrored,
        turn=mirrored,
        crop=None if settings.resize is not None or not any(settings.crop) else settings.crop,
        resize=settings.resize,
        foreground=settings.foreground,
        scale=settings.zoom,
        rotate=settings.rotate,
        elastic=settings.elastic,
        hue=settings.hue,
        saturation=settings.saturation,
        value=settings.value,
        brightness=settings.brightness,
        contrast=settings.contrast,
        gamma=settings.gamma,
    )


def training_images(settings: TrainSettings, dataset: Dataset, cases: Sequence[Case]) -> TrainingSet:
    """The training images of the settings.

    Raises:
        D2ED2QError: as :class:`~d2ed2q.data.TrainingSet`.
    """
    augmentation = augmentation_of(settings)
    if not dataset.in_colour:  # three modalities have no hue
        augmentation = dataclasses.replace(augmentation, hue=0.0, saturation=0.0)
    return TrainingSet(dataset, cases, augmentation, settings.seed, settings.resolution, settings.standardize)


def channels_last_batches(stream: Iterator[dict[str, Tensor]]) -> Generator[Batch, None, None]:
    """The same batches, their images channels last in memory."""
    for batch in stream:
        yield {**batch, "image": channels_last(batch["image"])}


class Objective(nn.Module):
    """Network and loss in one module, so that both are compiled and run in the chosen precision together."""

    def __init__(self, settings: TrainSettings, ensemble: DeepEnsemble, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.teacher = teacher  # no module: it is neither trained nor saved
        self.loss = DeepDiversifiedLoss(settings.alpha, settings.diversity, settings.loss, ensemble.diverse_taps)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of one batch and its parts; ``loss`` is the one to differentiate."""
        image, label = batch["image"], batch["label"]
        target = None if self.teacher is None else self.teacher.target(image, label)
        terms = self.loss(self.ensemble(image), label, batch["roi"], target)
        return {"loss": terms.total, "segmentation": terms.segmentation, "diversity": terms.diversity}
