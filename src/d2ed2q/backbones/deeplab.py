"""DeepLabv3+ (Chen et al., 2018): a dilated ResNet, atrous spatial pyramid pooling, and a decoder with one skip."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2ed2q.backbones.fcn import convolutions
from d2ed2q.backbones.initialization import he_initialize
from d2ed2q.backbones.resnet import ResNetEncoder
from d2ed2q.backbones.staged import StagedNetwork, Tap, TapHook

__all__ = ["AtrousSpatialPyramidPooling", "DeepLabV3Plus"]

_LOW_LEVEL = 48  # so few that the skip does not outweigh the context


def _pointwise(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True))


class AtrousSpatialPyramidPooling(nn.Module):
    """ASPP: a 1×1 convolution, three dilated 3×3 convolutions and the mean of the image, concatenated and projected.

    The image's branch has a bias and no batch normalisation: at one value a channel and image, its statistics would be
    those of as many numbers as there are images in a batch, and of one image there are none.

    Args:
        inner: channels of the input.
        outer: channels of each branch and of the output.
        rates: dilations, for an input at 1/16 of the image's resolution.
    """

    def __init__(self, inner: int, outer: int, rates: Sequence[int] = (6, 12, 18)) -> None:
        super().__init__()
        self.branches = nn.ModuleList([_pointwise(inner, outer)])
        for rate in rates:
            dilated = nn.Conv2d(inner, outer, 3, padding=rate, dilation=rate, bias=False)
            self.branches.append(nn.Sequential(dilated, nn.BatchNorm2d(outer), nn.ReLU(inplace=True)))
        self.image = nn.Conv2d(inner, outer, 1)
        self.project = _pointwise((len(rates) + 2) * outer, outer)

    def forward(self, x: Tensor) -> Tensor:
        """Of ``B×inner×h×w``: ``B×outer×h×w``."""
        branches = [branch(x) for branch in self.branches]
        image = torch.relu(self.image(x.mean((2, 3), keepdim=True)))
        image = F.interpolate(image, x.shape[2:], mode="bilinear", align_corners=False)
        out: Tensor = self.project(torch.cat((*branches, image), 1))
        return out


class DeepLabV3Plus(StagedNetwork):
    """DeepLabv3+ with a ResNet encoder of output stride 16.

    Context of 256 channels is brought up by 4, joined by 48 channels made from the encoder's first layer, and refined
    by two 3×3 convolutions; the logits are brought up by 4 again, all by bilinear interpolation. Convolutions are
    plain ones, as the paper has them with a ResNet, and dropout is left out.

    Taps: ``stem`` (64 channels, after max-pooling, not in the diversity term), ``encoder1`` … ``encoder4`` (64, 128,
    256 and 512 channels at 1/4, 1/8, 1/16 and 1/16), ``centre`` (ASPP, at 1/16) and ``decoder1`` (at 1/4).

    Args:
        in_channels: channels of the input.
        n_classes: channels of the logits.
        depth: of the ResNet, 18 or 34.
        width: channels of ASPP and decoder.
    """

    def __init__(self, in_channels: int, n_classes: int, depth: int = 18, width: int = 256) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.n_classes = n_classes
        self.stride = 16
        self.taps = (
            Tap("stem", 64, diverse=False),
            Tap("encoder1", 64),
            Tap("encoder2", 128),
            Tap("encoder3", 256),
            Tap("encoder4", 512),
            Tap("centre", width),
            Tap("decoder1", width),
        )
        self.encoder = ResNetEncoder(in_channels, depth, output_stride=16)
        self.aspp = AtrousSpatialPyramidPooling(512, width)
        self.low_level = _pointwise(64, _LOW_LEVEL)
        self.decoder = convolutions(width + _LOW_LEVEL, width, width)
        self.head = nn.Conv2d(width, n_classes, 1)
        he_initialize(self, keep=(self.head,))

    def run_stages(self, x: Tensor, at_tap: TapHook) -> Tensor:
        """Computes logits, ``B×n_classes×H×W``; see :class:`~d2ed2q.backbones.staged.StagedNetwork`."""
        x = at_tap("stem", self.encoder.stem(x))
        x = low_level = at_tap("encoder1", self.encoder.layer1(x))
        for level, layer in enumerate(self.encoder.layers[1:], start=2):
            x = at_tap(f"encoder{level}", layer(x))
        x = _four_times(at_tap("centre", self.aspp(x)))
        x = at_tap("decoder1", self.decoder(torch.cat((x, self.low_level(low_level)), 1)))
        return _four_times(self.head(x))


def _four_times(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=4.0, mode="bilinear", align_corners=False)
