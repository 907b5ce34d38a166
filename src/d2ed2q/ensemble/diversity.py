"""The diversity term: how far the base learners' features are apart at one tap."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from d2ed2q.ensemble.pair_distances import squared_distances

__all__ = ["feature_diversity"]

_SMALLEST = torch.finfo(torch.float32).tiny
_EPSILON = 1e-8  # keeps the square root's gradient finite where two features agree


def feature_diversity(features: Sequence[Tensor], form: str = "normalised") -> Tensor:
    """Mean distance of the base learners' features over all pairs i < j.

    * ``released``: ``sqrt(‖fⁱ − fʲ‖₂ + 1e-8)`` with the norm over the whole tensor, as in the paper's code. It grows
      with the fourth root of the number of elements, batch and image size included; meant for α = 0.005.
    * ``normalised``: ``sqrt(‖fⁱ − fʲ‖₂ / sqrt(n) + 1e-8)`` for each sample of n elements, then the mean over samples:
      the same for any batch and image size; meant for α = 0.01 (a batch of four 320² crops of a 16-channel feature
      gives the released form fifty times its value). Both grow without bound when features do: at ten times this α
      networks that are trained at a high rate enlarge their features rather than learn from images.
    * ``cosine``: ``1 − ⟨fⁱ, fʲ⟩ / (‖fⁱ‖₂ ‖fʲ‖₂)`` for each sample, then the mean over samples: only directions count,
      so that larger features gain nothing. In [0, 1] for features that are not negative; meant for α = 0.1.

    Args:
        features: K ≥ 2 tensors of equal shape ``B×c×h×w`` (volumes: ``B×c×d×h×w``).
        form: ``released``, ``normalised`` or ``cosine``.

    Returns:
        Tensor: scalar, float32, ≥ 0; larger is more diverse.
    """
    if form == "cosine":
        flat = [feature.flatten(1).float() for feature in features]
        pairs = [1 - F.cosine_similarity(*pair, eps=_EPSILON) for pair in combinations(flat, 2)]
        return torch.stack(pairs).mean()
    squares = squared_distances(features)
    # Features that agree have no direction to be pushed apart in: their gradient is zero, not infinite.
    norms = (squares.sum(0) if form == "released" else squares).clamp_min(_SMALLEST).sqrt()
    if form == "normalised":
        norms = norms / features[0][0].numel() ** 0.5
    return torch.sqrt(norms + _EPSILON).mean()
