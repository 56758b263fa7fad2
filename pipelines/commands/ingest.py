"""`sparsefleet ingest images|arrays|sounds|series|generated`."""

from __future__ import annotations

from typing import Any

import click

from ...storage.ingest import ArraysSource, GeneratedSource, ImagesSource, IngestJob, SeriesSource, SoundsSource
from ..console import JSON, duration, emit, pairs, say, size
from ..flags import job_flags, read_job
from .shared import DRY_RUN, FLOW, SUBMIT, handed_on, run_or_submit

SOURCES = click.argument("sources", nargs=-1, metavar="SOURCE...")


@click.group()
def command() -> None:
    """Turn photographs, arrays, sounds or series into a data set: rows in shards, checked and described.

    A data set that was interrupted is continued by the same command.
    """


@command.command()
@SOURCES
@job_flags(ImagesSource, skip=("kind", "sources"), bare={"whiten": "zca"})
@DRY_RUN
@FLOW
@SUBMIT
@JSON
def images(**given: Any) -> None:
    """Cut patches out of images (files, folders or patterns), remove their mean and whiten them.

    \b
    Example:
      sparsefleet ingest images photos/*.jpg --patch 16 --rows 50000 --whiten --out data/patches.zarr
    """
    _ingest(ImagesSource, given)


@command.command()
@SOURCES
@job_flags(ArraysSource, skip=("kind", "sources"))
@DRY_RUN
@FLOW
@SUBMIT
@JSON
def arrays(**given: Any) -> None:
    """Take rows from .npy, .npz, HDF5 or Parquet files, larger than memory if need be.

    \b
    Examples:
      sparsefleet ingest arrays measurements.npy --out data/rows.zarr
      sparsefleet ingest arrays run.h5::spectra run.npz::x table.parquet::a,b,c --out data/rows.zarr
    """
    _ingest(ArraysSource, given)


@command.command()
@SOURCES
@job_flags(SoundsSource, skip=("kind", "sources"), bare={"whiten": "zca"})
@DRY_RUN
@FLOW
@SUBMIT
@JSON
def sounds(**given: Any) -> None:
    """Cut windows out of sounds (.wav files, folders or patterns), without those that are silent.

    \b
    Example:
      sparsefleet ingest sounds prompts/*.wav --window 160 --hop 80 --out data/windows.zarr
    """
    _ingest(SoundsSource, given)


@command.command()
@SOURCES
@job_flags(SeriesSource, skip=("kind", "sources"))
@DRY_RUN
@FLOW
@SUBMIT
@JSON
def series(**given: Any) -> None:
    """Cut windows out of tables of measurements (.csv), the channels of several sensors side by side.

    \b
    Example:
      sparsefleet ingest series readings.csv --columns humidity --columns temperature --key sensor --out data/w.zarr
    """
    _ingest(SeriesSource, given)


@command.command()
@job_flags(GeneratedSource, skip=("kind",))
@DRY_RUN
@FLOW
@SUBMIT
@JSON
def generated(**given: Any) -> None:
    """Draw rows from a sparse coding model with known atoms: bars, or the columns of a file.

    \b
    Examples:
      sparsefleet ingest generated --size 5 --rows 1000 --sigma 2 --out data/bars.zarr
      sparsefleet ingest generated --atoms params.npz::W --rows 100000 --out data/drawn.zarr
    """
    _ingest(GeneratedSource, given)


def _ingest(
    cls: type[ImagesSource] | type[ArraysSource] | type[SoundsSource] | type[SeriesSource] | type[GeneratedSource],
    given: dict[str, Any],
) -> None:
    job = read_job(cls, given)
    if handed_on(job, given):
        return
    if given["dry_run"]:
        _dry_run(job, given["as_json"])
        return
    result = run_or_submit("ingest", job, given, title="ingest", again="run the same command again to continue")
    if result is None:
        return

    def show() -> None:
        made = f"{result.rows:,} rows of {result.dim} ({result.dtype}) in {result.shards} shards"
        click.echo(f"{result.uri}: {made}, {duration(result.seconds)}")
        say(f"next: sparsefleet learn --data {job.out} --model bsc --atoms 100 --dry-run")

    emit(result.to_dict(), given["as_json"], show)


def _dry_run(job: IngestJob, as_json: bool) -> None:
    from ..ingesting import dry_run

    found = dry_run(job)

    def show() -> None:
        pairs(found | {"bytes": size(found["bytes"])})
        say("nothing was written; next: the same command without --dry-run")

    emit(found, as_json, show)
