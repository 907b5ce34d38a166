"""What a model says of one image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from d2ed2q.deploy.cleaning import MaskRule, clean_mask
from d2ed2q.deploy.objects import ObjectRule, separate_objects
from d2ed2q.ensemble import view_of
from d2ed2q.metrics import mutual_information, predictive_entropy

__all__ = ["Prediction", "calibrated", "calibrated_threshold", "make_prediction"]

_SMALLEST = 1e-7


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image, at the image's own resolution.

    Attributes:
        probability: float32 ``C×*spatial`` of the model's chosen view, calibrated where a temperature was found; C = 1
            is the foreground of a binary task.
        mask: int64 of the spatial shape, class numbers.
        learners: float32 ``(K+1)×C×*spatial``, every learner's probability, the meta learner first.
        objects: int32 of the spatial shape, a number for each object of the foreground and 0 outside; None where the
            model does not tell objects apart.
        region: bool of the spatial shape; what lies outside is background with certainty. None counts every pixel.
        temperature: of :func:`calibrated`.
    """

    probability: np.ndarray
    mask: np.ndarray
    learners: np.ndarray
    objects: np.ndarray | None = None
    region: np.ndarray | None = None
    temperature: float = 1.0

    @cached_property
    def uncertainty(self) -> np.ndarray:
        """Float32 of the spatial shape in [0, 1]: entropy of the learners' mean probability, calibrated likewise."""
        return predictive_entropy(_inside(calibrated(self.learners.mean(0), self.temperature), self.region))

    @cached_property
    def disagreement(self) -> np.ndarray:
        """Float32 of the spatial shape in [0, 1]: mutual information between the learners; of one alone, 0."""
        return _disagreement(self.learners)

    @cached_property
    def doubt(self) -> float:
        """How much the whole image is to be doubted, in [0, 1]: 1 − the mean soft Dice of all pairs of learners.

        ``2·⟨pⁱ, pʲ⟩ / (‖pⁱ‖² + ‖pʲ‖²)`` over the learners' foreground probabilities; 1 where none finds anything. It
        tells images that cannot be used from those that can, and falls as the true Dice rises: see docs/results.md.
        A single network has nobody to disagree with. There it is 1 − the Dice that the mask has on average, were every
        pixel foreground with its probability.
        """
        learners = self.learners[:, 0] if self.learners.shape[1] == 1 else 1 - self.learners[:, 0]
        flat = learners.reshape(len(learners), -1)
        if len(flat) > 1:
            overlap = (flat @ flat.T).astype(np.float64)
            pairs = [(overlap[i, j], overlap[i, i] + overlap[j, j]) for i in range(len(flat)) for j in range(i)]
            return 1 - float(np.mean([2 * both / size if size > 1 else 0.0 for both, size in pairs]))
        mask = self.mask.ravel() > 0
        total = float(flat.sum(dtype=np.float64)) + float(mask.sum())
        return 1 - 2 * float(flat[0][mask].sum(dtype=np.float64)) / total if mask.any() else 1.0


def make_prediction(
    learners: np.ndarray,
    view: str,
    threshold: float,
    region: np.ndarray | None = None,
    temperature: float = 1.0,
    rule: ObjectRule | MaskRule | None = None,
) -> Prediction:
    """Makes a prediction of the learners' probabilities.

    Args:
        learners: float32 ``(K+1)×C×*spatial`` in [0, 1], the meta learner first.
        view: name of the view that is the prediction.
        threshold: of a binary task, for the calibrated probability; above is foreground.
        region: bool of the spatial shape; what lies outside is background with certainty. None counts every pixel.
        temperature: of :func:`calibrated`, for the view and for the learners' mean. Single learners stay as they are: a
            mean of calibrated learners would be another view than the one whose threshold was chosen.
        rule: what is done to the mask of a binary task: which specks are filled or dropped, or how it is cut into
            objects, of which the mask is then what is left.
    """
    probability = _inside(calibrated(view_of(learners, view), temperature), region)
    # In float64 still: a low temperature moves thresholds so near to 1 that float32 cannot tell them from it.
    mask = probability[0] > threshold if len(probability) == 1 else probability.argmax(0)
    objects = None
    if isinstance(rule, MaskRule):
        mask = clean_mask(mask, rule)
        mask = mask if region is None else mask & region
    elif rule is not None:
        # As the rule was chosen: a hill's depth is another one after calibration, and the mask is the same.
        plain = _inside(view_of(learners, view), region)
        objects = separate_objects(plain[0], calibrated_threshold(threshold, 1 / temperature), rule)
        mask = objects > 0
    return Prediction(
        probability=probability.astype(np.float32),
        mask=mask.astype(np.int64),
        learners=_inside(learners, region),
        objects=objects,
        region=region,
        temperature=temperature,
    )


def _disagreement(learners: np.ndarray) -> np.ndarray:
    """Mutual information between the learners; nothing, where there is but one."""
    if len(learners) == 1:
        return np.zeros(learners.shape[2:], np.float32)
    both = np.concatenate((1 - learners, learners), axis=1) if learners.shape[1] == 1 else learners
    disagreement: np.ndarray = mutual_information(both)
    return disagreement


def _inside(probabilities: np.ndarray, region: np.ndarray | None) -> np.ndarray:
    """Makes all that lies outside of a region background; ``…×C×*spatial``."""
    if region is None:
        return probabilities
    outside = np.zeros((probabilities.shape[-region.ndim - 1], *(1,) * region.ndim), np.float32)
    if len(outside) > 1:
        outside[0] = 1  # the background's own probability
    return np.where(region, probabilities, outside)


def calibrated(probabilities: np.ndarray, temperature: float, axis: int = 0) -> np.ndarray:
    """Temperature scaling (Guo et al., 2017): ``σ(logit(p)/T)``, or ``softmax(log p / T)`` of several classes.

    Args:
        probabilities: in [0, 1].
        temperature: T > 0; above 1 makes the model less sure.
        axis: the class dimension; of length 1 for a binary task.

    Returns:
        np.ndarray: the same shape, float64; the input itself where the temperature is 1.
    """
    if temperature == 1:
        return probabilities
    power = 1 / temperature
    # Powers of probabilities are the exponentials of scaled logits; the smallest keeps 0 and 1 from giving 0/0.
    if probabilities.shape[axis] == 1:
        clipped = np.clip(probabilities.astype(np.float64), _SMALLEST, 1 - _SMALLEST)
        foreground, background = clipped**power, (1 - clipped) ** power
        result: np.ndarray = foreground / (foreground + background)
    else:
        scaled = np.maximum(probabilities.astype(np.float64), _SMALLEST) ** power
        result = scaled / scaled.sum(axis, keepdims=True)
    return result


def calibrated_threshold(threshold: float, temperature: float) -> float:
    """Where a threshold lies after :func:`calibrated`: the masks stay the same."""
    return float(calibrated(np.array([threshold], np.float64), temperature)[0])
