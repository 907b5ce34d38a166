"""One contract that every backbone keeps, whatever its architecture, for images and, where it can, for volumes."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import Tensor

from d2ed2q.backbones import StagedNetwork, backbone_names, build_backbone
from d2ed2q.errors import DataError

CASES = [(name, dims) for dims in (2, 3) for name in backbone_names(dims)]
EVERY = pytest.mark.parametrize(("name", "dims"), CASES, ids=[f"{name}-{dims}d" for name, dims in CASES])
LEVELS = {
    **{"unet-xs": 2, "unet-s": 2, "attention-unet-s": 2, "res-unet-s": 2},
    **{"unet-m": 3, "attention-unet-m": 3, "res-unet-m": 3, "unet-deep": 4},
    **{"res-unet-deep": 4, "res-unet-deep-xs": 4},
}
DOWNSCALE = {
    "ce-net": {
        **{"stem": 4, "encoder1": 4, "encoder2": 8, "encoder3": 16, "encoder4": 32, "centre": 32},
        **{"decoder4": 16, "decoder3": 8, "decoder2": 4, "decoder1": 2},
    },
    "fcn": {**{f"encoder{level}": 2**level for level in range(1, 6)}, "centre": 32},
    "segnet": {
        **{f"encoder{level}": 2 ** (level - 1) for level in range(1, 6)},
        **{f"decoder{level}": 2 ** (level - 1) for level in range(5, 0, -1)},
    },
    **{
        f"deeplabv3plus-{depth}": {
            **{"stem": 4, "encoder1": 4, "encoder2": 8, "encoder3": 16, "encoder4": 16, "centre": 16, "decoder1": 4}
        }
        for depth in (18, 34)
    },
    **{
        name: {
            **{f"encoder{level}": half * 2 ** (level - 1) for level in range(1, n + 1)},
            "centre": half * 2**n,
            **{f"decoder{level}": half * 2 ** (level - 1) for level in range(n, 0, -1)},
        }
        for name, n in LEVELS.items()
        for half in [2 if name.startswith("res-unet-deep") else 1]
    },
}
SKIPS = {
    "ce-net": {"encoder1", "encoder2", "encoder3"},
    "fcn": {"encoder3", "encoder4"},
    "segnet": {"encoder5"},  # its values; of the others only places go across, the same for zeros and for ones
    "deeplabv3plus-18": {"encoder1"},
    "deeplabv3plus-34": {"encoder1"},
    **{name: {f"encoder{level}" for level in range(1, n + 1)} for name, n in LEVELS.items()},
}
EVEN = {2: (64, 64), 3: (32, 16, 16)}
ODD = {2: (47, 64), 3: (13, 16, 18)}
SIZES = {
    "even": {2: (64, 96), 3: (16, 32, 16)},
    "odd": {2: (47, 61), 3: (9, 17, 20)},
    "tiny": {2: (1, 5), 3: (1, 5, 3)},
}


@cache
def network_of(name: str, dims: int = 2) -> StagedNetwork:
    """An evaluation-mode network for tests that do not write to it; building one costs more than running it."""
    torch.manual_seed(0)
    return build_backbone(name, in_channels=3, n_classes=1, dims=dims).eval()


def image(*size: int, batch: int = 1, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(size[0] * size[1])
    return torch.rand(batch, channels, *size, generator=generator) * 3.2 - 1.6


@pytest.mark.parametrize("which", SIZES)
@EVERY
def test_features_and_logits_have_the_promised_shapes(name: str, dims: int, which: str) -> None:
    size = SIZES[which][dims]
    network = network_of(name, dims)
    seen: list[tuple[str, tuple[int, ...]]] = []

    def record(tap: str, feature: Tensor) -> Tensor:
        seen.append((tap, tuple(feature.shape)))
        return feature

    with torch.no_grad():
        logits = network(image(*size, batch=2), record)

    padded = [-(-side // network.stride) * network.stride for side in size]
    assert seen == [
        (tap.name, (2, tap.channels, *(side // DOWNSCALE[name][tap.name] for side in padded))) for tap in network.taps
    ]
    assert logits.shape == (2, 1, *size)
    assert torch.isfinite(logits).all()


@EVERY
def test_tap_names_are_unique_module_names(name: str, dims: int) -> None:
    names = [tap.name for tap in network_of(name, dims).taps]

    assert len(set(names)) == len(names)
    assert all(tap.isidentifier() for tap in names)


@EVERY
def test_only_the_stem_is_left_out_of_the_diversity_term(name: str, dims: int) -> None:
    assert {tap.name for tap in network_of(name, dims).taps if not tap.diverse} == (
        {"stem"} if name == "ce-net" or name.startswith("deeplab") else set()
    )


@EVERY
def test_one_channel_in_and_four_classes_out(name: str, dims: int) -> None:
    network = build_backbone(name, in_channels=1, n_classes=4, dims=dims).eval()

    with torch.no_grad():
        logits = network(image(*ODD[dims], channels=1))

    assert (network.in_channels, network.n_classes, network.dims) == (1, 4, dims)
    assert logits.shape == (1, 4, *ODD[dims])


@EVERY
def test_gradients_reach_every_parameter_and_recorded_features_stay_whole(name: str, dims: int) -> None:
    torch.manual_seed(0)
    network = build_backbone(name, in_channels=3, n_classes=1, dims=dims).train()
    recorded: dict[str, tuple[Tensor, Tensor]] = {}

    def record(tap: str, feature: Tensor) -> Tensor:
        recorded[tap] = (feature, feature.detach().clone())
        return feature

    logits = network(image(*EVEN[dims], batch=2), record)
    # Squared features join the loss as the diversity term does: autograd refuses if one was written to since.
    (logits.square().sum() + sum(feature.square().mean() for feature, _ in recorded.values())).backward()

    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert [tap for tap, (feature, copied) in recorded.items() if not torch.equal(feature, copied)] == []


@EVERY
def test_nothing_goes_around_a_hook(name: str, dims: int) -> None:
    network = network_of(name, dims)
    x = image(*EVEN[dims]).requires_grad_()

    logits = network(x, lambda tap, feature: feature.detach())
    (gradient,) = torch.autograd.grad(logits.sum(), x, allow_unused=True)

    assert gradient is None  # a skip that carried a feature from before its hook would lead back to the image


@EVERY
def test_skips_carry_what_the_hook_gave_back(name: str, dims: int) -> None:
    network = network_of(name, dims)
    x = image(*EVEN[dims])

    def logits_without(removed: str | None) -> Tensor:
        def hook(tap: str, feature: Tensor) -> Tensor:
            if tap == removed:
                return torch.zeros_like(feature)
            # Every other feature on the way down is held still: what is removed can only be missed through its skip.
            return torch.ones_like(feature) if tap.startswith(("stem", "encoder", "centre")) else feature

        logits: Tensor = network(x, hook)
        return logits

    with torch.no_grad():
        plain = logits_without(None)
        encoder = [tap.name for tap in network.taps if tap.name.startswith(("stem", "encoder"))]
        assert {tap for tap in encoder if not torch.equal(plain, logits_without(tap))} == SKIPS[name]


@pytest.mark.parametrize(
    ("decoder", "skip"), [("decoder4", "encoder3"), ("decoder3", "encoder2"), ("decoder2", "encoder1")]
)
def test_ce_net_decoder_taps_come_after_adding_the_skip(decoder: str, skip: str) -> None:
    def decoder_feature(value: float) -> Tensor:
        seen: dict[str, Tensor] = {}

        def hold_encoder_still(tap: str, feature: Tensor) -> Tensor:
            seen[tap] = feature
            if tap == skip:
                return torch.full_like(feature, value)
            return torch.ones_like(feature) if tap.startswith(("stem", "encoder", "centre")) else feature

        with torch.no_grad():
            network_of("ce-net")(image(64, 64), hold_encoder_still)
        return seen[decoder]

    torch.testing.assert_close(decoder_feature(2.0), decoder_feature(0.0) + 2)


@EVERY
def test_every_tap_counts_and_evaluation_is_deterministic(name: str, dims: int) -> None:
    network = network_of(name, dims)
    x = image(*EVEN[dims])

    def logits_with(changed: str | None) -> Tensor:
        logits: Tensor = network(x, lambda tap, feature: feature + 1 if tap == changed else feature)
        return logits

    with torch.no_grad():
        plain = network(x)
        assert torch.equal(plain, logits_with(None))
        assert [tap.name for tap in network.taps if torch.equal(plain, logits_with(tap.name))] == []


@EVERY
def test_padding_repeats_the_border_and_is_cropped_again(name: str, dims: int) -> None:
    network = network_of(name, dims)
    missing = network.stride // 2
    *rest, last = EVEN[dims]
    rest, last = [-(-extent // network.stride) * network.stride for extent in rest], max(last, network.stride)
    x = image(*rest, last - missing)
    padded_by_hand = torch.cat((x, *[x[..., -1:]] * missing), -1)

    with torch.no_grad():
        logits = network(x)

        assert logits.shape == (1, 1, *rest, last - missing)
        assert torch.equal(logits, network(padded_by_hand)[..., :-missing])


@EVERY
def test_channels_last_gives_the_same_logits(name: str, dims: int) -> None:
    network = network_of(name, dims)
    x = image(*ODD[dims], batch=2)
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d

    with torch.no_grad():
        expected = network(x)
        moved = copy.deepcopy(network).to(memory_format=layout)  # type: ignore[call-overload]
        layouts: dict[str, bool] = {}

        def record(tap: str, feature: Tensor) -> Tensor:
            layouts[tap] = feature.is_contiguous(memory_format=layout)
            return feature

        logits = moved(x.contiguous(memory_format=layout), record)

    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    # RMP's one-channel maps have no layout of their own, so that its small output falls back; the next layer mends it.
    assert [tap for tap, kept in layouts.items() if not kept] == (["centre"] if name == "ce-net" else [])


@EVERY
def test_exported_graph_gives_the_same_logits(name: str, dims: int) -> None:
    network = network_of(name, dims)
    x = image(*ODD[dims])

    with torch.no_grad():
        exported = torch.export.export(network, (x,), strict=False).module()
        torch.testing.assert_close(exported(x), network(x), rtol=1e-4, atol=1e-5)


def test_export_keeps_batch_and_size_free() -> None:
    network = network_of("unet-xs")
    rows, columns = torch.export.Dim("rows", min=2, max=64), torch.export.Dim("columns", min=2, max=64)
    free = {0: torch.export.Dim("batch", max=8), 2: 4 * rows, 3: 4 * columns}

    with torch.no_grad():
        exported = torch.export.export(
            network, (image(64, 64, batch=2),), dynamic_shapes=(free,), strict=False
        ).module()
        x = image(32, 48, batch=3)
        torch.testing.assert_close(exported(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 4, 64, 64), (1, 3, 0, 64), (1, 3, 64, 0)])
@pytest.mark.parametrize("name", ["unet-xs", "ce-net"])
def test_unusable_images_are_named(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="takes"):
        network_of(name)(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 1, 8, 8, 8), (1, 3, 0, 8, 8)])
def test_unusable_volumes_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"a batch of B×3×D×H×W|volumes of at least 1×1×1 voxels"):
        network_of("unet-xs", 3)(torch.zeros(shape))


@pytest.mark.parametrize("name", backbone_names(3))
def test_a_volume_network_repeats_the_border_along_all_three_axes(name: str) -> None:
    network = network_of(name, 3)
    size = [2 * network.stride - 1, network.stride, 2 * network.stride - 2]
    x = image(*size)
    padded = torch.cat((x, x[:, :, -1:]), 2)
    padded = torch.cat((padded, padded[..., -1:], padded[..., -1:]), 4)

    with torch.no_grad():
        torch.testing.assert_close(network(x), network(padded)[:, :, : size[0], :, : size[2]])
