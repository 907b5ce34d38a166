"""ResNet-18 and ResNet-34 encoders (He et al., 2016) with torchvision's key names, and ImageNet weights from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from d2ed2q.backbones.layers import layers_of
from d2ed2q.errors import CheckpointError, ConfigError

__all__ = ["BasicBlock", "ResNetEncoder", "load_imagenet_weights"]

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class BasicBlock(nn.Module):
    """Residual block: ``ReLU(BN(Conv3×3(ReLU(BN(Conv3×3(x))))) + shortcut(x))``.

    Args:
        inner: channels of the input.
        outer: channels of the output.
        stride: of the first convolution. Where it is not 1 or the channels change, the shortcut is a 1×1 convolution
            and batch normalisation, otherwise the input itself.
        dilations: of the two convolutions.
        dims: number of spatial axes, 2 or 3.
    """

    def __init__(
        self, inner: int, outer: int, stride: int = 1, dilations: tuple[int, int] = (1, 1), dims: int = 2
    ) -> None:
        super().__init__()
        layers = layers_of(dims)
        first, second = dilations
        self.conv1 = layers.convolution(inner, outer, 3, stride=stride, padding=first, dilation=first, bias=False)
        self.bn1 = layers.norm(outer)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = layers.convolution(outer, outer, 3, padding=second, dilation=second, bias=False)
        self.bn2 = layers.norm(outer)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inner != outer:
            self.downsample = nn.Sequential(
                layers.convolution(inner, outer, 1, stride=stride, bias=False), layers.norm(outer)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Of ``B×inner×h×w``: ``B×outer×⌈h/stride⌉×⌈w/stride⌉`` (volumes alike); ``x`` is not written to."""
        shortcut = x if self.downsample is None else self.downsample(x)
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu(residual + shortcut)
        return out


def _layer(inner: int, outer: int, blocks: int, stride: int, dilation: int = 1) -> nn.Sequential:
    # The convolution whose stride the dilation stands for still sees its input on the old grid.
    first = BasicBlock(inner, outer, stride, dilations=(1, dilation))
    return nn.Sequential(first, *(BasicBlock(outer, outer, dilations=(dilation, dilation)) for _ in range(blocks - 1)))


class ResNetEncoder(nn.Module):
    """A ResNet without its classifier: a stem and four layers, to be run one after another by the network around it.

    The stem gives 64 channels at a quarter of the input's resolution; ``layer1`` … ``layer4`` give 64, 128, 256 and
    512 channels at 1/4, 1/8, 1/16 and 1/32. Keys are torchvision's: ``conv1``, ``bn1``, ``layer1.0.conv1``,
    ``layer2.0.downsample.0``, …

    Args:
        in_channels: channels of the input.
        depth: 18 or 34.
        output_stride: 32, or 16: ``layer4`` then stays at 1/16 and dilates its convolutions instead, so that at every
            other position it computes what it would have computed at 1/32.

    Raises:
        ConfigError: another depth or output stride.
    """

    def __init__(self, in_channels: int, depth: int = 34, output_stride: int = 32) -> None:
        super().__init__()
        if depth not in _BLOCKS or output_stride not in (16, 32):
            raise ConfigError(
                f"there are ResNet encoders of depth 18 and 34 and of output stride 16 and 32, got depth = {depth} and "
                f"output_stride = {output_stride}"
            )
        blocks = _BLOCKS[depth]
        self.depth = depth
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _layer(64, 64, blocks[0], stride=1)
        self.layer2 = _layer(64, 128, blocks[1], stride=2)
        self.layer3 = _layer(128, 256, blocks[2], stride=2)
        self.layer4 = _layer(256, 512, blocks[3], stride=output_stride // 16, dilation=32 // output_stride)

    def stem(self, x: Tensor) -> Tensor:
        """First convolution and max-pooling: of ``B×in_channels×H×W``, ``B×64×⌈H/4⌉×⌈W/4⌉``."""
        out: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return out

    @property
    def layers(self) -> tuple[nn.Sequential, ...]:
        """``layer1`` … ``layer4``, in the order of the forward pass."""
        return self.layer1, self.layer2, self.layer3, self.layer4


def load_imagenet_weights(encoder: ResNetEncoder, path: Path) -> None:
    """Loads torchvision's ImageNet weights from a local file; nothing is loaded unless everything fits.

    The classifier (``fc.*``) is left out. For an encoder of one-channel images, the first convolution's weights are
    summed over red, green and blue: a grey image then gives what its RGB copy would have given.

    Args:
        encoder: receives the weights, in place.
        path: a ``.pth`` (or ``.pt``) file as torchvision publishes it, or the same tensors in a ``.safetensors`` file.

    Raises:
        CheckpointError: the file is missing, cut off, or not of the encoder's ResNet; the message names the first
            offending key.
        ConfigError: the encoder takes images of neither one nor three channels.
    """
    in_channels = encoder.conv1.in_channels
    if in_channels not in (1, 3):
        raise ConfigError(
            f"ImageNet weights fit images of 1 or 3 channels, got {in_channels}: leave the ImageNet weights out"
        )
    resnet = f"ResNet-{encoder.depth}"
    remedy = f"give torchvision's {resnet} weights"
    found = {key: value for key, value in _read_tensors(path, remedy).items() if not key.startswith("fc.")}
    expected = encoder.state_dict()
    loaded: dict[str, Tensor] = {}
    for key, own in expected.items():
        # Files published before PyTorch 0.4.1 have no such counters; their values do not matter to the encoder.
        if key.endswith("num_batches_tracked") and key not in found:
            loaded[key] = own
            continue
        if key not in found:
            raise CheckpointError(f"{path} is not of a {resnet}, {key!r} is missing: {remedy}")
        value = found.pop(key)
        shape = (own.shape[0], 3, *own.shape[2:]) if key == "conv1.weight" else tuple(own.shape)
        if tuple(value.shape) != shape:
            raise CheckpointError(
                f"{path} is not of a {resnet}, {key!r} has shape {tuple(value.shape)} and not {shape}: {remedy}"
            )
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path} is damaged, {key!r} holds values that are not finite: download it again")
        loaded[key] = value.sum(1, keepdim=True) if key == "conv1.weight" and in_channels == 1 else value
    if found:
        raise CheckpointError(f"{path} is not of a {resnet}, which has no {min(found)!r}: {remedy}")
    encoder.load_state_dict(loaded)


def _read_tensors(path: Path, remedy: str) -> Mapping[str, Tensor]:
    """Reads the named tensors of a ``.pth``, ``.pt`` or ``.safetensors`` file without running any code in it."""
    if not path.is_file():
        raise CheckpointError(f"there is no weights file {path}: give the path of a local .pth or .safetensors file")
    if path.suffix not in (".pth", ".pt", ".safetensors"):
        raise CheckpointError(f"{path} is neither a .pth nor a .safetensors file: give torchvision's weights in one")
    content: object
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f"{path} may not be read: give yourself the permission") from error
    except (
        Exception
    ) as error:  # a damaged file raises nearly anything: OSError, IndexError, struct.error, AssertionError…
        raise CheckpointError(f"{path} is cut off or is not a weights file: download it again") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds no table of named tensors: {remedy}")
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path} is not a table of named tensors, {key!r} is none: give a plain state dict")
    return content
