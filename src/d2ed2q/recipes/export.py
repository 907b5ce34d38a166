"""Write a trained run as one file: exact int8 weights, calibrated activations, and proof that nothing was lost."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx
import torch
from rich.console import Console
from torch import Tensor

from d2ed2q.data import Sample, evenly_spread
from d2ed2q.deploy import Manifest, Prediction, Predictor, without_telemetry
from d2ed2q.deploy.graph import float_graph
from d2ed2q.deploy.int8_graph import activation_layers, int8_activations, int8_weights, with_float_layers
from d2ed2q.deploy.int8_weights import Int8Weight, int8_weight
from d2ed2q.deploy.manifest import InputSpec, Refusal
from d2ed2q.deploy.pipeline import as_seen
from d2ed2q.deploy.predictor import padded
from d2ed2q.ensemble import DeepEnsemble
from d2ed2q.errors import AccuracyError, ConfigError, RunFolderError, StorageError
from d2ed2q.files import storage_error
from d2ed2q.metrics import roc_auc
from d2ed2q.quantization import quantizable_weights
from d2ed2q.recipes.export_files import in_memory, write_export
from d2ed2q.recipes.export_manifest import Scored, finished_manifest, first_manifest, known_figures
from d2ed2q.recipes.inference import predict_sample
from d2ed2q.recipes.refusal import find_refusal
from d2ed2q.recipes.run_data import recorded_data
from d2ed2q.recipes.run_folder import ModelCard, RunFolder
from d2ed2q.recipes.sensitivity import choose_float_layers, costliest_layers
from d2ed2q.recipes.settings import ExportSettings
from d2ed2q.recipes.validation import pooled_dice, pooled_predictions

__all__ = ["export"]

_LARGEST_SIDE = {2: 1024, 3: 96}  # of a calibration image; ranges do not need more


def export(settings: ExportSettings) -> Manifest:
    """Exports a run.

    Weights keep their trained values; the ranges of activations are found on training images; Dice, AUC, threshold and
    temperature are measured on validation images. Test images are not touched.

    Returns:
        Manifest: of the bundle (also where only its graph was written).

    Raises:
        AccuracyError: int8 activations cost more Dice than allowed.
        RunFolderError: the run has not finished, or the file exists.
        DataError: the images are not those that the run was trained on.
        ConfigError: a layer that does not exist.
    """
    torch.set_flush_denormal(True)
    without_telemetry()
    _require_free(settings)
    run = RunFolder(settings.run)
    card = run.read_card()
    ensemble = run.load()
    recorded = run.read_json(run.data)
    dataset, splits = recorded_data(run, settings.data)
    with _working("reading the graph"):
        graph = float_graph(ensemble)
        weights = _weights(run, card, ensemble)
    given = card.input_spec(ensemble)
    model, calibration_images = graph.model, 0
    if settings.activations == "int8":
        with _working("finding the ranges of activations"):
            images = [
                _calibration_image(dataset.read(case), given)
                for case in evenly_spread(splits["train"], settings.images)
            ]
            calibration_images = len(images)
            model = int8_activations(graph.model, images, settings.calibration)
    model = int8_weights(model, graph, weights)
    samples = [dataset.read(case) for case in splits["validation"]]
    with _working("scoring the trained model on validation images"):
        before = _scored(lambda s: predict_sample(ensemble, card, s), samples, ensemble)
    float_layers = _matching(activation_layers(model), settings.float_layers)
    model = with_float_layers(model, float_layers) if float_layers else model

    def score(candidate: onnx.ModelProto) -> Scored:
        predictor = Predictor(in_memory(settings.out, manifest, candidate))

        def predict(sample: Sample) -> Tensor:
            return torch.from_numpy(predictor.scaled_probabilities(sample.image.numpy(), sample.spacing))

        return _scored(predict, samples, ensemble)

    manifest = first_manifest(settings, run, card, ensemble, given, weights, recorded, dataset)
    with _working("scoring the exported model on validation images"):
        after = score(model)
    if _lost(before, after) > settings.tolerance and settings.activations == "int8":
        image = _calibration_image(samples[0], given)
        with _working("finding the layers whose rounding costs most"):
            ranked = costliest_layers(model, image)
        if not settings.auto:
            raise AccuracyError(
                f"int8 activations cost {_lost(before, after):.2f} points of Dice on {len(samples)} validation images "
                f"({before.dice:.4f} to {after.dice:.4f}), more than {settings.tolerance}; keep the costliest in "
                f"float32 with --float-layers {' '.join(ranked[:3])}, or let --auto choose"
            )
        with _working("keeping layers in float32"):
            model, kept, after = choose_float_layers(
                model, ranked, score, lambda found: _lost(before, found) <= settings.tolerance
            )
        float_layers = [*float_layers, *kept]
    if _lost(before, after) > settings.tolerance:
        raise AccuracyError(
            f"the exported model loses {_lost(before, after):.2f} points of Dice on {len(samples)} validation images, "
            f"more than {settings.tolerance}, even without int8 activations: its {card.codebook or 'float'} weights do "
            f"not fit int8; train with --codebook geometric"
        )
    manifest = finished_manifest(manifest, settings, calibration_images, float_layers, before, after, len(samples))
    if settings.format == "d2q":
        with _working("finding the doubt above which images are refused"):
            refusal = _refusal(Predictor(in_memory(settings.out, manifest, model)), samples)
        manifest = dataclasses.replace(manifest, refusal=refusal)
    write_export(settings, manifest, model, known_figures(run, dataset))
    return manifest


def _require_free(settings: ExportSettings) -> None:
    paths = [settings.out, settings.out.with_suffix(".bin")] if settings.format == "openvino" else [settings.out]
    for path in paths:
        if path.exists() and (path.is_dir() or not settings.overwrite):
            raise RunFolderError(f"{path} exists; pass --overwrite, or choose another file with --out")
    folder = settings.out.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(folder, error) from error
    if not os.access(folder, os.W_OK):
        raise StorageError(f"cannot write into {folder}; check its permissions, or choose another --out")


@contextlib.contextmanager
def _working(what: str) -> Iterator[None]:
    console = Console(stderr=True)
    with console.status(what) if console.is_terminal else contextlib.nullcontext():
        yield


def _weights(run: RunFolder, card: ModelCard, ensemble: DeepEnsemble) -> dict[str, Int8Weight]:
    steps = run.load_steps() if card.bits is not None else {}
    return {
        weight.name: int8_weight(weight.parameter, weight.channel_axis, steps.get(weight.name))
        for weight in quantizable_weights(ensemble)
    }


def _calibration_image(sample: Sample, given: InputSpec) -> np.ndarray:
    size = given.resolution.size(sample.image.shape[1:], sample.spacing)
    image = as_seen(sample.image.numpy(), size, given.standardize)
    largest = _LARGEST_SIDE[given.dims]
    starts = [max(0, (extent - largest) // 2) for extent in image.shape[1:]]
    middle = (slice(None), *(slice(start, start + largest) for start in starts))
    return padded(image[middle], given)


def _matching(layers: Sequence[str], wanted: Sequence[str]) -> list[str]:
    chosen = []
    for name in wanted:
        found = [layer for layer in layers if layer == name or layer.startswith(name + ".")]
        if not found:
            known = f"layers are {', '.join(layers[:3])}, …" if layers else "no layer has int8 activations"
            raise ConfigError(f"no layer begins with {name!r}; {known}")
        chosen += found
    return list(dict.fromkeys(chosen))


def _scored(predict: Callable[[Sample], Tensor], samples: Sequence[Sample], ensemble: DeepEnsemble) -> Scored:
    view = ensemble.prediction_name
    by_view, labels = pooled_predictions(predict, samples, (view,))
    probabilities = by_view[view]
    dice = pooled_dice(probabilities, labels, ensemble.threshold_of(view))
    lengths = tuple(int(sample.roi.sum() if sample.roi is not None else sample.image[0].numel()) for sample in samples)
    return Scored(
        probabilities, labels, lengths, dice, roc_auc(probabilities[0], labels) if len(probabilities) == 1 else None
    )


def _refusal(predictor: Predictor, samples: Sequence[Sample]) -> Refusal | None:
    given = predictor.manifest.input

    def predict(image: np.ndarray, sample: Sample) -> Prediction:
        return predictor.scaled_prediction(image, sample.spacing)  # which knows nobody's region of interest

    def blur_scale(sample: Sample) -> list[float]:
        own = sample.image.shape[1:]
        return [a / b for a, b in zip(own, given.resolution.size(own, sample.spacing), strict=True)]

    return find_refusal(predict, blur_scale, samples)


def _lost(before: Scored, after: Scored) -> float:
    return (before.dice - after.dice) * 100
