"""From one image to every learner's probabilities at the image's own resolution, by PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from d2ed2q.data import Resolution, Sample
from d2ed2q.deploy.pipeline import at_own_resolution
from d2ed2q.ensemble import DeepEnsemble, learner_probabilities
from d2ed2q.recipes.memory_layout import channels_last
from d2ed2q.recipes.run_folder import ModelCard

__all__ = ["predict_probabilities", "predict_sample"]

OWN = Resolution()


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
    ensemble: DeepEnsemble,
    image: Tensor,
    resolution: Resolution = OWN,
    tta: str = "none",
    spacing: Sequence[float] | None = None,
    window: Sequence[int] | None = None,
    large: Sequence[int] | None = None,
    standardize: bool = False,
) -> Tensor:
    """Runs the ensemble on one image, whatever its size.

    Args:
        ensemble: the model.
        image: float32 ``C×*spatial`` in [0, 1].
        resolution: at which the network sees it.
        tta: test-time augmentation: ``none``, ``flips`` or ``dihedral``; probabilities are averaged.
        spacing: the image's millimetres per pixel along each axis, where they are known.
        window: extents of sliding windows; None as :func:`~d2ed2q.deploy.pipeline.at_own_resolution` has it.
        large: extents of the windows for images too large to be taken whole.
        standardize: whether the networks see pictures :func:`~d2ed2q.data.standardization.standardized`.

    Returns:
        Tensor: float32 ``(K+1)×C×*spatial`` on the CPU, the meta learner first, at the image's own resolution.
    """
    device = ensemble.input_scale.device

    def run(part: np.ndarray) -> np.ndarray:
        logits = ensemble(channels_last(torch.from_numpy(part)[None].to(device))).logits
        probabilities: np.ndarray = learner_probabilities(logits)[:, 0].cpu().numpy()
        return probabilities

    size = resolution.size(image.shape[1:], spacing)
    with _evaluating(ensemble):
        return torch.from_numpy(at_own_resolution(run, image.numpy(), size, tta, window, large, standardize))


def predict_sample(ensemble: DeepEnsemble, card: ModelCard, sample: Sample, tta: str | None = None) -> Tensor:
    """Runs a run's ensemble on one sample, as the run's card says.

    Args:
        ensemble: the model.
        card: of the run.
        sample: the image.
        tta: test-time augmentation; None as the card has it.

    Returns:
        Tensor: as :func:`predict_probabilities`.
    """
    return predict_probabilities(
        ensemble,
        sample.image,
        card.resolution,
        tta or card.tta,
        sample.spacing,
        large=card.window,
        standardize=card.standardize,
    )
