"""Which parameters are quantized: weights of convolutions and linear layers, never BatchNorm, never biases."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

__all__ = ["QuantizableWeight", "quantizable_weights"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)


@dataclass(frozen=True)
class QuantizableWeight:
    """One weight tensor in scope.

    Attributes:
        name: its dotted name in the module, for instance ``base.0.encoder.1.weight``.
        parameter: the parameter itself.
        channel_axis: its output-channel dimension: 1 for transposed convolutions (PyTorch stores them as
            ``C_in×C_out/groups×…``), else 0.
    """

    name: str
    parameter: nn.Parameter
    channel_axis: int


def quantizable_weights(module: nn.Module) -> list[QuantizableWeight]:
    """Lists the weights in scope, in the module's own order; a weight shared by several layers appears once."""
    found: list[QuantizableWeight] = []
    seen: set[int] = set()
    for prefix, layer in module.named_modules():
        if not isinstance(layer, _LAYERS) or id(layer.weight) in seen:
            continue
        seen.add(id(layer.weight))
        if not isinstance(layer.weight, nn.Parameter):
            continue  # computed from other parameters, as weight normalisation does: not a weight that can be frozen
        name = f"{prefix}.weight" if prefix else "weight"
        found.append(QuantizableWeight(name, layer.weight, 1 if isinstance(layer, _TRANSPOSED) else 0))
    return found
