"""What a job will need, before anyone pays for it: memory, bytes, and seconds, from a short trial on this machine."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ..models import Model, Schedule
from ..storage import open_dataset
from ..workers import scale
from ..workers.feed import group_chunks
from ..workers.job import LearnJob
from ..workers.plan import Plan, plan
from ..workers.trial import Trial, trial
from .console import duration, size
from .paths import absolute, make_importable

MANY = 1000
"""The number of workers that the model on paper is shown for."""
MARGIN = 1.05
"""What is predicted over what the trial showed: an allocator's free pages, a store's buffers."""
ENGINE_BYTES = {"local": 0, "mpi": 30 << 20, "ray": 90 << 20}
"""What the engine's own libraries add to a worker."""
MEMORY_WRITE = 100e6
"""Bytes per second at which what is kept of rows goes into a commit."""
GROUPS = 3
"""Groups of chunks that batches are mixed from, beyond those of the trial: shuffled copies, and what the allocator
comes to keep over the first hundreds of updates (measured: a process grows by four to five groups, then no more)."""
AHEAD = 4
"""Blocks read ahead and in use where rows are not kept."""


def predict(job: LearnJob, rows_per_second: float | None = None, *, probe: bool = True) -> dict[str, Any]:
    """The plan of a job with the seconds that it will take, as plain values.

    Args:
        job: the job.
        rows_per_second: of one worker, where it is known already: then no trial is made.
        probe: make a trial; without it there is no time, and memory is the models' upper bound.

    Raises:
        JobError, ModelError, StorageError: the job cannot be done; the message has the numbers.
    """
    job = absolute(job)
    make_importable(job.module_path)
    found = plan(job)
    model = job.build_model()
    schedule = job.build_schedule(model)
    facts = found.model_dump() | {
        "version_bytes": found.dim * found.atoms * 8,
        "kept_bytes": found.rows * sum(math.prod(s) * np.dtype(d).itemsize for s, d in model.kept_rows().values()),
        "busy_workers": busy_workers(found, schedule),
    }
    tried = trial(job) if probe and rows_per_second is None else None
    if tried is not None:
        facts["memory_bytes_per_worker"] = memory_bytes(
            found, job, model, schedule, open_dataset(job.data).chunk_rows, tried
        )
        facts["trial"] = tried.model_dump()
    if tried is None and rows_per_second is None:
        return facts
    work = work_of(found, model, schedule, tried, rows_per_second or 0.0)
    return facts | {
        "rows_per_second_per_worker": 1 / work.seconds_per_row,
        "seconds": learn_seconds(found, job, model, schedule, work, tried),
        "scale": on_paper(work, found),
    }


def busy_workers(found: Plan, schedule: Schedule) -> int:
    """Workers that have rows: a pass is dealt in whole blocks."""
    if schedule.update_every == "batch":
        return min(found.row_groups, found.batch_rows) * found.atom_groups
    return min(found.workers, math.ceil(found.rows / found.batch_rows))


def work_of(found: Plan, model: Model, schedule: Schedule, tried: Trial | None, rate: float) -> scale.Work:
    """One pass, or one update of a model that is updated per batch, as the model of scale sees it."""
    per_pass = schedule.update_every == "pass"
    per_row = tried.seconds_per_row if tried is not None else 1 / rate
    if tried is not None and not _kept(found):
        # Rows are read beside the arithmetic, in every pass again.
        per_row = max(per_row, tried.read_seconds_per_row)
    return scale.Work(
        rows=found.rows if per_pass else min(found.batch_rows, found.rows),
        block_rows=found.batch_rows if per_pass else 1,
        seconds_per_row=per_row,
        serial_seconds=tried.seconds_per_update if tried is not None else 0.0,
        statistics_bytes=found.statistics_bytes,
        reductions=1 + model.surveys,
    )


def learn_seconds(
    found: Plan, job: LearnJob, model: Model, schedule: Schedule, work: scale.Work, tried: Trial | None
) -> float:
    """Wall seconds from the first update to the last commit, on workers like this machine."""
    net = replace(scale.MACHINE if job.address is None else scale.CLUSTER, spread=0.0)
    per_pass = schedule.update_every == "pass"
    one = scale.seconds(work, found.row_groups, net) + found.peer_bytes_per_update / net.bytes_per_second
    seconds = one * (schedule.passes if per_pass else found.updates)
    if tried is None:
        return seconds
    if per_pass:
        # Once: sets of states are begun, and the first pass waits for the rows that arithmetic overtakes.
        once = tried.begin_seconds_per_row + max(0.0, tried.read_seconds_per_row - work.seconds_per_row)
        seconds += found.rows_per_worker * once
    commits = 1 + int(seconds / max(job.commit_seconds, one))
    remembered = Model.row_memory(model) * found.rows_per_worker / MEMORY_WRITE
    return seconds + commits * (tried.commit_seconds + remembered)


def memory_bytes(found: Plan, job: LearnJob, model: Model, schedule: Schedule, chunk_rows: int, tried: Trial) -> int:
    """Most bytes that one worker will have resident: what the trial had, and the rows that it did not see."""
    mine = found.rows_per_worker
    rows = max(0, found.feed_bytes_per_worker - tried.held_bytes)
    if not _kept(found):
        rows += AHEAD * min(found.batch_rows, mine) * found.row_bytes
    if schedule.update_every == "batch":
        rows += GROUPS * min(group_chunks(schedule, chunk_rows) * chunk_rows, mine) * found.row_bytes
    remembered = model.row_memory() * max(0, mine - tried.rows)
    messages = 3 * found.statistics_bytes if found.row_groups > 1 else 0
    return int(MARGIN * (tried.peak_bytes + rows + remembered + messages + ENGINE_BYTES.get(job.engine, 0)))


def _kept(found: Plan) -> bool:
    """Whether a worker keeps all of its rows in memory."""
    return found.feed_bytes_per_worker >= found.rows_per_worker * found.row_bytes


def on_paper(work: scale.Work, found: Plan) -> dict[str, Any]:
    """What many workers would do: all-reduce by each way, speed-up on these data, efficiency where the data grow."""
    net = scale.CLUSTER
    reduced = {way: seconds(MANY, found.statistics_bytes, net) for way, seconds in scale.WAYS.items()}
    best = min(reduced, key=reduced.__getitem__)
    rows = min(work.rows, max(work.block_rows, found.rows_per_worker))
    return {
        "workers": MANY,
        "allreduce_seconds": reduced,
        "way": best,
        "speed_up": scale.seconds(work, 1, net, best) / scale.seconds(work, MANY, net, best),
        "blocks": math.ceil(work.rows / work.block_rows),
        "efficiency_growing": scale.weak_efficiency(work, rows, MANY, net, best),
        "rows_per_worker_growing": rows,
        "assumptions": f"{net.name}: {net.latency * 1e6:.0f} µs and {net.bytes_per_second / 1e9:.2f} GB/s a message, "
        f"workers' times spread by {net.spread:.0%}, each as fast as this machine's, reading never waited for",
    }


def groups(p: Plan) -> str:
    """How the workers share rows and atoms."""
    return f"rows are dealt to {p.row_groups}, atoms to {p.atom_groups} ({p.atoms // p.atom_groups:,} each)"


def lines(job: LearnJob, predicted: dict[str, Any]) -> dict[str, str]:
    """The plan for people: name -> text."""
    p = Plan.model_validate({k: v for k, v in predicted.items() if k in Plan.model_fields})
    fits = "fits" if p.memory_bytes_per_worker <= p.memory_limit_per_worker else "DOES NOT FIT"
    how = "from a trial" if "trial" in predicted else "at most"
    idle = p.workers - predicted["busy_workers"]
    found = {
        "data": f"{p.rows:,} rows of {p.dim:,} in {p.shards} shards ({size(p.data_bytes)})",
        "model": f"{job.model}, {p.atoms:,} atoms, {job.dtype}",
        "workers": f"{p.workers} ({job.engine}) with {p.threads} threads on {p.device}"
        + (f"; {groups(p)}" if p.atom_groups > 1 else "")
        + (f"; {idle} of them without rows: a smaller --batch-rows would give them some" if idle else ""),
        "updates": f"{p.updates:,} in {p.passes} passes, {p.batch_rows:,} rows at once",
        "memory per worker": f"{size(p.memory_bytes_per_worker)} of {size(p.memory_limit_per_worker)}: {fits}"
        f" ({how}; rows kept {size(p.feed_bytes_per_worker)})",
        "all-reduce": f"{size(p.statistics_bytes)} of statistics an update; "
        f"each worker sends {size(p.traffic_bytes_per_update)}"
        + (f", {size(p.peer_bytes_per_update)} of it to its peers" if p.atom_groups > 1 else ""),
        "store": f"about {size(predicted['version_bytes'])} a version and a commit"
        + (f"; {size(kept)} more a commit for what is kept of every row" if (kept := predicted["kept_bytes"]) else ""),
    }
    if "seconds" not in predicted:
        return found | {"time": "unknown without a trial (--probe)"}
    paper = predicted["scale"]
    ways = ", ".join(f"{way} {1e3 * seconds:,.1f} ms" for way, seconds in paper["allreduce_seconds"].items())
    return found | {
        "time": f"about {duration(predicted['seconds'])}, if every worker is like this machine"
        f" ({predicted['rows_per_second_per_worker']:,.0f} rows/s in a short trial here)",
        f"with {MANY:,} workers": f"all-reduce: {ways}",
        "  these data": f"{paper['speed_up']:,.0f} times as fast as one worker ({paper['blocks']:,} blocks to deal)",
        "  growing data": f"{paper['efficiency_growing']:.0%} of {MANY:,} times as fast, with "
        f"{paper['rows_per_worker_growing']:,} rows a worker an update",
        "  assumed": paper["assumptions"],
    }
