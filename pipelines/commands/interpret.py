"""`sparsefleet interpret`."""

from __future__ import annotations

from typing import Any

import click

from ..console import JSON, duration, emit, pairs, say
from ..flags import job_flags, read_job
from ..interpreting import InterpretJob
from .shared import FLOW, SUBMIT, handed_on, run_or_submit


@click.command()
@click.argument("files", nargs=-1, metavar="[TEXTS]...")
@job_flags(InterpretJob)
@FLOW
@SUBMIT
@JSON
def command(files: tuple[str, ...], **given: Any) -> None:
    """Judge a sparse autoencoder by activations, and show what its latents answer to, in one HTML file.

    With --model tokens are shown as text; with texts the loss recovered is stated too.

    \b
    Examples:
      sparsefleet interpret --data data/acts.zarr --dictionary features --out features.html
      sparsefleet interpret --data data/acts.zarr --dictionary features --model input:smollm2 --texts books/1.txt \\
          --out features.html
    """
    job = read_job(InterpretJob, given | {"texts": (*given["texts"], *files)})
    if handed_on(job, given):
        return
    title, again = f"interpret {job.dictionary}", "nothing was written, run the same command again"
    result = run_or_submit("interpret", job, given, title=title, again=again)
    if result is None:
        return

    def show() -> None:
        click.echo(f"{result.out}: {result.dictionary} by {result.rows:,} rows, {duration(result.seconds)}")
        if result.note:
            click.echo(f"note: {result.note}")
        pairs({f"  {n}": v for n, v in result.metrics.items()})
        say(f"next: open {result.out} in a browser")

    emit(result.to_dict(), given["as_json"], show)
