"""What the papers say of each architecture, worked out another way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2ed2q.backbones import FCN, AttentionUNet, DeepLabV3Plus, ResidualUNet, ResNetEncoder, SegNet, UNet
from d2ed2q.backbones.attention_unet import AttentionGate
from d2ed2q.backbones.deeplab import AtrousSpatialPyramidPooling
from d2ed2q.backbones.fcn import bilinear_kernel
from d2ed2q.backbones.resnet import BasicBlock
from d2ed2q.backbones.segnet import pool_and_places, unpool


@pytest.mark.parametrize("values", [2, 3, 1000])
def test_unpooling_by_places_is_unpooling_by_indices(values: int) -> None:
    """With few values most windows hold their maximum more than once, as windows of zeros after a ReLU do."""
    x = torch.randint(0, values, (2, 3, 8, 12)).float()
    upper = torch.randn(2, 3, 4, 6)
    pooled, places = pool_and_places(x)
    expected, indices = F.max_pool2d(x, 2, return_indices=True)

    assert torch.equal(pooled, expected)
    assert (torch.stack(places).sum(0) == 1).all()
    assert torch.equal(unpool(upper, places), F.max_unpool2d(upper, indices, [2, 2]))


def test_gradients_of_unpooling_are_those_of_unpooling_by_indices() -> None:
    x = torch.relu(torch.randn(1, 2, 8, 8)).requires_grad_()
    weights = torch.randn(1, 2, 8, 8)
    pooled, places = pool_and_places(x)
    expected, indices = F.max_pool2d(x, 2, return_indices=True)

    (found,) = torch.autograd.grad((unpool(pooled.square(), places) * weights).sum(), x)
    (wanted,) = torch.autograd.grad((F.max_unpool2d(expected.square(), indices, [2, 2]) * weights).sum(), x)
    assert torch.equal(found, wanted)


def test_segnet_unpools_by_what_the_hook_gave_back() -> None:
    network = SegNet(1, 1, (4, 4, 4, 4, 4)).eval()

    def decoder_input(turned: bool) -> Tensor:
        seen: list[Tensor] = []
        handle = network.decoder[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

        def hook(tap: str, feature: Tensor) -> Tensor:
            ramp = torch.arange(feature.numel(), dtype=torch.float32).reshape(feature.shape)
            if tap == "encoder1":
                return -ramp if turned else ramp
            return torch.ones_like(feature)

        with torch.no_grad():
            network(torch.rand(1, 1, 32, 32), hook)
        handle.remove()
        return seen[0]

    rising, falling = decoder_input(False), decoder_input(True)
    assert (rising[..., 1::2, 1::2] == 1).all(), "the largest of a window is its last"
    assert (falling[..., ::2, ::2] == 1).all()
    assert rising.sum() == falling.sum() == rising.numel() / 4


def test_fcn_upsampling_starts_as_interpolation() -> None:
    x = torch.randn(1, 2, 6, 7)
    up = F.conv_transpose2d(x, bilinear_kernel(2), stride=2, padding=1)
    wanted = F.interpolate(x, scale_factor=2.0, mode="bilinear")

    torch.testing.assert_close(up[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1])  # at the border it fades to zero


def test_fcn_adds_the_scores_of_three_depths() -> None:
    network = FCN(3, 2, (4, 4, 4, 4, 4), centre=8).eval()
    x = torch.rand(1, 3, 192, 192)

    def logits_with(**biases: float) -> Tensor:
        for name in ("score8", "score16", "score32"):
            layer = network.get_submodule(name)
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            layer.bias.data.fill_(biases.get(name, 0.0))
        logits: Tensor = network(x)
        return logits

    with torch.no_grad():
        plain = logits_with()
        for name in ("score8", "score16", "score32"):
            inside = (slice(None), slice(None), slice(80, 112), slice(80, 112))
            torch.testing.assert_close(logits_with(**{name: 1.0})[inside], plain[inside] + 1)


def test_the_dilated_encoder_computes_what_the_strided_one_does() -> None:
    strided, dilated = ResNetEncoder(1, 18).eval(), ResNetEncoder(1, 18, output_stride=16).eval()
    dilated.load_state_dict(strided.state_dict())
    x = torch.rand(1, 1, 96, 64)

    def features(encoder: ResNetEncoder) -> Tensor:
        x_ = encoder.stem(x)
        for layer in encoder.layers:
            x_ = layer(x_)
        return x_

    with torch.no_grad():
        coarse, fine = features(strided), features(dilated)
    assert coarse.shape == (1, 512, 3, 2)
    assert fine.shape == (1, 512, 6, 4)
    torch.testing.assert_close(fine[..., ::2, ::2], coarse)


def test_aspp_has_the_papers_rates_and_sees_the_whole_image() -> None:
    aspp = AtrousSpatialPyramidPooling(4, 8).eval()
    dilated = [m for m in aspp.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert [m.dilation for m in dilated] == [(6, 6), (12, 12), (18, 18)]
    x = torch.zeros(1, 4, 64, 64)
    far = x.clone()
    far[..., 0, 0] = 1e4

    with torch.no_grad():
        assert not torch.equal(aspp(x)[..., -1, -1], aspp(far)[..., -1, -1])


def test_deeplab_trains_on_one_image() -> None:
    network = DeepLabV3Plus(1, 1, width=8).train()

    assert network(torch.rand(1, 1, 32, 32)).shape == (1, 1, 32, 32)


def test_an_attention_gate_is_the_documented_formula() -> None:
    gate = AttentionGate(2, 3).eval()
    x, g = torch.randn(1, 2, 4, 4), torch.randn(1, 3, 2, 2)
    theta = torch.einsum("ocij,bchiwj->bohw", gate.theta.weight, x.reshape(1, 2, 2, 2, 2, 2))
    assert gate.phi.bias is not None
    assert gate.psi.bias is not None
    phi = torch.einsum("oc,bchw->bohw", gate.phi.weight[..., 0, 0], g) + gate.phi.bias[:, None, None]
    psi = torch.einsum("oc,bchw->bohw", gate.psi.weight[..., 0, 0], (theta + phi).relu()) + gate.psi.bias
    attention = F.interpolate(torch.sigmoid(psi), (4, 4), mode="bilinear")
    projected = torch.einsum("oc,bchw->bohw", gate.project.weight[..., 0, 0], x * attention)

    torch.testing.assert_close(gate(x, g), projected / (1 + gate.norm.eps) ** 0.5)


def test_the_finest_skip_has_no_attention_gate() -> None:
    network = AttentionUNet(3, 1, (4, 8, 16, 32))
    assert len(network.gates) == 2
    feature = torch.rand(1, 4, 8, 8)
    assert network.skip(0, feature, torch.rand(1, 8, 4, 4)) is feature


def test_residual_u_net_goes_down_by_strided_convolutions() -> None:
    network = ResidualUNet(3, 1, (4, 8, 16), dims=3)
    blocks = list(network.encoder)
    assert all(isinstance(block, BasicBlock) for block in (*blocks, *network.decoder))
    assert [block.conv1.stride for block in blocks] == [(1, 1, 1), (2, 2, 2), (2, 2, 2)]
    assert not any(isinstance(module, (nn.MaxPool2d, nn.MaxPool3d)) for module in network.modules())


def test_a_volume_network_of_equal_slices_is_the_image_network() -> None:
    """Copied into the middle slice of 3×3×3 kernels, 2-D weights compute the same in every slice."""
    flat, deep = UNet(1, 1, (4, 8)).eval(), UNet(1, 1, (4, 8), dims=3).eval()
    with torch.no_grad():
        for one, other in zip(flat.parameters(), deep.parameters(), strict=True):
            if one.ndim == 4:
                other.zero_()
                depth = other.shape[2]
                other[:, :, slice(None) if depth == 2 else depth // 2] = one[:, :, None] if depth == 2 else one
            else:
                other.copy_(one)
        x = torch.rand(1, 1, 8, 6)
        volume = deep(x[:, :, None].expand(-1, -1, 4, -1, -1))
        torch.testing.assert_close(volume, flat(x)[:, :, None].expand(-1, -1, 4, -1, -1))
