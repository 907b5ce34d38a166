"""The deep ensemble, its fusion of features, and the deep diversified loss."""

from d2ed2q.ensemble.diversity import feature_diversity
from d2ed2q.ensemble.ensemble import DeepEnsemble
from d2ed2q.ensemble.fusion import ChannelAttention, TapFusion
from d2ed2q.ensemble.loss import DEFAULT_ALPHA, DeepDiversifiedLoss, LossTerms, segmentation_loss
from d2ed2q.ensemble.output import EnsembleOutput, learner_probabilities, view_names, views

__all__ = [
    "DEFAULT_ALPHA",
    "ChannelAttention",
    "DeepDiversifiedLoss",
    "DeepEnsemble",
    "EnsembleOutput",
    "LossTerms",
    "TapFusion",
    "feature_diversity",
    "learner_probabilities",
    "segmentation_loss",
    "view_names",
    "views",
]
