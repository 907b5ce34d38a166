"""The named views of an ensemble's probabilities that are scored, shown and chosen from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Probabilities = TypeVar("Probabilities", np.ndarray, Tensor)

__all__ = ["composition", "learner_names", "prediction_names", "view_names", "view_of", "views"]


def composition(n_base: int, fuse: bool) -> str:
    """Which learners there are, in words."""
    if not n_base:
        return "a single network"
    return f"{n_base} base learners and a meta learner" if fuse else f"{n_base + 1} learners without fusion"


def learner_names(n_base: int) -> tuple[str, ...]:
    """Names of the learners: meta, base_1…base_K; of a network without base learners only ``network``."""
    return ("meta", *(f"base_{k}" for k in range(1, n_base + 1))) if n_base else ("network",)


def prediction_names(n_base: int) -> tuple[str, ...]:
    """Names of the views that the prediction is chosen from: meta and ensemble, or ``network``."""
    return ("meta", "ensemble") if n_base else ("network",)


def view_names(n_base: int) -> tuple[str, ...]:
    """Names of the views of K base learners: ensemble, meta, base_mean, base_1…base_K; or only ``network``."""
    meta, *base = learner_names(n_base)
    return ("ensemble", meta, "base_mean", *base) if n_base else (meta,)


def views(probabilities: Probabilities) -> dict[str, Probabilities]:
    """Splits the learners' probabilities into the views that are scored.

    Args:
        probabilities: ``(K+1)×…``, the meta learner first; NumPy array or tensor.

    Returns:
        dict: ``ensemble`` (mean of all K + 1), ``meta``, ``base_mean`` (mean of the base learners) and ``base_1`` …
        ``base_K``, each of the shape that follows the first dimension. Of a network without base learners, ``network``.
    """
    return {name: view_of(probabilities, name) for name in view_names(len(probabilities) - 1)}


def view_of(probabilities: Probabilities, name: str) -> Probabilities:
    """One view alone, see :func:`views`.

    Args:
        probabilities: as there.
        name: of the view.

    Raises:
        KeyError: there is no such view of so many learners.
    """
    everybody: Any = probabilities
    learners = learner_names(len(probabilities) - 1)
    found: Any
    if name in learners:
        found = everybody[learners.index(name)]
    elif len(learners) > 1 and name in ("ensemble", "base_mean"):
        found = everybody[int(name == "base_mean") :].mean(0)
    else:
        raise KeyError(name)
    return cast("Probabilities", found)
