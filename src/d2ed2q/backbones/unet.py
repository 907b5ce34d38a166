"""U-Net (Ronneberger et al., 2015) with padding and batch normalisation, of any widths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2ed2q.backbones.initialization import he_initialize
from d2ed2q.backbones.staged import StagedNetwork, Tap, TapHook
from d2ed2q.errors import ConfigError

__all__ = ["UNet"]


def _double_convolution(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, padding=1, bias=False),
        nn.BatchNorm2d(outer),
        nn.ReLU(inplace=True),
        nn.Conv2d(outer, outer, 3, padding=1, bias=False),
        nn.BatchNorm2d(outer),
        nn.ReLU(inplace=True),
    )


class UNet(StagedNetwork):
    """U-Net: two 3×3 convolutions a level, 2×2 max-pooling down, 2×2 transposed convolution up, skips concatenated.

    Taps: ``encoder1`` … ``encoder{n−1}``, ``centre``, ``decoder{n−1}`` … ``decoder1`` for n widths.

    Args:
        in_channels: channels of the input.
        n_classes: channels of the logits.
        widths: channels of each level, the centre last; at least two.

    Raises:
        ConfigError: fewer than two widths, or one below 1.
    """

    def __init__(self, in_channels: int, n_classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ConfigError(f"a U-Net takes two or more positive widths, the centre last, got {tuple(widths)}")
        levels = range(1, len(widths))
        self.in_channels = in_channels
        self.n_classes = n_classes
        self.stride = 2 ** len(levels)
        self.taps = (
            *(Tap(f"encoder{level}", widths[level - 1]) for level in levels),
            Tap("centre", widths[-1]),
            *(Tap(f"decoder{level}", widths[level - 1]) for level in reversed(levels)),
        )
        self.encoder = nn.ModuleList(_double_convolution(a, b) for a, b in pairwise((in_channels, *widths)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(_double_convolution(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], n_classes, 1)
        he_initialize(self, keep=(self.head,))

    def run_stages(self, x: Tensor, at_tap: TapHook) -> Tensor:
        """Computes logits, ``B×n_classes×H×W``; see :class:`~d2ed2q.backbones.staged.StagedNetwork`."""
        skips: list[Tensor] = []
        for level, stage in enumerate(self.encoder, start=1):
            if skips:
                x = F.max_pool2d(x, 2)
            centre = level == len(self.encoder)
            x = at_tap("centre" if centre else f"encoder{level}", stage(x))
            if not centre:
                skips.append(x)
        for index in reversed(range(len(skips))):
            x = torch.cat((skips[index], self.up[index](x)), 1)
            x = at_tap(f"decoder{index + 1}", self.decoder[index](x))
        logits: Tensor = self.head(x)
        return logits
