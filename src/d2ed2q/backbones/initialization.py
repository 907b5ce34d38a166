"""How the weights of every backbone start."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from d2ed2q.backbones.layers import CONVOLUTIONS

__all__ = ["he_initialize"]


def he_initialize(network: nn.Module, keep: Iterable[nn.Module]) -> None:
    """Draws new weights (He et al., 2015): normal, fan-out, gain of a ReLU; biases zero, batch normalisation 1 and 0.

    Args:
        network: its convolutions, transposed convolutions and batch normalisations, of images or volumes, are set in
            place.
        keep: layers that keep the smaller weights that PyTorch gave them: those that no ReLU follows. With the
            fan-out of a single class, a layer that gives logits would start at ±4, a confident wrong answer.
    """
    kept = set(keep)
    for module in network.modules():
        if isinstance(module, CONVOLUTIONS) and module not in kept:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
