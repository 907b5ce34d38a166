from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from d2ed2q.cli import main
from d2ed2q.data import Sample
from d2ed2q.errors import AccuracyError, ConfigError
from d2ed2q.quantization import quantizable_weights
from d2ed2q.recipes.inference import predict_sample
from d2ed2q.recipes.inspect_run import inspect_run
from d2ed2q.recipes.quantize import quantize
from d2ed2q.recipes.quantize_settings import QuantizeSettings
from d2ed2q.recipes.rounding import RoundedEnsemble
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.search_bits import search_bits
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.recipes.validation import validation_figures
from d2ed2q.report.search import pareto_front

Make = Callable[..., TrainSettings]


def test_the_search_finds_the_smallest_of_what_it_measured_and_its_bits_are_trained(
    trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    command = ["quantize", str(trained.path), "--search", "--tolerance", "5", "--batches", "2", "--out", str(out)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    result = json.loads(trained.search.read_text())
    chosen = result["chosen"]
    assert f"found: {' '.join(map(str, chosen['bits']))} bits" in shown
    assert f"next: d2ed2q evaluate {out}" in shown
    run = RunFolder(out)
    assert run.read_card().bits == tuple(chosen["bits"])
    assert run.read_card().codebook == chosen["codebook"] == "geometric"
    with Image.open(trained.search_picture) as picture:
        assert picture.size == (1320, 576)
    whole = [point for point in result["points"] if point["kind"] in ("uniform", "joint")]
    within = [point for point in whole if point["loss"] <= 5]
    assert chosen["bytes"] == min(point["bytes"] for point in within)
    full = result["full_precision"]
    for point in result["points"]:
        assert point["loss"] == pytest.approx(100 * (full["dice"] - point["dice"]))
        assert point["bytes"] < full["bytes"]
    uniform = [point for point in whole if point["kind"] == "uniform"]
    assert [point["bits"][0] for point in uniform] == [8, 7, 6, 5, 4, 3, 2]
    assert [point["bytes"] for point in uniform] == sorted((point["bytes"] for point in uniform), reverse=True)
    alone = [point["bits"] for point in result["points"] if point["kind"] == "alone"]
    assert len(alone) == 3 * 7
    assert all(sum(bits is not None for bits in each) == 1 for each in alone)


def test_several_codebooks_are_compared_and_the_next_command_is_one(
    trained: RunFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["quantize", str(trained.path), "--search", "--codebooks", "geometric", "linear", "--metric", "auc"]
    assert main([*command, "--tolerance", "30", "--batches", "1"]) == 0
    shown = capsys.readouterr().out
    result = json.loads(trained.search.read_text())
    assert [point["bits"][0] for point in result["best_per_bits"]] == [8, 7, 6, 5, 4, 3, 2]
    for best in result["best_per_bits"]:
        rivals = [p["loss"] for p in result["points"] if p["kind"] == "uniform" and p["bits"] == best["bits"]]
        assert len(rivals) == 2
        assert best["loss"] == min(rivals)
    (following,) = (line for line in shown.splitlines() if line.startswith("next: d2ed2q "))
    words = following.removeprefix("next: d2ed2q ").replace("NEW", str(tmp_path / "new")).split()
    assert main([*words, "--epochs-q", "1"]) == 0
    assert list(RunFolder(tmp_path / "new").read_card().bits or ()) == result["chosen"]["bits"]


def test_the_search_gives_the_same_twice_and_touches_no_weights(trained: RunFolder) -> None:
    before = {path.name: path.read_bytes() for path in trained.path.glob("*.safetensors")}
    settings = QuantizeSettings(run=trained.path, search=True, tolerance=20, batches=1)
    first, second = search_bits(settings), search_bits(settings)
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert before == {path.name: path.read_bytes() for path in trained.path.glob("*.safetensors")}


def test_the_choice_is_checked_on_all_validation_images(tmp_path: Path, small_settings: Make) -> None:
    run = train(small_settings(tmp_path / "run", quantize=False, validation_fraction=0.5))
    result = search_bits(QuantizeSettings(run=run.path, search=True, tolerance=30, batches=1, images=1))
    assert (result["images"], result["validation_images"]) == (1, 2)
    assert result["chosen"]["images"] == 2
    assert result["chosen"]["kind"] == "check"
    assert result["chosen"]["loss"] <= 30


def test_one_network_has_no_learner_to_round_alone(
    tmp_path: Path, small_settings: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(small_settings(tmp_path / "run", learners=0, quantize=False))
    assert main(["quantize", str(run.path), "--search", "--tolerance", "50", "--batches", "1"]) == 0
    shown = capsys.readouterr().out
    assert "same bits for all learners" in shown
    assert "one learner rounded" not in shown


def test_a_loss_beyond_the_tolerance_is_an_error_that_names_the_remedy(
    trained: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = validation_figures

    def worse(ensemble: Any, *rest: Any) -> dict[str, float]:
        weight = quantizable_weights(ensemble)[3].parameter.detach()
        rounded = len(torch.unique(weight[0])) < weight[0].numel()
        return {name: value - 0.5 * rounded for name, value in figures(ensemble, *rest).items()}

    monkeypatch.setattr("d2ed2q.recipes.search_bits.validation_figures", worse)
    with pytest.raises(AccuracyError, match=r"even \d bits .* more than 0.5; allow more with --tolerance"):
        search_bits(QuantizeSettings(run=trained.path, search=True, batches=1))
    assert json.loads(trained.search.read_text())["chosen"] is None
    assert trained.search_picture.is_file()


def test_replayed_outputs_are_those_that_would_be_computed(trained: RunFolder) -> None:
    batches = [torch.rand(2, 3, 48, 48) for _ in range(2)]
    image = torch.rand(1, 3, 40, 44)
    found = []
    for memory in (0, 1 << 26):
        rounded = RoundedEnsemble(trained.load(full_precision=True), batches, memory)
        rounded.keep("linear", (None, 3, None))
        outputs = []
        for bits in ((None, 3, None), (4, 3, None), (4, 3, 2), (None, None, None)):
            with torch.no_grad():
                outputs.append(rounded.round("linear", bits)(image).logits)
        found.append(torch.stack(outputs))
    assert torch.equal(*found)
    with torch.no_grad():
        assert torch.equal(found[0][3], trained.load(full_precision=True)(image).logits)


def test_statistics_are_the_average_over_the_batches(trained: RunFolder) -> None:
    ensemble = trained.load(full_precision=True)
    norm = next(
        module
        for name, module in ensemble.named_modules()
        if name.startswith("base.0.") and isinstance(module, torch.nn.BatchNorm2d)
    )
    assert isinstance(norm, torch.nn.BatchNorm2d)
    batches = [torch.rand(2, 3, 32, 32) for _ in range(3)]
    seen: list[torch.Tensor] = []
    with norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean((0, 2, 3)))):
        RoundedEnsemble(ensemble, batches).round("linear", (None, 4, None))
    assert norm.running_mean is not None
    assert torch.allclose(norm.running_mean, torch.stack(seen[:3]).mean(0), atol=1e-5)
    assert not norm.training
    assert norm.momentum is not None


def test_the_pareto_front() -> None:
    assert pareto_front([(3, 0.9), (1, 0.5), (2, 0.4), (2, 0.6), (4, 0.9)]) == [(1, 0.5), (2, 0.6), (3, 0.9)]


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes of grey noise with a bright and a dark slab."""
    root = tmp_path_factory.mktemp("volumes")
    names = [f"slab_{number}" for number in range(5)]
    for number, name in enumerate(names):
        label = np.zeros((16, 16, 12), np.uint8)
        label[:, 2 + number : 6 + number], label[:, 12:, :6] = 1, 2
        values = np.array([100, 200, 10])[label] + np.random.default_rng(number).integers(-9, 9, label.shape)
        for folder, content in (("imagesTr", values.astype(np.int16)), ("labelsTr", label)):
            (root / folder).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(content, np.eye(4)), root / folder / f"{name}.nii.gz")
    description = {
        "name": "Slabs",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "bright", "2": "dark"},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": [],
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def test_volumes_with_several_classes(volumes: Path, tmp_path: Path, small_settings: Make) -> None:
    run = train(small_settings(tmp_path / "run", data=volumes, crop=(8, 16, 16), quantize=False, epochs=4))
    with pytest.raises(ConfigError, match="no AUC"):
        search_bits(QuantizeSettings(run=run.path, search=True, metric="auc"))
    new = quantize(
        QuantizeSettings(run=run.path, out=tmp_path / "new", search=True, tolerance=100, batches=1, epochs_q=1)
    )
    assert json.loads(run.search.read_text())["full_precision"]["auc"] is None
    assert new.read_card().dims == 3
    assert inspect_run(new.path)["learners"]["meta"]["bits"] == 2
    sample = Sample(torch.rand(1, 12, 16, 16), None, None, "new", "new", (1.0, 1.0, 1.0))
    assert predict_sample(new.load(), new.read_card(), sample).shape == (3, 3, 12, 16, 16)
