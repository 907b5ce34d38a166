"""What is done to a mask after the threshold: chosen on validation images, scored, predicted and told."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2ed2q.cli import main
from d2ed2q.data import Sample, open_dataset
from d2ed2q.deploy import MaskRule, ObjectRule, Predictor, clean_mask
from d2ed2q.deploy.model_card import markdown_card
from d2ed2q.recipes.evaluate import evaluate
from d2ed2q.recipes.report import _curves as curves_of
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.scoring import score
from d2ed2q.recipes.settings import EvaluateSettings
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.recipes.validation import Decided, choose_rules, decide, pooled_dice


def _decided(*, objects: bool = False) -> tuple[Decided, list[Sample]]:
    """A disc with a hole of two pixels that its label does not have."""
    y, x = np.mgrid[:40, :40] - 20
    label = torch.from_numpy((np.hypot(y, x) < 12).astype(np.int64))
    probability = 0.8 * label.numpy().astype(np.float32)
    probability[20, 20:22] = 0.1
    sample = Sample(torch.zeros(1, 40, 40), label, None, "a", "a", objects=label if objects else None)
    return Decided({}, 0.5, [probability]), [sample]


def test_specks_or_objects_or_nothing() -> None:
    assert choose_rules(*_decided()) == (None, MaskRule(2))
    assert choose_rules(*_decided(), clean=False) == (None, None)
    objects, cleaning = choose_rules(*_decided(objects=True))
    assert isinstance(objects, ObjectRule)
    assert cleaning is None
    _, samples = _decided()
    assert choose_rules(Decided({}, 0.5, []), samples) == (None, None), "several classes"


def test_the_maps_that_are_decided_by_are_the_predictions(trained: RunFolder, phantoms: Path) -> None:
    dataset, ensemble, card = open_dataset(phantoms), trained.load(), trained.read_card()
    samples = [dataset.read(case) for case in dataset.test]
    decided = decide(ensemble, card, samples)
    assert decided.threshold == ensemble.threshold_of(ensemble.prediction_name)
    both = size = 0
    for probability, sample in zip(decided.probabilities, samples, strict=True):
        assert sample.roi is not None
        assert sample.label is not None
        assert not probability[~sample.roi.numpy()].any()
        mask, label = probability > decided.threshold, (sample.label > 0).numpy() & sample.roi.numpy()
        both, size = both + int((mask & label).sum()), size + int(mask.sum() + label.sum())
    assert 2 * both / size == pytest.approx(decided.dice[ensemble.prediction_name])


def test_thresholds_may_be_of_training_images_too(trained: RunFolder, phantoms: Path) -> None:
    dataset, ensemble, card = open_dataset(phantoms), trained.load(), trained.read_card()
    few, many = ([dataset.read(case) for case in part] for part in (dataset.test[:1], dataset.train))
    alone, every, together = (
        decide(ensemble, card, few),
        decide(ensemble, card, [*few, *many]),
        decide(ensemble, card, few, iter(many)),
    )
    assert together.threshold == every.threshold != alone.threshold
    assert len(together.probabilities) == 1
    (probability,), (sample,), view = together.probabilities, few, ensemble.prediction_name
    assert sample.roi is not None
    assert sample.label is not None
    inside = sample.roi.numpy()
    expected = pooled_dice(probability[inside][None], sample.label.numpy()[inside], together.threshold)
    assert together.dice[view] == pytest.approx(expected), "of validation images alone"


def test_a_training_takes_its_thresholds_from_the_images_it_is_told(
    tmp_path: Path, small_settings: Callable[..., TrainSettings]
) -> None:
    quick = {"epochs": 1, "quantize": False, "clean": False}
    thresholds = {
        images: train(small_settings(tmp_path / images, threshold_images=images, **quick)).read_card().thresholds
        for images in ("validation", "all")
    }
    assert set(thresholds["all"]) == set(thresholds["validation"])
    assert thresholds["all"] != thresholds["validation"]


def test_a_training_keeps_what_is_best(
    tmp_path: Path, small_settings: Callable[..., TrainSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(decided: Decided, samples: Sequence[Sample], clean: bool) -> tuple[None, MaskRule | None]:
        assert choose_rules(decided, samples, clean)[0] is None, "no objects"
        return None, MaskRule(len(samples), 5) if clean else None

    monkeypatch.setattr("d2ed2q.recipes.train.choose_rules", chosen)
    quick = {"epochs": 1, "quantize": False}
    run = train(small_settings(tmp_path / "clean", **quick))
    card = run.read_card()
    assert card.rule == card.cleaning == MaskRule(len(run.read_json(run.data)["splits"]["validation"]), 5)
    assert train(small_settings(tmp_path / "plain", clean=False, **quick)).read_card().rule is None


def test_the_risk_that_is_drawn_has_the_area_that_is_told(trained: RunFolder, phantoms: Path) -> None:
    dataset = open_dataset(phantoms)
    card = dataclasses.replace(trained.read_card(), cleaning=MaskRule(30, 25))
    scored = score(trained.load(), card, dataset, dataset.test, "none")
    for view, curves in curves_of(scored, card).items():
        coverage, risk = curves["risk"]
        told = scored.figures["scopes"]["fov"][view]["aurc"]
        assert float(np.trapezoid(risk, coverage)) == pytest.approx(told, rel=0.02, abs=1e-3)


def _pixels(image: np.ndarray) -> bytes:
    return bytes((image * 255).round().astype(np.uint8))


def _roi(sample: Sample) -> np.ndarray:
    assert sample.roi is not None
    return sample.roi.numpy()


def test_the_masks_that_are_scored_are_those_that_are_written(
    trained: RunFolder,
    phantoms: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(trained.path, tmp_path / "run")
    run, rule = RunFolder(tmp_path / "run"), MaskRule(30, 25)
    run.save_card(dataclasses.replace(run.read_card(), cleaning=None))
    plain = evaluate(EvaluateSettings(run=run.path, out=tmp_path / "plain"))
    run.save_card(dataclasses.replace(run.read_card(), cleaning=rule))
    result = evaluate(EvaluateSettings(run=run.path))
    assert result["cleaning"] == {"max_hole": 30, "min_area": 25}
    dataset = open_dataset(phantoms)
    cases = dataset.test
    photos = [str(case.image) for case in cases]
    # Prediction finds regions itself, and not to the pixel: here it is told those that evaluation counts in.
    samples = [dataset.read(case) for case in cases]
    rois = {_pixels(sample.image.numpy()): _roi(sample) for sample in samples}
    monkeypatch.setattr("d2ed2q.recipes.predict.region_of_input", lambda image: rois[_pixels(image)])
    assert main(["predict", str(run.path), *photos, "--out", str(tmp_path / "masks")]) == 0
    for scope in ("fov", "whole"):
        figures, before = (of["scopes"][scope][result["prediction"]] for of in (result, plain))
        assert figures["auc"] == before["auc"]
        assert figures["dice"] != before["dice"]
        both = size = 0
        for case, sample in zip(cases, samples, strict=True):
            with Image.open(tmp_path / "masks" / f"{case.image.stem}_mask.png") as image:
                mask = np.asarray(image) > 0
            np.testing.assert_array_equal(mask, clean_mask(mask, MaskRule(0, 25)))
            assert sample.label is not None
            counted = _roi(sample) if scope == "fov" else np.ones_like(mask)
            label = (sample.label > 0).numpy() & counted
            both, size = both + int((mask & label).sum()), size + int((mask & counted).sum() + label.sum())
        assert figures["dice"] == pytest.approx(2 * both / size, abs=1e-6)
    file = tmp_path / "model.d2q"
    capsys.readouterr()
    assert main(["inspect", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cleaning"] == {"max_hole": 30, "min_area": 25}
    assert main(["export", str(run.path), "-o", str(file), "--tolerance", "100"]) == 0
    predictor = Predictor(file)
    told = markdown_card(predictor.manifest, {}).decode()
    assert ", chosen on validation images, on prob" in told
    origin = predictor.manifest.provenance
    more = {**origin, "settings": {**origin["settings"], "threshold_images": "all"}}
    card = markdown_card(dataclasses.replace(predictor.manifest, provenance=more), {}).decode()
    assert ", chosen on training and validation images, on prob" in card
    assert predictor.manifest.output.rule == rule
    assert "holes of at most 30 pixels are filled and islands of fewer than 25 pixels" in told
    with Image.open(photos[0]) as image:
        prediction = predictor(np.asarray(image))
    threshold = predictor.manifest.output.thresholds[predictor.manifest.output.prediction]
    expected = clean_mask(prediction.probability[0] > threshold, rule)
    assert (expected != (prediction.probability[0] > threshold)).any()
    assert (prediction.mask.astype(bool) <= expected).all()
    assert prediction.objects is None
