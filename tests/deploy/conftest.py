"""A small ensemble in few bits, its graphs, and a bundle of it: made once, without training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from d2ed2q.backbones import build_backbone
from d2ed2q.data import make_phantom
from d2ed2q.deploy import Bundle, Manifest, Predictor, read_bundle
from d2ed2q.deploy.graph import FloatGraph, float_graph
from d2ed2q.deploy.int8_graph import int8_activations, int8_weights
from d2ed2q.deploy.int8_weights import Int8Weight, int8_weight
from d2ed2q.deploy.manifest import Accuracy, Activations, InputSpec, OutputSpec, Weights
from d2ed2q.ensemble import DeepEnsemble, view_names
from d2ed2q.quantization import IncrementalQuantizer, quantizable_weights
from d2ed2q.recipes.export_files import write_export
from d2ed2q.recipes.settings import ExportSettings


def few_bit_ensemble(codebook: str = "geometric", bits: int = 4, backbone: str = "unet-xs") -> DeepEnsemble:
    """An ensemble of random weights in few bits, with BatchNorms that scale, shift, and turn signs."""
    torch.manual_seed(0)
    ensemble = DeepEnsemble(lambda: build_backbone(backbone, 3, 1), n_base=2).train()
    for module in ensemble.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1, 0.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    quantizer = IncrementalQuantizer(ensemble, bits, codebook)
    quantizer.advance()
    with torch.no_grad():  # as retraining does: a channel's largest weight may shrink before it is quantized
        for weight in quantizable_weights(ensemble):
            weight.parameter.mul_(0.8)
        quantizer.restore()
        while quantizer.advance():
            pass
        for seed in range(2):
            ensemble(phantom(seed, 192)[None])
    steps = {
        name: book.scale if book.scale is not None else book.levels[book.levels > 0].min()
        for name, book in quantizer.codebooks.items()
    }
    ensemble.steps = steps  # type: ignore[assignment]
    ensemble.decide("meta", dict.fromkeys(view_names(2), 0.4))
    return ensemble.eval()


def weights_of(ensemble: DeepEnsemble) -> dict[str, Int8Weight]:
    return {
        weight.name: int8_weight(weight.parameter, weight.channel_axis, ensemble.steps[weight.name])  # type: ignore[index]
        for weight in quantizable_weights(ensemble)
    }


def phantom(seed: int, size: int) -> torch.Tensor:
    """Float32 ``3×size×size`` in [0, 1]."""
    return torch.from_numpy(make_phantom(seed, (size, size)).image).permute(2, 0, 1).float() / 255


@dataclass(frozen=True)
class Exported:
    ensemble: DeepEnsemble
    graph: FloatGraph
    weights: dict[str, Int8Weight]
    model: onnx.ModelProto
    manifest: Manifest
    path: Path

    @property
    def bundle(self) -> Bundle:
        return read_bundle(self.path)


def manifest_of(ensemble: DeepEnsemble, tta: str = "none") -> Manifest:
    meta = ensemble.meta
    return Manifest(
        name="test",
        created="2026-01-01T00:00:00+00:00",
        backbone="unet-xs",
        input=InputSpec(3, meta.stride, meta.minimum, None),
        output=OutputSpec(
            classes=("background", "vessel"),
            learners=2,
            prediction="meta",
            thresholds=dict.fromkeys(view_names(2), 0.4),
            temperature=1.0,
            region="whole",
            tta=tta,  # type: ignore[arg-type]
        ),
        weights=Weights((4, 4, 4), "geometric", True, 56, 0.0, 3.3, 100, 30),
        activations=Activations("int8", "mean-min-max", 2, ()),
        accuracy=Accuracy(2, (0.8, 0.8), (0.97, 0.97), (0.02, 0.01), 0.7),
        provenance={"dataset": "phantom", "seed": 0, "sha256": [], "versions": {"torch": torch.__version__}},
        parts={},
    )


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    ensemble = few_bit_ensemble()
    graph = float_graph(ensemble)
    weights = weights_of(ensemble)
    images = [phantom(seed, 96).numpy() for seed in range(2)]
    model = int8_weights(int8_activations(graph.model, images, "mean-min-max"), graph, weights)
    path = tmp_path_factory.mktemp("bundle") / "model.d2q"
    manifest = manifest_of(ensemble)
    write_export(ExportSettings(run=Path("run"), out=path), manifest, model, {"Dice on nothing": 0.5})
    return Exported(ensemble, graph, weights, model, read_bundle(path).manifest, path)


@pytest.fixture(scope="session")
def calibrated_path(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a temperature, and test-time augmentation by default."""
    path = tmp_path_factory.mktemp("calibrated") / "model.d2q"
    manifest = exported.manifest
    output = replace(manifest.output, temperature=2.0, tta="flips")
    write_export(ExportSettings(run=Path("run"), out=path), replace(manifest, output=output), exported.model, {})
    return path


@pytest.fixture
def image() -> np.ndarray:
    """An odd-sized photograph, uint8 ``H×W×3``."""
    return np.ascontiguousarray(make_phantom(5, (96, 96)).image[:71, :90])


__all__ = ["Exported", "Predictor", "calibrated_path", "exported", "few_bit_ensemble", "manifest_of", "weights_of"]
