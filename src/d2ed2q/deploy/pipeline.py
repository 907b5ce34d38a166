"""The steps around a network that are the same in training, evaluation and deployment: size, windows, symmetries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from d2ed2q.data.resampling import resize_linear
from d2ed2q.data.standardization import standardized
from d2ed2q.deploy.dihedral import averaged
from d2ed2q.deploy.tiling import in_windows

__all__ = ["DEFAULT_WINDOW", "at_own_resolution"]

_WHOLE = {2: 1536 * 1536, 3: 96 * 96 * 96}  # pixels that are taken in one piece where nothing else is asked for
DEFAULT_WINDOW = {2: 1024, 3: 96}
"""Extent of sliding windows by number of axes."""
_OVERLAP = {2: 0.25, 3: 0.5}


def _windows(size: Sequence[int], large: Sequence[int] | None) -> tuple[int, ...] | None:
    """The windows for an image of this size; None where it is taken in one piece."""
    dims = len(size)
    if np.prod(size, dtype=np.int64) <= _WHOLE[dims]:
        return None
    return tuple(large) if large is not None else (DEFAULT_WINDOW[dims],) * dims


def as_seen(image: np.ndarray, size: Sequence[int], standardize: bool) -> np.ndarray:
    """An image as a network sees it.

    Args:
        image: float32 ``C×*spatial`` in [0, 1].
        size: extents that the network sees it at.
        standardize: whether pictures are :func:`~d2ed2q.data.standardization.standardized`.

    Returns:
        np.ndarray: float32 ``C×*size``.
    """
    return resize_linear(standardized(image) if standardize else image, size, antialias=True)


def at_own_resolution(
    run: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    size: Sequence[int],
    tta: str,
    window: Sequence[int] | None = None,
    large: Sequence[int] | None = None,
    standardize: bool = False,
) -> np.ndarray:
    """Probabilities of an image at its own resolution, by a network that sees it at another.

    Args:
        run: the network: of float32 ``C×*spatial`` in [0, 1], probabilities float32 ``(K+1)×c×*spatial``.
        image: float32 ``C×*spatial`` in [0, 1].
        size: at which the network sees it.
        tta: test-time augmentation, see :data:`~d2ed2q.deploy.dihedral.AUGMENTATIONS`.
        window: extents of sliding windows at the network's resolution, blended with a Gaussian; None takes the image
            whole, unless it has more than 1536² pixels or 96³ voxels: overlapping windows would only cost more.
        large: extents of the windows for those; None takes 1024² or 96³.
        standardize: whether the network sees pictures :func:`~d2ed2q.data.standardization.standardized`.

    Returns:
        np.ndarray: float32 ``(K+1)×c×*spatial`` in [0, 1].
    """
    dims = len(size)
    own = image.shape[1:]
    seen = as_seen(image, size, standardize)
    windows = tuple(window) if window is not None else _windows(size, large)

    def turned(part: np.ndarray) -> np.ndarray:
        return averaged(run, part, tta, dims)

    found = turned(seen) if windows is None else in_windows(turned, seen, windows, _OVERLAP[dims])
    if tuple(size) != tuple(own):
        found = np.clip(resize_linear(found, own), 0, 1)
    return found
