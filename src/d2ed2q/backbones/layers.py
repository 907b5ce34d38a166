"""The layer classes of images and of volumes, so that a network is written once for both."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from d2ed2q.errors import ConfigError

__all__ = ["CONVOLUTIONS", "Layers", "layers_of"]

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Layers:
    """Layer classes of one number of spatial axes.

    Attributes:
        convolution: a convolution.
        transposed: a transposed convolution.
        norm: batch normalisation.
        max_pool: max-pooling.
        linear: name of linear interpolation in ``torch.nn.functional.interpolate``.
    """

    convolution: type[nn.Conv2d] | type[nn.Conv3d]
    transposed: type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]
    norm: type[nn.BatchNorm2d] | type[nn.BatchNorm3d]
    max_pool: type[nn.MaxPool2d] | type[nn.MaxPool3d]
    linear: str


_LAYERS = {
    2: Layers(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d, "bilinear"),
    3: Layers(nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.MaxPool3d, "trilinear"),
}


def layers_of(dims: int) -> Layers:
    """Layer classes for images (2) or volumes (3).

    Args:
        dims: number of spatial axes.

    Raises:
        ConfigError: neither 2 nor 3.
    """
    if dims not in _LAYERS:
        raise ConfigError(f"a network has 2 spatial axes (images) or 3 (volumes), got dims = {dims}: choose one")
    return _LAYERS[dims]
