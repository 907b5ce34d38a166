"""What a deep ensemble's forward pass returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["EnsembleOutput", "learner_probabilities"]


@dataclass(frozen=True)
class EnsembleOutput:
    """The output of :class:`~d2ed2q.ensemble.DeepEnsemble`.

    Attributes:
        logits: ``(K+1)×B×C×H×W`` (of volumes ``(K+1)×B×C×D×H×W``); index 0 is the meta learner B₀, 1…K are the base
            learners; C is 1 for a binary task (sigmoid) and the number of classes otherwise (softmax).
        features: for every tap, the K base learners' features, each ``B×c×h×w`` (``B×c×d×h×w``).
    """

    logits: Tensor
    features: Mapping[str, tuple[Tensor, ...]]


def learner_probabilities(logits: Tensor) -> Tensor:
    """Probabilities of every learner.

    Args:
        logits: ``(K+1)×B×C×H×W`` or ``(K+1)×B×C×D×H×W``.

    Returns:
        Tensor: float32 in [0, 1], same shape: sigmoid where C is 1, softmax over C otherwise.
    """
    logits = logits.float()
    return torch.sigmoid(logits) if logits.shape[2] == 1 else torch.softmax(logits, dim=2)
