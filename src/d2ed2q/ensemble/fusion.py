"""How the meta learner takes in the base learners' features at one tap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from d2ed2q.backbones.layers import layers_of

__all__ = ["ChannelAttention", "TapFusion"]


class ChannelAttention(nn.Module):
    """Squeeze-and-excitation over channels (Hu et al., 2018): ``x · σ(W₂ ReLU(W₁ GAP(x)))``.

    Args:
        channels: channels c of the feature; the bottleneck has ``max(c // 16, 1)``.
        dims: number of spatial axes, 2 or 3.
    """

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__()
        convolution = layers_of(dims).convolution
        squeezed = max(channels // 16, 1)
        self.squeeze = convolution(channels, squeezed, 1)
        self.excite = convolution(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Reweights the channels of ``x`` (``B×c×h×w`` or ``B×c×d×h×w``)."""
        pooled = x.mean(tuple(range(2, x.ndim)), keepdim=True)
        weights: Tensor = torch.sigmoid(self.excite(torch.relu(self.squeeze(pooled))))
        return x * weights


class TapFusion(nn.Module):
    """Fuses the K base features of one tap and the meta learner's own feature.

    ``mix = A(ReLU(BN(Conv1×1(cat(f¹, …, f^K)))))`` and ``fused = ReLU(BN(Conv1×1(cat(mix, f⁰))))``, where A is
    :class:`ChannelAttention`.

    Args:
        channels: channels c of the tap.
        n_base: number K of base learners.
        dims: number of spatial axes, 2 or 3; the convolutions are 1×1×1 where it is 3.
    """

    def __init__(self, channels: int, n_base: int, dims: int = 2) -> None:
        super().__init__()
        layers = layers_of(dims)
        self.mix = layers.convolution(n_base * channels, channels, 1, bias=False)
        self.mix_norm = layers.norm(channels)
        self.attention = ChannelAttention(channels, dims)
        self.fuse = layers.convolution(2 * channels, channels, 1, bias=False)
        self.fuse_norm = layers.norm(channels)

    def forward(self, base: Sequence[Tensor], meta: Tensor) -> Tensor:
        """Fuses one tap.

        Args:
            base: K features, each ``B×c×h×w`` or ``B×c×d×h×w``.
            meta: the meta learner's feature, of the same shape.

        Returns:
            Tensor: the fused feature, of the same shape.
        """
        mixed = self.attention(torch.relu(self.mix_norm(self.mix(torch.cat(tuple(base), 1)))))
        return torch.relu(self.fuse_norm(self.fuse(torch.cat((mixed, meta), 1))))
