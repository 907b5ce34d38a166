"""The contract of every backbone: an encoder-decoder whose forward pass goes through named taps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from d2ed2q.errors import DataError

__all__ = ["StagedNetwork", "Tap", "TapHook", "no_hook"]

TapHook = Callable[[str, Tensor], Tensor]
"""Of a tap's name and its feature ``B×c×h×w`` (volumes: ``B×c×d×h×w``): the feature the network goes on with."""


def no_hook(tap: str, feature: Tensor) -> Tensor:
    """Leaves every feature as it is.

    Args:
        tap: name of the tap.
        feature: ``B×c×h×w`` or ``B×c×d×h×w``.

    Returns:
        Tensor: the same object.
    """
    return feature


@dataclass(frozen=True)
class Tap:
    """A named place in a network where its feature can be read or replaced.

    Attributes:
        name: unique in its network; a valid module name (no dots).
        channels: channels c of the feature.
        diverse: whether the feature takes part in the diversity term.
    """

    name: str
    channels: int
    diverse: bool = True


class StagedNetwork(nn.Module, ABC):
    """An encoder–decoder with taps; subclasses set the attributes and write :meth:`run_stages`.

    Attributes:
        taps: in the order in which the forward pass reaches them.
        stride: every spatial axis is padded to a multiple of this.
        minimum: least size of every spatial axis in a deployed graph, a multiple of ``stride``; by default the stride
            itself.
        in_channels: channels of the input.
        n_classes: channels of the logits; 1 for a binary task.
        dims: number of spatial axes: 2 for images, 3 for volumes.
    """

    taps: tuple[Tap, ...]
    stride: int
    in_channels: int
    n_classes: int
    dims: int = 2

    @property
    def minimum(self) -> int:
        """Least size of each axis in a deployed graph, whose operators cannot depend on the image's size."""
        return self.stride

    def padding(self, extent: int) -> int:
        """By how much an axis of this size is padded."""
        return -extent % self.stride

    @abstractmethod
    def run_stages(self, x: Tensor, at_tap: TapHook) -> Tensor:
        """Computes logits of an input whose spatial axes are multiples of :attr:`stride`.

        At every tap, ``x = at_tap(name, x)``; the network goes on with the returned feature, skip connections too, and
        never writes into a feature it has passed to the hook (whoever recorded it may still need its values).

        Args:
            x: ``B×in_channels×H×W``, or ``B×in_channels×D×H×W`` where :attr:`dims` is 3.
            at_tap: called once at every tap, in the order of :attr:`taps`.

        Returns:
            Tensor: logits, ``n_classes`` channels at the input's size.
        """

    def forward(self, x: Tensor, at_tap: TapHook | None = None) -> Tensor:
        """Computes logits.

        Args:
            x: ``B×C×H×W``, or ``B×C×D×H×W`` where :attr:`dims` is 3, of any size of at least 1; padded at the end of
                each axis by repeating the last row and column (and slice), and cropped again at the end.
            at_tap: called at every tap; None leaves the features as they are.

        Returns:
            Tensor: logits, ``B×n_classes`` and the size of the input.

        Raises:
            DataError: the input is not a batch of images (volumes) of :attr:`in_channels` channels, or is empty.
        """
        if x.ndim != 2 + self.dims or x.shape[1] != self.in_channels:
            axes = "D×H×W" if self.dims == 3 else "H×W"
            raise DataError(
                f"the network takes a batch of B×{self.in_channels}×{axes}, got {'×'.join(map(str, x.shape))}: "
                f"convert the {'volumes' if self.dims == 3 else 'images'} to {self.in_channels} channels"
            )
        size = x.shape[2:]
        if 0 in size:
            least, got = "×".join("1" * self.dims), "×".join(map(str, size))
            what = "volumes of at least {} voxels" if self.dims == 3 else "images of at least {} pixels"
            raise DataError(f"the network takes {what.format(least)}, got {got}: leave it out")
        pads = [self.padding(extent) for extent in size]
        if not any(pads):
            return self.run_stages(x, at_tap or no_hook)
        x = F.pad(x, [side for pad in reversed(pads) for side in (0, pad)], mode="replicate")
        logits = self.run_stages(x, at_tap or no_hook)
        inside: tuple[Any, ...] = (..., *map(slice, size))
        return logits[inside]
