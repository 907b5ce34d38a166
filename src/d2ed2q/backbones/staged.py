"""The contract of every backbone: an encoder-decoder whose forward pass goes through named taps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from d2ed2q.errors import DataError

__all__ = ["StagedNetwork", "Tap", "TapHook", "no_hook"]

TapHook = Callable[[str, Tensor], Tensor]
"""Of a tap's name and its feature ``B×c×h×w``: the feature that the network goes on with."""


def no_hook(tap: str, feature: Tensor) -> Tensor:
    """Leaves every feature as it is.

    Args:
        tap: name of the tap.
        feature: ``B×c×h×w``.

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
        stride: height and width are padded to multiples of this.
        minimum: least height and width of a deployed graph, a multiple of ``stride``; by default the stride itself.
        in_channels: channels of the input.
        n_classes: channels of the logits; 1 for a binary task.
    """

    taps: tuple[Tap, ...]
    stride: int
    in_channels: int
    n_classes: int

    @property
    def minimum(self) -> int:
        """Least height and width of a deployed graph, whose operators cannot depend on the image's size."""
        return self.stride

    @abstractmethod
    def run_stages(self, x: Tensor, at_tap: TapHook) -> Tensor:
        """Computes logits of an input whose height and width are multiples of :attr:`stride`.

        At every tap, ``x = at_tap(name, x)``; the network goes on with the returned feature, skip connections too, and
        never writes into a feature it has passed to the hook (whoever recorded it may still need its values).

        Args:
            x: ``B×in_channels×H×W``.
            at_tap: called once at every tap, in the order of :attr:`taps`.

        Returns:
            Tensor: logits ``B×n_classes×H×W``.
        """

    def forward(self, x: Tensor, at_tap: TapHook | None = None) -> Tensor:
        """Computes logits.

        Args:
            x: ``B×C×H×W``, any height and width of at least 1; padded to the right and bottom by repeating the last
                row and column, and cropped again at the end.
            at_tap: called at every tap; None leaves the features as they are.

        Returns:
            Tensor: logits ``B×n_classes×H×W``.

        Raises:
            DataError: the input is not a batch of images of :attr:`in_channels` channels, or has no pixels.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise DataError(
                f"the network takes a batch of B×{self.in_channels}×H×W, got {'×'.join(map(str, x.shape))}: "
                f"convert the images to {self.in_channels} channels"
            )
        height, width = x.shape[-2:]
        if height == 0 or width == 0:
            raise DataError(f"the network takes images of at least 1×1 pixels, got {height}×{width}: leave it out")
        pad_h, pad_w = -height % self.stride, -width % self.stride
        if not (pad_h or pad_w):
            return self.run_stages(x, at_tap or no_hook)
        x = F.pad(x, (0, pad_w, 0, pad_h), mode="replicate")
        return self.run_stages(x, at_tap or no_hook)[..., :height, :width]
