"""What is learned: pure mathematics on tensors."""

from .base import TRAINING, Batch, Codes, Model, Params, Probe, Stats
from .errors import ModelError
from .outputs import OUTPUTS, Wanted
from .registry import MODELS, load_model_class, make_model
from .schedule import Ramp, Schedule, Stage

__all__ = [
    "MODELS",
    "OUTPUTS",
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
    "Wanted",
    "load_model_class",
    "make_model",
]
