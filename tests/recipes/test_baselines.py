"""What the method is compared with, a plain network and a plain ensemble, goes all the way from training to a mask."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2ed2q.deploy import Predictor, read_bundle
from d2ed2q.errors import ConfigError
from d2ed2q.recipes.bench import bench
from d2ed2q.recipes.evaluate import evaluate
from d2ed2q.recipes.export import export
from d2ed2q.recipes.inspect_run import inspect_run
from d2ed2q.recipes.quantize import quantize
from d2ed2q.recipes.quantize_settings import QuantizeSettings
from d2ed2q.recipes.settings import BenchSettings, EvaluateSettings, ExportSettings
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings

Make = Callable[..., TrainSettings]


@pytest.mark.usefixtures("one_round")
@pytest.mark.parametrize(
    ("changes", "learners", "views"),
    [
        ({"learners": 0}, ["network"], ["network"]),
        ({"fuse": False}, ["meta", "base_1", "base_2"], ["ensemble", "meta", "base_mean", "base_1", "base_2"]),
    ],
)
def test_from_training_to_a_mask(
    changes: dict[str, object],
    learners: list[str],
    views: list[str],
    tmp_path: Path,
    phantoms: Path,
    small_settings: Make,
) -> None:
    run = train(small_settings(tmp_path / "run", epochs=1, **changes))
    result = evaluate(EvaluateSettings(run=run.path))
    assert list(result["scopes"]["fov"]) == views
    assert (result["diversity"]["disagreement"] is None) == (learners == ["network"])
    assert "not measured" in run.report.read_text() or learners != ["network"]
    facts = inspect_run(run.path)
    assert list(facts["learners"]) == learners
    assert all(row["distinct_per_channel"] <= 15 for row in facts["learners"].values())
    assert not any("fusions" in row["name"] for row in facts["tensors"])
    bundle = tmp_path / "model.d2q"
    export(ExportSettings(run=run.path, out=bundle, tolerance=100))
    manifest = read_bundle(bundle).manifest
    assert manifest.output.learners == len(learners) - 1
    assert (
        manifest.accuracy.learner_dice
        == run.read_card().validation_dice[learners[-1] if len(learners) == 1 else "base_1"]
    )
    image = np.asarray(Image.open(next((phantoms / "test" / "images").iterdir())))
    prediction = Predictor(bundle)(image)
    assert prediction.learners.shape == (len(learners), 1, *image.shape[:2])
    assert (prediction.disagreement.max() < 1e-6) == (len(learners) == 1)
    if len(learners) == 1:
        figures = bench(BenchSettings(model=bundle, size=(32, 32), runs=3, threads=1, out=tmp_path / "bench.json"))
        assert {row["network"] for row in figures["rows"]} == {"few-bit network", "one float network"}
        assert "few-bit network in openvino / one float network in torch" in figures["ratios"]


def test_the_search_for_bits_knows_a_plain_network(tmp_path: Path, small_settings: Make) -> None:
    run = train(small_settings(tmp_path / "run", epochs=1, learners=0))
    quantize(QuantizeSettings(run=run.path, out=tmp_path / "few", search=True, tolerance=100))
    found = json.loads(run.search.read_text())
    assert found["learners"] == ["network"]
    assert len(found["chosen"]["bits"]) == 1


@pytest.mark.parametrize("learners", [1, -1])
def test_one_base_learner_is_refused(learners: int, tmp_path: Path, small_settings: Make) -> None:
    with pytest.raises(ConfigError, match="0 trains one plain network"):
        small_settings(tmp_path / "run", learners=learners)
