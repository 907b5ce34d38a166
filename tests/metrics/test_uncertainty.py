"""Entropy and mutual information of known predictions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from d2ed2q.errors import ConfigError, DataError
from d2ed2q.metrics import mutual_information, predictive_entropy

_LEARNERS = arrays.arrays(np.float32, (3, 2, 2), elements=st.floats(0, 1, width=32))


def test_entropy_of_known_probabilities() -> None:
    entropy = predictive_entropy(np.array([[0.0, 1.0, 0.5, 0.25]], np.float32))
    quarter = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    np.testing.assert_allclose(entropy, np.array([[0, 0, 1, quarter]]), rtol=1e-6)
    assert entropy.dtype == np.float32


def test_softmax_entropy_is_one_where_all_classes_are_equal() -> None:
    prob = np.stack((np.full((2, 2), 0.25), np.full((2, 2), 0.25), np.full((2, 2), 0.25), np.full((2, 2), 0.25)))
    prob[:, 0, 0] = (1, 0, 0, 0)
    prob[:, 0, 1] = (0.5, 0.5, 0, 0)
    np.testing.assert_allclose(predictive_entropy(prob), [[0.0, 0.5], [1.0, 1.0]], atol=1e-6)


def test_mutual_information_of_known_learners() -> None:
    certain_but_split = np.array([[[0.0]], [[1.0]]])
    unsure_together = np.array([[[0.5]], [[0.5]]])
    assert mutual_information(certain_but_split).item() == pytest.approx(1.0)
    assert mutual_information(unsure_together).item() == pytest.approx(0.0, abs=1e-6)
    three_classes = np.eye(3, dtype=np.float32)[:, :, None, None]
    assert mutual_information(three_classes).item() == pytest.approx(1.0)


@given(_LEARNERS)
def test_mutual_information_lies_between_zero_and_the_entropy(prob: np.ndarray) -> None:
    information, entropy = mutual_information(prob), predictive_entropy(prob.mean(0))
    assert information.shape == (2, 2)
    assert (information >= 0).all()
    assert (information <= entropy + 1e-5).all()
    assert (entropy <= 1).all()


@given(_LEARNERS)
def test_binary_forms_agree_with_two_classes(prob: np.ndarray) -> None:
    both = np.stack((1 - prob, prob), axis=1)
    for form in (prob, prob[:, None], torch.from_numpy(prob), both):
        np.testing.assert_allclose(mutual_information(form), mutual_information(both), atol=2e-6)
    for mean in (prob[0], prob[:1], both[0]):
        np.testing.assert_allclose(predictive_entropy(mean), predictive_entropy(both[0]), atol=2e-6)


def test_an_engines_rounding_is_forgiven() -> None:
    just_outside = np.array([[1 + 1e-6, -1e-6]], np.float32)
    np.testing.assert_allclose(predictive_entropy(just_outside), [[0.0, 0.0]], atol=1e-4)


def test_unusable_input_is_named() -> None:
    with pytest.raises(ConfigError, match="two or more learners, got 1"):
        mutual_information(np.full((1, 2, 2), 0.5))
    with pytest.raises(DataError, match=r"got shape \(4,\)"):
        predictive_entropy(np.zeros(4))
    with pytest.raises(DataError, match=r"got shape \(2, 2\)"):
        mutual_information(np.zeros((2, 2)))
    with pytest.raises(DataError, match="apply the sigmoid or softmax"):
        predictive_entropy(np.full((2, 2), 3.0))
