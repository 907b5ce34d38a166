from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from d2ed2q.ensemble import (
    DeepDiversifiedLoss,
    EnsembleOutput,
    feature_diversity,
    segmentation_loss,
)
from d2ed2q.ensemble.loss import DEFAULT_ALPHA
from d2ed2q.errors import ConfigError


def test_released_diversity_by_hand() -> None:
    # Pairs are (0, 3·1), (0, 4·1) and (3·1, 4·1) over four elements: norms 6, 8 and 2.
    features = [torch.full((1, 1, 2, 2), value) for value in (0.0, 3.0, 4.0)]
    expected = (math.sqrt(6) + math.sqrt(8) + math.sqrt(2)) / 3
    assert feature_diversity(features, "released").item() == pytest.approx(expected)


def test_released_diversity_takes_the_norm_over_the_whole_batch() -> None:
    features = [torch.zeros(2, 1, 1, 1), torch.tensor([3.0, 4.0]).reshape(2, 1, 1, 1)]
    assert feature_diversity(features, "released").item() == pytest.approx(math.sqrt(5))


def test_normalised_diversity_by_hand() -> None:
    # Root-mean-square differences of the two samples are 3 and 4, whatever their number of elements.
    other = torch.tensor([3.0, 4.0]).reshape(2, 1, 1, 1).expand(2, 5, 7, 3)
    features = [torch.zeros(2, 5, 7, 3), other]
    expected = (math.sqrt(3) + math.sqrt(4)) / 2
    assert feature_diversity(features, "normalised").item() == pytest.approx(expected)


def test_cosine_diversity_counts_directions_alone() -> None:
    one = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).reshape(2, 1, 1, 2)
    other = torch.tensor([[0.0, 2.0], [3.0, 3.0]]).reshape(2, 1, 1, 2)
    assert feature_diversity((one, other), "cosine").item() == pytest.approx(0.5)  # a right angle, and none
    assert feature_diversity((100 * one, other), "cosine").item() == pytest.approx(0.5)


def test_unit_diversity_by_hand() -> None:
    # The first sample's features stand at a right angle, the second's agree in all but their length.
    one = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).reshape(2, 1, 1, 2)
    other = torch.tensor([[0.0, 2.0], [3.0, 3.0]]).reshape(2, 1, 1, 2)
    assert feature_diversity((one, other), "unit").item() == pytest.approx(2**0.25 / 2, abs=0.01)


@pytest.mark.parametrize("form", ["unit", "cosine"])
def test_larger_features_are_not_more_diverse(form: str) -> None:
    features = [torch.randn(2, 3, 4, 5).requires_grad_() for _ in range(3)]
    larger = [1000 * features[0], 0.01 * features[1], features[2]]
    assert feature_diversity(larger, form).item() == pytest.approx(feature_diversity(features, form).item(), rel=1e-5)
    # Nothing is gained along a feature's own direction.
    for feature, gradient in zip(
        features, torch.autograd.grad(feature_diversity(features, form), features), strict=True
    ):
        assert gradient.abs().max() > 1e-4
        assert (gradient * feature).sum((1, 2, 3)).abs().max() < 1e-6


@pytest.mark.parametrize("form", ["unit", "normalised", "cosine"])
def test_only_the_released_form_grows_with_batch_and_image_size(form: str) -> None:
    one, other = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    small, large = [one, other], [x.repeat(2, 1, 2, 2) for x in (one, other)]
    assert feature_diversity(small, form).item() == pytest.approx(feature_diversity(large, form).item())
    ratio = feature_diversity(large, "released") / feature_diversity(small, "released")
    assert ratio.item() == pytest.approx(8**0.25)  # eight times the elements


def test_equal_features_have_a_finite_gradient() -> None:
    one = torch.ones(1, 2, 3, 3, requires_grad=True)
    for form in DEFAULT_ALPHA:
        (gradient,) = torch.autograd.grad(feature_diversity([one, one.detach().clone()], form), one)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("others", [0.0, 1.0])
def test_features_of_nothing_have_a_small_gradient(others: float) -> None:
    zeros, other = torch.zeros(2, 1, 1, 2, requires_grad=True), torch.full((2, 1, 1, 2), others)
    for form in DEFAULT_ALPHA:
        (gradient,) = torch.autograd.grad(feature_diversity((zeros, other), form), zeros)
        assert gradient.abs().max() <= 1


def make_output(n: int = 3, classes: int = 1) -> tuple[EnsembleOutput, Tensor]:
    logits = torch.randn(n, 2, classes, 4, 4)
    features = {tap: tuple(torch.randn(2, 3, 4, 4) for _ in range(n - 1)) for tap in ("stem", "centre")}
    return EnsembleOutput(logits, features), torch.randint(0, max(classes, 2), (2, 4, 4))


def test_the_whole_loss_by_hand() -> None:
    output, label = make_output()
    terms = DeepDiversifiedLoss(0.005, "released")(output, label)
    segmentation = sum(F.binary_cross_entropy_with_logits(logits[:, 0], label.float()) for logits in output.logits)
    diversity = sum(feature_diversity(features, "released") for features in output.features.values())
    assert terms.segmentation.item() == pytest.approx(float(segmentation))
    assert terms.diversity.item() == pytest.approx(float(diversity))
    assert terms.total.item() == pytest.approx(float(segmentation - 0.005 * diversity), rel=1e-5)


def test_taps_that_are_not_diverse_stay_out_of_the_diversity_term() -> None:
    output, label = make_output()
    terms = DeepDiversifiedLoss(1.0, "unit", taps=("centre",))(output, label)
    assert terms.diversity.item() == pytest.approx(feature_diversity(output.features["centre"], "unit").item())


def test_a_single_network_has_no_diversity() -> None:
    logits, label = torch.randn(1, 2, 1, 4, 4), torch.randint(0, 2, (2, 4, 4))
    terms = DeepDiversifiedLoss()(EnsembleOutput(logits, {"stem": ()}), label)
    assert terms.diversity == 0
    assert terms.total == terms.segmentation


@pytest.mark.parametrize("form", DEFAULT_ALPHA)
def test_more_diverse_features_lower_the_loss(form: str) -> None:
    output, label = make_output()
    further = EnsembleOutput(
        output.logits, {tap: (features[0], -3 * features[0]) for tap, features in output.features.items()}
    )
    loss = DeepDiversifiedLoss(form=form)
    assert loss(further, label).total < loss(output, label).total
    plain = DeepDiversifiedLoss(alpha=0, form=form)
    assert plain(further, label).total == plain(output, label).total


def test_only_pixels_inside_the_region_count() -> None:
    logits, label = torch.randn(2, 1, 4, 4, requires_grad=True), torch.randint(0, 2, (2, 4, 4))
    roi = torch.zeros(2, 4, 4, dtype=torch.bool)
    roi[0, :2] = True
    for kind in ("bce", "bce_dice"):
        loss = segmentation_loss(logits, label, roi, kind)
        changed = torch.where(roi, label, 1 - label)
        assert segmentation_loss(logits, changed, roi, kind).item() == loss.item()
        (gradient,) = torch.autograd.grad(loss, logits)
        assert not gradient[:, 0][~roi].any()
        assert gradient[:, 0][roi].all()
    expected = F.binary_cross_entropy_with_logits(logits[0, 0, :2], label[0, :2].float())
    assert segmentation_loss(logits, label, roi).item() == pytest.approx(expected.item())
    assert segmentation_loss(logits, label, torch.zeros_like(roi), "bce").item() == 0


def test_dice_is_really_part_of_bce_dice() -> None:
    label = torch.tensor([[[1, 1], [0, 0]]])
    logits = torch.full((1, 1, 2, 2), 0.0)
    # soft Dice with probability ½ everywhere: (2 · 1 + 1) / (2 + 2 + 1)
    expected = math.log(2) + 1 - 3 / 5
    assert segmentation_loss(logits, label, None, "bce_dice").item() == pytest.approx(expected)
    assert segmentation_loss(logits, label, None, "bce").item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("classes", [1, 3])
def test_the_dice_part_keeps_to_the_label_where_a_teacher_gives_probabilities(classes: int) -> None:
    logits, label = torch.randn(2, classes, 4, 4), torch.randint(0, max(classes, 2), (2, 4, 4))
    taught = torch.rand(2, classes, 4, 4)
    target = taught / taught.sum(1, keepdim=True) if classes > 1 else taught
    of_label = segmentation_loss(logits, label, None, "bce_dice") - segmentation_loss(logits, label, None, "bce")
    found = segmentation_loss(logits, label, None, "bce_dice", target) - segmentation_loss(
        logits, label, None, "bce", target
    )
    assert found.item() == pytest.approx(of_label.item(), abs=1e-6)


def test_several_classes_use_cross_entropy_and_the_dice_of_the_foreground() -> None:
    logits, label = torch.zeros(1, 3, 2, 2), torch.tensor([[[0, 1], [2, 2]]])
    assert segmentation_loss(logits, label).item() == pytest.approx(math.log(3))
    third = 4 / 3
    dice = ((2 / 3 + 1) / (third + 1 + 1) + (2 * 2 / 3 + 1) / (third + 2 + 1)) / 2
    assert segmentation_loss(logits, label, None, "bce_dice").item() == pytest.approx(math.log(3) + 1 - dice)


def test_volumes_are_scored_as_images_are() -> None:
    """A volume whose slices lie side by side is an image: no term may depend on how the axes are laid out."""
    label, roi = torch.randint(0, 2, (2, 3, 4, 5)), torch.rand(2, 3, 4, 5) < 0.7
    for classes in (1, 3):
        logits = torch.randn(2, classes, 3, 4, 5)
        for kind in ("bce", "bce_dice"):
            volume = segmentation_loss(logits, label, roi, kind)
            image = segmentation_loss(logits.flatten(2, 3), label.flatten(1, 2), roi.flatten(1, 2), kind)
            assert volume.item() == pytest.approx(image.item())
    features = [torch.randn(2, 3, 4, 5, 6) for _ in range(3)]
    for form in DEFAULT_ALPHA:
        flat = [feature.flatten(2, 3) for feature in features]
        assert feature_diversity(features, form).item() == pytest.approx(feature_diversity(flat, form).item())


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="released"):
        DeepDiversifiedLoss(form="normalized")
    with pytest.raises(ConfigError, match="bce_dice"):
        DeepDiversifiedLoss(segmentation="dice")
    with pytest.raises(ConfigError, match="negative"):
        DeepDiversifiedLoss(alpha=-1)


def test_each_form_has_its_own_default_alpha() -> None:
    assert DeepDiversifiedLoss(form="released").alpha == 0.005
    assert DeepDiversifiedLoss(form="normalised").alpha == 0.01
