"""What settings must fulfil."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from d2ed2q.errors import ConfigError
from d2ed2q.recipes.budget import check_time

if TYPE_CHECKING:
    from d2ed2q.recipes.settings import ExportSettings
    from d2ed2q.recipes.train_settings import TrainSettings

__all__ = ["check_export", "check_training"]


def check_training(settings: TrainSettings) -> None:
    """Checks the settings of a training.

    Raises:
        ConfigError: one is out of range, or two exclude each other.
    """
    positive = {"epochs": settings.epochs, "batch_size": settings.batch_size, "validate_every": settings.validate_every}
    if settings.quantize:
        positive["epochs_q"] = settings.epochs_q
    optional = {"epoch_images": settings.epoch_images, "validation_images": settings.validation_images}
    positive |= {name: value for name, value in optional.items() if value is not None}
    for name, value in positive.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    if settings.learners < 0 or settings.learners == 1:
        raise ConfigError(
            f"learners must be at least 2, got {settings.learners}: a single base learner is no ensemble; "
            f"0 trains one plain network"
        )
    if not settings.learners and settings.prediction in ("meta", "ensemble"):
        raise ConfigError(f"one plain network (learners 0) has no {settings.prediction}; leave prediction at auto")
    if not 0 < settings.validation_fraction < 1:
        raise ConfigError(f"validation_fraction must lie between 0 and 1, got {settings.validation_fraction}")
    if settings.training_images == "all" and (settings.keep == "best" or settings.prediction == "better"):
        chosen = "keep = best" if settings.keep == "best" else "prediction = better"
        raise ConfigError(f"{chosen} needs images that are not trained on; give that up, or training_images = all")
    if len(settings.crop) not in (2, 3) or (min(settings.crop) < 8 and any(settings.crop)):
        raise ConfigError(f"crop must be two or three sizes of at least 8 pixels, got {settings.crop}")
    for name in ("foreground", "brightness", "contrast", "gamma", "zoom"):
        if not 0 <= getattr(settings, name) < 1:
            raise ConfigError(f"{name} must be from 0 to below 1, got {getattr(settings, name)}")
    if not 0 <= settings.elastic <= 100:
        raise ConfigError(f"elastic must lie between 0 and 100 pixels, got {settings.elastic}")
    if not 0 <= settings.rotate <= 180:
        raise ConfigError(f"rotate must lie between 0 and 180 degrees, got {settings.rotate}")
    if not settings.mirror and settings.tta in ("flips", "dihedral"):
        raise ConfigError(f"tta = {settings.tta} averages mirror images, which are not trained on without mirror")
    if settings.tta == "dihedral" and any(settings.extents) and not settings.turned:
        shown = "×".join(map(str, settings.extents))
        raise ConfigError(
            f"tta = dihedral averages quarter turns, and {shown} is never turned in training; use flips, or equal sizes"
        )
    if (settings.folds is None) != (settings.fold is None):
        raise ConfigError("folds and fold belong together: --folds 5 --fold 0")
    if settings.folds is not None and settings.folds < 2:
        raise ConfigError(f"folds must be at least 2, got {settings.folds}")
    if settings.folds is not None and settings.fold is not None and not 0 <= settings.fold < settings.folds:
        raise ConfigError(
            f"fold must lie between 0 and {settings.folds - 1} for {settings.folds} folds, got {settings.fold}"
        )
    for name in ("lr", "lr_q", "alpha", "weight_decay", "clip", "checkpoint_seconds"):
        value = getattr(settings, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{name} must be a finite number of 0 or more, got {value}")
    processes = settings.devices * settings.nodes
    if min(settings.devices, settings.nodes) < 1:
        raise ConfigError(f"devices and nodes must be at least 1, got {settings.devices} and {settings.nodes}")
    if settings.batch_size % processes:
        raise ConfigError(f"batch_size must be a multiple of devices × nodes = {processes}, got {settings.batch_size}")
    if processes > 1 and settings.budget is not None:
        raise ConfigError("a budget is planned for one process; plan without --devices, or give epochs yourself")
    if settings.teacher is not None and settings.budget is not None:
        raise ConfigError(
            "a budget plans how images are seen, and a student has to see them as its teacher does; give epochs, or "
            "use: d2ed2q distill"
        )
    if not 0 < settings.teacher_share <= 1:
        raise ConfigError(f"teacher_share must be above 0 and at most 1, got {settings.teacher_share}")
    check_time(settings.budget, settings.time_limit)
    if settings.fill_time and settings.time_limit is None and settings.budget is None:
        raise ConfigError("fill_time needs a time_limit (seconds) or a budget to fill")
    if not 0 <= settings.seed < 2**63:
        raise ConfigError(f"the seed must be 0 or more and below 2^63, got {settings.seed}")
    for name in ("lr", "lr_q"):
        if getattr(settings, name) == 0:
            raise ConfigError(f"{name} must be positive, got {getattr(settings, name)}")
    _ = settings.resolution  # which checks itself
    if len(settings.bits) not in (1, settings.learners + 1):
        raise ConfigError(
            f"bits takes one number, or {settings.learners + 1} (meta learner, then {settings.learners} base learners),"
            f" got {len(settings.bits)}: {settings.bits}"
        )


def check_export(settings: ExportSettings) -> None:
    """Checks the settings of an export.

    Raises:
        ConfigError: one is out of range, or the file's ending is not the format's.
    """
    if settings.images < 1:
        raise ConfigError(f"images must be at least 1, got {settings.images}")
    if not (math.isfinite(settings.tolerance) and settings.tolerance >= 0):
        raise ConfigError(f"tolerance must be 0 or more points of Dice, got {settings.tolerance}")
    suffix = {"d2q": ".d2q", "onnx": ".onnx", "openvino": ".xml"}[settings.format]
    if settings.out.suffix != suffix:
        raise ConfigError(f"--out must end in {suffix} for --format {settings.format}, got {settings.out}")
