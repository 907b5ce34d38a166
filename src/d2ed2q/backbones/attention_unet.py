"""Attention U-Net (Oktay et al., 2018): a U-Net whose skips pass through attention gates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2ed2q.backbones.initialization import he_initialize
from d2ed2q.backbones.layers import layers_of
from d2ed2q.backbones.unet import UShapedNetwork, double_convolution

__all__ = ["AttentionGate", "AttentionUNet"]


class AttentionGate(nn.Module):
    """Additive attention: ``BN(W(x · ↑σ(ψ(ReLU(θ(x) + φ(g))))))``.

    θ has width and stride 2 and brings the skip to the grid of the gating feature, ψ gives one channel, and ↑ is linear
    interpolation, as in the paper; many later versions upsample the gating feature instead.

    Args:
        channels: channels c of the skip x, of the output, and of the space in which the two are compared.
        gating: channels of the gating feature g.
        dims: number of spatial axes, 2 or 3.
    """

    def __init__(self, channels: int, gating: int, dims: int = 2) -> None:
        super().__init__()
        layers = layers_of(dims)
        self.mode = layers.linear
        self.theta = layers.convolution(channels, channels, 2, stride=2, bias=False)
        self.phi = layers.convolution(gating, channels, 1)
        self.psi = layers.convolution(channels, 1, 1)
        self.project = layers.convolution(channels, channels, 1, bias=False)
        self.norm = layers.norm(channels)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Of ``B×c×2h×2w`` and ``B×gating×h×w``: ``B×c×2h×2w``; volumes alike."""
        attention = torch.sigmoid(self.psi(torch.relu(self.theta(x) + self.phi(gate))))
        attention = F.interpolate(attention, scale_factor=2.0, mode=self.mode, align_corners=False)
        gated: Tensor = self.norm(self.project(x * attention))
        return gated


class AttentionUNet(UShapedNetwork):
    """U-Net with an attention gate in every skip but the finest.

    The finest skip is left alone as in the paper: its features say too little to be compared. The gating feature of a
    level is what the decoder is about to bring up to it. Deep supervision is left out.

    Args:
        in_channels: channels of the input.
        n_classes: channels of the logits.
        widths: channels of each level, the centre last; at least two.
        dims: number of spatial axes, 2 or 3.

    Raises:
        ConfigError: fewer than two widths, or one below 1.
    """

    def __init__(self, in_channels: int, n_classes: int, widths: Sequence[int], dims: int = 2) -> None:
        def stage(inner: int, outer: int) -> nn.Module:
            return double_convolution(inner, outer, dims)

        super().__init__(in_channels, n_classes, widths, stage, dims=dims)
        self.gates = nn.ModuleList(AttentionGate(a, b, dims) for a, b in pairwise(widths[1:]))
        # ψ ends in a sigmoid: with small weights every gate starts half open instead of shut or wide open.
        unactivated = [gate.psi for gate in self.gates if isinstance(gate, AttentionGate)]
        he_initialize(self, keep=(self.head, *unactivated))

    def skip(self, index: int, feature: Tensor, coarse: Tensor) -> Tensor:
        """The gated feature; see :meth:`~d2ed2q.backbones.unet.UShapedNetwork.skip`."""
        if index == 0:
            return feature
        gated: Tensor = self.gates[index - 1](feature, coarse)
        return gated
