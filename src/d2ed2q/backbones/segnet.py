"""SegNet (Badrinarayanan et al., 2017): a decoder that puts features where the encoder's max-pooling took them from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2ed2q.backbones.fcn import VGG_DEPTHS, VGG_WIDTHS, convolutions
from d2ed2q.backbones.initialization import he_initialize
from d2ed2q.backbones.staged import StagedNetwork, Tap, TapHook

__all__ = ["SegNet", "pool_and_places", "unpool"]


def pool_and_places(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """2×2 max-pooling, and from which of the four places each maximum came.

    Says the same as the indices of ``max_pool2d``, where values are equal the first of a window included (after a ReLU
    many windows are all zero), but as four masks: OpenVINO does not run ONNX's MaxUnpool, and masks need only slices,
    comparisons and logic, which no int8 engine rounds. The four are compared with each other and not with their
    maximum: an int8 graph may round the one and not the other.

    Args:
        x: ``B×c×2h×2w``.

    Returns:
        tuple: the maxima, ``B×c×h×w``, and four bool masks of that shape (upper left, upper right, lower left, lower
        right), of which exactly one is True at each position.
    """
    a, b, c, d = (x.detach()[..., row::2, column::2] for row in (0, 1) for column in (0, 1))
    first = (a >= b) & (a >= c) & (a >= d)
    second = ~first & (b >= c) & (b >= d)
    neither = ~(first | second)
    third = neither & (c >= d)
    return F.max_pool2d(x, 2), (first, second, third, neither & ~third)


def unpool(x: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Puts each value where the maximum of its window was, and zeros beside it, as ``max_unpool2d``.

    Args:
        x: ``B×c×h×w``.
        places: from :func:`pool_and_places`.

    Returns:
        Tensor: ``B×c×2h×2w``.
    """
    return F.pixel_shuffle(torch.stack([torch.where(place, x, 0.0) for place in places], 2).flatten(1, 2), 2)


class SegNet(StagedNetwork):
    """SegNet with a quarter of VGG-16's widths.

    Five blocks down and, mirrored, five up; nothing but the places of the maxima goes across. The ONNX graph has no
    unpooling by indices but exactly what it computes, in operators that every engine has (see :func:`pool_and_places`).

    Taps: ``encoder1`` … ``encoder5`` (before max-pooling, at 1/1 … 1/16) and ``decoder5`` … ``decoder1``. The places
    are those of the feature that the hook gave back.

    Args:
        in_channels: channels of the input.
        n_classes: channels of the logits.
        widths: channels of the five blocks.
    """

    def __init__(self, in_channels: int, n_classes: int, widths: Sequence[int] = VGG_WIDTHS) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.n_classes = n_classes
        self.stride = 32
        steps = list(zip(pairwise((in_channels, *widths)), VGG_DEPTHS, strict=True))
        self.encoder = nn.ModuleList(convolutions(inner, *[outer] * depth) for (inner, outer), depth in steps)
        # Mirrored: a block's last convolution gives the channels of the block above; the finest ends in the logits.
        ends = (widths[0], *widths[:-1])
        depths = (VGG_DEPTHS[0] - 1, *VGG_DEPTHS[1:])
        self.decoder = nn.ModuleList(
            convolutions(*[width] * depth, end) for width, depth, end in zip(widths, depths, ends, strict=True)
        )
        self.head = nn.Conv2d(widths[0], n_classes, 3, padding=1)
        self.taps = (
            *(Tap(f"encoder{level}", width) for level, width in enumerate(widths, 1)),
            *(Tap(f"decoder{level}", ends[level - 1]) for level in range(len(widths), 0, -1)),
        )
        he_initialize(self, keep=(self.head,))

    def run_stages(self, x: Tensor, at_tap: TapHook) -> Tensor:
        """Computes logits, ``B×n_classes×H×W``; see :class:`~d2ed2q.backbones.staged.StagedNetwork`."""
        places: list[Sequence[Tensor]] = []
        for level, block in enumerate(self.encoder, start=1):
            x, found = pool_and_places(at_tap(f"encoder{level}", block(x)))
            places.append(found)
        for index in reversed(range(len(places))):
            x = at_tap(f"decoder{index + 1}", self.decoder[index](unpool(x, places[index])))
        logits: Tensor = self.head(x)
        return logits
