"""How the weights of every backbone start."""

from __future__ import annotations

from torch import nn

__all__ = ["he_initialize"]


def he_initialize(network: nn.Module, logits: nn.Conv2d) -> None:
    """Draws new weights (He et al., 2015): normal, fan-out, gain of a ReLU; biases zero, batch normalisation 1 and 0.

    Args:
        network: its convolutions, transposed convolutions and batch normalisations are set in place.
        logits: the layer that gives the logits; it keeps the small weights that PyTorch gave it. No ReLU follows,
            and with the fan-out of a single class it would start at logits of ±4, a confident wrong answer.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module is not logits:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
