"""Where and how it runs: one program, a communicator, engines."""

from .engines import ENGINES, check_engine, run
from .errors import EngineError, JobError
from .job import EncodeJob, Job, LearnJob
from .progress import Progress

__all__ = [
    "ENGINES",
    "EncodeJob",
    "EngineError",
    "Job",
    "JobError",
    "LearnJob",
    "Progress",
    "check_engine",
    "run",
]
