"""Names, sizes and starting weights of the backbones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from d2ed2q.backbones import CENet, UNet, backbone_names, build_backbone
from d2ed2q.backbones.ce_net import DenseAtrousConvolution, ResidualMultiKernelPooling
from d2ed2q.errors import ConfigError


def n_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", ["CE-Net", "CENet", "ce_net", "ce net", "ce-net"])
def test_ce_net_is_known_by_all_its_spellings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[int, int]] = []
    monkeypatch.setattr("d2ed2q.backbones.builders.CENet", lambda *sizes: built.append(sizes))

    build_backbone(name, 3, 1)

    assert built == [(3, 1)]


@pytest.mark.parametrize("name", ["UNet-XS", "unet_xs", "unetxs"])
def test_u_net_is_known_by_all_its_spellings(name: str) -> None:
    network = build_backbone(name, in_channels=3, n_classes=1)

    assert isinstance(network, UNet)
    assert [tap.channels for tap in network.taps] == [8, 16, 32, 16, 8]


@pytest.mark.parametrize(("name", "nearest"), [("unet-xl", "unet-xs"), ("cenett", "ce-net"), ("unet-med", "unet-m")])
def test_unknown_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown backbone '{name}', did you mean '{nearest}'"):
        build_backbone(name, 3, 1)


@pytest.mark.parametrize("name", ["", "?!"])
def test_hopeless_name_is_answered_with_all_names(name: str) -> None:
    with pytest.raises(ConfigError, match=", ".join(backbone_names())):
        build_backbone(name, 3, 1)


@pytest.mark.parametrize(("in_channels", "n_classes"), [(0, 1), (3, 0), (-1, 1)])
def test_sizes_below_one_are_refused(in_channels: int, n_classes: int) -> None:
    with pytest.raises(ConfigError, match=f"in_channels = {in_channels} and n_classes = {n_classes}"):
        build_backbone("unet-xs", in_channels, n_classes)


@pytest.mark.parametrize("widths", [(), (8,), (8, 0)])
def test_u_net_refuses_impossible_widths(widths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="two or more positive widths"):
        UNet(3, 1, widths)


def test_u_net_does_not_take_imagenet_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="deeplabv3plus-34, ce-net only, not unet-s: leave them out"):
        build_backbone("unet-s", 3, 1, imagenet_weights=tmp_path / "resnet34.pth")


@pytest.mark.parametrize("name", sorted(set(backbone_names()) - set(backbone_names(3))))
def test_networks_of_images_only_name_those_for_volumes(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is for images only.*{', '.join(backbone_names(3))}"):
        build_backbone(name, 1, 2, dims=3)


def test_other_numbers_of_axes_are_refused() -> None:
    with pytest.raises(ConfigError, match="dims = 4"):
        build_backbone("unet-xs", 1, 2, dims=4)
    assert {"unet-s", "unet-deep", "res-unet-m", "attention-unet-s"} <= set(backbone_names(3))


def test_named_backbones_take_no_taps() -> None:
    with pytest.raises(ConfigError, match=r"unet-xs has taps of its own, got taps = encoder\.1"):
        build_backbone("unet-xs", 3, 1, taps=["encoder.1"])


def test_names_go_from_small_to_large() -> None:
    with torch.device("meta"):
        sizes = [n_parameters(build_backbone(name, 3, 1)) for name in backbone_names()]

    assert sizes == sorted(sizes)


@pytest.mark.parametrize(("name", "expected"), [("unet-xs", 29_625), ("unet-s", 117_361), ("unet-m", 1_927_009)])
def test_u_nets_have_their_published_sizes(name: str, expected: int) -> None:
    assert n_parameters(build_backbone(name, 3, 1)) == expected


def test_ce_net_has_29_million_parameters() -> None:
    with torch.device("meta"):
        network = CENet(3, 1)

    assert n_parameters(network) == 29_002_099
    assert n_parameters(network.encoder) == 21_284_672  # ResNet-34 without its classifier


def test_weights_start_at_he_and_logits_start_small() -> None:
    torch.manual_seed(0)
    network = UNet(3, 1, (32, 64))
    weights = network.state_dict()

    assert weights["decoder.0.3.weight"].std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.03)
    assert not weights["up.0.bias"].any()
    with torch.no_grad():
        assert network(torch.rand(2, 3, 16, 16)).abs().max() < 2


def test_two_learners_start_from_different_weights() -> None:
    one, other = build_backbone("unet-xs", 3, 1), build_backbone("unet-xs", 3, 1)

    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True) if a.ndim == 4)


def test_dac_sums_its_four_branches_and_its_input() -> None:
    dac = DenseAtrousConvolution(1)
    for convolution in (dac.dilate1, dac.dilate3, dac.dilate5, dac.project):
        nn.init.zeros_(convolution.weight)
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)
    centre = (0, 0, 1, 1)
    with torch.no_grad():  # each convolution multiplies by one prime, so that the sum tells which branches ran
        dac.dilate1.weight[centre], dac.dilate3.weight[centre], dac.dilate5.weight[centre] = 2, 3, 5
        dac.project.weight[0, 0, 0, 0] = 7
        out = dac(torch.ones(1, 1, 4, 4))
        negative = dac(-torch.ones(1, 1, 4, 4))

    assert torch.equal(out, torch.full_like(out, 1 + 2 + 3 * 7 + 2 * 3 * 7 + 2 * 3 * 5 * 7))
    assert torch.equal(negative, -torch.ones_like(negative))  # every branch ends in a ReLU


@pytest.mark.parametrize(("attribute", "reach"), [("dilate1", 1), ("dilate3", 3), ("dilate5", 5)])
def test_dac_convolutions_reach_as_far_as_their_names_say(attribute: str, reach: int) -> None:
    convolution = getattr(DenseAtrousConvolution(1), attribute)
    nn.init.ones_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    point = torch.zeros(1, 1, 15, 15)
    point[0, 0, 7, 7] = 1

    rows = convolution(point)[0, 0].sum(1).nonzero().flatten().tolist()

    assert rows == [7 - reach, 7, 7 + reach]


def test_rmp_pools_at_four_sizes_and_keeps_its_input() -> None:
    rmp = ResidualMultiKernelPooling(2)
    x = torch.arange(2 * 12 * 12, dtype=torch.float32).reshape(1, 2, 12, 12)
    with torch.no_grad():
        rmp.reduce.weight[0, :, 0, 0] = torch.tensor([1.0, 0.0])
        assert rmp.reduce.bias is not None
        rmp.reduce.bias.zero_()
        out = rmp(x)

    assert out.shape == (1, 6, 12, 12)
    assert torch.equal(out[:, 4:], x)
    # The first corner of each map is the first window's maximum: the last pixel of an n×n window in rows of 12.
    assert out[0, :4, 0, 0].tolist() == [12 * (pool - 1) + pool - 1 for pool in (2, 3, 5, 6)]


def test_rmp_takes_the_maximum_of_all_where_the_map_is_smaller_than_a_pool() -> None:
    rmp = ResidualMultiKernelPooling(1)
    x = torch.rand(1, 1, 2, 1)
    with torch.no_grad():
        out = rmp(x)
        expected = rmp.reduce(x.amax((2, 3), keepdim=True)).expand(1, 4, 2, 1)

    assert torch.allclose(out[:, :4], expected)
