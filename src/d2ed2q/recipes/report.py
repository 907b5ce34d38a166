"""From a scored run to its report page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from d2ed2q.data import Case, Dataset, Sample, is_volume
from d2ed2q.deploy import Prediction, make_prediction
from d2ed2q.deploy.cleaning import clean_mask
from d2ed2q.deploy.model_card import threshold_images
from d2ed2q.ensemble import DeepEnsemble, composition, learner_names
from d2ed2q.metrics import Ranking, reliability_curve, risk_coverage
from d2ed2q.quantization import quantizable_weights
from d2ed2q.recipes.config import settings_from
from d2ed2q.recipes.environment import hardware
from d2ed2q.recipes.inspect_run import tensor_facts, weight_bytes
from d2ed2q.recipes.run_folder import ModelCard, RunFolder
from d2ed2q.recipes.scoring import Scored
from d2ed2q.recipes.settings import SCORED_IMAGES
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.report import Example, RunReport, WeightHistogram, draw_hero, write_report
from d2ed2q.training import read_log

__all__ = ["write_run_report"]

_HISTOGRAM_SAMPLE = 20_000


def write_run_report(
    run: RunFolder,
    written: RunFolder,
    card: ModelCard,
    ensemble: DeepEnsemble,
    dataset: Dataset,
    cases: Sequence[Case],
    few_bit: Scored,
    full: Scored | None,
    result: Mapping[str, Any],
) -> None:
    """Writes ``report.html``, and the median image, where there is one, as ``example.png``, into a folder.

    Args:
        run: the run.
        written: the folder.
        card: its model card.
        ensemble: its finished weights.
        dataset: what was scored.
        cases: the images scored, in the order of the predictions.
        few_bit: predictions of the finished weights.
        full: predictions of the full-precision weights, if they were scored.
        result: the content of ``evaluation.json``.
    """
    examples = _examples(card, ensemble.prediction_name, dataset, cases, few_bit)
    content = RunReport(
        title=f"{card.backbone} {'ensemble' if card.learners else 'network'} on {dataset.title}",
        summary=_summary(run, card, ensemble, dataset, result),
        history=read_log(run.metrics),
        evaluation=dict(result),
        curves={
            "few_bit": _curves(few_bit, card),
            "full_precision": _curves(full, card) if full is not None else None,
        },
        weights=_histograms(run, card, ensemble) if card.bits is not None else [],
        examples=examples,
        provenance=_provenance(run, result),
    )
    write_report(written.report, content)
    if examples:  # else no image has foreground, none was found, and there is no Dice
        draw_hero(written.example, examples)


def _summary(
    run: RunFolder, card: ModelCard, ensemble: DeepEnsemble, dataset: Dataset, result: Mapping[str, Any]
) -> dict[str, str]:
    trained: TrainSettings = settings_from(run.config, TrainSettings)
    parameters = sum(parameter.numel() for parameter in ensemble.parameters())
    bits = "not quantized"
    if card.bits is not None:
        alike = len(set(card.bits)) == 1
        bits = str(card.bits[0]) if alike else f"{card.bits[0]} (meta), {', '.join(map(str, card.bits[1:]))} (base)"
    threshold = "none, each pixel is of its most probable class"
    if len(card.classes) == 2:
        chosen_on = threshold_images(dataclasses.asdict(trained))
        threshold = f"{card.thresholds[card.prediction]:.3f}, chosen on {chosen_on}"
    return {
        "dataset": dataset.title,
        "scored": _scored(card, result),
        "backbone": f"{card.backbone}, {composition(card.learners, card.fuse)}",
        "parameters": f"{parameters:,}",
        "bits": bits,
        "size": _size(ensemble, card),
        "codebook": card.codebook or "none",
        "prediction": card.prediction,
        "threshold": threshold,
        "training time": f"{card.training_seconds / 60:.0f} minutes",
        "seed": str(trained.seed),
    }


def _size(ensemble: DeepEnsemble, card: ModelCard) -> str:
    sizes = weight_bytes(ensemble, card, tensor_facts(ensemble, card))
    few = sizes["ensemble_few_bit"]
    if few is None:
        return f"{sizes['ensemble_float'] / 1e6:.2f} MB in float32"
    return f"{few / 1e6:.2f} MB by entropy, {few / sizes['one_float_learner']:.2f} × one float learner"


def _inside(scored: Scored, view: str, card: ModelCard) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pixels that count: foreground probability, truth, and the scored class's confidence and whether it is right."""
    parts = []
    for probability, label, roi in zip(scored.probabilities[view], scored.labels, scored.rois, strict=True):
        keep = np.ones_like(label, bool) if roi is None else roi
        if card.n_outputs == 1:
            foreground = probability[0]
            mask = (foreground > scored.thresholds[view]) & keep
            if card.cleaning is not None:
                mask = clean_mask(mask, card.cleaning)
            confidence, correct = np.where(mask, foreground, 1 - foreground), mask == (label > 0)
        else:
            foreground = 1 - probability[0]
            confidence, correct = probability.max(0), probability.argmax(0) == label
        parts.append([values[keep] for values in (foreground, label > 0, confidence, correct)])
    foreground, truth, confidence, correct = (np.concatenate(values) for values in zip(*parts, strict=True))
    return foreground, truth, confidence, correct


def _curves(scored: Scored, card: ModelCard) -> dict[str, dict[str, Any]]:
    """Of every view the curves whose areas and errors the figures give; of several classes foreground is ranked."""
    curves = {}
    for view in scored.probabilities:
        foreground, truth, confidence, correct = _inside(scored, view, card)
        roc = Ranking(foreground, truth).roc_curve()
        binary = card.n_outputs == 1
        reliability = reliability_curve(foreground, truth) if binary else reliability_curve(confidence, correct)
        share = reliability.pixels / reliability.pixels.sum()
        risk = risk_coverage(confidence, correct)
        curves[view] = {
            "roc": (roc.fpr, roc.tpr),
            "reliability": (reliability.predicted, reliability.observed, share),
            "risk": (risk.coverage, risk.risk),
        }
    return curves


def _histograms(run: RunFolder, card: ModelCard, ensemble: DeepEnsemble) -> list[WeightHistogram]:
    """Of each learner the largest tensor, before and after quantization."""
    before = {weight.name: weight.parameter.detach() for weight in quantizable_weights(run.load(full_precision=True))}
    after = {weight.name: weight.parameter.detach() for weight in quantizable_weights(ensemble)}
    largest: dict[str, Any] = {}
    for fact in tensor_facts(ensemble, card):
        if fact.learner not in largest or math.prod(fact.shape) > math.prod(largest[fact.learner].shape):
            largest[fact.learner] = fact
    histograms = []
    for fact in largest.values():
        step = max(1, before[fact.name].numel() // _HISTOGRAM_SAMPLE)
        values = [weights[fact.name].flatten()[::step].numpy() for weights in (before, after)]
        histograms.append(WeightHistogram(fact.name, fact.bits or 32, values[0], values[1], fact.distinct_per_channel))
    return histograms


def _examples(card: ModelCard, view: str, dataset: Dataset, cases: Sequence[Case], scored: Scored) -> list[Example]:
    """Best, median and worst image by the prediction's Dice, where there is any; of several classes their mean."""
    scopes = scored.figures["scopes"]
    dice = scopes["fov" if "fov" in scopes else "whole"][view]["per_image"]["dice"]["values"]
    order = sorted((index for index, value in enumerate(dice) if value is not None), key=lambda index: -dice[index])
    if not order:
        return []
    roles = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    return [
        _example(
            role,
            float(dice[index]),
            card,
            dataset.read(cases[index]),
            _prediction(card, scored, view, int(index)),
            is_volume(cases[index].image),
        )
        for role, index in roles.items()
    ]


def _prediction(card: ModelCard, scored: Scored, view: str, index: int) -> Prediction:
    """What was scored for one image, with the doubt that its learners have."""
    learners = np.stack([scored.probabilities[name][index] for name in learner_names(card.learners)])
    return make_prediction(learners, view, scored.thresholds[view], scored.rois[index], rule=card.rule)


def _example(role: str, dice: float, card: ModelCard, sample: Sample, prediction: Prediction, scan: bool) -> Example:
    assert sample.label is not None  # only labelled cases are scored
    foreground = prediction.probability[0] if card.n_outputs == 1 else 1 - prediction.probability[0]
    label, mask = sample.label.numpy() > 0, prediction.mask > 0
    # What is taken for another class than it is, is a false alarm; its own colour would say that it was found.
    other = (prediction.mask != sample.label.numpy()) & label & mask
    # Of a volume, the axial slice with most foreground; of a scan, the patient's front up and right side left.
    depth = int(label.sum((1, 2)).argmax()) if label.ndim == 3 else 0

    def shown(array: np.ndarray) -> np.ndarray:
        array = array[depth] if array.ndim == 3 else array
        return np.ascontiguousarray(array[::-1, ::-1]) if scan else array

    channels = [shown((channel * 255).round().byte().numpy()) for channel in sample.image]
    return Example(
        role=role,
        id=sample.id,
        dice=dice,
        image=np.stack(channels if len(channels) == 3 and label.ndim == 2 else channels[:1] * 3, axis=-1),
        label=shown(label & ~other),
        mask=shown(mask),
        probability=shown(foreground),
        uncertainty=shown(prediction.uncertainty),
        roi=None if sample.roi is None else shown(sample.roi.numpy()),
    )


def _scored(card: ModelCard, result: Mapping[str, Any]) -> str:
    """Which images, and how: figures of images that chose the thresholds are no test."""
    images = f"{len(result['images'])} {SCORED_IMAGES[result['dataset']['split']]}"
    ways = [f"test-time augmentation {result['tta']}"] if result["tta"] != "none" else []
    ways += [f"{card.scale:g} times their resolution"] if card.scale != 1 else []
    return ", ".join((images, *ways))


def _provenance(run: RunFolder, result: Mapping[str, Any]) -> dict[str, str]:
    trained = run.read_json(run.environment)
    card = run.read_card()
    data = run.read_json(run.data)
    training, validation = (data["splits"][part] for part in ("train", "validation"))
    seen = ", trained on too" if set(training) & set(validation) else ""
    return {
        "trained by": " ".join(trained["command"]),
        "trained on": f"{hardware(trained)}, {trained['date']}",
        "scored by": " ".join(result["environment"]["command"]),
        "scored on": f"{result['environment']['processor']}, {result['environment']['date']}",
        "versions": ", ".join(f"{name} {version}" for name, version in trained["packages"].items()),
        "training images": f"{len(training)}, validation {len(validation)}{seen}",
        "SHA-256 of the weights": card.sha256[run.model.name],
    }
