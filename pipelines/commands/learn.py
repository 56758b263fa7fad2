"""`sparsefleet learn`."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...workers.job import LearnJob
from ..console import JSON, duration, emit, pairs, say
from ..errors import PipelineError
from ..flags import job_flags, read_job
from ..timing import time_line
from .shared import DRY_RUN, FLOW, SUBMIT, handed_on, monitored, run_or_submit

if TYPE_CHECKING:
    from ...storage.ingest import IngestJob
    from ...workers.progress import Progress
    from ..learning import LearnResult
    from ..recipes import Recipe
    from ..recipes.checks import Outcome


@click.command()
@job_flags(LearnJob)
@click.option("--recipe", metavar="NAME", help="Take data, job and expectations from this recipe; flags override it.")
@click.option("--picture", type=click.Path(), help="Also write the picture of the atoms to this PNG file.")
@click.option("--figures", type=click.Path(), help="Also write all pictures, a recipe's too, into this folder.")
@DRY_RUN
@FLOW
@monitored
@SUBMIT
@JSON
def command(**given: Any) -> None:
    """Learn a dictionary from a data set and publish it as a version.

    The run commits its state as it goes: after an interruption, the same command continues. A model's own settings are
    given by --set model.NAME=VALUE (see `sparsefleet models bsc`). A recipe (see `sparsefleet recipes`) also says how
    its data is made, which --set source.NAME=VALUE changes, and what should come out.

    \b
    Examples:
      sparsefleet learn --data data/patches.zarr --model bsc --atoms 200 --name my-patches --dry-run
      sparsefleet learn --data data/patches.zarr --model bsc --atoms 200 --set model.gamma=4 --name my-patches
      sparsefleet learn --data data/patches.zarr --model topk --atoms 1024 --engine ray --workers 2 --name sae
      sparsefleet learn --job job.yaml --seed 7
      sparsefleet learn --recipe bars-mca
    """
    if given["recipe"]:
        _recipe(given)
        return
    job = read_job(LearnJob, given)
    if handed_on(job, given):
        return
    if given["dry_run"]:
        _dry_run(job, given)
        return
    _make_folders(given)
    result = _run(job, given)
    if result is not None:
        _finish(job, result, given)


def _recipe(given: dict[str, Any]) -> None:
    from ..recipes import load_recipe
    from ..recipes.recipe import split_assignments

    recipe = load_recipe(given["recipe"])
    source, given["assignments"] = split_assignments(given["assignments"])
    job = read_job(LearnJob, given, base=recipe.values())
    if handed_on(job, given):
        return
    ingest = recipe.ingest(job.data, source)
    if given["dry_run"]:
        with _trial_data(recipe, job, ingest) as job:
            _dry_run(job, given)
        return
    _make_folders(given)
    _make_data(recipe, ingest, given)
    result = _run(job, given)
    if result is None:
        left = ["its second run", "its check"] if recipe.then else ["its check"]
        say(f"the work pool runs the recipe's job alone, without {' and '.join(left)}")
    second = recipe.second(job, result.ref) if result is not None else None
    if second is not None:
        say(f"{job.name}: the second run of the recipe, from {second.init}")
        job, result = second, _run(second, given, second=True)
    if result is not None:
        from ..recipes.checks import measure

        _finish(job, result, given, measure(recipe, job, result))


def _make_data(recipe: Recipe, ingest: IngestJob, given: Mapping[str, Any]) -> None:
    """Makes the recipe's data set here, where it is not there yet."""
    from ...storage import NotFound

    if not recipe.missing(ingest):
        return
    try:
        run_or_submit("ingest", ingest, {**given, "submit": None}, title="ingest", again="run the same command again")
    except NotFound as err:
        raise NotFound(f"{err}{f'. {recipe.needs}' if recipe.needs else ''}") from None


@contextmanager
def _trial_data(recipe: Recipe, job: LearnJob, ingest: IngestJob) -> Generator[LearnJob]:
    """The job on a small data set that is thrown away, where the recipe's own has not been made."""
    from ..ingesting import DRY_ROWS
    from ..ingesting import ingest as make

    if not recipe.missing(ingest):
        yield job
        return
    with tempfile.TemporaryDirectory(prefix="sparsefleet-") as folder:
        data = f"{folder}/trial.zarr"
        rows = getattr(ingest, "rows", None)
        changes = {"rows": min(rows, 4 * DRY_ROWS)} if rows else {}
        made = make(ingest.model_copy(update={"out": data, **changes}))
        say(f"{ingest.out} has not been made; this is about {made.rows:,} rows of it")
        yield job.model_copy(update={"data": data})


def _run(job: LearnJob, given: Mapping[str, Any], *, second: bool = False) -> Any:
    return run_or_submit("learn", job, given, title=job.name, again=_again(job, second=second))


def _again(job: LearnJob, *, second: bool) -> str:
    """How an interrupted run goes on. One of several starts must not be resumed alone: that would publish it; and the
    whole command begins with a recipe's first run."""
    if job.starts > 1:
        return "the same command begins with the first run again" if second else "continue with the same command"
    resume = f"sparsefleet resume {{run}} --store {job.store}"
    return f"continue with: {resume}" if second else f"continue with the same command, or: {resume}"


def _make_folders(given: Mapping[str, Any]) -> None:
    """Makes the folders that the pictures go to; PipelineError where that cannot be, before anything is learned."""
    picture, figures = given["picture"], given["figures"]
    if picture and Path(picture).is_dir():
        raise PipelineError(f"--picture {picture} is a folder: give a file")
    for folder in [*([Path(picture).parent] if picture else []), *([Path(figures)] if figures else [])]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as err:
            raise PipelineError(f"no picture can be written in {folder}: {err.strerror or err}") from err


def _finish(job: LearnJob, result: LearnResult, given: Mapping[str, Any], outcome: Outcome | None = None) -> None:
    picture = given["picture"]
    if picture and "atoms.png" in result.figures:
        Path(picture).write_bytes(result.figures["atoms.png"])
    if given["figures"]:
        for name, png in (result.figures | (outcome.figures if outcome else {})).items():
            (Path(given["figures"]) / name).write_bytes(png)
    found = result.to_dict() | {"picture": picture} | ({"outcome": outcome.to_dict()} if outcome else {})
    emit(found, given["as_json"], lambda: _show(job, result, picture, outcome))


def _show(job: LearnJob, result: LearnResult, picture: str | None, outcome: Outcome | None) -> None:
    click.echo(f"{result.ref} published in {job.store} ({result.fit.step} updates, {duration(result.fit.seconds)})")
    pairs({f"  {n}": v for n, v in result.fit.metrics.items()} | {"  time": time_line(result.fit.spent)})
    if picture:
        click.echo(f"  atoms: {picture}")
    if outcome is not None:
        click.echo(f"outcome: {outcome.sentence}")
        click.echo(f"expected: {'; '.join(outcome.unmet) if outcome.unmet else 'all met'}")
    say("next:")
    say(f"  sparsefleet artifacts show {result.ref} --store {job.store}")
    say(f"  sparsefleet artifacts export {result.ref} --store {job.store} --format npz --out {job.name}.npz")
    codes = f"--dictionary {result.ref} --store {job.store} --out {job.name}-codes.zarr"
    own = f" --module-path {job.module_path}" if job.module_path and ":" in job.model else ""
    say(f"  sparsefleet encode --data {job.data} {codes}{own}")


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
