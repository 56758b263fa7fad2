"""`sparsefleet encode`."""

from __future__ import annotations

from typing import Any

import click

from ...workers.job import EncodeJob
from ..console import JSON, duration, emit, pairs, say
from ..flags import job_flags, read_job
from .shared import DRY_RUN, FLOW, SUBMIT, handed_on, monitored, run_or_submit


@click.command()
@job_flags(EncodeJob)
@DRY_RUN
@FLOW
@monitored
@SUBMIT
@JSON
def command(**given: Any) -> None:
    """Compute sparse codes of a data set under a dictionary; writes indices and values, shard by shard.

    \b
    Example:
      sparsefleet encode --data data/patches.zarr --dictionary my-patches@best --out data/codes.zarr
      sparsefleet encode --data data/patches.zarr --dictionary atoms.npz --coder omp --set coder.nonzeros=5 --out c.zarr
    """
    job = read_job(EncodeJob, given)
    if handed_on(job, given):
        return
    if given["dry_run"]:
        _dry_run(job, given["as_json"])
        return
    again = "shards that are done stay done, run the same command again to continue"
    result = run_or_submit("encode", job, given, title=f"encode {job.dictionary}", again=again)
    if result is None:
        return

    def show() -> None:
        click.echo(
            f"{result.out}: codes of {result.rows:,} rows under {result.dictionary}, {duration(result.fit.seconds)}"
        )
        pairs({f"  {n}": v for n, v in result.fit.metrics.items()})
        say(f"next: sparsefleet data show {job.out}")

    emit(result.to_dict(), given["as_json"], show)


def _dry_run(job: EncodeJob, as_json: bool) -> None:
    from ..encoding import dry_run

    found = dry_run(job)

    def show() -> None:
        pairs(found | {"seconds": f"about {duration(found['seconds'])}"})
        say("nothing was written; next: the same command without --dry-run")

    emit(found, as_json, show)
