"""`sparsefleet harvest`."""

from __future__ import annotations

from typing import Any

import click

from ...workers.activations.job import HarvestJob
from ..console import JSON, duration, emit, pairs, say, size
from ..flags import job_flags, read_job
from .shared import DRY_RUN, FLOW, SUBMIT, handed_on, run_or_submit


@click.command()
@click.argument("files", nargs=-1, metavar="[TEXTS]...")
@job_flags(HarvestJob)
@DRY_RUN
@FLOW
@SUBMIT
@JSON
def command(files: tuple[str, ...], **given: Any) -> None:
    """Write what passes through a transformer while it reads texts: rows to learn dictionaries from.

    All sites and layers are taken from one pass; each becomes a data set. Nothing is fetched from a hub: the model is a
    folder, a .gguf file or an input that `make inputs` brought in. A harvest that was interrupted is continued by the
    same command.

    \b
    Examples:
      sparsefleet harvest --model input:smollm2 --texts books/*.txt --layers 15 --tokens 1e6 --out data/acts.zarr
      sparsefleet harvest --model models/pythia --texts mails.jsonl --site mlp,attention --layers 0-5 --out data/a.zarr
      sparsefleet harvest --model input:smollm2 --texts books/ --site mlp_input --target mlp --out data/transcoder.zarr
    """
    job = read_job(HarvestJob, given | {"texts": (*given["texts"], *files)})
    if handed_on(job, given):
        return
    if given["dry_run"]:
        _dry_run(job, given["as_json"])
        return
    again = "shards that are done stay done, run the same command again to continue"
    result = run_or_submit("harvest", job, given, title="harvest", again=again)
    if result is None:
        return

    def show() -> None:
        for out, dim in zip(result.outs, result.dims):
            click.echo(f"{out}: {result.rows:,} rows of {dim}")
        if result.files_left_out:
            click.echo(_left_out(result.rows, result.files_left_out))
        speed = result.fit.metrics["tokens_per_second"]
        click.echo(f"{size(result.bytes)} in {duration(result.fit.seconds)}, {speed:,.0f} tokens/s once loaded")
        say(f"next: sparsefleet learn --data {result.outs[0]} --model topk --atoms {8 * result.dims[0]} --dry-run")

    emit(result.to_dict(), given["as_json"], show)


def _dry_run(job: HarvestJob, as_json: bool) -> None:
    from ..harvesting import dry_run

    found = dry_run(job)

    def show() -> None:
        shown = {n: v for n, v in found.items() if n != "data_sets"}
        pairs(shown | {"bytes": size(found["bytes"]), "seconds": f"about {duration(found['seconds'])}"})
        pairs({f"  {out}": meaning for out, meaning in found["data_sets"].items()})
        if found["files_left_out"]:
            click.echo(_left_out(found["rows"], found["files_left_out"]))
        say("nothing was written; next: the same command without --dry-run")

    emit(found, as_json, show)


def _left_out(rows: int, files: int) -> str:
    """That the last files give no row, and what to do."""
    which = "the last file is" if files == 1 else f"the last {files:,} files are"
    return f"{rows:,} rows, as --tokens asks for: {which} left out; raise --tokens or give fewer texts"
