"""D2ED2Q: an ensemble of segmentation networks in fewer bytes than one of them.

What is listed in ``__all__`` is the public interface. Names are imported when they are first used, so that
``import d2ed2q`` and the command line's ``--help`` do not wait for PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from d2ed2q.backbones import StagedNetwork, build_backbone
    from d2ed2q.data import open_dataset, read_image, write_phantom_dataset
    from d2ed2q.deploy import Prediction, Predictor
    from d2ed2q.ensemble import DeepDiversifiedLoss, DeepEnsemble
    from d2ed2q.errors import D2ED2QError
    from d2ed2q.quantization import IncrementalQuantizer
    from d2ed2q.recipes.evaluate import evaluate
    from d2ed2q.recipes.export import export
    from d2ed2q.recipes.predict import predict, predict_image
    from d2ed2q.recipes.quantize import quantize
    from d2ed2q.recipes.quantize_settings import QuantizeSettings
    from d2ed2q.recipes.run_folder import RunFolder
    from d2ed2q.recipes.search_bits import search_bits
    from d2ed2q.recipes.settings import EvaluateSettings, ExportSettings, PredictSettings
    from d2ed2q.recipes.train import train
    from d2ed2q.recipes.train_settings import TrainSettings

_HOMES = {
    "D2ED2QError": "errors",
    "DeepDiversifiedLoss": "ensemble",
    "DeepEnsemble": "ensemble",
    "EvaluateSettings": "recipes.settings",
    "ExportSettings": "recipes.settings",
    "IncrementalQuantizer": "quantization",
    "PredictSettings": "recipes.settings",
    "Prediction": "deploy",
    "Predictor": "deploy",
    "QuantizeSettings": "recipes.quantize_settings",
    "RunFolder": "recipes.run_folder",
    "StagedNetwork": "backbones",
    "TrainSettings": "recipes.train_settings",
    "build_backbone": "backbones",
    "evaluate": "recipes.evaluate",
    "export": "recipes.export",
    "open_dataset": "data",
    "predict": "recipes.predict",
    "predict_image": "recipes.predict",
    "quantize": "recipes.quantize",
    "read_image": "data",
    "search_bits": "recipes.search_bits",
    "train": "recipes.train",
    "write_phantom_dataset": "data",
}

__all__ = [
    "D2ED2QError",
    "DeepDiversifiedLoss",
    "DeepEnsemble",
    "EvaluateSettings",
    "ExportSettings",
    "IncrementalQuantizer",
    "PredictSettings",
    "Prediction",
    "Predictor",
    "QuantizeSettings",
    "RunFolder",
    "StagedNetwork",
    "TrainSettings",
    "build_backbone",
    "evaluate",
    "export",
    "open_dataset",
    "predict",
    "predict_image",
    "quantize",
    "read_image",
    "search_bits",
    "train",
    "write_phantom_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'd2ed2q' has no attribute {name!r}")
    return getattr(import_module(f"d2ed2q.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
