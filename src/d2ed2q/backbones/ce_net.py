"""CE-Net (Gu et al., 2019): a ResNet-34 encoder, dense atrous convolution, residual multi-kernel pooling, a decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2ed2q.backbones.initialization import he_initialize
from d2ed2q.backbones.resnet import ResNetEncoder
from d2ed2q.backbones.staged import StagedNetwork, Tap, TapHook

__all__ = ["CENet", "DecoderBlock", "DenseAtrousConvolution", "ResidualMultiKernelPooling"]


class DenseAtrousConvolution(nn.Module):
    """DAC: four cascades of 3×3 convolutions with dilations 1, 3 and 5, summed with the input.

    With d₁, d₃, d₅ the dilated convolutions and p one 1×1 convolution, each shared by the branches:
    ``x + ReLU(d₁(x)) + ReLU(p(d₃(x))) + ReLU(p(d₃(d₁(x)))) + ReLU(p(d₅(d₃(d₁(x)))))``.

    Args:
        channels: channels c of the input and of the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dilate1 = nn.Conv2d(channels, channels, 3, padding=1, dilation=1)
        self.dilate3 = nn.Conv2d(channels, channels, 3, padding=3, dilation=3)
        self.dilate5 = nn.Conv2d(channels, channels, 3, padding=5, dilation=5)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Of ``B×c×h×w``, the same shape."""
        cascade1 = self.dilate1(x)
        cascade3 = self.dilate3(cascade1)
        cascade5 = self.dilate5(cascade3)
        branch1: Tensor = torch.relu(cascade1)
        branch2 = torch.relu(self.project(self.dilate3(x)))
        branch3 = torch.relu(self.project(cascade3))
        branch4 = torch.relu(self.project(cascade5))
        return x + branch1 + branch2 + branch3 + branch4


class ResidualMultiKernelPooling(nn.Module):
    """RMP: max-pools of several sizes, each reduced to one channel by a shared 1×1 convolution, beside the input.

    A pool larger than the feature map (which takes an input below 192 pixels) shrinks to the map, so that it takes the
    maximum of all; on larger maps nothing differs from the paper.

    Args:
        channels: channels c of the input.
        pools: sizes, and strides, of the max-pools.
    """

    def __init__(self, channels: int, pools: Sequence[int] = (2, 3, 5, 6)) -> None:
        super().__init__()
        self.pools = tuple(pools)
        self.reduce = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Of ``B×c×h×w``: ``B×(len(pools) + c)×h×w``, the pooled channels first."""
        height, width = x.shape[-2:]
        contexts = []
        for pool in self.pools:
            pooled = F.max_pool2d(x, (min(pool, height), min(pool, width)))
            contexts.append(F.interpolate(self.reduce(pooled), (height, width), mode="bilinear", align_corners=False))
        return torch.cat((*contexts, x), 1)


class DecoderBlock(nn.Sequential):
    """Doubles the resolution: 1×1 to c/4, transposed 3×3 of stride 2, 1×1; each with batch normalisation and ReLU.

    Of ``B×inner×h×w``: ``B×outer×2h×2w``. No biases: batch normalisation would take them away again.

    Args:
        inner: channels c of the input.
        outer: channels of the output.
    """

    def __init__(self, inner: int, outer: int) -> None:
        narrow = inner // 4
        super().__init__(
            nn.Conv2d(inner, narrow, 1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(narrow, narrow, 3, stride=2, padding=1, output_padding=1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(inplace=True),
            nn.Conv2d(narrow, outer, 1, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(inplace=True),
        )


class CENet(StagedNetwork):
    """CE-Net, 29 M parameters; the paper's backbone.

    Taps: ``stem`` (64 channels, after max-pooling, not in the diversity term), ``encoder1`` … ``encoder4`` (64, 128,
    256, 512), ``centre`` (516: DAC, then RMP), ``decoder4``, ``decoder3``, ``decoder2`` (256, 128, 64; after adding the
    skip) and ``decoder1`` (64).

    Args:
        in_channels: channels of the input.
        n_classes: channels of the logits.
    """

    def __init__(self, in_channels: int, n_classes: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.n_classes = n_classes
        self.stride = 32
        self.taps = (
            Tap("stem", 64, diverse=False),
            Tap("encoder1", 64),
            Tap("encoder2", 128),
            Tap("encoder3", 256),
            Tap("encoder4", 512),
            Tap("centre", 516),
            Tap("decoder4", 256),
            Tap("decoder3", 128),
            Tap("decoder2", 64),
            Tap("decoder1", 64),
        )
        self.encoder = ResNetEncoder(in_channels)
        self.dac = DenseAtrousConvolution(512)
        self.rmp = ResidualMultiKernelPooling(512)
        self.decoder4 = DecoderBlock(516, 256)
        self.decoder3 = DecoderBlock(256, 128)
        self.decoder2 = DecoderBlock(128, 64)
        self.decoder1 = DecoderBlock(64, 64)
        logits = nn.Conv2d(32, n_classes, 3, padding=1)
        self.head = nn.Sequential(
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            logits,
        )
        # The atrous cascades are linear: each He draw would double the scale, and drown the identity beside them.
        he_initialize(self, keep=(logits, *self.dac.children()))

    @property
    def minimum(self) -> int:
        """Below this, the largest pool of the residual multi-kernel pooling would not fit."""
        return self.stride * max(self.rmp.pools)

    def run_stages(self, x: Tensor, at_tap: TapHook) -> Tensor:
        """Computes logits, ``B×n_classes×H×W``; see :class:`~d2ed2q.backbones.staged.StagedNetwork`."""
        x = at_tap("stem", self.encoder.stem(x))
        skips: list[Tensor] = []
        for level, layer in enumerate(self.encoder.layers, start=1):
            x = at_tap(f"encoder{level}", layer(x))
            skips.append(x)
        x = at_tap("centre", self.rmp(self.dac(x)))
        x = at_tap("decoder4", self.decoder4(x) + skips[2])
        x = at_tap("decoder3", self.decoder3(x) + skips[1])
        x = at_tap("decoder2", self.decoder2(x) + skips[0])
        x = at_tap("decoder1", self.decoder1(x))
        logits: Tensor = self.head(x)
        return logits
