"""The peak learning rate of each backbone, where none is given."""

from __future__ import annotations

__all__ = ["learning_rate"]

# The narrower a network, the larger the steps it wants (experiments/recipe, experiments/rates); where they are too
# large, features of the wider layers die and stay dead.
_RATES = {"unet-xs": 1e-2, "unet-s": 1e-2, "res-unet-deep-xs": 3e-3, "unet-deep": 3e-3, "unet-m": 2e-3}
_OTHER = 1e-3


def learning_rate(backbone: str, dims: int = 2) -> float:
    """What a backbone is trained well with by AdamW, at batches of a few images.

    Args:
        backbone: name, in any spelling; or ``module:function``, a network of others, of which nothing is known.
        dims: 2 for images, 3 for volumes: a kernel adds up three times as many inputs there, and wants smaller steps.

    Raises:
        ConfigError: there is no such backbone.
    """
    from d2ed2q.backbones import canonical_name  # PyTorch comes with it, and settings are read without

    rate = _RATES.get(canonical_name(backbone), _OTHER)
    return rate if dims == 2 else 0.3 * rate
