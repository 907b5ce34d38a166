"""The whole way of a volume: from NIfTI files to a trained run, to figures, to a bundle, and back to NIfTI files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from d2ed2q.recipes.evaluate import evaluate
from d2ed2q.recipes.export import export
from d2ed2q.recipes.inspect_bundle import inspect_bundle
from d2ed2q.recipes.predict import predict
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.settings import EvaluateSettings, ExportSettings, PredictSettings, TrainSettings
from d2ed2q.recipes.train import train

SPACING = (1.0, 1.0, 2.0)
AFFINE = np.diag((-1.0, -1.0, 2.0, 1.0)) + np.array([[0, 0, 0, 30.0], [0, 0, 0, 20], [0, 0, 0, -7], [0] * 4])
"""Left, posterior, superior: the order most scanners write, and not the one that the library works in."""


def scene(seed: int, shape: tuple[int, int, int] = (18, 20, 12)) -> tuple[np.ndarray, np.ndarray]:
    """A grey volume, int16 without a fixed scale, with a bright and a dark box; and its label."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    for number, low in ((1, 2), (2, 9)):
        x, y, z = low + rng.integers(0, 2), 3 + rng.integers(0, 5), 2 + rng.integers(0, 3)
        label[x : x + 6, y : y + 7, z : z + 5] = number
    values = np.array([100.0, 180.0, 20.0])[label] + rng.normal(0, 8, shape)
    return (values * rng.uniform(1, 5)).astype(np.int16), label


def write(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


@pytest.fixture(scope="session")
def decathlon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("Task99_Boxes")
    names = [f"box_{number}" for number in range(7)]
    for seed, name in enumerate(names):
        values, label = scene(seed)
        write(root / "imagesTr" / f"{name}.nii.gz", values)
        write(root / "labelsTr" / f"{name}.nii.gz", label)
    description = {
        "name": "Boxes",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "bright", "2": "dark"},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": [],
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


VOLUMES: dict[str, Any] = {
    "backbone": "unet-xs",
    "epochs": 30,
    "epochs_q": 3,
    "crop": (16, 16, 16),
    "foreground": 0.5,
    "spacing": (1.0, 1.0, 1.5),
    "batch_size": 2,
    "lr": 2e-2,
    "learners": 2,
    "folds": 3,
    "fold": 0,
    "tta": "none",
    "hue": 0.0,
    "saturation": 0.0,
    "value": 0.0,
    "loss": "bce_dice",
    "validate_every": 10,
    "precision": "fp32",
}


@pytest.fixture(scope="session")
def run_of_volumes(decathlon: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(TrainSettings(data=decathlon, out=tmp_path_factory.mktemp("volumes") / "run", **VOLUMES))


@pytest.fixture(scope="session")
def bundle_of_volumes(run_of_volumes: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "boxes.d2q"
    export(ExportSettings(run=run_of_volumes.path, out=path, tolerance=100))
    return path


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * ((one == other) & (one > 0)).sum() / ((one > 0).sum() + (other > 0).sum()))


def test_training_keeps_what_prediction_needs(run_of_volumes: RunFolder) -> None:
    card = run_of_volumes.read_card()
    assert (card.dims, card.spacing, card.window) == (3, (1.0, 1.0, 1.5), (16, 16, 16))
    assert card.intensity.rule == "percentile"
    assert card.classes == ("background", "bright", "dark")
    assert run_of_volumes.load().meta.dims == 3


def test_evaluation_is_in_millimetres_and_draws_slices(run_of_volumes: RunFolder) -> None:
    result = evaluate(EvaluateSettings(run=run_of_volumes.path))
    figures = result["scopes"]["whole"][result["prediction"]]
    assert result["dataset"]["split"] == "fold"
    assert figures["surface_unit"] == "mm"
    assert set(figures["per_class"]) == {"background", "bright", "dark"}
    assert figures["dice"] > 0.5
    page = run_of_volumes.report.read_text()
    assert page.count("data:image/png;base64,") >= 3
    assert run_of_volumes.example.is_file()


def test_a_run_predicts_into_the_grid_of_the_scan(run_of_volumes: RunFolder, tmp_path: Path) -> None:
    values, label = scene(100, (17, 23, 9))
    scan = write(tmp_path / "in" / "scan.nii.gz", values)
    found = predict(PredictSettings(model=run_of_volumes.path, inputs=(scan.parent,), out=tmp_path / "out"))
    assert not found.failed
    mask = nibabel.load(found.masks[0])
    assert mask.shape == label.shape
    assert np.array_equal(mask.affine, nibabel.load(scan).affine)
    assert mask.get_data_dtype() == np.uint8
    assert dice(np.asarray(mask.dataobj), label) > 0.5
    for kind in ("probability", "uncertainty"):
        volume = np.asarray(nibabel.load(tmp_path / "out" / f"scan_{kind}.nii.gz").dataobj)
        assert volume.dtype == np.float32
        assert 0 <= volume.min() < volume.max() <= 1
    assert (tmp_path / "out" / "scan_overlay.png").is_file()


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "torch"])
def test_a_bundle_predicts_nearly_as_its_run(
    engine: Any, run_of_volumes: RunFolder, bundle_of_volumes: Path, tmp_path: Path
) -> None:
    scan = write(tmp_path / "in" / "scan.nii", scene(100, (17, 23, 9))[0])
    masks = []
    for name, model, chosen in (("bundle", bundle_of_volumes, engine), ("run", run_of_volumes.path, "auto")):
        found = predict(PredictSettings(model=model, inputs=(scan,), out=tmp_path / name, engine=chosen))  # type: ignore[arg-type]
        assert not found.failed
        masks.append(np.asarray(nibabel.load(found.masks[0]).dataobj))
    assert (masks[0] == masks[1]).mean() > 0.97
    assert dice(masks[0], masks[1]) > 0.85


def test_the_bundle_says_what_it_takes_and_tests_itself(bundle_of_volumes: Path) -> None:
    facts = inspect_bundle(bundle_of_volumes)
    given = facts["manifest"]["input"]
    assert facts["self_test"]["passed"]
    assert (given["dims"], given["spacing"], given["window"]) == (3, (1.0, 1.0, 1.5), (16, 16, 16))
    assert given["intensity"]["rule"] == "percentile"
    assert facts["manifest"]["activations"]["precision"] == "int8"
