"""A short trial of a job's real work, alone in a process of its own: what it costs per row and update, and its memory.

`python -m sparsefleet.workers.trial JOB.json` works a few updates from all over the schedule (a data cut, a temperature
change what a row costs), over the first blocks of rows, and prints what it measured as one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from ..models import Batch, Model, Params, Schedule
from ..storage import ArtifactStore, open_dataset
from .columns import read_columns
from .communicator import Solo
from .engines.failures import FINAL, describe, revive
from .errors import EngineError
from .feed import Feed, Update
from .job import LearnJob
from .plan import feed_budget, most_rows, share_of
from .program import prepare_process, survey, total

SECONDS = 4.0
MOST_BLOCKS = 8
POINTS = 6
STEPS_A_POINT = 3
LEAST_ROWS = 512
LONGEST = 300.0


class Trial(BaseModel):
    """What a worker like this process needs; seconds are wall seconds."""

    model_config = ConfigDict(frozen=True)

    seconds_per_row: float
    """Statistics and surveys of one row, the schedule's mean."""
    seconds_per_update: float
    """What an update costs whatever the number of rows."""
    begin_seconds_per_row: float
    """What a row costs once, beyond that: sets of states are begun in the first update."""
    read_seconds_per_row: float
    """Reading a row from the data set."""
    commit_seconds: float
    start_seconds: float
    """Start values, and the sample of rows that they are made from."""
    base_bytes: int
    """Resident with all libraries loaded."""
    peak_bytes: int
    """Most that was resident."""
    held_bytes: int
    """Rows among that."""
    rows: int
    """Rows that were worked on."""


def trial(job: LearnJob) -> Trial:
    """The trial of `job` in a new process, on the job's device and threads.

    Raises:
        JobError, ModelError, StorageError: as the job itself would.
        EngineError: the process died, or took more than five minutes.
    """
    with tempfile.TemporaryDirectory(prefix="sparsefleet-") as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job.to_dict()), encoding="utf-8")
        command = [sys.executable, "-m", "sparsefleet.workers.trial", str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
        except subprocess.TimeoutExpired as err:
            raise EngineError(f"the trial took more than {LONGEST:.0f} s; plan --no-probe makes none") from err
    said = done.stdout.strip().rpartition("\n")[2]
    if done.returncode or not said:
        last = done.stderr.strip().rpartition("\n")[2]
        raise EngineError(f"the trial ended with code {done.returncode}: {last}; plan --no-probe makes none")
    found = json.loads(said)
    if "error" in found:
        raise revive(found["error"])
    return Trial.model_validate(found)


def measure(job: LearnJob) -> Trial:
    """The trial, here."""
    device = prepare_process(job)
    data, model = open_dataset(job.data), job.build_share()
    schedule = job.build_schedule(model)
    rows = min(job.rows or data.rows, data.rows)
    if schedule.update_every == "batch":
        # As many as a worker keeps and mixes; where updates go through all rows, only the first blocks are read.
        rows = most_rows(job, schedule, rows)
    base = _peak()
    budget = feed_budget(job, model, schedule, data)
    make = lambda schedule: Feed(  # noqa: E731
        data, model, schedule, Solo(), rows=rows, seed=job.seed, budget=budget, device=device
    )
    feed = make(schedule)
    begun = time.monotonic()
    params = model.init(feed.probe(), torch.Generator().manual_seed(job.seed))
    model.check_start(params)
    params = {name: value.to(device) for name, value in params.items()}
    start_seconds = time.monotonic() - begun
    begun = time.monotonic()
    block = min(schedule.batch_rows, rows)
    read_columns(data, model.arrays, 0, block)
    read = (time.monotonic() - begun) / block
    work = _Work(model, params, share_of(job, schedule), schedule.update_every == "batch")
    for update in _updates(feed, lambda size: make(replace(schedule, batch_rows=size)), schedule, work):
        work.do(update)
    commit = _commit_seconds(job, work.params)
    per_row, first = work.per_row()
    return Trial(
        seconds_per_row=per_row,
        seconds_per_update=float(np.median(work.update_seconds)),
        begin_seconds_per_row=max(first - per_row, 0.0) if model.kept_rows() else 0.0,
        read_seconds_per_row=read,
        commit_seconds=commit,
        start_seconds=start_seconds,
        base_bytes=base,
        peak_bytes=_peak(),
        held_bytes=feed.held_bytes,
        rows=max(work.rows),
    )


def _updates(feed: Feed, small: Callable[[int], Feed], schedule: Schedule, work: _Work) -> Iterator[Update]:
    """Updates spread over the schedule, each over as many blocks as the time allows.

    `small`: a feed of blocks of so many rows, for models of which one block takes long.
    """
    if schedule.update_every == "batch":
        # The first batches wait for the rows that batches are mixed from.
        for update in feed.run(0):
            yield update
            if work.spent() > SECONDS or len(work.rows) > 200:
                return
        return
    points = np.linspace(0, feed.updates - 1, POINTS).astype(int).tolist()
    updates = STEPS_A_POINT
    if feed.updates <= POINTS * STEPS_A_POINT + 2:
        # Each update once and in its turn: what sets of states cost depends on how often they were updated.
        points, updates = [0], feed.updates
    # One whole block first: it shows the memory, and what there is time for.
    yield from _first_blocks(feed, 0, 1, 1)
    each = SECONDS / (updates * len(points))
    blocks = each / max(work.spent(), 1e-6)
    if blocks < 1:
        feed = small(max(LEAST_ROWS, int(blocks * schedule.batch_rows)))
        work.begins = len(work.rows)
        yield from _first_blocks(feed, 0, 1, 1)
    for step in points:
        yield from _first_blocks(feed, step, updates, max(1, min(MOST_BLOCKS, int(blocks))))


def _first_blocks(feed: Feed, step: int, updates: int, blocks: int) -> Iterator[Update]:
    for update in islice(feed.run(step), updates):
        yield replace(update, batches=lambda u=update: islice(u.batches(), blocks))


@dataclass
class _Work:
    """Updates done, and what each took."""

    model: Model
    params: Params
    share: float
    """Part of a batch that is one worker's."""
    per_batch: bool
    """Whether batches follow each other; otherwise updates lie at places of the schedule."""
    rows: list[int] = field(default_factory=list[int])
    row_seconds: list[float] = field(default_factory=list[float])
    update_seconds: list[float] = field(default_factory=list[float])
    steps: list[int] = field(default_factory=list[int])
    begins: int = 0
    """Which update began the sets of states of the rows that all later ones work on."""

    def do(self, update: Update) -> None:
        batches = [self._part(b) for b in update.batches()]
        comm, update = Solo(), replace(update, batches=lambda: batches)
        begun = time.perf_counter()
        stage = survey(self.model, self.params, update, comm)
        stats, _ = total(self.model, self.params, batches, stage, comm, 0.0)
        middle = time.perf_counter()
        self.model.metrics(self.params, stats)
        self.params = self.model.update(self.params, stats, stage)
        self.rows.append(sum(len(b.x) for b in batches))
        self.row_seconds.append(middle - begun)
        self.update_seconds.append(time.perf_counter() - middle)
        self.steps.append(stage.step)

    def _part(self, batch: Batch) -> Batch:
        if self.share >= 1:
            return batch
        return Batch(batch.x[: max(1, round(len(batch.x) * self.share))], batch.start)

    def spent(self) -> float:
        return sum(self.row_seconds) + sum(self.update_seconds)

    def per_row(self) -> tuple[float, float]:
        """Seconds per row: the mean over the schedule, and of the update that began."""
        each = np.array(self.row_seconds[self.begins :]) / np.maximum(self.rows[self.begins :], 1)
        first, later, steps = float(each[0]), each[1:], self.steps[self.begins + 1 :]
        if not len(later):
            return first, first
        if self.per_batch:
            return float(np.median(later)), first
        # Places lie apart; the updates of one follow each other. A single place is the whole schedule.
        places = np.split(later, np.flatnonzero(np.diff(steps) != 1) + 1)
        return float(np.mean([np.median(p) for p in places] if len(places) > 1 else later)), first


def _commit_seconds(job: LearnJob, params: Params) -> float:
    with tempfile.TemporaryDirectory(prefix="sparsefleet-") as folder:
        run = ArtifactStore(folder).run("trial")
        arrays = {name: value.detach().cpu().numpy() for name, value in params.items()}
        begun = time.monotonic()
        run.commit(1, arrays, {"free_energy": np.zeros(100)}, job.to_dict())
        return time.monotonic() - begun


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return getrusage(RUSAGE_SELF).ru_maxrss * unit


def main(path: str) -> None:
    """Print the trial of the job in this file, or the error that keeps it from being done."""
    try:
        found = measure(LearnJob.parse(json.loads(Path(path).read_text(encoding="utf-8")))).model_dump()
    except tuple(FINAL.values()) as err:
        found = {"error": describe(err)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
