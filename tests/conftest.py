"""Fixtures that several rooms share."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from d2ed2q.data import write_phantom_dataset
from d2ed2q.deploy import make_engine
from d2ed2q.deploy.graph import _traced as trace
from d2ed2q.recipes.export import export
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.settings import ExportSettings
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings

# A loaded machine may take seconds over one example; what a test may take in all is pytest's timeout.
hypothesis.settings.register_profile("d2ed2q", deadline=None)
hypothesis.settings.load_profile("d2ed2q")
# The networks of the tests are too small for threads to help, and threads that wait for each other are very slow.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _same_random_numbers() -> Iterator[None]:
    """Every test starts from the same random numbers and leaves the global switches as they were."""
    torch.manual_seed(0)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(1)  # an engine in PyTorch sets it, and sums of another number of threads differ


@pytest.fixture(scope="session", autouse=True)
def _traced_once() -> Iterator[None]:
    """Networks that differ in their weights alone have one graph, which the exporter takes many seconds to find."""
    known: dict[str, onnx.ModelProto] = {}

    def traced(module: nn.Module, example: Tensor, free: dict[int, Any]) -> onnx.ModelProto:
        key = f"{example.shape} {module}"
        if key in known:
            model, weights = copy.deepcopy(known[key]), module.state_dict()
            for constant in model.graph.initializer:
                if (value := weights.get(f"wrapped.{constant.name}")) is not None:
                    constant.CopyFrom(numpy_helper.from_array(value.numpy(), constant.name))
            found = make_engine("torch", model.SerializeToString(), 1).run(example.numpy())
            with torch.no_grad():
                if np.allclose(found, module(example).numpy(), atol=1e-5):
                    return model
        known[key] = trace(module, example, free)
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("d2ed2q.deploy.graph._traced", traced)
        yield


@pytest.fixture
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has ``d2ed2q bench`` start each network once, where what it says matters and not how fast anything is."""
    monkeypatch.setattr("d2ed2q.recipes.bench._ROUNDS", 1)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Finds a real dataset by its folder's name, or skips the test."""
    places = [Path(os.environ["D2ED2Q_DATA"])] if "D2ED2Q_DATA" in os.environ else []
    places.append(ROOT.parent / "shared" / "data")

    def find(name: str) -> Path:
        for place in places:
            if (place / name).is_dir():
                return place / name
        pytest.skip(f"the real dataset {name} is not here; set D2ED2Q_DATA to the folder that holds it")

    return find


SMALL: dict[str, Any] = {
    "backbone": "unet-xs",
    "epochs": 3,
    "epochs_q": 1,
    "crop": (48, 48),
    "batch_size": 2,
    "lr": 1e-2,
    "alpha": 0.1,
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
