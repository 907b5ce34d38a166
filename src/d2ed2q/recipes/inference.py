"""From one image to every learner's probabilities at the image's own resolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2ed2q.deploy.dihedral import AUGMENTATIONS, ELEMENTS
from d2ed2q.ensemble import DeepEnsemble, learner_probabilities

__all__ = ["DIHEDRAL", "predict_probabilities"]

Transform = Callable[[Tensor], Tensor]


def _dihedral(turns: int, mirror: bool) -> tuple[Transform, Transform]:
    def forward(x: Tensor) -> Tensor:
        x = torch.rot90(x, turns, (-2, -1))
        return x.flip(-1) if mirror else x

    def inverse(x: Tensor) -> Tensor:
        x = x.flip(-1) if mirror else x
        return torch.rot90(x, -turns, (-2, -1))

    return forward, inverse


# Pairs (transform, its inverse), in the order that bundles are predicted in.
DIHEDRAL = tuple(_dihedral(*element) for element in ELEMENTS)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    before = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(before)


@torch.no_grad()
def predict_probabilities(
    ensemble: DeepEnsemble, image: Tensor, resize: tuple[int, int] | None = None, tta: str = "none"
) -> Tensor:
    """Runs the ensemble on one image, whatever its size.

    Args:
        ensemble: the model.
        image: float32 ``C×H×W`` in [0, 1].
        resize: height and width the network sees, or None for the image's own.
        tta: test-time augmentation: ``none``, ``flips`` (4 images) or ``dihedral`` (all 8 of the square's symmetries);
            probabilities are averaged.

    Returns:
        Tensor: float32 ``(K+1)×C×H×W`` on the CPU, the meta learner first, at the image's own resolution.
    """
    device = ensemble.input_scale.device
    size = image.shape[-2:]
    batch = image[None].to(device)
    if resize is not None and tuple(size) != tuple(resize):
        batch = F.interpolate(batch, resize, mode="bilinear", align_corners=False, antialias=True)
    total: Tensor | None = None
    with _evaluating(ensemble):
        for forward, inverse in DIHEDRAL[: AUGMENTATIONS[tta]]:
            turned = forward(batch).contiguous(memory_format=torch.channels_last)
            probabilities = inverse(learner_probabilities(ensemble(turned).logits))[:, 0]
            total = probabilities if total is None else total + probabilities
    assert total is not None  # every augmentation has at least the identity
    mean = total / AUGMENTATIONS[tta]
    if tuple(mean.shape[-2:]) != tuple(size):
        mean = F.interpolate(mean, size, mode="bilinear", align_corners=False).clamp_(0, 1)
    return mean.float().cpu()
