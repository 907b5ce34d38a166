"""From masks, probabilities and features to numbers."""

from __future__ import annotations

from d2ed2q.metrics.calibration import (
    ReliabilityCurve,
    RiskCoverage,
    brier,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_curve,
    risk_coverage,
)
from d2ed2q.metrics.confusion import Confusion, confusion
from d2ed2q.metrics.diversity import linear_cka, pairwise_disagreement, q_statistic
from d2ed2q.metrics.figures import binary_figures, multiclass_figures
from d2ed2q.metrics.ranking import (
    PrecisionRecallCurve,
    Ranking,
    RocCurve,
    average_precision,
    best_dice_threshold,
    precision_recall_curve,
    roc_auc,
    roc_curve,
)
from d2ed2q.metrics.surface import assd, hd95, surface_distances
from d2ed2q.metrics.topology import CentrelineOverlap, centreline_overlap, cl_dice
from d2ed2q.metrics.uncertainty import mutual_information, predictive_entropy

__all__ = [
    "CentrelineOverlap",
    "Confusion",
    "PrecisionRecallCurve",
    "Ranking",
    "ReliabilityCurve",
    "RiskCoverage",
    "RocCurve",
    "assd",
    "average_precision",
    "best_dice_threshold",
    "binary_figures",
    "brier",
    "centreline_overlap",
    "cl_dice",
    "confusion",
    "expected_calibration_error",
    "hd95",
    "linear_cka",
    "multiclass_figures",
    "mutual_information",
    "negative_log_likelihood",
    "pairwise_disagreement",
    "precision_recall_curve",
    "predictive_entropy",
    "q_statistic",
    "reliability_curve",
    "risk_coverage",
    "roc_auc",
    "roc_curve",
    "surface_distances",
]
