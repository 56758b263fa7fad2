"""`sparsefleet denoise`."""

from __future__ import annotations

from typing import Any

import click

from ..console import JSON, duration, emit, pairs, say
from ..denoising import DenoiseJob
from ..flags import job_flags, read_job
from .shared import FLOW, SUBMIT, handed_on, monitored, run_or_submit


@click.command()
@click.argument("photo", required=False)
@job_flags(DenoiseJob, skip=("data",))
@FLOW
@monitored
@SUBMIT
@JSON
def command(photo: str | None, **given: Any) -> None:
    """Take noise from PHOTO, or fill its missing pixels, with a published dictionary of patches.

    All overlapping patches are cut as those that the dictionary was learned on, encoded on the chosen engine, and the
    overlaps of their reconstructions averaged.

    \b
    Examples:
      sparsefleet denoise noisy.png --dictionary my-patches --out clean.png
      sparsefleet denoise noisy.png --dictionary my-patches --sigma 25 --truth original.png --out clean.png
      sparsefleet denoise torn.png --mask mask.png --dictionary my-patches --out whole.png
    """
    job = read_job(DenoiseJob, given | ({"data": photo} if photo else {}))
    if handed_on(job, given):
        return
    again = "nothing was written, run the same command again"
    result = run_or_submit("denoise", job, given, title=f"denoise with {job.dictionary}", again=again)
    if result is None:
        return

    def show() -> None:
        click.echo(f"{result.out}: {result.patches:,} patches under {result.dictionary}, {duration(result.seconds)}")
        pairs({f"  {n}": v for n, v in result.metrics.items()})
        if "psnr" not in result.metrics:
            say("with --truth ORIGINAL it also says how close the picture came")

    emit(result.to_dict(), given["as_json"], show)
