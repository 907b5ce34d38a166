"""The deep diversified loss: ``L = Σ_{k=0..K} L_seg(B_k) − α · Σ_taps D(tap)``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2ed2q.ensemble.diversity import feature_diversity
from d2ed2q.ensemble.output import EnsembleOutput
from d2ed2q.errors import ConfigError

__all__ = ["DEFAULT_ALPHA", "DeepDiversifiedLoss", "LossTerms", "one_hot_of", "segmentation_loss"]

DEFAULT_ALPHA = {"unit": 0.01, "normalised": 0.01, "released": 0.005, "cosine": 0.1}
_SEGMENTATION_LOSSES = ("bce", "bce_dice")


@dataclass(frozen=True)
class LossTerms:
    """The loss and what it is made of; all are scalars.

    Attributes:
        total: ``segmentation − α · diversity``; the one to differentiate.
        segmentation: summed over the K + 1 learners.
        diversity: summed over taps.
    """

    total: Tensor
    segmentation: Tensor
    diversity: Tensor


class DeepDiversifiedLoss(nn.Module):
    """Segmentation loss of every learner, less α times the diversity of the base learners' features.

    Args:
        alpha: weight α of the diversity term; None takes the form's own default (unit and normalised 0.01, released
            0.005, cosine 0.1).
        form: ``unit``, ``normalised``, ``released`` or ``cosine``, see
            :func:`~d2ed2q.ensemble.diversity.feature_diversity`.
        segmentation: ``bce`` (cross-entropy; binary where there is one class channel), as released, or ``bce_dice``
            (the same plus one minus the soft Dice of the batch).
        taps: names of the taps of the diversity term; None takes all that the output holds.

    Raises:
        ConfigError: an unknown form or segmentation loss, or a negative α.
    """

    def __init__(
        self,
        alpha: float | None = None,
        form: str = "unit",
        segmentation: str = "bce",
        taps: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        if form not in DEFAULT_ALPHA:
            raise ConfigError(f"unknown diversity form {form!r}: choose {', '.join(DEFAULT_ALPHA)}")
        if segmentation not in _SEGMENTATION_LOSSES:
            raise ConfigError(f"unknown segmentation loss {segmentation!r}: choose bce or bce_dice")
        self.alpha = DEFAULT_ALPHA[form] if alpha is None else alpha
        if self.alpha < 0:
            raise ConfigError(f"alpha is the weight of the diversity term and cannot be negative, got {alpha}")
        self.form = form
        self.segmentation = segmentation
        self.taps = taps

    def forward(
        self, output: EnsembleOutput, label: Tensor, roi: Tensor | None = None, target: Tensor | None = None
    ) -> LossTerms:
        """Computes the loss of one batch.

        Args:
            output: of the ensemble, for a batch of B images.
            label: ``B×H×W`` (of volumes ``B×D×H×W``), class numbers.
            roi: bool, of the label's shape; only True pixels count in the segmentation loss. None counts all.
            target: what is learned in place of the label, see :func:`segmentation_loss`.
        """
        losses = [segmentation_loss(logits, label, roi, self.segmentation, target) for logits in output.logits.float()]
        segmentation = torch.stack(losses).sum()
        several = (name for name, features in output.features.items() if len(features) > 1)
        taps = self.taps if self.taps is not None else tuple(several)
        if self.alpha == 0 or not taps:
            return LossTerms(segmentation, segmentation.detach(), torch.zeros_like(segmentation))
        diversity = torch.stack([feature_diversity(output.features[tap], self.form) for tap in taps]).sum()
        return LossTerms(segmentation - self.alpha * diversity, segmentation.detach(), diversity.detach())


def segmentation_loss(
    logits: Tensor, label: Tensor, roi: Tensor | None = None, kind: str = "bce", target: Tensor | None = None
) -> Tensor:
    """Cross-entropy, optionally with soft Dice, over the pixels of the region of interest.

    Args:
        logits: ``B×C×H×W`` or ``B×C×D×H×W``; C = 1 is binary.
        label: the same without C, class numbers.
        roi: bool, of the label's shape, or None.
        kind: ``bce`` or ``bce_dice``.
        target: of the logits' shape, probabilities to learn in place of the label (of the foreground where C = 1); None
            learns the label. The Dice part keeps to the label: of probabilities it is best at their extremes, not at
            them.

    Returns:
        Tensor: scalar. Zero where no pixel counts.
    """
    counted = torch.ones_like(label, dtype=logits.dtype) if roi is None else roi.to(logits.dtype)
    pixels = counted.sum().clamp_min(1)
    binary = logits.shape[1] == 1
    if binary:
        soft = one_hot_of(label, logits) if target is None else target
        pixelwise = F.binary_cross_entropy_with_logits(logits, soft, reduction="none")[:, 0]
    else:
        pixelwise = F.cross_entropy(logits, label.long() if target is None else target, reduction="none")
    loss = (pixelwise * counted).sum() / pixels
    if kind == "bce_dice":
        if binary:
            probability, one_hot = torch.sigmoid(logits), one_hot_of(label, logits)
        else:  # the background is left out: it would reward predicting nothing
            probability = torch.softmax(logits, 1)[:, 1:]
            one_hot = one_hot_of(label, logits)[:, 1:]
        counted = counted[:, None]
        everywhere = (0, *range(2, logits.ndim))
        overlap = (probability * one_hot * counted).sum(everywhere)
        size = ((probability + one_hot) * counted).sum(everywhere)
        loss = loss + (1 - (2 * overlap + 1) / (size + 1)).mean()
    return loss


def one_hot_of(label: Tensor, logits: Tensor) -> Tensor:
    """The label as probabilities of the logits' shape and type; of one class channel, of the foreground."""
    if logits.shape[1] == 1:
        return label.to(logits.dtype)[:, None]
    return F.one_hot(label.long(), logits.shape[1]).movedim(-1, 1).to(logits.dtype)
