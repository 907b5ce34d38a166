from .calibration import ReliabilityCurve as ReliabilityCurve
from .calibration import RiskCoverage as RiskCoverage
from .calibration import brier as brier
from .calibration import expected_calibration_error as expected_calibration_error
from .calibration import negative_log_likelihood as negative_log_likelihood
from .calibration import reliability_curve as reliability_curve
from .calibration import risk_coverage as risk_coverage
from .confusion_matrix import Confusion as Confusion
from .confusion_matrix import confusion as confusion
from .diversity import linear_cka as linear_cka
from .diversity import pairwise_disagreement as pairwise_disagreement
from .diversity import q_statistic as q_statistic
from .figures import binary_figures as binary_figures
from .figures import multiclass_figures as multiclass_figures
from .objects import ObjectScore as ObjectScore
from .objects import object_figures as object_figures
from .objects import object_score as object_score
from .ranking import PrecisionRecallCurve as PrecisionRecallCurve
from .ranking import Ranking as Ranking
from .ranking import RocCurve as RocCurve
from .ranking import average_precision as average_precision
from .ranking import best_dice_threshold as best_dice_threshold
from .ranking import precision_recall_curve as precision_recall_curve
from .ranking import roc_auc as roc_auc
from .ranking import roc_curve as roc_curve
from .surface import assd as assd
from .surface import hd95 as hd95
from .surface import surface_distances as surface_distances
from .topology import CentrelineOverlap as CentrelineOverlap
from .topology import centreline_overlap as centreline_overlap
from .topology import cl_dice as cl_dice
from .uncertainty import mutual_information as mutual_information
from .uncertainty import predictive_entropy as predictive_entropy

__all__ = [
    "CentrelineOverlap",
    "Confusion",
    "ObjectScore",
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
    "object_figures",
    "object_score",
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
