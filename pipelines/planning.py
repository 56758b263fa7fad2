"""What a job will need, before anyone pays for it: memory, bytes, and seconds from a short trial on this machine."""

from __future__ import annotations

import time
from typing import Any

import torch

from ..models import Batch, Model
from ..storage import open_dataset
from ..workers.columns import read_columns
from ..workers.communicator import Solo
from ..workers.feed import Feed
from ..workers.job import LearnJob
from ..workers.plan import Plan, plan
from ..workers.program import prepare_process, total
from .console import duration, size
from .paths import absolute, make_importable

TRIAL_ROWS = 2048
TRIAL_SECONDS = 2.0


def predict(job: LearnJob, rows_per_second: float | None = None) -> dict[str, Any]:
    """The plan of a job with the seconds that it will take, as plain values.

    Args:
        job: the job.
        rows_per_second: of one worker; measured here by a short trial if not given.

    Raises:
        JobError, ModelError, StorageError: the job cannot be done; the message has the numbers.
    """
    job = absolute(job)
    make_importable(job.module_path)
    found = plan(job)
    speed = rows_per_second or measure(job)
    seconds = found.rows * found.passes / speed / found.workers
    parameters = found.dim * found.atoms * 8
    return found.model_dump() | {
        "rows_per_second_per_worker": speed,
        "seconds": seconds,
        "version_bytes": parameters,
    }


def measure(job: LearnJob) -> float:
    """Rows per second that one worker like this machine adds up, from a few batches of the first rows."""
    device = prepare_process(job)
    data, model = open_dataset(job.data), job.build_model()
    rows = min(job.rows or data.rows, data.rows, TRIAL_ROWS)
    schedule = job.build_schedule(model)
    feed = Feed(data, model, schedule, Solo(), rows=rows, seed=job.seed, budget=2**28, device=device)
    params = model.init(feed.probe(), torch.Generator().manual_seed(job.seed))
    params = {n: p.to(device) for n, p in params.items()}
    block = read_columns(data, model.arrays, 0, min(rows, schedule.batch_rows))
    x = torch.from_numpy(block).to(device, model.torch_dtype)
    _once(model, params, x, feed)
    begun, done = time.monotonic(), 0
    while time.monotonic() - begun < TRIAL_SECONDS or not done:
        _once(model, params, x, feed)
        done += len(x)
    return done / (time.monotonic() - begun)


def _once(model: Model, params: dict[str, torch.Tensor], x: torch.Tensor, feed: Feed) -> None:
    from ..workers.feed import Update
    from ..workers.program import survey

    stage = next(iter(feed.run(0))).stage
    update = Update(stage, lambda: [Batch(x, 0)])
    stage = survey(model, params, update, Solo())
    stats, _ = total(model, params, update.batches(), stage, Solo(), 0.0)
    model.update(params, stats, stage)


def lines(job: LearnJob, predicted: dict[str, Any]) -> dict[str, str]:
    """The plan for people: name -> text."""
    p = Plan.model_validate({k: v for k, v in predicted.items() if k in Plan.model_fields})
    fits = "fits" if p.memory_bytes_per_worker <= p.memory_limit_per_worker else "DOES NOT FIT"
    return {
        "data": f"{p.rows:,} rows of {p.dim:,} in {p.shards} shards ({size(p.data_bytes)})",
        "model": f"{job.model}, {p.atoms:,} atoms, {job.dtype}",
        "workers": f"{p.workers} ({job.engine}) with {p.threads} threads on {p.device}",
        "updates": f"{p.updates:,} in {p.passes} passes, {p.batch_rows:,} rows at once",
        "memory per worker": f"{size(p.memory_bytes_per_worker)} of {size(p.memory_limit_per_worker)}: {fits}"
        f" (model {size(p.model_bytes_per_worker)}, rows {size(p.feed_bytes_per_worker)})",
        "all-reduce": f"{size(p.statistics_bytes)} of statistics an update; "
        f"each worker sends {size(p.traffic_bytes_per_update)}",
        "store": f"about {size(predicted['version_bytes'])} a version and a commit",
        "time": f"about {duration(predicted['seconds'])}, if every worker is like this machine"
        f" ({predicted['rows_per_second_per_worker']:,.0f} rows/s in a short trial here)",
    }
