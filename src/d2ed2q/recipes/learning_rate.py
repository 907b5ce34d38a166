"""The peak learning rate of each backbone, where none is given."""

from __future__ import annotations

__all__ = ["learning_rate"]

# Small networks from random weights want large steps (experiments/recipe, experiments/rates); at twice these, features
# of the wider layers die and stay dead.
_RATES = {"unet-xs": 1e-2, "unet-s": 1e-2, "unet-deep": 3e-3, "unet-m": 3e-3, "res-unet-deep": 3e-3}
_OTHER = 1e-3


def learning_rate(backbone: str) -> float:
    """What a backbone is trained well with by AdamW, at batches of a few images.

    Args:
        backbone: name; or ``module:function``, a network of others, of which nothing is known.
    """
    return _RATES.get(backbone, _OTHER)
