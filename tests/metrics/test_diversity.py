"""Diversity of masks and features."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from d2ed2q.errors import ConfigError, DataError
from d2ed2q.metrics import linear_cka, pairwise_disagreement, q_statistic


def _features(channels: int, seed: int, size: tuple[int, int] = (12, 10), batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def test_disagreement_of_a_hand_worked_case() -> None:
    masks = [np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0]), np.array([0, 0, 1, 0])]
    assert pairwise_disagreement(masks) == pytest.approx((1 / 4 + 3 / 4 + 2 / 4) / 3)
    assert pairwise_disagreement(masks[:1] * 3) == 0.0


def test_disagreement_of_class_numbers() -> None:
    assert pairwise_disagreement([np.array([0, 1, 2]), np.array([0, 2, 2])]) == pytest.approx(1 / 3)
    assert math.isnan(pairwise_disagreement([np.empty(0), np.empty(0)]))


def test_q_statistic_of_a_hand_worked_case() -> None:
    label = np.ones(8, np.int64)
    one = np.array([1, 1, 1, 1, 0, 0, 0, 1])
    other = np.array([1, 1, 1, 0, 1, 0, 0, 1])
    # Both right 4, both wrong 2, one alone right 1, the other alone right 1.
    assert q_statistic([one, other], label) == pytest.approx((4 * 2 - 1) / (4 * 2 + 1))


def test_q_statistic_of_same_opposite_and_independent_errors() -> None:
    random = np.random.default_rng(0)
    label = random.integers(0, 3, 200_000)
    one, other = (np.where(random.random(label.size) < 0.3, (label + 1) % 3, label) for _ in range(2))
    assert q_statistic([one, one], label) == 1.0
    assert q_statistic([one, other], label) == pytest.approx(0, abs=0.02)
    wrong = (label + 1) % 3
    assert q_statistic([one, np.where(one == label, wrong, label)], label) == -1.0


def test_pairs_without_errors_are_left_out_of_the_q_statistic() -> None:
    label = np.array([0, 1, 0, 1])
    one = np.array([0, 0, 0, 1])
    assert math.isnan(q_statistic([label, one], label))
    assert q_statistic([label, one, one], label) == 1.0


def test_cka_ignores_rotation_scale_and_shift() -> None:
    features = _features(6, 0)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    turned = torch.einsum("ij,bjhw->bihw", rotation, features) * 3 + 5
    assert linear_cka(features, features) == pytest.approx(1.0)
    assert linear_cka(features, turned) == pytest.approx(1.0, abs=1e-6)
    other = _features(9, 2)
    assert linear_cka(features, other) == pytest.approx(linear_cka(other, features))


@pytest.mark.parametrize("size", [(4, 4), (12, 10)])
def test_independent_features_have_no_similarity_even_with_more_channels_than_positions(size: tuple[int, int]) -> None:
    values = [linear_cka(_features(128, seed, size), _features(128, 100 + seed, size)) for seed in range(8)]
    assert np.mean(values) == pytest.approx(0, abs=0.05)


def test_cka_agrees_with_kernel_matrices() -> None:
    x, y = _features(5, 0, (3, 4), 1), _features(7, 1, (3, 4), 1)
    y[:, :5] += x
    kernels = []
    for features in (x, y):
        rows = features[0].flatten(1).T.double().numpy()
        kernel = rows @ rows.T
        np.fill_diagonal(kernel, 0)
        kernels.append(kernel)
    n = 12

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        total = np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)
        return float(total / (n * (n - 3)))

    k, m = kernels
    assert linear_cka(x, y) == pytest.approx(hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m)), abs=1e-9)


def test_cka_of_a_sample_is_close_and_repeatable() -> None:
    x = _features(4, 0, (64, 64))
    y = x + _features(4, 1, (64, 64))
    whole, part = linear_cka(x, y), linear_cka(x, y, samples=2000)
    assert part == pytest.approx(whole, abs=0.05)
    assert part != whole
    assert part == linear_cka(x, y, samples=2000)
    assert part != linear_cka(x, y, samples=2000, seed=1)


def test_cka_of_constant_or_too_few_features_is_undefined() -> None:
    features = _features(3, 0)
    assert math.isnan(linear_cka(torch.full_like(features, 0.1), features))
    assert math.isnan(linear_cka(_features(3, 0, (1, 1)), _features(3, 1, (1, 1))))


def test_unusable_input_is_named() -> None:
    for figure in (pairwise_disagreement, lambda masks: q_statistic(masks, np.zeros(3))):
        with pytest.raises(ConfigError, match="two or more learners, got 1"):
            figure([np.zeros(3)])
        with pytest.raises(DataError, match="mask 1 has shape"):
            figure([np.zeros(3), np.zeros(4)])
    with pytest.raises(DataError, match="label has shape"):
        q_statistic([np.zeros(3), np.zeros(3)], np.zeros(4))
    with pytest.raises(DataError, match="same tap"):
        linear_cka(_features(3, 0), _features(3, 0, (12, 11)))
    with pytest.raises(DataError, match="same tap"):
        linear_cka(_features(3, 0)[0], _features(3, 0)[0])
    with pytest.raises(ConfigError, match="samples=3"):
        linear_cka(_features(3, 0), _features(3, 0), samples=3)
