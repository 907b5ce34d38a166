"""How different the learners are: of their masks, and of their features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from d2ed2q.errors import ConfigError, DataError
from d2ed2q.metrics.checks import require_same_shape

__all__ = ["linear_cka", "pairwise_disagreement", "q_statistic"]


def pairwise_disagreement(masks: Sequence[np.ndarray]) -> float:
    """Fraction of pixels on which two learners differ, in the mean over all pairs.

    Args:
        masks: two or more of equal shape; binary masks or class numbers.

    Returns:
        float: in [0, 1], larger is more diverse; NaN without pixels.

    Raises:
        ConfigError: fewer than two masks.
        DataError: shapes differ.
    """
    masks = _checked(masks)
    if not masks[0].size:
        return float("nan")
    return float(np.mean([np.count_nonzero(one != other) / one.size for one, other in combinations(masks, 2)]))


def q_statistic(masks: Sequence[np.ndarray], label: np.ndarray) -> float:
    """Yule's Q-statistic of the learners' errors (Kuncheva & Whitaker 2003), in the mean over all pairs.

    For one pair ``(N11·N00 − N01·N10) / (N11·N00 + N01·N10)``, where N11 counts the pixels that both get right, N00
    those that both get wrong, N10 and N01 those that one gets right.

    Args:
        masks: two or more of equal shape; binary masks or class numbers.
        label: the truth, same shape.

    Returns:
        float: in [−1, 1]; 0 for independent errors, 1 for the same errors, lower is more diverse. Pairs whose
        denominator is 0 (one of the two makes no error) are left out; NaN where all are.

    Raises:
        ConfigError: fewer than two masks.
        DataError: shapes differ.
    """
    masks = _checked(masks)
    label = np.asarray(label)
    require_same_shape(masks=masks[0], label=label)
    right = [mask == label for mask in masks]
    values = []
    for one, other in combinations(right, 2):
        both = int(np.count_nonzero(one & other))
        only_one, only_other = int(np.count_nonzero(one)) - both, int(np.count_nonzero(other)) - both
        neither = label.size - both - only_one - only_other
        same, different = both * neither, only_one * only_other
        if same + different:
            values.append((same - different) / (same + different))
    return float(np.mean(values)) if values else float("nan")


def _checked(masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    if len(masks) < 2:
        raise ConfigError(f"diversity needs two or more learners, got {len(masks)}")
    masks = [np.asarray(mask) for mask in masks]
    require_same_shape(**{f"mask {index}": mask for index, mask in enumerate(masks)})
    return masks


def linear_cka(f_i: Tensor, f_j: Tensor, samples: int = 8192, seed: int = 0) -> float:
    """Similarity of two learners' features: linear centred kernel alignment (Kornblith et al. 2019).

    Every position of every image is a sample, its channels are the features. With the unbiased HSIC (Song et al.
    2012): the plain form tends to 1 where there are fewer positions than channels, as at the centre of a network,
    even for independent features.

    Args:
        f_i: one learner's features, ``B×C×H×W``, or ``B×C×D×H×W`` of volumes.
        f_j: the other's, ``B×C'×H×W``.
        samples: at most this many positions, drawn without repetition.
        seed: of the draw.

    Returns:
        float: at most 1 (equal up to rotation, scale and shift); about 0 for independent features, so it can be
        slightly negative. NaN for fewer than four positions or for features that are constant.

    Raises:
        ConfigError: fewer than four ``samples``.
        DataError: the shapes do not go together.
    """
    if samples < 4:
        raise ConfigError(f"CKA needs at least 4 samples, got samples={samples}")
    if f_i.ndim not in (4, 5) or f_j.ndim != f_i.ndim or f_i.shape[0] != f_j.shape[0] or f_i.shape[2:] != f_j.shape[2:]:
        raise DataError(
            f"features must be B×C×H×W with equal B, H and W (or with D before H), got {tuple(f_i.shape)} and "
            f"{tuple(f_j.shape)}; compare features of the same tap and images"
        )
    n = f_i.shape[0] * math.prod(f_i.shape[2:])
    if n < 4:
        return float("nan")
    drawn = torch.from_numpy(np.random.default_rng(seed).choice(n, samples, replace=False)) if n > samples else None
    x, y = _positions(f_i, drawn), _positions(f_j, drawn)
    cross, own_x, own_y = _hsic(x, y), _hsic(x, x), _hsic(y, y)
    if own_x <= 0 or own_y <= 0:
        return float("nan")
    return cross / math.sqrt(own_x * own_y)


def _positions(features: Tensor, drawn: Tensor | None) -> Tensor:
    """``B×C×*spatial`` to centred ``N×C``, float64."""
    rows = features.detach().movedim(1, -1).flatten(0, -2)
    rows = (rows if drawn is None else rows[drawn.to(rows.device)]).double()
    centred = rows - rows.mean(0)
    # A constant channel's rounding errors are no signal.
    return centred * (centred.abs().amax(0) > 1e-12 * rows.abs().amax(0))


def _hsic(x: Tensor, y: Tensor) -> float:
    """Unbiased HSIC of the linear kernels, times n·(n − 3).

    With kernel matrices K = x·xᵀ and L = y·yᵀ whose diagonals are set to 0:
    ``tr(K·L) + 1ᵀK1·1ᵀL1 / ((n−1)(n−2)) − 2·1ᵀK·L1 / (n−2)``, here without ever forming an n×n matrix. Columns are
    centred, so that full kernel matrices have rows of sum 0, and the diagonal is all that is left of K1 and L1.
    """
    n = len(x)
    diagonal_x, diagonal_y = x.square().sum(1), y.square().sum(1)
    trace = (x.T @ y).square().sum() - (diagonal_x * diagonal_y).sum()
    ones = diagonal_x.sum() * diagonal_y.sum() / ((n - 1) * (n - 2))
    mixed = 2 * (diagonal_x * diagonal_y).sum() / (n - 2)
    return float(trace + ones - mixed)
