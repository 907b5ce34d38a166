from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from d2ed2q.data import Resolution, Sample, open_dataset, write_phantom_dataset
from d2ed2q.deploy import MaskRule, clean_mask, make_prediction
from d2ed2q.deploy.pipeline import as_seen
from d2ed2q.ensemble import views
from d2ed2q.errors import DataError, RunFolderError, StorageError
from d2ed2q.metrics import linear_cka, roc_auc
from d2ed2q.recipes.evaluate import evaluate
from d2ed2q.recipes.inference import predict_probabilities
from d2ed2q.recipes.report import _example
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.scoring import score
from d2ed2q.recipes.settings import EvaluateSettings
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings


@pytest.fixture(scope="module")
def result(trained: RunFolder) -> dict[str, Any]:
    return evaluate(EvaluateSettings(run=trained.path, json=trained.path / "copy.json"))


def test_the_json_has_the_documented_structure(result: dict[str, Any], trained: RunFolder) -> None:
    assert json.loads(trained.evaluation.read_text()) == result
    assert json.loads((trained.path / "copy.json").read_text()) == result
    views_expected = {"ensemble", "meta", "base_mean", "base_1", "base_2"}
    for source in (result, result["full_precision"]):
        assert set(source["scopes"]) == {"fov", "whole"}
        for learners in source["scopes"].values():
            assert set(learners) == views_expected
            for figures in learners.values():
                assert {
                    "dice", "iou", "auc", "average_precision", "accuracy", "sensitivity", "specificity", "mcc",
                    "ece", "brier", "nll", "aurc", "threshold", "per_image",
                } <= set(figures)  # fmt: skip
                assert len(figures["per_image"]["dice"]["values"]) == 3
    assert set(result["diversity"]) == {"disagreement", "q_statistic", "cka"}
    assert set(result["diversity"]["cka"]) == {"encoder1", "encoder2", "centre", "decoder2", "decoder1"}
    assert result["prediction"] in ("meta", "ensemble")


def test_figures_are_those_of_the_model_on_the_test_images(
    result: dict[str, Any], trained: RunFolder, phantoms: Path
) -> None:
    dataset, ensemble = open_dataset(phantoms), trained.load()
    rule = trained.read_card().cleaning or MaskRule()  # whether so small a network leaves specks is chance
    scores, masks, labels = [], [], []
    for case in dataset.test:
        sample = dataset.read(case)
        assert sample.label is not None
        assert sample.roi is not None
        probability = views(predict_probabilities(ensemble, sample.image))["meta"][0].numpy()
        region = sample.roi.numpy()
        scores.append(probability[region])
        masks.append(clean_mask((probability > ensemble.threshold_of("meta")) & region, rule)[region])
        labels.append(sample.label[sample.roi].numpy())
    score, label = np.concatenate(scores), np.concatenate(labels)
    figures = result["scopes"]["fov"]["meta"]
    assert figures["auc"] == pytest.approx(roc_auc(score, label))
    mask = np.concatenate(masks)
    assert figures["dice"] == pytest.approx(2 * (mask & (label > 0)).sum() / (mask.sum() + label.sum()))
    assert result["images"] == [case.id for case in dataset.test]


def test_the_report_is_written(result: dict[str, Any], trained: RunFolder) -> None:
    page = trained.report.read_text()
    assert page.startswith("<!")
    for id in {result["images"][0]}:
        assert id in page
    assert "esearch use only" in page
    with Image.open(trained.example) as picture:
        assert picture.width > 400


def test_images_that_were_trained_on_are_refused(trained: RunFolder, phantoms: Path, tmp_path: Path) -> None:
    for part in ("images", "masks", "roi"):
        shutil.copytree(phantoms / part, tmp_path / "flat" / part)
    with pytest.raises(DataError, match=r"5 of 5 images .* were used in training"):
        evaluate(EvaluateSettings(run=trained.path, data=tmp_path / "flat"))
    before = trained.evaluation.read_bytes() if trained.evaluation.exists() else None
    scored = evaluate(EvaluateSettings(run=trained.path, split="validation", full_precision=False))
    assert json.loads((trained.path / "validation" / "evaluation.json").read_text())["images"] == scored["images"]
    assert "validation images" in (trained.path / "validation" / "report.html").read_text(encoding="utf-8")
    assert (trained.evaluation.read_bytes() if trained.evaluation.exists() else None) == before
    assert len(scored["images"]) == 1
    assert scored["full_precision"] is None
    with pytest.raises(DataError, match=r"5 of 8 images .* were used in training"):
        evaluate(EvaluateSettings(run=trained.path, split="all"))
    write_phantom_dataset(tmp_path / "same-names", n_train=5, n_test=3, size=(96, 96), seed=2)
    with pytest.raises(DataError, match=r"1 of 1 validation images .* are not those of this run"):
        evaluate(EvaluateSettings(run=trained.path, data=tmp_path / "same-names", split="validation"))


def test_a_fold_is_scored_wherever_its_images_are(
    tmp_path: Path, phantoms: Path, small_settings: Callable[..., TrainSettings]
) -> None:
    run = train(small_settings(tmp_path / "run", folds=2, fold=0, epochs=1, quantize=False))
    fold = run.read_json(run.data)["splits"]["fold"]
    shutil.copytree(phantoms, tmp_path / "copy")
    scored = evaluate(EvaluateSettings(run.path, data=tmp_path / "copy", out=tmp_path / "out"))
    assert (scored["dataset"]["split"], scored["images"]) == ("fold", fold)
    # Other images of the same names are another set.
    write_phantom_dataset(tmp_path / "other", n_train=5, n_test=3, size=(96, 96), seed=2)
    scored = evaluate(EvaluateSettings(run.path, data=tmp_path / "other", out=tmp_path / "out"))
    assert scored["dataset"]["split"] == "test"


def test_predictions_that_do_not_fit_into_the_memory_are_refused_at_once(
    trained: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d2ed2q.recipes.scoring.free_memory", lambda: 1_000_000)
    with pytest.raises(DataError, match=r"scoring 3 images .* about 0.0 GB.*--no-full-precision"):
        evaluate(EvaluateSettings(trained.path))


def test_features_are_compared_on_the_image_as_networks_see_it(trained: RunFolder, phantoms: Path) -> None:
    dataset, ensemble = open_dataset(phantoms), trained.load()
    card = dataclasses.replace(trained.read_card(), scale=0.5, standardize=True)
    sample = dataset.read(dataset.test[0])
    seen = torch.from_numpy(as_seen(sample.image.numpy(), (48, 48), standardize=True))
    features = ensemble(seen[None]).features
    expected = {tap: float(linear_cka(*learners)) for tap, learners in features.items()}  # of two base learners
    found = score(ensemble, card, dataset, dataset.test[:1], "none").figures["diversity"]["cka"]
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_run_that_has_not_finished_is_refused(tmp_path: Path, trained: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="no run folder"):
        evaluate(EvaluateSettings(run=tmp_path / "nothing"))
    shutil.copytree(trained.path, tmp_path / "run")
    (tmp_path / "run" / "model.json").unlink()
    with pytest.raises(RunFolderError, match="has not finished"):
        evaluate(EvaluateSettings(run=tmp_path / "run"))


def test_augmented_predictions_turn_with_the_image(trained: RunFolder) -> None:
    ensemble, image = trained.load(), torch.rand(3, 64, 64)
    plain = predict_probabilities(ensemble, image, tta="dihedral")
    turned = predict_probabilities(ensemble, image.rot90(1, (1, 2)), tta="dihedral")
    assert torch.allclose(plain.rot90(1, (2, 3)), turned, atol=1e-5)
    assert not torch.allclose(plain, predict_probabilities(ensemble, image), atol=1e-3)


def test_probabilities_come_back_at_the_images_own_size(trained: RunFolder) -> None:
    ensemble = trained.load()
    probabilities = predict_probabilities(ensemble, torch.rand(3, 45, 70), Resolution((64, 64)), tta="flips")
    assert probabilities.shape == (3, 1, 45, 70)
    assert 0 <= probabilities.min() <= probabilities.max() <= 1
    assert math.isfinite(float(probabilities.sum()))


def test_another_annotators_masks_do_not_make_a_training_image_unseen(
    trained: RunFolder, phantoms: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantoms / "images", tmp_path / "images")
    (tmp_path / "masks").mkdir()
    for path in (phantoms / "masks").iterdir():
        with Image.open(path) as mask:
            mask.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(tmp_path / "masks" / path.name)
    with pytest.raises(DataError, match=r"5 of 5 images .* were used in training"):
        evaluate(EvaluateSettings(run=trained.path, data=tmp_path))


def test_a_relative_folder_leads_to_the_runs_own_images_from_everywhere(
    tmp_path: Path, small_settings: Callable[..., TrainSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, seed in (("here", 0), ("there", 1)):
        write_phantom_dataset(tmp_path / place / "data", 4, 2, (64, 64), seed)
    monkeypatch.chdir(tmp_path / "here")
    run = RunFolder(train(small_settings(Path("run"), data=Path("data"), epochs=1, quantize=False)).path.resolve())
    own = evaluate(EvaluateSettings(run=run.path))["sha256"]
    monkeypatch.chdir(tmp_path / "there")
    result = evaluate(EvaluateSettings(run=run.path, out=tmp_path / "out"))
    assert result["sha256"] == own
    assert result["dataset"]["root"] == str(tmp_path / "here" / "data")
    # What lies there now is scored only if it is asked for.
    image = next((tmp_path / "here" / "data" / "test" / "images").iterdir())
    shutil.copy(next((tmp_path / "there" / "data" / "test" / "images").iterdir()), image)
    with pytest.raises(DataError, match=r"1 of 2 test images at .* are not those of this run"):
        evaluate(EvaluateSettings(run=run.path))
    assert evaluate(EvaluateSettings(run=run.path, data=tmp_path / "here" / "data"))["images"] == result["images"]
    shutil.rmtree(tmp_path / "here" / "data")
    with pytest.raises(DataError, match=r"images are not at .*data; pass their folder with --data"):
        evaluate(EvaluateSettings(run=run.path))


def test_where_nothing_can_be_written_is_known_before_anything_is_scored(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("d2ed2q.recipes.evaluate.score", lambda *_, **__: pytest.fail("it was scored"))
    with pytest.raises(StorageError, match=r"cannot write into .*file"):
        evaluate(EvaluateSettings(run=trained.path, out=tmp_path / "file" / "out"))


def test_what_is_taken_for_another_class_is_shown_as_a_false_alarm() -> None:
    label = np.array([[0, 1, 1, 2], [0, 0, 2, 2]])
    found = np.array([[0, 1, 2, 2], [1, 0, 0, 2]])
    sample = Sample(torch.rand(3, 2, 4), torch.from_numpy(label), None, "a", "a")
    learners = np.eye(3, dtype=np.float32)[found].transpose(2, 0, 1)[None].repeat(3, 0)
    prediction = make_prediction(learners, "meta", 0.5)
    shown = _example("best", 0.5, SimpleNamespace(n_outputs=3), sample, prediction, scan=False)  # type: ignore[arg-type]
    np.testing.assert_array_equal(shown.label & shown.mask, (label == found) & (label > 0))
    np.testing.assert_array_equal(~shown.label & shown.mask, [[0, 0, 1, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(shown.label & ~shown.mask, [[0, 0, 0, 0], [0, 0, 1, 0]])
    turned = _example("best", 0.5, SimpleNamespace(n_outputs=3), sample, prediction, scan=True)  # type: ignore[arg-type]
    np.testing.assert_array_equal(turned.mask, shown.mask[::-1, ::-1])


def _with_classes(root: Path, values: list[int], names: str = "", seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for index in range(5):
        label = np.zeros((48, 48), np.uint8)
        label[8:40, 8:40] = rng.choice(values, (32, 32))
        label[0, : len(values)] = values
        Image.fromarray(rng.integers(0, 256, (48, 48, 3)).astype(np.uint8)).save(root / "images" / f"{index}.png")
        Image.fromarray(label).save(root / "masks" / f"{index}.png")
    if names:
        (root / "classes.txt").write_text(names)
    return root


def test_classes_of_another_set_are_those_of_the_model_or_refused(
    tmp_path: Path, small_settings: Callable[..., TrainSettings]
) -> None:
    data = _with_classes(tmp_path / "one", [0, 1, 2], "disc\ncup\n")
    run = train(small_settings(tmp_path / "run", data=data, epochs=1, quantize=False))
    assert run.read_card().classes == ("background", "disc", "cup")
    swapped = _with_classes(tmp_path / "two", [0, 1, 2], "cup\ndisc\n", seed=1)
    with pytest.raises(DataError, match=r"classes background, cup, disc.* trained on background, disc, cup"):
        evaluate(EvaluateSettings(run=run.path, data=swapped))
    partly = _with_classes(tmp_path / "three", [0, 2], seed=2)
    with pytest.raises(DataError, match=r"no mask has value 1"):
        evaluate(EvaluateSettings(run=run.path, data=partly))
    (partly / "classes.txt").write_text("disc\ncup\n")
    figures = evaluate(EvaluateSettings(run=run.path, data=partly))["scopes"]["whole"]["meta"]
    assert figures["per_class"]["disc"]["dice"] is None
    empty = _with_classes(tmp_path / "four", [0], "disc\ncup\n", seed=3)
    evaluate(EvaluateSettings(run=run.path, data=empty, out=tmp_path / "scored"))
    assert (tmp_path / "scored" / "report.html").is_file()
    scored = json.loads((tmp_path / "scored" / "evaluation.json").read_text())
    found = [value for value in scored["scopes"]["whole"]["meta"]["per_image"]["dice"]["values"] if value is not None]
    assert set(found) <= {0}, "what is found in an image without any class is false"
    assert (tmp_path / "scored" / "example.png").exists() == bool(found), "else none has a best or a median Dice"
    (partly / "classes.txt").write_text("disc\ndisc\n")
    with pytest.raises(DataError, match=r"must list every class but the background once"):
        evaluate(EvaluateSettings(run=run.path, data=partly))
