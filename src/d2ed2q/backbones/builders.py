"""The named backbones and their sizes, and networks of the user's own by ``module:function``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from d2ed2q.backbones.attention_unet import AttentionUNet
from d2ed2q.backbones.ce_net import CENet
from d2ed2q.backbones.deeplab import DeepLabV3Plus
from d2ed2q.backbones.fcn import FCN
from d2ed2q.backbones.layers import layers_of
from d2ed2q.backbones.own import build_own_network
from d2ed2q.backbones.residual_unet import ResidualUNet
from d2ed2q.backbones.resnet import load_imagenet_weights
from d2ed2q.backbones.segnet import SegNet
from d2ed2q.backbones.staged import StagedNetwork
from d2ed2q.backbones.unet import UNet
from d2ed2q.errors import ConfigError

__all__ = ["backbone_names", "build_backbone", "canonical_name"]

_SMALL = (16, 32, 64)
_DEEP = (16, 32, 64, 128, 128)
_NARROW = (8, 16, 32, 64, 64)
_MEDIUM = (32, 64, 128, 256)


@dataclass(frozen=True)
class _Plan:
    """How a named backbone is built, and what it can do.

    Attributes:
        build: of in_channels, n_classes and dims.
        volumes: whether ``dims`` may be 3.
        imagenet: whether its ``encoder`` takes ImageNet weights.
    """

    build: Callable[[int, int, int], StagedNetwork]
    volumes: bool = False
    imagenet: bool = False


_PLANS = {
    "unet-xs": _Plan(lambda c, n, dims: UNet(c, n, (8, 16, 32), dims), volumes=True),
    "unet-s": _Plan(lambda c, n, dims: UNet(c, n, _SMALL, dims), volumes=True),
    "res-unet-s": _Plan(lambda c, n, dims: ResidualUNet(c, n, _SMALL, dims), volumes=True),
    "attention-unet-s": _Plan(lambda c, n, dims: AttentionUNet(c, n, _SMALL, dims), volumes=True),
    "res-unet-deep-xs": _Plan(lambda c, n, dims: ResidualUNet(c, n, _NARROW, dims, half=True), volumes=True),
    "unet-deep": _Plan(lambda c, n, dims: UNet(c, n, _DEEP, dims), volumes=True),
    "res-unet-deep": _Plan(lambda c, n, dims: ResidualUNet(c, n, _DEEP, dims, half=True), volumes=True),
    "segnet": _Plan(lambda c, n, _: SegNet(c, n)),
    "unet-m": _Plan(lambda c, n, dims: UNet(c, n, _MEDIUM, dims), volumes=True),
    "res-unet-m": _Plan(lambda c, n, dims: ResidualUNet(c, n, _MEDIUM, dims), volumes=True),
    "attention-unet-m": _Plan(lambda c, n, dims: AttentionUNet(c, n, _MEDIUM, dims), volumes=True),
    "fcn": _Plan(lambda c, n, _: FCN(c, n)),
    "deeplabv3plus-18": _Plan(lambda c, n, _: DeepLabV3Plus(c, n, 18), imagenet=True),
    "deeplabv3plus-34": _Plan(lambda c, n, _: DeepLabV3Plus(c, n, 34), imagenet=True),
    "ce-net": _Plan(lambda c, n, _: CENet(c, n), imagenet=True),
}


def backbone_names(dims: int = 2) -> tuple[str, ...]:
    """Names that :func:`build_backbone` knows, from the smallest network to the largest.

    Args:
        dims: 2 for all; 3 for those that can be built for volumes.
    """
    return tuple(name for name, plan in _PLANS.items() if plan.volumes or dims == 2)


def build_backbone(
    name: str,
    in_channels: int,
    n_classes: int,
    imagenet_weights: Path | None = None,
    dims: int = 2,
    taps: Sequence[str] = (),
) -> StagedNetwork:
    """Builds one backbone with new random weights.

    Args:
        name: one of :func:`backbone_names`; case, hyphens, underscores and spaces do not matter. Or a network of your
            own, ``module:function``: the function, of a module that can be imported from the current folder or is
            installed, is called with ``in_channels`` and ``n_classes`` (and ``dims=`` if it takes that), and returns a
            ``torch.nn.Module``.
        in_channels: channels of the images, at least 1.
        n_classes: channels of the logits; 1 for a binary task.
        imagenet_weights: local file with torchvision's ImageNet weights of ResNet-34 (``ce-net``,
            ``deeplabv3plus-34``) or ResNet-18 (``deeplabv3plus-18``), for the encoder.
        dims: number of spatial axes: 2 for images, 3 for volumes.
        taps: of a network of your own, names of the submodules whose outputs are fused; see
            :class:`~d2ed2q.backbones.tapped.TappedNetwork`.

    Returns:
        StagedNetwork: in training mode, on the CPU.

    Raises:
        ConfigError: an unknown name, a number of channels below 1, a network that cannot be built for so many axes,
            ImageNet weights for another network, taps that do not fit the name, or an unusable network of your own.
        CheckpointError: the file with the ImageNet weights cannot be used.

    Examples:
        >>> [tap.name for tap in build_backbone("unet-xs", in_channels=3, n_classes=1).taps]
        ['encoder1', 'encoder2', 'centre', 'decoder2', 'decoder1']
    """
    own, canonical = ":" in name, canonical_name(name)
    if in_channels < 1 or n_classes < 1:
        raise ConfigError(
            f"a network needs at least 1 input channel and 1 class, got in_channels = {in_channels} and "
            f"n_classes = {n_classes}"
        )
    layers_of(dims)
    if imagenet_weights is not None and (own or not _PLANS[canonical].imagenet):
        fitting = [known for known, plan in _PLANS.items() if plan.imagenet]
        raise ConfigError(
            f"ImageNet weights fit {', '.join(fitting)} only, not {canonical}: leave them out, or choose one of those"
        )
    if own:
        return build_own_network(name, in_channels, n_classes, dims, taps)
    if taps:
        raise ConfigError(
            f"{canonical} has taps of its own, got taps = {', '.join(taps)}: leave them out; they are for a network of "
            "your own, given as module:function"
        )
    if canonical not in backbone_names(dims):
        raise ConfigError(f"{canonical} is for images only, not for volumes: choose {', '.join(backbone_names(dims))}")
    network = _PLANS[canonical].build(in_channels, n_classes, dims)
    if imagenet_weights is not None and isinstance(network, (CENet, DeepLabV3Plus)):
        load_imagenet_weights(network.encoder, imagenet_weights)
    return network


def _squeezed(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter not in "-_ ")


def canonical_name(name: str) -> str:
    """The name under which a backbone is known, of any spelling of it; ``module:function`` stands for itself.

    Raises:
        ConfigError: there is no such backbone.
    """
    if ":" in name:
        return name
    known = {_squeezed(candidate): candidate for candidate in backbone_names()}
    squeezed = _squeezed(name)
    if squeezed not in known:
        nearest = known[get_close_matches(squeezed, known, n=1, cutoff=0.0)[0]]
        raise ConfigError(
            f"unknown backbone {name!r}, did you mean {nearest!r}? Choose from {', '.join(backbone_names())}"
        )
    return known[squeezed]
