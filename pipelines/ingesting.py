"""Turning sources into a data set. A plain function; flows.py wraps it for Prefect."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..storage import Dataset
from ..storage.ingest import ingest as make
from ..workers.progress import Progress
from .paths import absolute
from .reporter import Reporter, silent

if TYPE_CHECKING:
    from ..storage.ingest import ArraysSource, GeneratedSource, ImagesSource, IngestJob, SeriesSource, SoundsSource

DRY_ROWS = 1000


@dataclass(frozen=True)
class IngestResult:
    """A finished data set."""

    uri: str
    rows: int
    dim: int
    dtype: str
    fingerprint: str
    shards: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def ingest(job: IngestJob, reporter: Reporter = silent) -> IngestResult:
    """Make the data set that `job` describes; a call that was interrupted goes on where it was.

    Raises:
        StorageError: a source is missing or cannot be used, or the output exists.
    """
    begun = time.monotonic()

    def progress(done: int, total: int, what: str) -> None:
        seconds = time.monotonic() - begun
        reporter(Progress(kind="step", step=done, steps=total, seconds=seconds, message=what))

    data: Dataset = make(absolute(job), progress)
    seconds = time.monotonic() - begun
    shards = len(data.shards())
    reporter(Progress(kind="done", step=shards, steps=shards, seconds=seconds, message="finished"))
    return IngestResult(data.uri, data.rows, data.dim, str(data.dtype), data.fingerprint, shards, seconds)


def dry_run(job: IngestJob) -> dict[str, Any]:
    """What the data set would be, from a look at the sources and some rows; nothing is kept.

    Raises:
        StorageError: as `ingest`.
    """
    job = absolute(job)
    if job.kind == "arrays":
        return _try_arrays(job)
    if job.kind == "series":
        return _try_series(job)
    return _try_sounds(job) if job.kind == "sounds" else _try_drawn(job)


def _try_drawn(job: ImagesSource | GeneratedSource) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="sparsefleet-") as folder:
        rows = min(job.rows, DRY_ROWS)
        data = make(job.model_copy(update={"out": f"{folder}/trial.zarr", "rows": rows}))
        block = data.read(0, rows)
    layout = {"rows": job.rows, "dim": data.dim, "dtype": str(data.dtype), "bytes": job.rows * data.dim * 4}
    return layout | {"trial_rows": rows, "mean": float(block.mean()), "std": float(block.std())}


def _try_sounds(job: SoundsSource) -> dict[str, Any]:
    from ..storage.ingest.sounds import SUFFIXES, Windows, read_sounds
    from ..storage.ingest.sources import find_files
    from ..storage.layout import Shard

    paths = find_files(job.sources, SUFFIXES, "sounds")
    windows = Windows(read_sounds(paths, job.rate, lambda done, total, what: None), job)
    block = windows.block(Shard(0, 0, min(windows.rows, DRY_ROWS)))
    layout = {"rows": windows.rows, "dim": job.window, "dtype": "float32", "bytes": windows.rows * job.window * 4}
    return layout | {"trial_rows": len(block), "mean": float(block.mean()), "std": float(block.std())}


def _try_series(job: SeriesSource) -> dict[str, Any]:
    from ..storage.ingest.series import SUFFIXES, read_series, windows
    from ..storage.ingest.sources import find_files

    readings = read_series(find_files(job.sources, SUFFIXES, "tables"), job)
    rows, held_out, marks = windows(readings, job)
    layout = {"rows": len(rows), "dim": rows.shape[1], "dtype": "float32", "bytes": rows.nbytes}
    found = {"channels": ", ".join(readings.channels), "held_out": len(held_out), "marked": int(marks.sum())}
    return layout | found | {"mean": float(rows.mean()), "std": float(rows.std())}


def _try_arrays(job: ArraysSource) -> dict[str, Any]:
    from ..storage.ingest.arrays import Gather
    from ..storage.ingest.sources import find_sources, open_sources
    from ..storage.layout import Shard

    with (
        tempfile.TemporaryDirectory(prefix="sparsefleet-") as folder,
        open_sources(find_sources(job.sources), f"{folder}/trial.zarr") as matrices,
    ):
        gather = Gather(matrices, job)
        rows = min(gather.shard_rows, gather.rows)
        block = gather.block(Shard(0, 0, rows))
    layout = {"rows": gather.rows, "dim": gather.dim, "dtype": job.dtype, "bytes": gather.rows * block[:1].nbytes}
    return layout | {"trial_rows": rows, "mean": float(block.mean()), "std": float(block.std())}
