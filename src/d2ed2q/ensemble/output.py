"""What a deep ensemble's forward pass returns, and the named views of it that are scored and shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["EnsembleOutput", "learner_probabilities", "view_names", "views"]


@dataclass(frozen=True)
class EnsembleOutput:
    """The output of :class:`~d2ed2q.ensemble.DeepEnsemble`.

    Attributes:
        logits: ``(K+1)×B×C×H×W``; index 0 is the meta learner B₀, 1…K are the base learners; C is 1 for a binary
            task (sigmoid) and the number of classes otherwise (softmax).
        features: for every tap, the K base learners' features, each ``B×c×h×w``.
    """

    logits: Tensor
    features: Mapping[str, tuple[Tensor, ...]]


def learner_probabilities(logits: Tensor) -> Tensor:
    """Probabilities of every learner.

    Args:
        logits: ``(K+1)×B×C×H×W``.

    Returns:
        Tensor: float32 in [0, 1], same shape: sigmoid where C is 1, softmax over C otherwise.
    """
    logits = logits.float()
    return torch.sigmoid(logits) if logits.shape[2] == 1 else torch.softmax(logits, dim=2)


def view_names(n_base: int) -> tuple[str, ...]:
    """Names of the views of an ensemble of K base learners: ensemble, meta, base_mean, base_1…base_K."""
    return ("ensemble", "meta", "base_mean", *(f"base_{k}" for k in range(1, n_base + 1)))


def views(probabilities: Tensor) -> dict[str, Tensor]:
    """Splits the learners' probabilities into the views that are scored.

    Args:
        probabilities: ``(K+1)×…``, the meta learner first.

    Returns:
        dict[str, Tensor]: ``ensemble`` (mean of all K + 1), ``meta``, ``base_mean`` (mean of the base learners) and
        ``base_1`` … ``base_K``, each of the shape that follows the first dimension.
    """
    base = probabilities[1:]
    tensors = (probabilities.mean(0), probabilities[0], base.mean(0), *base)
    return dict(zip(view_names(len(base)), tensors, strict=True))
