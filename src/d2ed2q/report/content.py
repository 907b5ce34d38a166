"""What a report is made of: plain figures and arrays of one finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from d2ed2q.errors import DataError

__all__ = ["Curves", "Example", "RunReport", "WeightHistogram"]

Curves = Mapping[str, Mapping[str, Any]]
"""For every learner ``{"roc": (fpr, tpr), "reliability": (predicted, observed, share), "risk": (coverage, risk)}``.

Arrays of one dimension, all of them of the pixels inside the region of interest, or of all pixels where a set has none.
"""

_ROLES = ("best", "median", "worst")


@dataclass(frozen=True, eq=False)
class WeightHistogram:
    """Values of one layer's weights before and after quantization.

    Attributes:
        name: the layer's parameter name.
        bits: bits the layer was given, 1…32.
        before: full-precision values, or a sample of them; any shape.
        after: the same layer's values after the last step, or a sample of them; any shape.
        distinct: the most distinct values that one output channel holds after quantization.

    Raises:
        DataError: there are no values, or some are NaN or infinite.
    """

    name: str
    bits: int
    before: np.ndarray
    after: np.ndarray
    distinct: int

    def __post_init__(self) -> None:
        for when, values in (("before", self.before), ("after", self.after)):
            if not values.size or not np.isfinite(values).all():
                raise DataError(
                    f"the weights of {self.name} {when} quantization are empty, NaN or infinite; leave the layer out"
                )


@dataclass(frozen=True, eq=False)
class Example:
    """One scored image with all there is to see of it.

    Attributes:
        role: ``best``, ``median`` or ``worst`` by Dice.
        id: the case's name.
        dice: its Dice inside the region of interest, in [0, 1].
        image: uint8 ``H×W×3``.
        label: bool ``H×W``, ground truth.
        mask: bool ``H×W``, the prediction.
        probability: ``H×W`` in [0, 1], of the foreground.
        uncertainty: ``H×W`` in [0, 1], 1 is most uncertain.
        roi: bool ``H×W``, True inside the region of interest; None where every pixel counts.

    Raises:
        DataError: an unknown role, or shapes that differ.
    """

    role: str
    id: str
    dice: float
    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray
    probability: np.ndarray
    uncertainty: np.ndarray
    roi: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.role not in _ROLES:
            raise DataError(f"the role of example {self.id} is {self.role!r}; choose best, median or worst")
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3 or not self.image.size:
            raise DataError(
                f"the image of example {self.id} must be uint8 of shape H×W×3, "
                f"not {self.image.dtype} of shape {self.image.shape}"
            )
        for name in ("label", "mask", "probability", "uncertainty", "roi"):
            values = getattr(self, name)
            if values is not None and values.shape != self.image.shape[:2]:
                raise DataError(
                    f"the {name} of example {self.id} has shape {values.shape}, "
                    f"but its image needs {self.image.shape[:2]}"
                )


@dataclass(frozen=True, eq=False)
class RunReport:
    """Everything one report page shows; whatever is missing is shown as "not measured".

    Attributes:
        title: heading of the page.
        summary: facts in the order they are shown; ``bits`` and ``size`` also stand in the headline.
        history: rows of ``metrics.jsonl``: ``kind`` is ``phase`` (with ``frozen_fraction``), ``train`` (``loss``,
            ``segmentation``, ``diversity``) or ``validation`` (``auc``, ``dice``); each has ``phase`` and ``epoch``,
            the number of epochs done since the beginning of the run.
        evaluation: content of ``evaluation.json``: ``prediction``, ``scopes[scope][learner]`` (figures),
            ``full_precision`` (the same for the float weights, or None), ``diversity`` and ``images``.
        curves: ``few_bit`` and ``full_precision`` to :data:`Curves`, or to None.
        weights: a handful of layers.
        examples: best, median and worst image.
        provenance: where the run came from, in the order it is shown.
    """

    title: str
    summary: Mapping[str, str] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Curves | None] = field(default_factory=dict)
    weights: Sequence[WeightHistogram] = ()
    examples: Sequence[Example] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def quantized(self) -> bool:
        """Whether the finished weights went through at least one quantization step."""
        return bool(self.weights) or any(row.get("frozen_fraction") for row in self.history)
