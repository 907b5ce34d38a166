"""What an exported model says of itself: its manifest, before and after it was scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from d2ed2q.data import Dataset
from d2ed2q.deploy import Manifest
from d2ed2q.deploy.int8_weights import Int8Weight
from d2ed2q.deploy.manifest import Accuracy, Activations, InputSpec, OutputSpec, Weights
from d2ed2q.deploy.prediction import calibrated, calibrated_threshold
from d2ed2q.ensemble import DeepEnsemble, learner_names
from d2ed2q.metrics import expected_calibration_error
from d2ed2q.recipes.config import settings_from
from d2ed2q.recipes.environment import environment, hardware
from d2ed2q.recipes.run_folder import ModelCard, RunFolder
from d2ed2q.recipes.settings import SCORED_IMAGES, ExportSettings
from d2ed2q.recipes.temperature import fit_temperature
from d2ed2q.recipes.train_settings import TrainSettings

__all__ = ["Scored", "finished_manifest", "first_manifest", "known_figures"]

_PRIVATE = (
    "data",
    "out",
    "imagenet_weights",
    "resume",
    "teacher",
)  # settings that tell of the machine, not of the model


@dataclasses.dataclass(frozen=True)
class Scored:
    """Pooled validation pixels of the prediction, and figures.

    Attributes:
        probabilities: ``C×N``.
        labels: ``N``, class numbers.
        lengths: pixels of each image; they add up to N.
        dice: of all pixels.
        auc: of all pixels; None where there are several classes.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    lengths: tuple[int, ...]
    dice: float
    auc: float | None


def first_manifest(
    settings: ExportSettings,
    run: RunFolder,
    card: ModelCard,
    ensemble: DeepEnsemble,
    given: InputSpec,
    weights: dict[str, Int8Weight],
    recorded: dict[str, Any],
    dataset: Dataset,
) -> Manifest:
    """Everything that is known before anything was scored; nothing is calibrated yet."""
    trained, now = run.read_json(run.environment), environment()
    values = {
        key: value
        for key, value in dataclasses.asdict(settings_from(run.config, TrainSettings)).items()
        if key not in _PRIVATE
    }
    error = max(weight.error for weight in weights.values())
    codes = np.concatenate([weight.codes.numpy().ravel() for weight in weights.values()])
    share = np.bincount(codes.astype(np.int16) + 128, minlength=256) / len(codes)
    share = share[share > 0]
    entropy = float(-(share * np.log2(share)).sum())
    used = list(dict.fromkeys(id for split in ("train", "validation") for id in recorded["splits"][split]))
    parameters = [sum(p.numel() for p in module.parameters()) for module in (ensemble, ensemble.meta)]
    return Manifest(
        name=settings.name or settings.run.resolve().name,
        created=now["date"],
        backbone=card.backbone,
        input=given,
        output=OutputSpec(
            classes=card.classes,
            learners=card.learners,
            prediction=card.prediction,
            thresholds=card.thresholds,
            temperature=1.0,
            region=card.region,
            tta=card.tta,
            objects=card.objects,
            fuse=card.fuse,
            cleaning=card.cleaning,
        ),
        weights=Weights(card.bits, card.codebook, error == 0, len(weights), error, entropy, *parameters),
        activations=Activations(settings.activations, None, 0, ()),
        accuracy=Accuracy(
            0, (0.0, 0.0), None, None, card.validation_dice[learner_names(card.learners)[min(card.learners, 1)]]
        ),
        provenance={
            "dataset": dataset.title,
            "terms": dataset.terms,
            # Checksums without file names, which may name patients.
            "sha256": sorted(recorded["sha256"][id] for id in used),
            "seed": values["seed"],
            "settings": values,
            "weights_sha256": card.sha256[run.model.name],
            "trained": f"{trained['date']}, {hardware(trained)}",
            "versions": now["packages"] | trained["packages"],
        },
        parts={},
    )


def finished_manifest(
    manifest: Manifest,
    settings: ExportSettings,
    images: int,
    float_layers: Sequence[str],
    before: Scored,
    after: Scored,
    validation_images: int,
) -> Manifest:
    """The manifest after scoring: temperature and thresholds are for the exported model's probabilities.

    Args:
        manifest: of :func:`first_manifest`.
        settings: of the export.
        images: number of training images that the ranges of activations were found on.
        float_layers: layers that are kept in float32.
        before: the trained model on the validation images.
        after: the exported model on the same.
        validation_images: their number.
    """
    cuts = np.cumsum(after.lengths)[:-1]
    images_apart = zip(np.split(after.probabilities, cuts, axis=1), np.split(after.labels, cuts), strict=True)
    temperature = fit_temperature(list(images_apart))
    ece = None
    if len(after.probabilities) == 1:
        ece = tuple(
            float(expected_calibration_error(calibrated(after.probabilities, t)[0], after.labels))
            for t in (1.0, temperature)
        )
    output = dataclasses.replace(
        manifest.output,
        temperature=temperature,
        thresholds={
            view: calibrated_threshold(value, temperature) for view, value in manifest.output.thresholds.items()
        },
    )
    int8 = settings.activations == "int8"
    return dataclasses.replace(
        manifest,
        output=output,
        activations=Activations(
            settings.activations, settings.calibration if int8 else None, images, tuple(float_layers)
        ),
        accuracy=Accuracy(
            validation_images,
            (before.dice, after.dice),
            None if before.auc is None or after.auc is None else (before.auc, after.auc),
            ece,  # type: ignore[arg-type]  # of two
            manifest.accuracy.learner_dice,
        ),
    )


def known_figures(run: RunFolder, dataset: Dataset) -> dict[str, float]:
    """Test figures of the trained weights, where the run was evaluated; ``dataset`` is what it was trained on."""
    if not run.evaluation.is_file():
        return {}
    result = run.read_json(run.evaluation)
    scopes = result["scopes"]
    scope = "fov" if "fov" in scopes else "whole"
    images = SCORED_IMAGES[result["dataset"]["split"]]
    scored = result["dataset"]
    title = dataset.title if scored["name"] == dataset.name else scored.get("title", scored["name"])
    where = f"on {len(result['images'])} {images}, {title}, as trained"
    figures = scopes[scope][result["prediction"]]
    return {f"{name} {where}": figures[key] for name, key in (("Dice", "dice"), ("AUC", "auc")) if figures.get(key)}
