"""FCN-8s (Long et al., 2015): a VGG-like encoder whose class scores from three depths are added up."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2ed2q.backbones.initialization import he_initialize
from d2ed2q.backbones.staged import StagedNetwork, Tap, TapHook

__all__ = ["FCN", "VGG_DEPTHS", "VGG_WIDTHS", "bilinear_kernel", "convolutions"]

VGG_DEPTHS = (2, 2, 3, 3, 3)
"""Convolutions of VGG-16's five blocks."""
VGG_WIDTHS = (16, 32, 64, 128, 128)
"""Channels of the five blocks: a quarter of VGG-16's, so that small computers can train it."""


def convolutions(*channels: int) -> nn.Sequential:
    """3×3 convolutions, each with batch normalisation and ReLU.

    Args:
        *channels: of the input, and of each convolution's output.
    """
    layers: list[nn.Module] = []
    for inner, outer in pairwise(channels):
        layers += [nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def bilinear_kernel(channels: int) -> Tensor:
    """Weights with which a transposed convolution of width 4 and stride 2 interpolates, each channel on its own.

    Args:
        channels: number of channels c.

    Returns:
        Tensor: ``c×c×4×4``.
    """
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    return torch.einsum("ab,i,j->abij", torch.eye(channels), line, line)


class FCN(StagedNetwork):
    """FCN-8s with batch normalisation and a quarter of VGG-16's widths.

    Class scores at 1/32 are brought to 1/16 and added to those of the fourth block, then to 1/8 and added to those of
    the third; the last step, by 8, is plain interpolation. As in the paper the two transposed convolutions start as
    interpolation and learn, and the last step is fixed. VGG's classifier is one 7×7 and one 1×1 convolution. Dropout is
    left out: an interrupted training could not be resumed to the bit.

    Taps: ``encoder1`` … ``encoder5`` (after max-pooling, at 1/2 … 1/32) and ``centre`` (after the classifier). Scores
    are no taps: a fusion ends in a ReLU, and scores are negative for the background.

    Args:
        in_channels: channels of the input.
        n_classes: channels of the logits.
        widths: channels of the five blocks.
        centre: channels of the classifier.
    """

    def __init__(self, in_channels: int, n_classes: int, widths: Sequence[int] = VGG_WIDTHS, centre: int = 256) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.n_classes = n_classes
        self.stride = 32
        self.taps = (*(Tap(f"encoder{level}", width) for level, width in enumerate(widths, 1)), Tap("centre", centre))
        self.encoder = nn.ModuleList(
            convolutions(inner, *[outer] * depth)
            for (inner, outer), depth in zip(pairwise((in_channels, *widths)), VGG_DEPTHS, strict=True)
        )
        self.classifier = nn.Sequential(
            nn.Conv2d(widths[-1], centre, 7, padding=3, bias=False),
            nn.BatchNorm2d(centre),
            nn.ReLU(inplace=True),
            nn.Conv2d(centre, centre, 1, bias=False),
            nn.BatchNorm2d(centre),
            nn.ReLU(inplace=True),
        )
        self.score32 = nn.Conv2d(centre, n_classes, 1)
        self.score16 = nn.Conv2d(widths[3], n_classes, 1)
        self.score8 = nn.Conv2d(widths[2], n_classes, 1)
        self.up16 = nn.ConvTranspose2d(n_classes, n_classes, 4, stride=2, padding=1, bias=False)
        self.up8 = nn.ConvTranspose2d(n_classes, n_classes, 4, stride=2, padding=1, bias=False)
        he_initialize(self, keep=(self.score32, self.score16, self.score8, self.up16, self.up8))
        with torch.no_grad():
            for up in (self.up16, self.up8):
                up.weight.copy_(bilinear_kernel(n_classes))

    def run_stages(self, x: Tensor, at_tap: TapHook) -> Tensor:
        """Computes logits, ``B×n_classes×H×W``; see :class:`~d2ed2q.backbones.staged.StagedNetwork`."""
        blocks: list[Tensor] = []
        for level, block in enumerate(self.encoder, start=1):
            x = at_tap(f"encoder{level}", F.max_pool2d(block(x), 2))
            blocks.append(x)
        scores = self.up16(self.score32(at_tap("centre", self.classifier(x)))) + self.score16(blocks[3])
        scores = self.up8(scores) + self.score8(blocks[2])
        return F.interpolate(scores, scale_factor=8.0, mode="bilinear", align_corners=False)
