"""U-Net (Ronneberger et al., 2015) with padding and batch normalisation, of any widths, and what its kin share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from d2ed2q.backbones.initialization import he_initialize
from d2ed2q.backbones.layers import layers_of
from d2ed2q.backbones.staged import StagedNetwork, Tap, TapHook
from d2ed2q.errors import ConfigError

__all__ = ["UNet", "UShapedNetwork", "double_convolution"]


def double_convolution(inner: int, outer: int, dims: int = 2) -> nn.Sequential:
    """Two convolutions of width 3, each with batch normalisation and ReLU: U-Net's stage.

    Args:
        inner: channels of the input.
        outer: channels of the output.
        dims: number of spatial axes.
    """
    layers = layers_of(dims)
    return nn.Sequential(
        layers.convolution(inner, outer, 3, padding=1, bias=False),
        layers.norm(outer),
        nn.ReLU(inplace=True),
        layers.convolution(outer, outer, 3, padding=1, bias=False),
        layers.norm(outer),
        nn.ReLU(inplace=True),
    )


class UShapedNetwork(StagedNetwork):
    """What the U-Nets share: stages down, stages up, transposed convolutions of width and stride 2, skips concatenated.

    Taps: ``encoder1`` … ``encoder{n−1}``, ``centre``, ``decoder{n−1}`` … ``decoder1`` for n widths.

    Args:
        in_channels: channels of the input.
        n_classes: channels of the logits.
        widths: channels of each level, the centre last; at least two.
        stage: builds a stage that keeps the resolution, from its channels in and out.
        down: builds a stage that halves the resolution too; None takes max-pooling and ``stage``.
        dims: number of spatial axes, 2 or 3.
        half: whether all levels work at half the resolution: a strided convolution comes first, as in a ResNet, and a
            transposed one before the logits. A quarter of the arithmetic (in volumes an eighth), and outlines to within
            a pixel.

    Raises:
        ConfigError: fewer than two widths, or one below 1.
    """

    def __init__(
        self,
        in_channels: int,
        n_classes: int,
        widths: Sequence[int],
        stage: Callable[[int, int], nn.Module],
        down: Callable[[int, int], nn.Module] | None = None,
        dims: int = 2,
        half: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ConfigError(f"a U-Net takes two or more positive widths, the centre last, got {tuple(widths)}")
        levels = range(1, len(widths))
        layers = layers_of(dims)
        self.in_channels = in_channels
        self.n_classes = n_classes
        self.dims = dims
        self.stride = 2 ** (len(levels) + half)
        self.taps = (
            *(Tap(f"encoder{level}", widths[level - 1]) for level in levels),
            Tap("centre", widths[-1]),
            *(Tap(f"decoder{level}", widths[level - 1]) for level in reversed(levels)),
        )
        self.pool = layers.max_pool(2) if down is None else nn.Identity()
        first = widths[0]
        self.stem = (
            nn.Sequential(
                layers.convolution(in_channels, first, 3, stride=2, padding=1, bias=False),
                layers.norm(first),
                nn.ReLU(inplace=True),
            )
            if half
            else nn.Identity()
        )
        self.encoder = nn.ModuleList(
            [stage(first if half else in_channels, first), *((down or stage)(a, b) for a, b in pairwise(widths))]
        )
        self.up = nn.ModuleList(layers.transposed(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(stage(2 * width, width) for width in widths[:-1])
        self.finish = (
            nn.Sequential(
                layers.transposed(first, first, 2, stride=2, bias=False), layers.norm(first), nn.ReLU(inplace=True)
            )
            if half
            else nn.Identity()
        )
        self.head = layers.convolution(first, n_classes, 1)

    def skip(self, index: int, feature: Tensor, coarse: Tensor) -> Tensor:
        """What the decoder gets to see of an encoder's feature; here the feature itself.

        Args:
            index: of the level, the finest is 0.
            feature: the encoder's, at that level.
            coarse: the feature of the next coarser level that is about to be brought up.
        """
        return feature

    def run_stages(self, x: Tensor, at_tap: TapHook) -> Tensor:
        """Computes logits; see :class:`~d2ed2q.backbones.staged.StagedNetwork`."""
        skips: list[Tensor] = []
        x = self.stem(x)
        for level, stage in enumerate(self.encoder, start=1):
            if skips:
                x = self.pool(x)
            centre = level == len(self.encoder)
            x = at_tap("centre" if centre else f"encoder{level}", stage(x))
            if not centre:
                skips.append(x)
        for index in reversed(range(len(skips))):
            x = torch.cat((self.skip(index, skips[index], x), self.up[index](x)), 1)
            x = at_tap(f"decoder{index + 1}", self.decoder[index](x))
        logits: Tensor = self.head(self.finish(x))
        return logits


class UNet(UShapedNetwork):
    """U-Net: two convolutions of width 3 a level, max-pooling by 2 down, transposed convolution up, skips concatenated.

    For volumes it is the 3-D U-Net of Çiçek et al. (2016), with widths that do not double before the pooling.

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
        he_initialize(self, keep=(self.head,))
