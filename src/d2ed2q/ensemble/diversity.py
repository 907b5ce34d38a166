"""The diversity term: how far the base learners' features are apart at one tap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from d2ed2q.ensemble.pair_distances import inner_products, squared_distances

__all__ = ["feature_diversity"]

_SMALLEST = torch.finfo(torch.float32).tiny
_NOTHING = 1e-12  # squared length below which a feature has no direction
_EPSILON = 1e-8  # keeps the square root's gradient finite where two features agree


def feature_diversity(features: Sequence[Tensor], form: str = "unit") -> Tensor:
    """Mean distance of the base learners' features over all pairs i < j.

    * ``released``: ``sqrt(‖fⁱ − fʲ‖₂ + 1e-8)`` with the norm over the whole tensor, as in the paper's code. It grows
      with the fourth root of the number of elements, batch and image size included; meant for α = 0.005.
    * ``normalised``: ``sqrt(‖fⁱ − fʲ‖₂ / sqrt(n) + 1e-8)`` for each sample of n elements, then the mean over samples:
      the same for any batch and image size; meant for α = 0.01 (a batch of four 320² crops of a 16-channel feature
      gives the released form fifty times its value).
    * ``unit``: ``sqrt(‖fⁱ/‖fⁱ‖₂ − fʲ/‖fʲ‖₂‖₂ + 1e-8)`` for each sample, then the mean over samples: the same root of a
      distance, between features of length one; meant for α = 0.01.
    * ``cosine``: ``1 − ⟨fⁱ, fʲ⟩ / (‖fⁱ‖₂ ‖fʲ‖₂)`` for each sample, then the mean over samples: in [0, 1] for features
      that are not negative; meant for α = 0.1.

    The first two grow without bound when features do. Where no normalisation holds a feature's size, as after CE-Net's
    dense atrous convolutions, base learners then learn to enlarge it, and the meta learner learns nothing from it. Of
    the last two only directions count.

    Args:
        features: K ≥ 2 tensors of equal shape ``B×c×h×w`` (volumes: ``B×c×d×h×w``).
        form: ``unit``, ``normalised``, ``released`` or ``cosine``.

    Returns:
        Tensor: scalar, float32, ≥ 0; larger is more diverse.
    """
    if form in ("unit", "cosine"):
        apart = 1 - _cosines(features)
        if form == "cosine":
            return apart.mean()
        squares = 2 * apart  # of the distances of features of length one
    else:
        squares = squared_distances(features)
        if form == "released":
            squares = squares.sum(0)
    # Features that agree have no direction to be pushed apart in: their gradient is zero, not infinite.
    norms = squares.clamp_min(_SMALLEST).sqrt()
    if form == "normalised":
        norms = norms / features[0][0].numel() ** 0.5
    return torch.sqrt(norms + _EPSILON).mean()


def _cosines(features: Sequence[Tensor]) -> Tensor:
    """Cosines of the angles between the features of all pairs, sample by sample, ``B×K(K−1)/2``."""
    products = inner_products(features)
    squares = products.diagonal(dim1=1, dim2=2)
    lengths, nothing = squares.clamp_min(_NOTHING).sqrt(), squares < _NOTHING
    one, other = torch.triu_indices(len(features), len(features), 1)
    cosines = products[:, one, other] / (lengths[:, one] * lengths[:, other])
    # A feature of nothing has no direction to be turned; divided by its length, its gradient would be huge.
    return cosines.masked_fill(nothing[:, one] | nothing[:, other], 0)
