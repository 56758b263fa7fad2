"""Where and how it runs: one program, a communicator, engines."""

from .activations.job import HarvestJob
from .engines import ENGINES, check_engine, run
from .errors import EngineError, JobError
from .job import EncodeJob, Job, LearnJob
from .progress import Progress

__all__ = [
    "ENGINES",
    "EncodeJob",
    "EngineError",
    "HarvestJob",
    "Job",
    "JobError",
    "LearnJob",
    "Progress",
    "check_engine",
    "run",
]
