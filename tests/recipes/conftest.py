"""A small dataset of phantoms and one run trained on it, shared by the tests of all recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from d2ed2q.data import write_phantom_dataset
from d2ed2q.recipes.export import export
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.settings import ExportSettings
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings

SMALL: dict[str, Any] = {
    "backbone": "unet-xs",
    "epochs": 3,
    "epochs_q": 1,
    "crop": (48, 48),
    "batch_size": 2,
    "lr": 1e-2,
    "learners": 2,
    "tta": "none",
    "validate_every": 2,
    "precision": "fp32",
}


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms")
    write_phantom_dataset(root, n_train=5, n_test=3, size=(96, 96), seed=1)
    return root


@pytest.fixture(scope="session")
def small_values() -> dict[str, Any]:
    """Settings of a training that takes a second, but for data and folder."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def small_settings(phantoms: Path) -> Callable[..., TrainSettings]:
    def make(out: Path, **changes: Any) -> TrainSettings:
        return TrainSettings(**({"data": phantoms, "out": out} | SMALL | changes))

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, small_settings: Callable[..., TrainSettings]) -> RunFolder:
    return train(small_settings(tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="session")
def bundle(trained: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.d2q"
    # The small network of the tests was hardly trained: what int8 costs it is no measure of anything.
    export(ExportSettings(run=trained.path, out=path, tolerance=100))
    return path
