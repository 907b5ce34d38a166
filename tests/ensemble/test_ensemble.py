from __future__ import annotations

import pytest
import torch
from torch import Tensor

from d2ed2q.backbones import StagedNetwork, build_backbone
from d2ed2q.ensemble import (
    DeepDiversifiedLoss,
    DeepEnsemble,
    TapFusion,
    learner_probabilities,
    view_names,
    views,
)
from d2ed2q.errors import ConfigError


def make(n_base: int = 3, n_classes: int = 1, name: str = "unet-xs") -> DeepEnsemble:
    return DeepEnsemble(lambda: build_backbone(name, in_channels=3, n_classes=n_classes), n_base)


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("n_base", [2, 3, 5])
@pytest.mark.parametrize("n_classes", [1, 4])
def test_any_number_of_learners_and_classes(n_base: int, n_classes: int) -> None:
    output = make(n_base, n_classes)(torch.rand(2, 3, 37, 50))
    assert output.logits.shape == (n_base + 1, 2, n_classes, 37, 50)
    assert all(len(features) == n_base for features in output.features.values())
    assert list(output.features) == ["encoder1", "encoder2", "centre", "decoder2", "decoder1"]


@pytest.mark.parametrize("n_base", [1, -1])
def test_one_base_learner_is_no_ensemble(n_base: int) -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        make(n_base)


def test_without_base_learners_it_is_the_network_itself() -> None:
    ensemble = make(0).eval()
    image = torch.rand(2, 3, 37, 50)
    output = ensemble(image)
    assert torch.equal(output.logits[0], ensemble.meta(image * 3.2 - 1.6, lambda _, feature: feature))
    assert len(output.logits) == 1
    assert parameters(ensemble) == parameters(ensemble.meta)
    assert ensemble.prediction_name == "network"
    assert list(views(learner_probabilities(output.logits))) == ["network"]
    terms = DeepDiversifiedLoss(taps=ensemble.diverse_taps)(output, torch.zeros(2, 37, 50, dtype=torch.int64))
    assert torch.equal(terms.total, terms.segmentation)
    assert terms.diversity == 0


def test_without_fusion_the_learners_do_not_see_each_other() -> None:
    ensemble = DeepEnsemble(lambda: build_backbone("unet-xs", in_channels=3, n_classes=1), 3, fuse=False).eval()
    assert parameters(ensemble) == 4 * parameters(ensemble.meta)
    image = torch.rand(1, 3, 32, 32)
    output = ensemble(image)
    assert {len(features) for features in output.features.values()} == {3}
    for logits, learner in zip(output.logits, (ensemble.meta, *ensemble.base), strict=True):
        assert torch.equal(logits, learner(image * 3.2 - 1.6, lambda _, feature: feature))


def test_learners_start_from_different_weights() -> None:
    logits = make().eval()(torch.rand(1, 3, 32, 32)).logits
    assert all(not torch.equal(logits[i], logits[j]) for i in range(4) for j in range(i))


def test_base_learners_are_independent_and_the_meta_learner_sees_them_all() -> None:
    ensemble = make().eval()
    image = torch.rand(1, 3, 32, 32)
    before = ensemble(image).logits
    with torch.no_grad():
        for parameter in ensemble.base[1].parameters():
            parameter.mul_(1.5)
    after = ensemble(image).logits
    assert torch.equal(before[1], after[1])
    assert torch.equal(before[3], after[3])
    assert not torch.equal(before[2], after[2])
    assert not torch.equal(before[0], after[0])


def test_every_fusion_matters_to_the_meta_learner_alone() -> None:
    ensemble = make().eval()
    image = torch.rand(1, 3, 32, 32)
    before = ensemble(image).logits
    for name, fusion in ensemble.fusions.items():
        assert isinstance(fusion, TapFusion)
        state = {key: value.clone() for key, value in fusion.state_dict().items()}
        with torch.no_grad():
            fusion.mix.weight.neg_()
        after = ensemble(image).logits
        assert not torch.equal(before[0], after[0]), name
        assert torch.equal(before[1:], after[1:])
        fusion.load_state_dict(state)


def test_a_fusion_is_the_documented_formula() -> None:
    fusion = TapFusion(32, 3).eval()
    base = [torch.randn(2, 32, 5, 6) for _ in range(3)]
    meta = torch.randn(2, 32, 5, 6)

    def norm(x: Tensor, layer: torch.nn.BatchNorm2d | torch.nn.BatchNorm3d) -> Tensor:
        return x / torch.sqrt(torch.tensor(1 + layer.eps))

    mix = torch.einsum("oc,bchw->bohw", fusion.mix.weight[:, :, 0, 0], torch.cat(base, 1))
    mix = norm(mix, fusion.mix_norm).relu()
    attention = fusion.attention
    assert attention.squeeze.weight.shape == (2, 32, 1, 1)
    assert attention.squeeze.bias is not None
    assert attention.excite.bias is not None
    hidden = (mix.mean((2, 3)) @ attention.squeeze.weight[:, :, 0, 0].T + attention.squeeze.bias).relu()
    gate = torch.sigmoid(hidden @ attention.excite.weight[:, :, 0, 0].T + attention.excite.bias)
    mix = mix * gate[:, :, None, None]
    fused = torch.einsum("oc,bchw->bohw", fusion.fuse.weight[:, :, 0, 0], torch.cat((mix, meta), 1))
    assert torch.allclose(fusion(base, meta), norm(fused, fusion.fuse_norm).relu(), atol=1e-5)


def test_a_fusion_of_volumes_is_that_of_images() -> None:
    flat, deep = TapFusion(4, 2).eval(), TapFusion(4, 2, dims=3).eval()
    deep.load_state_dict(
        {key: value[..., None] if value.ndim == 4 else value for key, value in flat.state_dict().items()}
    )
    base, meta = [torch.randn(2, 4, 3, 5, 6) for _ in range(2)], torch.randn(2, 4, 3, 5, 6)
    wanted = flat([feature.flatten(2, 3) for feature in base], meta.flatten(2, 3))
    torch.testing.assert_close(deep(base, meta).flatten(2, 3), wanted)


def test_an_ensemble_of_volumes() -> None:
    ensemble = DeepEnsemble(lambda: build_backbone("unet-xs", in_channels=2, n_classes=3, dims=3), n_base=2)
    output = ensemble(torch.rand(2, 2, 6, 9, 8))
    assert output.logits.shape == (3, 2, 3, 6, 9, 8)
    assert output.features["centre"][0].shape == (2, 32, 2, 3, 2)


def test_learners_that_share_weights_are_refused() -> None:
    network = build_backbone("unet-xs", 3, 1)
    with pytest.raises(ConfigError, match="share weights: build a new network"):
        DeepEnsemble(lambda: network)


def test_learners_of_different_architectures_are_refused() -> None:
    names = iter(["unet-xs", "unet-s", "unet-xs", "unet-xs"])
    with pytest.raises(ConfigError, match="the learners differ"):
        DeepEnsemble(lambda: build_backbone(next(names), 3, 1))


def test_sizes_are_the_published_ones() -> None:
    small = make(name="unet-s")
    assert 115_000 < parameters(small.base[0]) < 119_000
    assert 495_000 < parameters(small) < 510_000


def test_the_ce_net_ensemble_has_119_million_parameters() -> None:
    with torch.device("meta"):
        ensemble = make(name="ce-net")
    assert parameters(ensemble) == 119_650_224
    assert round(parameters(ensemble.base[0]) / 1e6) == 29


def test_views_are_means_of_probabilities() -> None:
    logits = torch.randn(4, 2, 1, 3, 3)
    probabilities = learner_probabilities(logits)
    assert torch.equal(probabilities, torch.sigmoid(logits))
    found = views(probabilities)
    assert tuple(found) == view_names(3) == ("ensemble", "meta", "base_mean", "base_1", "base_2", "base_3")
    assert torch.allclose(found["ensemble"], probabilities.mean(0))
    assert torch.equal(found["meta"], probabilities[0])
    assert torch.allclose(found["base_mean"], probabilities[1:].mean(0))
    assert torch.equal(found["base_3"], probabilities[3])
    several = learner_probabilities(torch.randn(3, 1, 5, 2, 2))
    assert torch.allclose(several.sum(2), torch.ones(3, 1, 2, 2))


def test_decisions_travel_with_the_weights() -> None:
    ensemble = make()
    thresholds = {name: 0.1 * index for index, name in enumerate(view_names(3))}
    ensemble.decide("meta", thresholds)
    other = make()
    assert other.prediction_name == "ensemble"
    other.load_state_dict(ensemble.state_dict())
    assert other.prediction_name == "meta"
    assert other.threshold_of("base_1") == pytest.approx(0.3)


def test_normalisation_lives_inside() -> None:
    ensemble = make().eval()
    seen: list[Tensor] = []
    ensemble.base[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    ensemble(torch.tensor([0.0, 0.5, 1.0]).reshape(1, 3, 1, 1).expand(1, 3, 16, 16))
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx([-1.6, 0.0, 1.6])


def test_learners_that_would_stay_alike_are_refused() -> None:
    def make() -> StagedNetwork:
        torch.manual_seed(0)
        return build_backbone("unet-xs", in_channels=3, n_classes=1)

    with pytest.raises(ConfigError, match="same weights"):
        DeepEnsemble(make, n_base=2)
