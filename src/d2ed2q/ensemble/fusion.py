"""How the meta learner takes in the base learners' features at one tap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ChannelAttention", "TapFusion"]


class ChannelAttention(nn.Module):
    """Squeeze-and-excitation over channels (Hu et al., 2018): ``x · σ(W₂ ReLU(W₁ GAP(x)))``.

    Args:
        channels: channels c of the feature; the bottleneck has ``max(c // 16, 1)``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(channels // 16, 1)
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Reweights the channels of ``x`` (``B×c×h×w``)."""
        pooled = x.mean((2, 3), keepdim=True)
        weights: Tensor = torch.sigmoid(self.excite(torch.relu(self.squeeze(pooled))))
        return x * weights


class TapFusion(nn.Module):
    """Fuses the K base features of one tap and the meta learner's own feature.

    ``mix = A(ReLU(BN(Conv1×1(cat(f¹, …, f^K)))))`` and ``fused = ReLU(BN(Conv1×1(cat(mix, f⁰))))``, where A is
    :class:`ChannelAttention`.

    Args:
        channels: channels c of the tap.
        n_base: number K of base learners.
    """

    def __init__(self, channels: int, n_base: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(n_base * channels, channels, 1, bias=False)
        self.mix_norm = nn.BatchNorm2d(channels)
        self.attention = ChannelAttention(channels)
        self.fuse = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.fuse_norm = nn.BatchNorm2d(channels)

    def forward(self, base: Sequence[Tensor], meta: Tensor) -> Tensor:
        """Fuses one tap.

        Args:
            base: K features, each ``B×c×h×w``.
            meta: the meta learner's feature, ``B×c×h×w``.

        Returns:
            Tensor: the fused feature, ``B×c×h×w``.
        """
        mixed = self.attention(torch.relu(self.mix_norm(self.mix(torch.cat(tuple(base), 1)))))
        return torch.relu(self.fuse_norm(self.fuse(torch.cat((mixed, meta), 1))))
