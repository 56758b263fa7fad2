"""Harvesting activations. Plain functions; flows.py wraps them for Prefect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..storage import Dataset, StorageError, open_dataset
from ..storage.texts import find_texts
from ..workers.activations.job import HarvestJob
from ..workers.errors import JobError
from .learning import Fit, fit
from .paths import absolute
from .reporter import Reporter, silent


@dataclass(frozen=True)
class HarvestResult:
    """Finished data sets of activations, and how they came about."""

    outs: tuple[str, ...]
    rows: int
    dims: tuple[int, ...]
    bytes: int
    fit: Fit

    @property
    def files_left_out(self) -> int:
        """Files of the texts of which `tokens` left no row, the last ones."""
        return int(self.fit.metrics["files_left_out"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "out": ", ".join(self.outs),
            "outs": list(self.outs),
            "rows": self.rows,
            "files_left_out": self.files_left_out,
            "dims": list(self.dims),
            "bytes": self.bytes,
            "seconds": self.fit.seconds,
            "metrics": self.fit.metrics,
        }


def harvest(job: HarvestJob, reporter: Reporter = silent) -> HarvestResult:
    """Write the activations of a network as data sets, one for each site and layer. The same call continues.

    Raises:
        JobError, StorageError: the job cannot be done as it is; nothing was started.
        EngineError: the workers failed; shards that are done stay done.
    """
    job = check(job)
    return finish(job, fit(job, reporter, "harvest"))


def check(job: HarvestJob) -> HarvestJob:
    """The job with absolute addresses, if its model and texts are there.

    Raises:
        JobError, StorageError: they are not; the message says what to do.
    """
    from ..workers.activations.hosts import find_model, require_packages

    job = absolute(job)
    require_packages()
    find_model(job.model)
    find_texts(job.texts)
    if not job.overwrite and _is_finished(job.out):
        raise JobError(f"out={job.out!r} holds a finished data set: choose another place or pass --overwrite")
    return job


def _is_finished(uri: str) -> bool:
    """Whether a whole data set is at `uri`."""
    try:
        open_dataset(uri)
    except StorageError:
        return False
    return True


def finish(job: HarvestJob, fit: Fit) -> HarvestResult:
    """Open what was written."""
    del job
    found: list[Dataset] = [open_dataset(uri) for uri in fit.outs]
    bytes_ = sum(data.nbytes for data in found)
    return HarvestResult(tuple(d.uri for d in found), found[0].rows, tuple(d.dim for d in found), bytes_, fit)


def dry_run(job: HarvestJob) -> dict[str, Any]:
    """What would be written, and the speed of one batch here; nothing is kept.

    Raises:
        JobError, StorageError: as `harvest`.
    """
    import torch

    from ..workers.activations.harvesting import Harvester, read
    from ..workers.plan import device_of, threads_of

    job = check(job)
    before = torch.get_num_threads()
    torch.set_num_threads(threads_of(job))
    try:
        harvester = Harvester(job, device_of(job), read(job))
        speed = harvester.measure()
    finally:
        torch.set_num_threads(before)
    return {
        "model": job.model,
        "documents": harvester.documents,
        "files_left_out": harvester.files_left_out(),
        "rows": harvester.rows,
        "data_sets": dict(zip(harvester.outs(), (site.meaning for site in harvester.sites()))),
        "shards": len(harvester.shards),
        "bytes": harvester.bytes(),
        "tokens_per_second": speed,
        "seconds": harvester.rows / speed / job.workers,
    }
