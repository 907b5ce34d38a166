from .bundle import Bundle as Bundle
from .bundle import is_bundle as is_bundle
from .bundle import read_bundle as read_bundle
from .bundle import write_bundle as write_bundle
from .cleaning import MaskRule as MaskRule
from .cleaning import choose_mask_rule as choose_mask_rule
from .cleaning import clean_mask as clean_mask
from .engines import ENGINES as ENGINES
from .engines import Engine as Engine
from .engines import available_engines as available_engines
from .engines import make_engine as make_engine
from .manifest import Manifest as Manifest
from .objects import ObjectRule as ObjectRule
from .objects import choose_object_rule as choose_object_rule
from .objects import separate_objects as separate_objects
from .prediction import Prediction as Prediction
from .prediction import make_prediction as make_prediction
from .predictor import Predictor as Predictor
from .predictor import SelfTest as SelfTest
from .telemetry import without_telemetry as without_telemetry
from .zoo import model_path as model_path
from .zoo import zoo as zoo

__all__ = [
    "ENGINES",
    "Bundle",
    "Engine",
    "Manifest",
    "MaskRule",
    "ObjectRule",
    "Prediction",
    "Predictor",
    "SelfTest",
    "available_engines",
    "choose_mask_rule",
    "choose_object_rule",
    "clean_mask",
    "is_bundle",
    "make_engine",
    "make_prediction",
    "model_path",
    "read_bundle",
    "separate_objects",
    "without_telemetry",
    "write_bundle",
    "zoo",
]
