"""How much the learners doubt: entropy of the mean, and the part of it that comes from their disagreement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from d2ed2q.errors import ConfigError, DataError
from d2ed2q.metrics.checks import require_probabilities

if TYPE_CHECKING:  # runs where PyTorch is not installed
    from torch import Tensor

__all__ = ["mutual_information", "predictive_entropy"]


def predictive_entropy(mean_prob: np.ndarray | Tensor) -> np.ndarray:
    """Entropy of the mean prediction: all doubt there is, whether in the data or in the model.

    Args:
        mean_prob: ``H×W`` or ``1×H×W`` (binary: the probability of class 1) or ``C×H×W`` (softmax), in [0, 1]; of
            volumes ``1×D×H×W`` or ``C×D×H×W``; a tensor must be on the CPU.

    Returns:
        np.ndarray: float32 ``H×W`` or ``D×H×W`` in [0, 1]; natural logarithm, divided by ln 2 (binary) or ln C.

    Raises:
        DataError: of another number of dimensions, or not probabilities.
    """
    prob = _probabilities(mean_prob, "mean_prob")
    if prob.ndim not in (2, 3, 4):
        raise DataError(f"mean_prob must be H×W, C×H×W or C×D×H×W, got shape {prob.shape}")
    return _entropy(prob[None] if prob.ndim == 2 else prob)


def mutual_information(per_learner_prob: np.ndarray | Tensor) -> np.ndarray:
    """Mutual information between prediction and learner: the doubt that comes from the learners' disagreement.

    ``H(mean of the learners) − mean of H(learner)``; 0 where all learners say the same, however unsure they are.

    Args:
        per_learner_prob: ``M×H×W`` or ``M×1×H×W`` (binary) or ``M×C×H×W`` (softmax), in [0, 1]; of volumes
            ``M×1×D×H×W`` or ``M×C×D×H×W``; a tensor must be on the CPU.

    Returns:
        np.ndarray: float32 ``H×W`` or ``D×H×W`` in [0, 1]; natural logarithm, divided by ln 2 (binary) or ln C.

    Raises:
        ConfigError: fewer than two learners.
        DataError: of another number of dimensions, or not probabilities.
    """
    prob = _probabilities(per_learner_prob, "per_learner_prob")
    if prob.ndim not in (3, 4, 5):
        raise DataError(f"per_learner_prob must be M×H×W, M×C×H×W or M×C×D×H×W, got shape {prob.shape}")
    if len(prob) < 2:
        raise ConfigError(f"mutual information needs two or more learners, got {len(prob)}")
    learners = prob[:, None] if prob.ndim == 3 else prob
    # One learner at a time: a few maps in memory instead of M.
    own = np.zeros(learners.shape[2:], np.float32)
    for learner in learners:
        own += _entropy(learner)
    # Never negative by Jensen's inequality, but for rounding.
    return np.maximum(_entropy(learners.mean(0)) - own / len(learners), 0)


def _probabilities(values: np.ndarray | Tensor, name: str) -> np.ndarray:
    array = values.detach().numpy() if hasattr(values, "detach") else np.asarray(values)
    prob = array.astype(np.float32, copy=False)
    require_probabilities(prob, name)
    return prob


def _entropy(prob: np.ndarray) -> np.ndarray:
    """``C×*spatial`` to the spatial shape, normalised; C = 1 is binary."""
    if len(prob) == 1:
        prob = np.concatenate((prob, 1 - prob))
    # 0·ln 0 is 0; so is 0·ln 1.
    total: np.ndarray = -(prob * np.log(np.where(prob > 0, prob, np.float32(1)))).sum(0)
    normalised: np.ndarray = np.clip(total / np.float32(np.log(len(prob))), 0, 1)
    return normalised
