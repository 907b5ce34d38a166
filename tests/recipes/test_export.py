from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from d2ed2q.data import Resolution, open_dataset
from d2ed2q.deploy import Predictor, read_bundle
from d2ed2q.deploy.engines import _multiplies_int8_exactly
from d2ed2q.deploy.int8_graph import activation_layers, graph_weights
from d2ed2q.ensemble import views
from d2ed2q.errors import AccuracyError, ConfigError, DataError, RunFolderError
from d2ed2q.quantization import quantizable_weights
from d2ed2q.recipes import export as export_module
from d2ed2q.recipes.export import export
from d2ed2q.recipes.inference import predict_probabilities
from d2ed2q.recipes.inspect_bundle import inspect_bundle
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.settings import ExportSettings
from d2ed2q.recipes.temperature import fit_temperature
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.recipes.validation import pooled_dice


def test_the_bundle_says_what_the_run_is(bundle: Path, trained: RunFolder) -> None:
    manifest, card = read_bundle(bundle).manifest, trained.read_card()
    assert manifest.backbone == card.backbone
    assert manifest.output.prediction == card.prediction
    assert manifest.output.region == card.region
    assert manifest.output.tta == card.tta
    assert manifest.weights.bits == card.bits
    assert manifest.weights.exact
    assert manifest.weights.error == 0
    assert manifest.weights.tensors == len(quantizable_weights(trained.load()))
    assert manifest.activations.images == len(trained.read_json(trained.data)["splits"]["train"])
    assert manifest.accuracy.dice[0] == pytest.approx(card.validation_dice[card.prediction], abs=1e-6)
    assert manifest.accuracy.learner_dice == card.validation_dice["base_1"]
    data = trained.read_json(trained.data)
    used = {data["sha256"][id] for split in ("train", "validation") for id in data["splits"][split]}
    assert set(manifest.provenance["sha256"]) == used
    assert manifest.provenance["weights_sha256"] == card.sha256["model.safetensors"]
    for name, part in {**read_bundle(bundle).parts, "manifest.json": manifest.to_json()}.items():
        assert str(trained.path.parent).encode() not in part, f"{name}: no path of the machine that exported"
        assert not any(id.encode() in part for id in data["sha256"]), f"{name}: no name of an image, or of a patient"


def test_the_exported_weights_are_the_trained_ones(bundle: Path, trained: RunFolder) -> None:
    found = graph_weights(onnx.load_from_string(read_bundle(bundle).model))
    for weight in quantizable_weights(trained.load()):
        codes, scale, axis = found[weight.name]
        rows = weight.parameter.detach().movedim(axis, 0).flatten(1).numpy()
        ours = (np.moveaxis(codes, axis, 0).reshape(len(scale), -1) * scale[:, None]).astype(np.float64)
        # A channel is the trained one times what BatchNorm does to it: the same number for all of its weights.
        gain = (ours * rows).sum(1) / np.maximum((rows.astype(np.float64) ** 2).sum(1), 1e-30)
        np.testing.assert_allclose(ours, gain[:, None] * rows, atol=1e-6 * np.abs(ours).max())


def test_thresholds_and_temperature_fit_the_exported_model(bundle: Path, trained: RunFolder, phantoms: Path) -> None:
    card = trained.read_card()
    predictor = Predictor(bundle)
    manifest = predictor.manifest
    dataset = open_dataset(phantoms)
    cases = {case.id: case for case in dataset.train}
    sample = dataset.read(cases[trained.read_json(trained.data)["splits"]["validation"][0]])
    image = (sample.image * 255).round().byte().permute(1, 2, 0).numpy()
    raw = views(predictor.raw(sample.image.numpy()))[card.prediction][0]
    found = predictor(image, region=np.ones((96, 96), bool)).probability[0]
    threshold = manifest.output.thresholds[card.prediction]
    assert ((found > threshold) == (raw > card.thresholds[card.prediction])).mean() > 0.999
    assert manifest.output.temperature == 1, "one validation image says nothing of others"
    assert manifest.accuracy.ece is not None
    assert manifest.accuracy.ece[1] <= manifest.accuracy.ece[0] + 0.005


def test_temperature_finds_overconfidence() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=40_000) * 2
    labels = (generator.random(40_000) < 1 / (1 + np.exp(-logits))).astype(int)
    overconfident = (1 / (1 + np.exp(-3 * logits)))[None].astype(np.float32)
    several = np.concatenate((1 - overconfident, overconfident))
    for probabilities in (overconfident, several):
        halves = list(zip(np.split(probabilities, 2, axis=1), np.split(labels, 2), strict=True))
        assert fit_temperature(halves) == pytest.approx(3, rel=0.05)
        assert fit_temperature(halves[:1]) == 1, "a single image says nothing of others"


def test_no_temperature_where_images_disagree() -> None:
    """As on DRIVE's two validation images, of which one asks for 1.24 and the other for 0.92."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=40_000) * 2
    images = []
    for temperature in (2.0, 0.5):
        labels = (generator.random(40_000) < 1 / (1 + np.exp(-logits / temperature))).astype(int)
        images.append(((1 / (1 + np.exp(-logits)))[None].astype(np.float32), labels))
    assert fit_temperature(images) == 1


def test_pooled_dice_by_hand() -> None:
    assert pooled_dice(np.array([[0.9, 0.6, 0.1, 0.7]]), np.array([1, 0, 1, 1]), 0.5) == pytest.approx(2 * 2 / 6)
    assert pooled_dice(np.array([[0.1]]), np.array([0]), 0.5) == 1
    # Of several classes, one that is not there tells nothing: a stray pixel of it must not cost half of everything.
    labels = np.array([0, 0, 1, 1])
    assert pooled_dice(np.eye(3)[[0, 0, 1, 1]].T, labels, 0.5) == 1
    assert pooled_dice(np.eye(3)[[0, 2, 1, 1]].T, labels, 0.5) == 1
    assert pooled_dice(np.eye(3)[[0, 1, 1, 1]].T, labels, 0.5) == pytest.approx(2 * 2 / 5)
    assert pooled_dice(np.eye(3)[[0, 0, 0, 2]].T, np.zeros(4, np.int64), 0.5) == 0


def test_too_much_loss_is_refused_and_auto_keeps_layers_in_float(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is made up here: a model whose activations are rounded loses a point a layer."""
    layers: list[int] = []
    real = export_module._scored

    def scored(predict: Any, samples: Any, ensemble: Any) -> Any:
        found = real(predict, samples, ensemble)
        cost = 0.0
        if predict.__closure__ and any(isinstance(cell.cell_contents, Predictor) for cell in predict.__closure__):
            (predictor,) = (c.cell_contents for c in predict.__closure__ if isinstance(c.cell_contents, Predictor))
            layers.append(len(activation_layers(onnx.load_from_string(predictor.bundle.model))))
            cost = 0.001 * layers[-1]
        return replace(found, dice=0.9 - cost)

    monkeypatch.setattr(export_module, "_scored", scored)
    settings = ExportSettings(run=trained.path, out=tmp_path / "m.d2q")
    with pytest.raises(
        AccuracyError, match=r"cost .* points of Dice on 1 validation images .*--float-layers \S+ \S+"
    ) as e:
        export(settings)
    assert not settings.out.exists()
    suggested = str(e.value).split("--float-layers ")[1].split(",")[0].split()
    manifest = export(replace(settings, auto=True))
    kept = manifest.activations.float_layers
    assert layers[-1] <= 2, "at most 0.2 points"
    assert any(layer.startswith(suggested[0]) for layer in kept)
    named = export(replace(settings, tolerance=100, float_layers=(suggested[0],), overwrite=True))
    assert named.activations.float_layers
    assert all(layer.startswith(suggested[0]) for layer in named.activations.float_layers)


def test_only_the_graph_is_written_for_other_runtimes(trained: RunFolder, bundle: Path, tmp_path: Path) -> None:
    export(ExportSettings(run=trained.path, out=tmp_path / "m.onnx", format="onnx", tolerance=100))
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    kinds = {node.op_type for node in model.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    meta = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(meta["d2ed2q"])["prediction"] == trained.read_card().prediction
    import onnxruntime
    import openvino

    image = np.random.default_rng(0).random((1, 3, 48, 52), np.float32)
    wanted = Predictor(bundle).raw(image[0])[:, None]
    exact = _multiplies_int8_exactly()  # else as docs/bundle.md has it
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "0" if exact else "1")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", options, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"image": image})[0], wanted, atol=0.06)
    export(ExportSettings(run=trained.path, out=tmp_path / "m.xml", format="openvino", tolerance=100))
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.xml", "m.bin"}
    graph = openvino.Core().read_model(tmp_path / "m.xml")
    graph.reshape([1, 3, 48, 52])
    hints = {"INFERENCE_PRECISION_HINT": "f32"} | ({} if exact else {"LP_TRANSFORMS_MODE": "NO"})
    found = openvino.Core().compile_model(graph, "CPU", hints)([image])[0]
    np.testing.assert_allclose(found, wanted, atol=0.02)
    held = [
        n for n in graph.get_ops() if n.get_type_name() == "Constant" and n.get_element_type().get_type_name() == "i8"
    ]
    weights = {node.get_friendly_name() for node in held if node.get_friendly_name().endswith("/codes")}
    trained_weights = {f"{weight.name}/codes" for weight in quantizable_weights(trained.load())}
    assert weights == trained_weights, "the weights stay in int8 on the disk"


def test_float_activations_lose_nothing(trained: RunFolder, tmp_path: Path) -> None:
    manifest = export(ExportSettings(run=trained.path, out=tmp_path / "m.d2q", activations="float32", tolerance=0.01))
    assert manifest.activations.method is None
    assert manifest.accuracy.dice[1] == pytest.approx(manifest.accuracy.dice[0], abs=1e-4)
    image = torch.rand(3, 41, 38)
    wanted = predict_probabilities(trained.load(), image).numpy()
    np.testing.assert_allclose(Predictor(tmp_path / "m.d2q").raw(image.numpy()), wanted, atol=1e-5)


def test_a_run_that_was_not_quantized_is_exported_with_its_rounding(
    small_settings: Callable[..., TrainSettings], tmp_path: Path
) -> None:
    run = train(small_settings(tmp_path / "run", quantize=False, epochs=1, resize=(48, 64)))
    manifest = export(ExportSettings(run=run.path, out=tmp_path / "m.d2q", tolerance=100, calibration="percentile"))
    assert manifest.weights.bits is None
    assert not manifest.weights.exact
    assert 0 < manifest.weights.error < 0.02
    prediction = Predictor(tmp_path / "m.d2q")(np.random.default_rng(0).integers(0, 255, (70, 50, 3), np.uint8))
    assert prediction.mask.shape == (70, 50)
    image = torch.rand(3, 70, 50)
    image = (image * 255).round() / 255
    wanted = predict_probabilities(run.load(), image, Resolution((48, 64))).numpy()
    predictor = Predictor(tmp_path / "m.d2q")
    predictor.manifest = replace(predictor.manifest, output=replace(predictor.manifest.output, temperature=1.0))
    found = predictor.probabilities((image * 255).round().byte().permute(1, 2, 0).numpy())
    assert np.abs(found - wanted).mean() < 0.02


def test_what_cannot_be_exported_is_refused(trained: RunFolder, phantoms: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken.d2q"
    taken.write_text("precious")
    settings = ExportSettings(run=trained.path, out=taken, tolerance=100)
    with pytest.raises(RunFolderError, match="--overwrite"):
        export(settings)
    assert taken.read_text() == "precious"
    with pytest.raises(RunFolderError, match="no run folder"):
        export(replace(settings, run=tmp_path / "none", out=tmp_path / "m.d2q"))
    with pytest.raises(ConfigError, match=r"must end in \.onnx"):
        replace(settings, format="onnx")
    with pytest.raises(ConfigError, match=r"no layer begins with 'nothing'"):
        export(replace(settings, out=tmp_path / "m.d2q", float_layers=("nothing",)))
    from d2ed2q.data import write_phantom_dataset

    write_phantom_dataset(tmp_path / "others", n_train=5, n_test=1, size=(96, 96), seed=9)
    with pytest.raises(DataError, match="is not the one this run was trained on"):
        export(replace(settings, out=tmp_path / "m.d2q", data=tmp_path / "others"))
    assert not (tmp_path / "m.d2q").exists()


def test_inspection_reads_checks_and_runs(bundle: Path) -> None:
    facts = inspect_bundle(bundle)
    assert facts["self_test"]["passed"]
    assert facts["self_test"]["engine"] == "openvino"
    assert facts["size"] == bundle.stat().st_size
    assert facts["card"].startswith("# run")
    json.dumps(facts)
