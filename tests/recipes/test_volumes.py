"""The whole way of a volume: from NIfTI files to a trained run, to figures, to a bundle, and back to NIfTI files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnx
import pytest

from d2ed2q.cli import main
from d2ed2q.data import read_volume
from d2ed2q.deploy import Predictor, read_bundle
from d2ed2q.deploy.int8_graph import activation_layers
from d2ed2q.errors import ConfigError, DataError
from d2ed2q.recipes.evaluate import evaluate
from d2ed2q.recipes.export import export
from d2ed2q.recipes.inspect_bundle import inspect_bundle
from d2ed2q.recipes.predict import predict
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.settings import EvaluateSettings, ExportSettings, PredictSettings
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings

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
    "spacing": (1.5, 1.0, 1.0),
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
    assert (card.dims, card.spacing, card.window) == (3, (1.5, 1.0, 1.0), (16, 16, 16))
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
    assert (given["dims"], given["spacing"], given["window"]) == (3, (1.5, 1.0, 1.0), (16, 16, 16))
    assert given["intensity"]["rule"] == "percentile"
    activations = facts["manifest"]["activations"]
    assert (activations["precision"], activations["float_layers"]) == ("int8", ())
    layers = activation_layers(onnx.load_from_string(read_bundle(bundle_of_volumes).model))
    assert len(layers) > 20, "convolutions of volumes take int8 like those of pictures"
    assert "Volumes of 1 channel(s), each from its own 0.5th to its 99.5th percentile" in facts["card"]
    assert "resampled to 1.5×1×1 mm (D×H×W), large ones in windows of 16×16×16" in facts["card"]
    metadata = json.loads(read_bundle(bundle_of_volumes).parts["metadata.json"])
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        assert len(metadata["network_data_format"][side][name]["spatial_shape"]) == 3


def test_a_bundle_scales_intensities_as_training_did(bundle_of_volumes: Path, tmp_path: Path) -> None:
    values, _ = scene(100)
    predictor = Predictor(bundle_of_volumes)
    one = read_volume(write(tmp_path / "one.nii", values))
    other = read_volume(write(tmp_path / "other.nii", values.astype(np.float32) * 7 - 3000))
    assert np.abs(predictor.probabilities(one) - predictor.probabilities(other)).max() < 0.05
    assert (predictor(one).mask == predictor(other).mask).mean() > 0.995


def test_a_windowed_ct_and_float_activations(decathlon: Path, tmp_path: Path) -> None:
    root = tmp_path / "ct"
    for path in decathlon.rglob("*.nii.gz"):
        values = np.asarray(nibabel.load(path).dataobj)
        if path.parent.name == "imagesTr":
            values = values.astype(np.float32) / np.percentile(values, 99) * 400 - 100
        write(root / path.relative_to(decathlon), values.astype(np.int16))
    description = json.loads((decathlon / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**description, "modality": {"0": "CT"}}))
    changes = {**VOLUMES, "epochs": 2, "quantize": False, "folds": None, "fold": None, "spacing": None, "tta": "flips"}
    run = train(TrainSettings(data=root, out=tmp_path / "run", **changes))
    intensity = run.read_card().intensity
    assert intensity.rule == "window"
    path = tmp_path / "ct.d2q"
    manifest = export(ExportSettings(run=run.path, out=path, tolerance=100, activations="float32"))
    assert manifest.input.intensity == intensity
    assert "values from " in read_bundle(path).parts["model_card.md"].decode()
    scan = read_volume(root / "imagesTr" / "box_0.nii.gz")
    clipped = np.clip(scan.values, intensity.low[0], intensity.high[0])
    predictor = Predictor(path)
    found = predictor.probabilities(scan)
    assert np.array_equal(found, predictor.probabilities(dataclasses.replace(scan, values=clipped)))
    results = predict(PredictSettings(model=run.path, inputs=(scan.path,), out=tmp_path / "out"))
    # Weights that were not quantized in training are rounded in the bundle, so that a few voxels on the edge differ;
    # with other intensities it would be far more than this.
    probability = read_volume(tmp_path / "out" / "box_0_probability.nii.gz").values[0]
    assert results.masks
    assert np.abs(1 - predictor(scan).probability[0] - probability).mean() < 0.005


def test_a_volume_that_a_model_cannot_take(run_of_volumes: RunFolder, bundle_of_volumes: Path, tmp_path: Path) -> None:
    values, _ = scene(0)
    bad = {
        "two": (np.stack([values, values], -1), "takes images of 1 channels"),
        "slice": (values[..., :1], "has 2 dimensions"),
        "far": (values, "more than 16 times"),
    }
    for name, (stored, _) in bad.items():
        write(tmp_path / "in" / f"{name}.nii", stored, AFFINE * 40 if name == "far" else AFFINE)
    (tmp_path / "in" / "cut.nii").write_bytes((tmp_path / "in" / "two.nii").read_bytes()[:-99])
    for model in (run_of_volumes.path, bundle_of_volumes):
        found = predict(PredictSettings(model=model, inputs=(tmp_path / "in",), out=tmp_path / model.name))
        assert not found.masks
        errors = {path.stem: text for path, text in found.failed.items()}
        assert "cut off" in errors["cut"]
        for name, (_, message) in bad.items():
            assert message in errors[name]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="NIfTI volumes are read"):
        predict(PredictSettings(model=bundle_of_volumes, inputs=(tmp_path / "empty",), out=tmp_path / "none"))


def test_settings_of_pictures_are_refused_for_volumes(decathlon: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"crop": (64, 64)}, "crop takes 3 sizes"),
        ({"crop": (0, 0), "spacing": None, "resize": (64, 64)}, "resize takes pictures"),
        ({"spacing": (1.0, 1.0)}, "has 3 dimensions, but spacing has 2 numbers"),
        ({"standardize": True}, "standardize takes pictures"),
        ({"backbone": "ce-net"}, "ce-net"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            train(TrainSettings(data=decathlon, out=tmp_path / "run", **{**VOLUMES, **changes}))


def test_openvino_computes_volumes_in_int8(bundle_of_volumes: Path) -> None:
    openvino = pytest.importorskip("openvino")
    graph = openvino.Core().read_model(read_bundle(bundle_of_volumes).model)
    graph.reshape([1, 1, 16, 16, 16])
    done = openvino.Core().compile_model(graph, "CPU").get_runtime_model().get_ops()
    facts = [{name: node.rt_info[name].astype(str) for name in ("layerType", "runtimePrecision")} for node in done]
    precisions = [fact["runtimePrecision"] for fact in facts if "onvolution" in fact["layerType"]]
    assert len(precisions) > 20
    assert sum(precision in ("u8", "i8") for precision in precisions) > 0.75 * len(precisions)


@pytest.mark.usefixtures("one_round")
def test_bench_of_volumes(bundle_of_volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    size = ["--size", "16", "32", "16"]
    assert main(["bench", str(bundle_of_volumes), *size, "--runs", "3", "--threads", "1", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["size"] == [16, 32, 16]
    assert len(result["rows"]) == 6
    assert all(row["operations"] is None or row["operations"] > 1e6 for row in result["rows"])
    assert "16×32×16" in capsys.readouterr().out
    assert main(["bench", str(bundle_of_volumes), "--size", "32", "32", "--runs", "3"]) == 2
    assert "3 numbers" in capsys.readouterr().err


def test_two_channels_are_two_files(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for number in range(5):
        values, label = scene(number)
        for channel, content in enumerate((values, label.astype(np.int16) * 50 + 3)):
            write(root / "imagesTr" / f"box{number}_{channel:04d}.nii.gz", content)
        write(root / "labelsTr" / f"box{number}.nii.gz", (label > 0).astype(np.uint8))
    (root / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "T1", "1": "T2"},
                "labels": {"background": 0, "box": 1},
                "numTraining": 5,
                "file_ending": ".nii.gz",
            }
        )
    )
    changes = {**VOLUMES, "epochs": 4, "quantize": False, "folds": None, "fold": None, "crop": (0, 0), "batch_size": 1}
    run = train(TrainSettings(data=root, out=tmp_path / "run", **changes))
    assert run.read_card().window is None
    path = tmp_path / "two.d2q"
    export(ExportSettings(run=run.path, out=path, tolerance=100))
    found = predict(PredictSettings(model=path, inputs=(root / "imagesTr",), out=tmp_path / "out"))
    assert [mask.name for mask in found.masks] == [f"box{number}_mask.nii.gz" for number in range(5)]
    assert sorted(np.unique(read_volume(found.masks[0]).values))[-1] <= 1
    (root / "imagesTr" / "box1_0001.nii.gz").unlink()
    lacking = predict(PredictSettings(model=path, inputs=(root / "imagesTr",), out=tmp_path / "more"))
    (text,) = lacking.failed.values()
    assert "takes images of 2 channels" in text
    write(root / "imagesTr" / "box1_0001.nii.gz", scene(1)[0], AFFINE * 1.5)
    moved = predict(PredictSettings(model=path, inputs=(root / "imagesTr",), out=tmp_path / "more"))
    (text,) = moved.failed.values()
    assert "box1_0001.nii.gz has voxels of" in text
    assert moved.skipped == 4
