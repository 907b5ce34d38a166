from .diversity import feature_diversity as feature_diversity
from .ensemble import DeepEnsemble as DeepEnsemble
from .fusion import ChannelAttention as ChannelAttention
from .fusion import TapFusion as TapFusion
from .loss import DEFAULT_ALPHA as DEFAULT_ALPHA
from .loss import DeepDiversifiedLoss as DeepDiversifiedLoss
from .loss import LossTerms as LossTerms
from .loss import one_hot_of as one_hot_of
from .loss import segmentation_loss as segmentation_loss
from .named_views import composition as composition
from .named_views import learner_names as learner_names
from .named_views import prediction_names as prediction_names
from .named_views import view_names as view_names
from .named_views import view_of as view_of
from .named_views import views as views
from .output import EnsembleOutput as EnsembleOutput
from .output import learner_probabilities as learner_probabilities

__all__ = [
    "DEFAULT_ALPHA",
    "ChannelAttention",
    "DeepDiversifiedLoss",
    "DeepEnsemble",
    "EnsembleOutput",
    "LossTerms",
    "TapFusion",
    "composition",
    "feature_diversity",
    "learner_names",
    "learner_probabilities",
    "one_hot_of",
    "prediction_names",
    "segmentation_loss",
    "view_names",
    "view_of",
    "views",
]
