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
@click.option("--probe/--no-probe", default=True, help="Make a short trial of the job's real work here [default].")
@JSON
def command(**given: Any) -> None:
    """Predict memory, bytes and time of a learn job, which is given as for `learn`.

    A short trial in a process of its own works a few updates from all over the schedule; --no-probe leaves it out, and
    with it the time. The last lines are a model of many workers on paper, with what it assumes.

    \b
    Example:
      sparsefleet plan --data data/patches.zarr --model bsc --atoms 1000 --engine ray --workers 8
    """
    from ..planning import lines, predict

    job = read_job(LearnJob, given)
    if handed_on(job, given):
        return
    predicted = predict(job, probe=given["probe"])
    emit(predicted, given["as_json"], lambda: pairs(lines(job, predicted)))
