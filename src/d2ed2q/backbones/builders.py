"""The named backbones and their sizes."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from d2ed2q.backbones.ce_net import CENet
from d2ed2q.backbones.resnet import load_imagenet_weights
from d2ed2q.backbones.staged import StagedNetwork
from d2ed2q.backbones.unet import UNet
from d2ed2q.errors import ConfigError

__all__ = ["backbone_names", "build_backbone"]

_CE_NET = "ce-net"
_UNET_WIDTHS = {
    "unet-xs": (8, 16, 32),
    "unet-s": (16, 32, 64),
    "unet-m": (32, 64, 128, 256),
}


def backbone_names() -> tuple[str, ...]:
    """Names that :func:`build_backbone` knows, from the smallest network to the largest."""
    return (*_UNET_WIDTHS, _CE_NET)


def build_backbone(name: str, in_channels: int, n_classes: int, imagenet_weights: Path | None = None) -> StagedNetwork:
    """Builds one backbone with new random weights.

    Args:
        name: one of :func:`backbone_names`; case, hyphens, underscores and spaces do not matter.
        in_channels: channels of the images, at least 1.
        n_classes: channels of the logits; 1 for a binary task.
        imagenet_weights: local file with torchvision's ImageNet weights of ResNet-34, for the encoder of ``ce-net``.

    Returns:
        StagedNetwork: in training mode, on the CPU.

    Raises:
        ConfigError: an unknown name, a number of channels below 1, or ImageNet weights for another network.
        CheckpointError: the file with the ImageNet weights cannot be used.

    Examples:
        >>> [tap.name for tap in build_backbone("unet-xs", in_channels=3, n_classes=1).taps]
        ['encoder1', 'encoder2', 'centre', 'decoder2', 'decoder1']
    """
    canonical = _canonical_name(name)
    if in_channels < 1 or n_classes < 1:
        raise ConfigError(
            f"a network needs at least 1 input channel and 1 class, got in_channels = {in_channels} and "
            f"n_classes = {n_classes}"
        )
    if canonical == _CE_NET:
        network = CENet(in_channels, n_classes)
        if imagenet_weights is not None:
            load_imagenet_weights(network.encoder, imagenet_weights)
        return network
    if imagenet_weights is not None:
        raise ConfigError(f"ImageNet weights fit {_CE_NET} only, not {canonical}: leave them out, or choose {_CE_NET}")
    return UNet(in_channels, n_classes, _UNET_WIDTHS[canonical])


def _squeezed(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter not in "-_ ")


def _canonical_name(name: str) -> str:
    known = {_squeezed(candidate): candidate for candidate in backbone_names()}
    squeezed = _squeezed(name)
    if squeezed not in known:
        nearest = known[get_close_matches(squeezed, known, n=1, cutoff=0.0)[0]]
        raise ConfigError(
            f"unknown backbone {name!r}, did you mean {nearest!r}? Choose from {', '.join(backbone_names())}"
        )
    return known[squeezed]
