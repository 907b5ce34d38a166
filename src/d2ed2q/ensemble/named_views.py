"""The named views of an ensemble's probabilities that are scored, shown and chosen from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Probabilities = TypeVar("Probabilities", np.ndarray, Tensor)

__all__ = ["view_names", "views"]


def view_names(n_base: int) -> tuple[str, ...]:
    """Names of the views of an ensemble of K base learners: ensemble, meta, base_mean, base_1…base_K."""
    return ("ensemble", "meta", "base_mean", *(f"base_{k}" for k in range(1, n_base + 1)))


def views(probabilities: Probabilities) -> dict[str, Probabilities]:
    """Splits the learners' probabilities into the views that are scored.

    Args:
        probabilities: ``(K+1)×…``, the meta learner first; NumPy array or tensor.

    Returns:
        dict: ``ensemble`` (mean of all K + 1), ``meta``, ``base_mean`` (mean of the base learners) and ``base_1`` …
        ``base_K``, each of the shape that follows the first dimension.
    """
    base: Any = probabilities[1:]
    parts = (probabilities.mean(0), probabilities[0], base.mean(0), *base)
    return dict(zip(view_names(len(base)), parts, strict=True))
