"""`sparsefleet plan`."""

from __future__ import annotations

from typing import Any

import click

from ...workers.job import LearnJob
from ..console import JSON, emit, pairs
from ..flags import job_flags, read_job
from .shared import handed_on


@click.command()
@job_flags(LearnJob)
@JSON
def command(**given: Any) -> None:
    """Predict memory, bytes and time of a learn job, which is given as for `learn`. Only a short trial is run.

    \b
    Example:
      sparsefleet plan --data data/patches.zarr --model bsc --atoms 1000 --engine ray --workers 8
    """
    from ..planning import lines, predict

    job = read_job(LearnJob, given)
    if handed_on(job, given):
        return
    predicted = predict(job)
    emit(predicted, given["as_json"], lambda: pairs(lines(job, predicted)))
