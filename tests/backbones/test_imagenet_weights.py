"""Loading torchvision's ResNet-34 weights from a local file, with made-up values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from d2ed2q.backbones import DeepLabV3Plus, ResNetEncoder, build_backbone, load_imagenet_weights
from d2ed2q.errors import CheckpointError, ConfigError


def empty_encoder(in_channels: int = 3, depth: int = 34, output_stride: int = 32) -> ResNetEncoder:
    """An encoder of zeros: drawing 21 million weights would cost more than the tests."""
    with torch.device("meta"):
        encoder = ResNetEncoder(in_channels, depth, output_stride)
    encoder.to_empty(device="cpu")
    for tensor in encoder.state_dict().values():
        tensor.zero_()
    return encoder


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """As torchvision publishes them: the encoder's keys and the classifier's."""
    weights = {
        key: torch.full_like(value, 1 + index % 97)
        for index, (key, value) in enumerate(empty_encoder().state_dict().items())
    }
    weights["conv1.weight"] = torch.arange(3.0).reshape(1, 3, 1, 1).expand(64, 3, 7, 7).contiguous() + 1
    return {**weights, "fc.weight": torch.ones(1000, 512), "fc.bias": torch.ones(1000)}


def saved(weights: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return path


def test_keys_are_those_of_torchvision() -> None:
    keys = empty_encoder().state_dict().keys()

    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer1.2.bn2.bias"} <= keys
    assert {
        "layer2.0.downsample.0.weight",
        "layer2.0.downsample.1.num_batches_tracked",
        "layer4.2.conv2.weight",
    } <= keys
    assert len(keys) == 216  # torchvision's 218 less fc.weight and fc.bias
    assert not any(key.startswith("layer1.0.downsample") for key in keys)


def test_resnet_18_has_torchvisions_keys_and_takes_its_own_weights_only(
    published: dict[str, Tensor], tmp_path: Path
) -> None:
    encoder = empty_encoder(depth=18, output_stride=16)
    weights = {key: torch.full_like(value, 2) for key, value in encoder.state_dict().items()}

    assert len(weights) == 120  # torchvision's 122 less fc.weight and fc.bias
    assert sum(p.numel() for p in encoder.parameters()) == 11_176_512
    weights |= {"fc.weight": torch.ones(1000, 512)}
    load_imagenet_weights(encoder, saved(weights, tmp_path / "resnet18.pth"))
    assert all(bool((value == 2).all()) for value in encoder.state_dict().values())
    with pytest.raises(CheckpointError, match=r"not of a ResNet-18.*give torchvision's ResNet-18 weights"):
        load_imagenet_weights(encoder, saved(published, tmp_path / "resnet34.pth"))
    with pytest.raises(CheckpointError, match="not of a ResNet-34"):
        load_imagenet_weights(empty_encoder(), tmp_path / "resnet18.pth")


@pytest.mark.parametrize("name", ["deeplabv3plus-18", "deeplabv3plus-34"])
def test_deeplab_starts_from_imagenet_weights(name: str, tmp_path: Path) -> None:
    depth = int(name[-2:])
    weights = {key: torch.full_like(value, 3) for key, value in empty_encoder(depth=depth).state_dict().items()}

    network = build_backbone(name, 3, 1, imagenet_weights=saved(weights, tmp_path / "weights.safetensors"))

    assert isinstance(network, DeepLabV3Plus)
    assert all(bool((value == 3).all()) for value in network.encoder.state_dict().values())


def test_impossible_encoders_are_refused() -> None:
    with pytest.raises(ConfigError, match="depth = 50 and output_stride = 32"):
        ResNetEncoder(3, depth=50)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_tensor_is_loaded(published: dict[str, Tensor], tmp_path: Path, suffix: str) -> None:
    encoder = empty_encoder()

    load_imagenet_weights(encoder, saved(published, tmp_path / f"resnet34{suffix}"))

    assert [key for key, value in encoder.state_dict().items() if not torch.equal(value, published[key])] == []


def test_grey_image_gives_what_its_rgb_copy_gives(published: dict[str, Tensor], tmp_path: Path) -> None:
    grey, colour = empty_encoder(1), empty_encoder(3)
    path = saved(published, tmp_path / "resnet34.pth")
    load_imagenet_weights(grey, path)
    load_imagenet_weights(colour, path)
    x = torch.rand(1, 1, 16, 16)

    assert torch.equal(grey.conv1.weight, torch.full((64, 1, 7, 7), 1.0 + 2.0 + 3.0))
    torch.testing.assert_close(grey.conv1(x), colour.conv1(x.expand(-1, 3, -1, -1)))


def test_counters_may_be_missing_as_in_old_files(published: dict[str, Tensor], tmp_path: Path) -> None:
    old = {key: value for key, value in published.items() if not key.endswith("num_batches_tracked")}
    encoder = empty_encoder()

    load_imagenet_weights(encoder, saved(old, tmp_path / "resnet34.pth"))

    assert torch.equal(encoder.state_dict()["layer4.2.conv2.weight"], published["layer4.2.conv2.weight"])


def without(key: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {name: value for name, value in weights.items() if name != key}


def with_tensor(key: str, value: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {**weights, key: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("layer1.2.conv1.weight"), "'layer1.2.conv1.weight' is missing"),  # what ResNet-18 lacks
        (
            with_tensor("layer1.0.conv1.weight", torch.ones(64, 64, 1, 1)),
            r"'layer1.0.conv1.weight' has shape \(64, 64, 1",
        ),
        (
            with_tensor("conv1.weight", torch.ones(64, 1, 7, 7)),
            r"'conv1.weight' has shape \(64, 1, 7, 7\) and not \(64, 3",
        ),
        (with_tensor("layer3.6.conv1.weight", torch.ones(1)), "which has no 'layer3.6.conv1.weight'"),
        (with_tensor("bn1.bias", torch.full((64,), torch.nan)), "'bn1.bias' holds values that are not finite"),
        (lambda weights: {"state_dict": weights}, "'state_dict' is none"),
        (lambda weights: [1.0], "no table of named tensors"),
    ],
)
def test_misfit_is_named_and_leaves_the_encoder_alone(
    published: dict[str, Tensor], tmp_path: Path, change: Callable[[object], dict[str, Tensor]], message: str
) -> None:
    encoder = empty_encoder()

    with pytest.raises(CheckpointError, match=message):
        load_imagenet_weights(encoder, saved(change(published), tmp_path / "other.pth"))

    assert not any(value.any() for value in encoder.state_dict().values())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 3, 200, -1])
def test_cut_off_file_is_named(tmp_path: Path, suffix: str, kept: int) -> None:
    path = saved({"conv1.weight": torch.ones(64, 3, 7, 7)}, tmp_path / f"resnet34{suffix}")
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(CheckpointError, match=r"resnet34\.\w+ is cut off or is not a weights file"):
        load_imagenet_weights(empty_encoder(), path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights file"):
        load_imagenet_weights(empty_encoder(), tmp_path / "resnet34.pth")


def test_other_file_types_are_named(tmp_path: Path) -> None:
    path = tmp_path / "resnet34.onnx"
    path.write_bytes(b"")

    with pytest.raises(CheckpointError, match=r"neither a \.pth nor a \.safetensors file"):
        load_imagenet_weights(empty_encoder(), path)


class _Hostile:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (Path("hostile-code-ran"),)


def test_code_in_a_pickle_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": _Hostile()}, tmp_path / "resnet34.pth")

    with pytest.raises(CheckpointError, match="is cut off or is not a weights file"):
        load_imagenet_weights(empty_encoder(), tmp_path / "resnet34.pth")

    assert not (tmp_path / "hostile-code-ran").exists()


def test_four_channel_images_have_no_imagenet_weights(published: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 or 3 channels, got 4"):
        load_imagenet_weights(empty_encoder(4), saved(published, tmp_path / "resnet34.pth"))
