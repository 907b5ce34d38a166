from .log import MetricsLog as MetricsLog
from .log import TrainingProgress as TrainingProgress
from .log import read_log as read_log
from .loop import Batch as Batch
from .loop import Trainer as Trainer
from .optimization import LearningRate as LearningRate
from .optimization import Optimization as Optimization
from .optimization import fabric_precision as fabric_precision
from .optimization import is_first_process as is_first_process
from .optimization import make_fabric as make_fabric
from .optimization import make_optimizer as make_optimizer
from .optimization import optimizer_step as optimizer_step
from .pace import Pace as Pace
from .phase import Phase as Phase
from .processes import on_first as on_first
from .processor import keep_freed_memory as keep_freed_memory
from .processor import prepare_processor as prepare_processor
from .state import Stateful as Stateful
from .state import clone_state as clone_state
from .state import load_state as load_state
from .state import load_tensors as load_tensors
from .state import save_state as save_state
from .state import save_tensors as save_tensors

__all__ = [
    "Batch",
    "LearningRate",
    "MetricsLog",
    "Optimization",
    "Pace",
    "Phase",
    "Stateful",
    "Trainer",
    "TrainingProgress",
    "clone_state",
    "fabric_precision",
    "is_first_process",
    "keep_freed_memory",
    "load_state",
    "load_tensors",
    "make_fabric",
    "make_optimizer",
    "on_first",
    "optimizer_step",
    "prepare_processor",
    "read_log",
    "save_state",
    "save_tensors",
]
