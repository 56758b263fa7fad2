"""What a job needs before it starts: threads, device, memory, messages. Nothing here touches more than metadata."""

from __future__ import annotations

import math
import os

import psutil
import torch
from pydantic import BaseModel, ConfigDict

from ..models import Batch, Model, Probe, Schedule, Stage
from ..storage import Dataset, open_dataset
from .columns import widths
from .errors import JobError
from .feed import group_chunks
from .job import Job, LearnJob
from .start import run_id_of

GIB = 2**30
# Interpreter, torch and zarr of one worker, measured at 0.35 to 0.45 GiB.
PROCESS_BYTES = int(0.5 * GIB)
LARGEST_FEED = 64 * GIB
LOCAL_RANKS = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
"""Where launchers tell a rank its number on its node."""


class Plan(BaseModel):
    """The size of a job. Bytes and rows are per worker where the name says so."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    rows: int
    rows_per_worker: int
    """Of the worker that has most: a pass is dealt in whole blocks of `batch_rows`."""
    row_bytes: int
    """Of a row in a worker's memory."""
    dim: int
    atoms: int
    shards: int
    data_bytes: int
    workers: int
    atom_groups: int = 1
    """Workers that hold a slice of the atoms each; they work on the same rows."""
    threads: int
    device: str
    passes: int
    updates: int
    batch_rows: int
    model_bytes_per_worker: int
    feed_bytes_per_worker: int
    memory_bytes_per_worker: int
    memory_limit_per_worker: int
    statistics_bytes: int
    peer_bytes_per_update: int = 0
    """What a worker sends to those that hold the other atoms; part of its traffic."""
    traffic_bytes_per_update: int
    flops_per_row: float

    @property
    def row_groups(self) -> int:
        """Groups of workers that share the rows."""
        return self.workers // self.atom_groups


def plan(job: LearnJob) -> Plan:
    """The plan of `job`.

    Raises:
        JobError: it cannot fit into memory; the message says the numbers and what to change.
    """
    data = open_dataset(job.data)
    model = job.build_share()
    schedule = job.build_schedule(model)
    rows = min(job.rows or data.rows, data.rows)
    per_pass = 1 if schedule.update_every == "pass" else max(1, round(rows / schedule.batch_rows))
    dim = sum(widths(data, model.arrays))
    mine = most_rows(job, schedule, rows)
    need = model.memory(min(worker_batch(job, schedule), data.rows), dim) + model.row_memory() * mine
    row_bytes = dim * _itemsize(model)
    feed = feed_budget(job, model, schedule, data)
    statistics = _statistics_bytes(model, widths(data, model.arrays))
    to_peers = model.peer_bytes(worker_batch(job, schedule), dim)
    return Plan(
        run_id=run_id_of(job, data),
        rows=rows,
        rows_per_worker=mine,
        row_bytes=row_bytes,
        dim=data.dim,
        atoms=model.atoms,
        shards=len(data.shards()),
        data_bytes=rows * dim * data.dtype.itemsize,
        workers=job.workers,
        atom_groups=job.atom_groups,
        threads=threads_of(job),
        # Only here is the device this process's own; other engines look for theirs where they run.
        device=str(device_of(job)) if job.engine == "local" else job.device,
        passes=schedule.passes,
        updates=schedule.passes * per_pass,
        batch_rows=schedule.batch_rows,
        model_bytes_per_worker=need,
        feed_bytes_per_worker=min(feed, mine * row_bytes),
        memory_bytes_per_worker=PROCESS_BYTES + need + min(feed, mine * row_bytes),
        memory_limit_per_worker=memory_limit(job),
        statistics_bytes=statistics,
        peer_bytes_per_update=to_peers,
        traffic_bytes_per_update=2 * statistics * (job.row_groups - 1) // job.row_groups + to_peers,
        flops_per_row=model.flops(dim),
    )


def feed_budget(job: LearnJob, model: Model, schedule: Schedule, data: Dataset) -> int:
    """Bytes of rows that a worker may keep: half of what its limit leaves.

    Raises:
        JobError: not even one batch fits.
    """
    limit = memory_limit(job)
    batch = min(worker_batch(job, schedule), data.rows)
    remembered = model.row_memory() * most_rows(job, schedule, min(job.rows or data.rows, data.rows))
    # Read ahead: a few batches, or the chunks that batches are mixed from.
    chunk = min(data.chunk_rows, data.rows)
    ahead = 4 * batch
    if schedule.update_every == "batch":
        ahead += min(group_chunks(schedule, chunk) * chunk, data.rows)
    dim = sum(widths(data, model.arrays))
    need = PROCESS_BYTES + remembered + model.memory(batch, dim) + ahead * dim * _itemsize(model)
    if need > limit:
        raise JobError(
            f"atoms={job.atoms:,} with {batch:,} rows of {dim:,} dimensions at once need "
            f"{need / GIB:,.1f} GiB per worker, but a worker may use {limit / GIB:,.1f} GiB; "
            "use fewer atoms, a smaller batch_rows, or more memory_gib" + _dealt(model)
        )
    return min((limit - need) // 2, LARGEST_FEED)


def _dealt(model: Model) -> str:
    return "; --atom-groups deals the atoms to several workers" if model.per_atom else ""


def most_rows(job: LearnJob, schedule: Schedule, rows: int) -> int:
    """Rows of the worker that has most. A worker that is updated per batch reads rows of the whole data set in turn."""
    if schedule.update_every == "batch":
        return math.ceil(rows / job.row_groups)
    blocks = math.ceil(rows / schedule.batch_rows)
    return min(rows, math.ceil(blocks / job.row_groups) * schedule.batch_rows)


def memory_limit(job: Job) -> int:
    """Bytes one worker may use: as the job says, or an equal share of the free memory of this machine."""
    if job.memory_gib is not None:
        return int(job.memory_gib * GIB)
    share = 1 if job.engine == "local" or job.address else job.workers
    return psutil.virtual_memory().available // share


def worker_batch(job: LearnJob, schedule: Schedule) -> int:
    """Rows that one worker handles at once."""
    if schedule.update_every == "pass":
        return schedule.batch_rows
    return math.ceil(schedule.batch_rows / job.row_groups)


def share_of(job: LearnJob, schedule: Schedule) -> float:
    """Part of what is handled at once that is one worker's."""
    return worker_batch(job, schedule) / schedule.batch_rows


def threads_of(job: Job) -> int:
    """Compute threads per worker."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if job.threads is not None:
        return job.threads
    return cores if job.engine == "local" else max(1, cores // job.workers)


def device_of(job: Job) -> torch.device:
    """The device of this process.

    Raises:
        JobError: a GPU is asked for and there is none.
    """
    if job.device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        # Ray shows a worker its own GPU only; ranks that a launcher placed on one node take turns.
        local = next((os.environ[n] for n in LOCAL_RANKS if n in os.environ), "0")
        return torch.device("cuda", int(local) % torch.cuda.device_count())
    if job.device == "cuda":
        raise JobError("device=cuda: this worker sees no CUDA device; use --device cpu or auto")
    return torch.device("cpu")


def _itemsize(model: Model) -> int:
    return model.torch_dtype.itemsize


def _statistics_bytes(model: Model, widths: tuple[int, ...]) -> int:
    """Bytes of one all-reduce, taken from the statistics of no rows under start values of the right shapes."""
    dim = sum(widths)
    sample = torch.eye(min(dim, 8), dim).double()
    probe = Probe(1, torch.zeros(dim).double(), torch.ones(dim).double(), sample, widths)
    params = model.init(probe, torch.Generator().manual_seed(0))
    model.check_start(params)
    nothing = Batch(torch.empty(0, dim, dtype=model.torch_dtype))
    return model.statistics(params, nothing, Stage(step=0, steps=1)).flatten().nbytes
