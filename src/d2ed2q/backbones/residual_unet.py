"""Residual U-Net: a U-Net of residual blocks, as in Zhang et al. (2018) and nnU-Net's ResEnc (Isensee et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from d2ed2q.backbones.initialization import he_initialize
from d2ed2q.backbones.resnet import BasicBlock
from d2ed2q.backbones.unet import UShapedNetwork

__all__ = ["ResidualUNet"]


class ResidualUNet(UShapedNetwork):
    """A U-Net whose every stage is a residual block of two convolutions; strided convolutions take it down.

    The order within a block is nnU-Net's (convolution, normalisation, ReLU; the last ReLU after the sum), the single
    block a stage and the strided 1×1 convolution in its shortcut are Zhang et al.'s.

    Args:
        in_channels: channels of the input.
        n_classes: channels of the logits.
        widths: channels of each level, the centre last; at least two.
        dims: number of spatial axes, 2 or 3.
        half: whether all levels work at half the resolution, see :class:`~d2ed2q.backbones.unet.UShapedNetwork`.

    Raises:
        ConfigError: fewer than two widths, or one below 1.
    """

    def __init__(
        self, in_channels: int, n_classes: int, widths: Sequence[int], dims: int = 2, half: bool = False
    ) -> None:
        def stage(inner: int, outer: int) -> nn.Module:
            return BasicBlock(inner, outer, dims=dims)

        def down(inner: int, outer: int) -> nn.Module:
            return BasicBlock(inner, outer, stride=2, dims=dims)

        super().__init__(in_channels, n_classes, widths, stage, down, dims, half)
        he_initialize(self, keep=(self.head,))
