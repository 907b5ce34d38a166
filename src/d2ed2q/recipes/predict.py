"""Segment images: mask, probability, uncertainty and overlay of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from d2ed2q.data import field_of_view, list_images, read_image, write_png
from d2ed2q.ensemble import DeepEnsemble, views
from d2ed2q.errors import ConfigError, DataError, RunFolderError
from d2ed2q.metrics import mutual_information, predictive_entropy
from d2ed2q.recipes.inference import predict_probabilities, with_background
from d2ed2q.recipes.run_folder import ModelCard, RunFolder
from d2ed2q.recipes.settings import PredictSettings
from d2ed2q.report import overlay, uncertainty_map

__all__ = ["Prediction", "predict", "predict_image"]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model says of one image, at the image's own resolution.

    Attributes:
        probability: float32 ``C×H×W`` of the model's chosen view; C = 1 is the foreground of a binary task.
        mask: int64 ``H×W``, class numbers.
        uncertainty: float32 ``H×W`` in [0, 1]: entropy of the learners' mean probability.
        disagreement: float32 ``H×W`` in [0, 1]: mutual information between the learners.
        learners: float32 ``(K+1)×C×H×W``, every learner's probability, the meta learner first.
    """

    probability: np.ndarray
    mask: np.ndarray
    uncertainty: np.ndarray
    disagreement: np.ndarray
    learners: np.ndarray


def predict_image(
    ensemble: DeepEnsemble,
    image: np.ndarray,
    resize: tuple[int, int] | None = None,
    tta: str = "none",
    region: np.ndarray | None = None,
) -> Prediction:
    """Segments one image.

    Args:
        ensemble: the model.
        image: uint8 ``H×W×C``.
        resize: height and width the network sees, or None for the image's own.
        tta: test-time augmentation: ``none``, ``flips`` or ``dihedral``.
        region: bool ``H×W``; what lies outside is background with certainty. None counts every pixel.

    Raises:
        DataError: the image has another number of channels than the model takes.
    """
    channels = ensemble.meta.in_channels
    if image.shape[-1] == 1 and channels == 3:
        image = np.repeat(image, 3, axis=-1)  # a grey photograph shown in colour is still that photograph
    if image.shape[-1] != channels:
        raise DataError(f"the model takes images of {channels} channels, this one has {image.shape[-1]}")
    tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
    learners = _background_outside(predict_probabilities(ensemble, tensor, resize, tta), region)
    name = ensemble.prediction_name
    probability = views(learners)[name].numpy()
    mask = probability[0] > ensemble.threshold_of(name) if len(probability) == 1 else probability.argmax(0)
    both = with_background(learners).numpy()
    return Prediction(
        probability=probability,
        mask=mask.astype(np.int64),
        uncertainty=predictive_entropy(both.mean(0)),
        disagreement=mutual_information(both),
        learners=learners.numpy(),
    )


def _background_outside(learners: torch.Tensor, region: np.ndarray | None) -> torch.Tensor:
    if region is None:
        return learners
    inside = torch.from_numpy(region)
    outside = torch.zeros(learners.shape[1], 1, 1)
    if len(outside) > 1:
        outside[0] = 1  # the background's own probability
    return torch.where(inside, learners, outside)


def predict(settings: PredictSettings) -> list[Path]:
    """Segments every input and writes its results into the output folder.

    For ``photo.jpg`` these are ``photo_mask.png`` (0 and 255; class numbers for several classes),
    ``photo_probability.png`` (0…255), ``photo_uncertainty.png`` (entropy, dark is certain) and ``photo_overlay.png``.
    Outside the field of view of a model that was trained with such regions, everything is background.

    Returns:
        list[Path]: the masks written.

    Raises:
        DataError: an input is missing or cannot be used.
        RunFolderError: the run has not finished, or the output folder exists.
    """
    torch.set_flush_denormal(True)
    run = RunFolder(settings.run)
    card = run.read_card()
    files = _input_files(settings.inputs)
    if settings.out.exists() and not settings.overwrite and (not settings.out.is_dir() or any(settings.out.iterdir())):
        raise RunFolderError(f"the output folder {settings.out} exists; pass --overwrite, or choose another with --out")
    ensemble = run.load(settings.full_precision)
    tta = settings.tta or card.tta
    masks = []
    console = Console(stderr=True)
    for file in track(files, "predicting", console=console, disable=not console.is_terminal, transient=True):
        image = read_image(file)
        try:
            region = field_of_view(image) if card.region == "field_of_view" else None
            prediction = predict_image(ensemble, image, card.resize, tta, region)
        except DataError as error:
            raise DataError(f"{file}: {error}") from error
        masks.append(_write(settings.out, file.stem, image, prediction, card))
    return masks


def _input_files(inputs: Sequence[Path]) -> list[Path]:
    if not inputs:
        raise ConfigError("predict needs at least one image, or a folder of images")
    files: list[Path] = []
    for entry in inputs:
        if entry.is_dir():
            found = list_images(entry)
            if not found:
                raise DataError(f"there is no image in {entry}; PNG, JPEG, TIFF, BMP and GIF are read")
            files += found
        elif entry.is_file():
            files.append(entry)
        else:
            raise DataError(f"there is no file or folder {entry}")
    taken: dict[str, Path] = {}
    for file in files:
        other = taken.setdefault(file.stem, file)
        if other != file:
            raise DataError(f"{other} and {file} would write results of the same name; predict them into two folders")
    return list(taken.values())


def _write(folder: Path, stem: str, image: np.ndarray, prediction: Prediction, card: ModelCard) -> Path:
    binary = card.n_outputs == 1
    mask = prediction.mask.astype(np.uint8) * (255 if binary else 1)
    foreground = prediction.probability[0] if binary else 1 - prediction.probability[0]
    shown = image if image.shape[-1] == 3 else np.repeat(image[..., :1], 3, axis=-1)
    path = folder / f"{stem}_mask.png"
    write_png(path, mask)
    write_png(folder / f"{stem}_probability.png", _to_byte(foreground))
    write_png(folder / f"{stem}_uncertainty.png", uncertainty_map(prediction.uncertainty))
    write_png(folder / f"{stem}_overlay.png", overlay(shown, prediction.mask > 0))
    return path


def _to_byte(values: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return scaled
