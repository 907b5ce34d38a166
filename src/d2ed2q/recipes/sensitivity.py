"""Which layers lose most by int8 activations, and how many of them have to stay in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import onnx

from d2ed2q.deploy import make_engine
from d2ed2q.deploy.int8_graph import activation_layers, with_float_layers

__all__ = ["choose_float_layers", "costliest_layers"]

Score = TypeVar("Score")
_DEPTH = {"base": 4, "meta": 3}  # parts of a name that make a block: base.0.encoder.layer1, meta.encoder.layer1
_OTHER = 2  # fusions.encoder1


def _block(layer: str) -> str:
    parts = layer.split(".")
    return ".".join(parts[: _DEPTH.get(parts[0], _OTHER)])


def costliest_layers(model: onnx.ModelProto, image: np.ndarray) -> list[str]:
    """Blocks of layers, ordered by how much nearer to the float model the probabilities come when one is left in float.

    Args:
        model: with int8 activations.
        image: float32 ``C×H×W`` that the graph takes.
    """
    layers = activation_layers(model)
    blocks: dict[str, list[str]] = {}
    for layer in layers:
        blocks.setdefault(_block(layer), []).append(layer)
    reference = _run(with_float_layers(model, layers), image)
    errors = {
        block: float(np.abs(_run(with_float_layers(model, own), image) - reference).mean())
        for block, own in blocks.items()
    }
    return sorted(errors, key=lambda block: errors[block])


def choose_float_layers(
    model: onnx.ModelProto,
    ranked: Sequence[str],
    score: Callable[[onnx.ModelProto], Score],
    accepted: Callable[[Score], bool],
) -> tuple[onnx.ModelProto, list[str], Score]:
    """Leaves 1, 2, 4, … of the costliest blocks in float until the score is accepted, all of them at the last.

    Returns:
        tuple: the model, the layers in float32, and the score.
    """
    layers = activation_layers(model)
    count = 1
    while True:
        chosen = [layer for layer in layers if _block(layer) in ranked[:count]]
        candidate = with_float_layers(model, chosen)
        found = score(candidate)
        if accepted(found) or count >= len(ranked):
            return candidate, chosen, found
        count *= 2


def _run(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    # Dozens of graphs run once each: ONNX Runtime reads one in a fifth of the time that OpenVINO compiles it in.
    return make_engine("onnxruntime", model.SerializeToString()).run(image[None])
