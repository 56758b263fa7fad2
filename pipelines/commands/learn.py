"""`sparsefleet learn`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...workers.job import LearnJob
from ..console import JSON, duration, emit, pairs, say
from ..flags import job_flags, read_job
from ..timing import time_line
from .shared import DRY_RUN, FLOW, SUBMIT, handed_on, run_or_submit

if TYPE_CHECKING:
    from ...workers.progress import Progress
    from ..learning import LearnResult


@click.command()
@job_flags(LearnJob)
@click.option("--picture", type=click.Path(), help="Also write the picture of the atoms to this PNG file.")
@DRY_RUN
@FLOW
@SUBMIT
@JSON
def command(**given: Any) -> None:
    """Learn a dictionary from a data set and publish it as a version.

    The run commits its state as it goes: after an interruption, the same command continues. A model's own settings are
    given by --set model.NAME=VALUE (see `sparsefleet models bsc`).

    \b
    Examples:
      sparsefleet learn --data data/patches.zarr --model bsc --atoms 200 --name my-patches --dry-run
      sparsefleet learn --data data/patches.zarr --model bsc --atoms 200 --set model.gamma=4 --name my-patches
      sparsefleet learn --data data/patches.zarr --model topk --atoms 1024 --engine ray --workers 2 --name sae
      sparsefleet learn --job job.yaml --seed 7
    """
    job = read_job(LearnJob, given)
    if handed_on(job, given):
        return
    if given["dry_run"]:
        _dry_run(job, given)
        return
    again = f"continue with the same command, or: sparsefleet resume {{run}} --store {job.store}"
    result = run_or_submit("learn", job, given, title=job.name, again=again)
    if result is None:
        return
    picture = given["picture"]
    if picture and "atoms.png" in result.figures:
        Path(picture).parent.mkdir(parents=True, exist_ok=True)
        Path(picture).write_bytes(result.figures["atoms.png"])
    emit(result.to_dict() | {"picture": picture}, given["as_json"], lambda: _show(job, result, picture))


def _show(job: LearnJob, result: LearnResult, picture: str | None) -> None:
    click.echo(f"{result.ref} published in {job.store} ({result.fit.step} updates, {duration(result.fit.seconds)})")
    pairs({f"  {n}": v for n, v in result.fit.metrics.items()} | {"  time": time_line(result.fit.spent)})
    if picture:
        click.echo(f"  atoms: {picture}")
    say("next:")
    say(f"  sparsefleet artifacts show {result.ref} --store {job.store}")
    say(f"  sparsefleet artifacts export {result.ref} --store {job.store} --format npz --out {job.name}.npz")
    codes = f"--dictionary {result.ref} --store {job.store} --out {job.name}-codes.zarr"
    say(f"  sparsefleet encode --data {job.data} {codes}")


def _dry_run(job: LearnJob, given: dict[str, Any]) -> None:
    from ..learning import dry_run
    from ..planning import lines, predict
    from ..reporter import metrics_line

    steps: list[dict[str, Any]] = []

    def keep(progress: Progress) -> None:
        if progress.kind in ("step", "commit"):
            steps.append({"update": progress.step, **progress.metrics})

    done = dry_run(job, keep)
    predicted = predict(job, done.rows_per_second) | {"metrics": done.metrics, "trial": steps}

    def show() -> None:
        pairs(lines(job, predicted))
        click.echo(f"\ntrial on the first rows, {done.step} updates, nothing kept:")
        for step in steps[:8]:
            click.echo(f"  update {step['update']}: {metrics_line({n: v for n, v in step.items() if n != 'update'})}")
        say("next: the same command without --dry-run")

    emit(predicted, given["as_json"], show)
