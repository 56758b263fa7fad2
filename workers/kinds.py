"""Kinds of job by class name, for what carries a job to another process."""

from __future__ import annotations

from .activations.job import HarvestJob
from .job import EncodeJob, Job, LearnJob

JOBS: dict[str, type[Job]] = {job.__name__: job for job in (LearnJob, EncodeJob, HarvestJob)}
