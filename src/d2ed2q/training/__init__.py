"""Training of any module in resumable phases."""

from d2ed2q.training.log import MetricsLog, TrainingProgress, read_log
from d2ed2q.training.loop import Batch, Trainer
from d2ed2q.training.optimization import (
    LearningRate,
    Optimization,
    fabric_precision,
    is_first_process,
    make_fabric,
    make_optimizer,
    optimizer_step,
)
from d2ed2q.training.pace import Pace
from d2ed2q.training.phase import Phase
from d2ed2q.training.processes import on_first
from d2ed2q.training.processor import keep_freed_memory, prepare_processor
from d2ed2q.training.state import Stateful, clone_state, load_state, load_tensors, save_state, save_tensors

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
