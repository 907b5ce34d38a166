"""Cross-validation and objects, on made-up glands: from folds by patient to one summary."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from d2ed2q.cli import main
from d2ed2q.data import open_dataset
from d2ed2q.errors import ConfigError
from d2ed2q.recipes.config import settings_from, write_settings
from d2ed2q.recipes.evaluate import evaluate
from d2ed2q.recipes.folds import summarize_folds
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.settings import EvaluateSettings, FoldsSettings
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings


def write_glands(root: Path, n_train: int = 6, n_test: int = 2) -> None:
    """Dark discs on a bright ground, in GlaS's layout: numbered objects, two images a patient."""
    rng = np.random.default_rng(0)
    rows = ["name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    names = [f"train_{n + 1}" for n in range(n_train)] + [f"testA_{n + 1}" for n in range(n_test)]
    y, x = np.mgrid[:64, :72]
    for index, name in enumerate(names):
        objects = np.zeros((64, 72), np.uint8)
        for number, (top, left) in enumerate(((14, 16), (16, 50), (44, 32)), start=1):
            inside = (y - top - rng.integers(4)) ** 2 + (x - left - rng.integers(4)) ** 2 < rng.integers(60, 110)
            objects[inside] = number
        picture = np.where(objects[..., None] > 0, [150, 60, 120], [230, 200, 220]) + rng.normal(0, 9, (64, 72, 3))
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(root / f"{name}.bmp")
        Image.fromarray(objects).save(root / f"{name}_anno.bmp")
        rows.append(f"{name},{index // 2}, benign, healthy")
    (root / "Grade.csv").write_bytes("\r".join(rows).encode())


@pytest.fixture(scope="module")
def glands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("GlaS")
    write_glands(root)
    return root


@pytest.fixture(scope="module")
def runs(
    glands: Path, small_settings: Callable[..., TrainSettings], tmp_path_factory: pytest.TempPathFactory
) -> list[RunFolder]:
    folder = tmp_path_factory.mktemp("folds")
    changes: dict[str, Any] = {"data": glands, "crop": (32, 32), "epochs": 12, "epochs_q": 2, "folds": 3}
    finished = [train(small_settings(folder / f"fold_{fold}", fold=fold, **changes)) for fold in (0, 2)]
    for run in finished:
        evaluate(EvaluateSettings(run=run.path))
    return finished


def test_folds_leave_every_patient_out_once_and_keep_the_test_set(runs: list[RunFolder], glands: Path) -> None:
    dataset = open_dataset(glands)
    splits = [run.read_json(run.data)["splits"] for run in runs]
    patients = {case.id: case.patient for case in dataset.cases}
    left_out = [{patients[id] for id in split["fold"]} for split in splits]
    assert [len(people) for people in left_out] == [1, 1]
    assert left_out[0] != left_out[1]
    for split, people in zip(splits, left_out, strict=True):
        assert not people & {patients[id] for id in (*split["train"], *split["validation"])}
        assert split["test"] == [case.id for case in dataset.test]
        assert len(split["train"]) + len(split["validation"]) + len(split["fold"]) == 6


def test_objects_are_found_scored_shown_and_written(runs: list[RunFolder], glands: Path, tmp_path: Path) -> None:
    result = json.loads(runs[0].evaluation.read_text())
    assert result["dataset"]["split"] == "fold"
    assert result["objects"]["objects_true"] == 6
    assert result["objects"]["object_f1"] > 0.8  # discs apart from each other
    assert runs[0].read_card().objects is not None
    page = runs[0].report.read_text()
    assert "Object F1" in page
    assert f"{result['objects']['objects_found']} found, 6 true" in page
    out = tmp_path / "out"
    assert main(["predict", str(runs[0].path), str(glands / "testA_1.bmp"), "--out", str(out)]) == 0
    with Image.open(out / "testA_1_objects.png") as picture:
        objects = np.array(picture)
    with Image.open(out / "testA_1_mask.png") as picture:
        mask = np.array(picture) > 0
    assert ((objects > 0) == mask).all()
    assert objects.max() >= ndimage.label(mask)[1]


def test_a_summary_over_folds(runs: list[RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "folds.json"
    assert main(["folds", *(str(run.path) for run in reversed(runs)), "--json", str(out)]) == 0
    assert "folds 1 of 3 are missing" in capsys.readouterr().out
    summary = json.loads(out.read_text())
    assert (summary["scored"], summary["images"]) == ([0, 2], 4)
    values = [
        json.loads(run.evaluation.read_text())["scopes"]["whole"][view]["dice"]
        for run, view in zip(runs, summary["prediction"], strict=True)
    ]
    dice = summary["few_bit"]["whole"]["dice"]
    assert dice["values"] == values
    assert dice["mean"] == pytest.approx(np.mean(values))
    assert dice["std"] == pytest.approx(np.std(values, ddof=1))
    assert 0 <= summary["full_precision"]["objects"]["object_f1"]["mean"] <= 1


def test_what_one_fold_lacks_is_left_open_for_it_alone(
    runs: list[RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = [RunFolder(tmp_path / f"{number}") for number in range(len(runs))]
    for run, copy in zip(runs, copies, strict=True):
        shutil.copytree(run.path, copy.path)
    content = json.loads(copies[0].evaluation.read_text())
    for source in (content, content["full_precision"]):
        source["scopes"]["whole"][source["prediction"]]["auc"] = None
    copies[0].evaluation.write_text(json.dumps(content))
    found = summarize_folds(FoldsSettings(tuple(copy.path for copy in copies)))
    there = json.loads(copies[1].evaluation.read_text())
    expected = there["scopes"]["whole"][there["prediction"]]["auc"]
    for source in ("few_bit", "full_precision"):
        auc = found[source]["whole"]["auc"]
        assert (auc["values"][0], auc["std"]) == (None, None)
    assert found["few_bit"]["whole"]["auc"]["values"][1] == found["few_bit"]["whole"]["auc"]["mean"] == expected
    assert main(["folds", *(str(copy.path) for copy in copies)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("│ 0 ", "│ 2 "))]
    assert "–" in rows[0]
    assert f"{expected:.4f}" in rows[1]


def test_what_is_no_cross_validation_is_refused(
    runs: list[RunFolder],
    trained: RunFolder,
    glands: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluate(EvaluateSettings(run=trained.path))
    for paths, message in (
        ([trained.path], "was trained without folds"),
        ([runs[0].path, runs[0].path], "are of the same fold, 0"),
        ([tmp_path / "nothing"], "cannot read the configuration"),
    ):
        assert main(["folds", *map(str, paths)]) == 2
        assert message in capsys.readouterr().err
    for options, message in (
        (["--folds", "3", "--fold", "3"], "fold must lie between 0 and 2"),
        (["--folds", "3"], "folds and fold belong together"),
        (["--folds", "9", "--fold", "0"], "9 folds need as many patients, but the images are of 3"),
    ):
        assert main(["train", "--data", str(glands), "--out", str(tmp_path / "run"), *options]) == 2
        assert message in capsys.readouterr().err
    # The other fold, of other images or scored otherwise.
    images = runs[1].read_json(runs[1].data)["sha256"]
    metres = runs[1].read_json(runs[1].evaluation)
    for figures in metres["scopes"]["whole"].values():
        figures["surface_unit"] = "mm"
    for name, changed, message in (
        ("data.json", {"sha256": dict.fromkeys(images, "0")}, "other images"),
        ("data.json", {"sha256": {"another": "0"}}, "other images"),
        ("evaluation.json", {"tta": "flips"}, "test-time augmentation flips"),
        ("evaluation.json", {"prediction": "all"}, "no view 'all'"),
        ("evaluation.json", metres, "has distances in mm"),
    ):
        copy = tmp_path / "copy"
        shutil.copytree(runs[1].path, copy, dirs_exist_ok=True)
        (copy / name).write_text(json.dumps(json.loads((copy / name).read_text()) | changed))
        assert main(["folds", str(runs[0].path), str(copy)]) == 2
        assert message in capsys.readouterr().err
    assert main(["evaluate", str(trained.path), "--split", "fold"]) == 2
    assert "was trained without folds" in capsys.readouterr().err


def test_folds_that_were_planned_apart_may_differ_in_what_was_planned(runs: list[RunFolder], tmp_path: Path) -> None:
    copies = []
    for number, run in enumerate(runs):
        copies.append(RunFolder(tmp_path / f"{number}"))
        shutil.copytree(run.path, copies[-1].path)
    settings: TrainSettings = settings_from(copies[1].config, TrainSettings)
    write_settings(copies[1].config, replace(settings, epochs=settings.epochs + 5))
    with pytest.raises(ConfigError, match=r"epochs = 17.*train all folds with one file"):
        summarize_folds(FoldsSettings(tuple(copy.path for copy in copies)))
    for copy in copies:
        planned: TrainSettings = settings_from(copy.config, TrainSettings)
        write_settings(copy.config, replace(planned, budget="10m", time_limit=600.0))
    assert summarize_folds(FoldsSettings(tuple(copy.path for copy in copies)))["scored"] == [0, 2]
