from __future__ import annotations

import numpy as np
import pytest

from d2ed2q.deploy import make_prediction


def learners(*masks: list[float]) -> np.ndarray:
    """``(K+1)×1×1×W``."""
    return np.array(masks, np.float32)[:, None, None, :]


def test_learners_that_agree_leave_no_doubt_and_those_that_do_not_leave_nothing_else() -> None:
    same = [1.0, 1.0, 0.0, 0.0]
    other = [0.0, 0.0, 1.0, 1.0]
    assert make_prediction(learners(same, same, same), "meta", 0.5).doubt == pytest.approx(0)
    assert make_prediction(learners(same, other, same), "meta", 0.5).doubt == pytest.approx(2 / 3)
    assert make_prediction(learners([0.0] * 4, [0.0] * 4, [0.0] * 4), "meta", 0.5).doubt == 1
    half = make_prediction(learners([0.5] * 4, [1.0] * 4, [0.5] * 4), "meta", 0.4).doubt
    assert half == pytest.approx(1 - (2 * 0.8 + 1) / 3)  # 2·2/(1 + 4), twice, and two that are the same


def test_of_several_classes_the_foreground_counts() -> None:
    one = np.zeros((3, 3, 1, 4), np.float32)
    one[:, 0, 0, 2:] = 1
    one[:2, 1, 0, :2] = 1
    one[2, 2, 0, :2] = 1  # another class, but foreground too
    assert make_prediction(one, "meta", 0.5).doubt == pytest.approx(0)


def test_a_single_network_doubts_by_its_probabilities() -> None:
    sure = make_prediction(learners([1.0, 1.0, 0.0, 0.0]), "network", 0.5)
    unsure = make_prediction(learners([0.6, 0.6, 0.4, 0.4]), "network", 0.5)
    assert sure.doubt == pytest.approx(0)
    assert unsure.doubt == pytest.approx(1 - 2 * 1.2 / (2 + 2))
    assert make_prediction(learners([0.1] * 4), "network", 0.5).doubt == 1
