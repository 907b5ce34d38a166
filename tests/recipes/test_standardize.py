"""A model that sees every picture with one mean and one spread, from training to the node's file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2ed2q.cli import main
from d2ed2q.data import open_dataset
from d2ed2q.deploy import Predictor, read_bundle
from d2ed2q.recipes.evaluate import evaluate
from d2ed2q.recipes.export import export
from d2ed2q.recipes.inference import predict_sample
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.settings import EvaluateSettings, ExportSettings
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings


@pytest.fixture(scope="module")
def run(small_settings: Callable[..., TrainSettings], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    settings = small_settings(
        tmp_path_factory.mktemp("standardized") / "run", standardize=True, quantize=False, epochs=2
    )
    return train(settings)


def test_files_networks_and_engines_see_the_same(run: RunFolder, phantoms: Path, tmp_path: Path) -> None:
    card, ensemble = run.read_card(), run.load()
    assert card.standardize
    file = tmp_path / "model.d2q"
    export(ExportSettings(run=run.path, out=file, activations="float32", tolerance=100))
    bundle = read_bundle(file)
    assert bundle.manifest.input.standardize
    dataset = open_dataset(phantoms)
    sample = dataset.read(dataset.test[0])
    own = predict_sample(ensemble, card, sample, "none").numpy()
    plain = predict_sample(ensemble, replace(card, standardize=False), sample, "none").numpy()
    assert np.abs(own - plain).mean() > 1e-3, "it makes a difference"
    photo = np.asarray(Image.open(dataset.test[0].image))
    predictor = Predictor(file)
    found = predictor.probabilities(photo, "none")
    assert np.abs(found - own).mean() < 0.2 * np.abs(own - plain).mean()  # weights are rounded to 8 bits
    # In half the light a photograph gives the same, but for where it was black enough to be taken for the surround.
    dark = predictor.probabilities((photo * 0.6).round().astype(np.uint8), "none")
    moved = np.abs(dark - found).mean()
    assert moved < 0.5 * np.abs(plain - own).mean()
    # The run folder and its file segment a picture from the command line alike.
    photos = str(dataset.test[0].image)
    shown = []
    for model in (run.path, file):
        out = tmp_path / f"masks-{model.name}"
        assert main(["predict", str(model), photos, "--out", str(out), "--tta", "none"]) == 0
        with Image.open(next(out.glob("*_probability.png"))) as picture:
            shown.append(np.asarray(picture).astype(int))
    assert np.abs(shown[0] - shown[1]).mean() < 6


def test_evaluation_takes_it_from_the_run(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    other = RunFolder(tmp_path / "run")
    other.save_card(replace(run.read_card(), standardize=False))
    own, plain = (evaluate(EvaluateSettings(run=one.path))["scopes"]["fov"]["meta"] for one in (run, other))
    assert own["auc"] != plain["auc"]
    assert 0 <= own["dice"] <= 1
