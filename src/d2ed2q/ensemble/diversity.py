"""The diversity term: how far the base learners' features are apart at one tap."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

__all__ = ["feature_diversity"]

_EPSILON = 1e-8  # keeps the square root's gradient finite where two features agree


def feature_diversity(features: Sequence[Tensor], form: str = "normalised") -> Tensor:
    """Mean distance of the base learners' features over all pairs i < j.

    * ``released``: ``sqrt(‖fⁱ − fʲ‖₂ + 1e-8)`` with the norm over the whole tensor, as in the paper's code. It grows
      with the fourth root of the number of elements, batch and image size included; meant for α = 0.005.
    * ``normalised``: ``sqrt(‖fⁱ − fʲ‖₂ / sqrt(n) + 1e-8)`` for each sample of n elements, then the mean over samples:
      the same for any batch and image size; meant for α = 0.1 (a batch of four 320² crops of a 16-channel feature
      gives the released form fifty times its value).

    Args:
        features: K ≥ 2 tensors of equal shape ``B×c×h×w`` (volumes: ``B×c×d×h×w``).
        form: ``released`` or ``normalised``.

    Returns:
        Tensor: scalar, float32, ≥ 0; larger is more diverse.
    """
    distances = []
    for one, other in combinations(features, 2):
        difference = one - other
        if form == "released":
            norm = torch.linalg.vector_norm(difference, dtype=torch.float32)
        else:
            per_sample = torch.linalg.vector_norm(difference, dim=tuple(range(1, one.ndim)), dtype=torch.float32)
            norm = per_sample / difference[0].numel() ** 0.5
        distances.append(torch.sqrt(norm + _EPSILON).mean())
    return torch.stack(distances).mean()
