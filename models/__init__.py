"""What is learned: pure mathematics on tensors."""

from .base import TRAINING, Batch, Codes, Model, Params, Probe, Stats
from .errors import ModelError
from .registry import MODELS, load_model_class, make_model
from .schedule import Ramp, Schedule, Stage

__all__ = [
    "MODELS",
    "TRAINING",
    "Batch",
    "Codes",
    "Model",
    "ModelError",
    "Params",
    "Probe",
    "Ramp",
    "Schedule",
    "Stage",
    "Stats",
    "load_model_class",
    "make_model",
]
