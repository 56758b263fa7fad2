"""The programs that a group of workers runs, every member the same: `learn`, `encode` and `harvest`.

A program is a generator of `Progress`; an engine starts it on each member with that member's communicator and hands
on what rank 0 yields. The last commit is the truth: whoever starts the same job again continues there.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import zlib
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
import torch

from ..models import Batch, Model, Params, Stage, Stats
from ..storage import ArtifactStore, StorageError, StoreConflict, Unreachable, locate, open_dataset
from ..storage.artifacts import RunBranch
from . import logs, memories, slices
from .activations.job import HarvestJob
from .communicator import Communicator
from .errors import EngineError, JobError
from .feed import Feed, Update
from .job import EncodeJob, Job, LearnJob
from .plan import device_of, feed_budget, threads_of
from .progress import Progress
from .slices import Layout
from .start import initial_params, load_dictionary, run_id_of
from .stopwatch import COMMIT as COMMITTING
from .stopwatch import Stopwatch, Timed

LOG = logging.getLogger(__name__)
Program = Callable[[Any, Communicator], Generator[Progress, None, None]]
CONTINUE, COMMIT = 0.0, 1.0
# Also the age from which a commit may go: who reads one needs less.
TIDY_SECONDS = 600.0


@dataclass
class RunState:
    """Everything that a run needs to go on: it is what a commit holds."""

    step: int
    params: Params
    history: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    kept: int = 0
    """The step of the last commit."""
    memory: str = ""
    """Where what the model keeps of every row lay at the last commit; empty if nowhere."""
    whole: bool = True
    """False while step, parameters and history change, one after the other."""

    def arrays(self, without: tuple[str, ...] = ()) -> dict[str, np.ndarray[Any, Any]]:
        """Parameters as arrays on the host, some left out."""
        return {name: value.detach().cpu().numpy() for name, value in self.params.items() if name not in without}


def learn(job: LearnJob, comm: Communicator) -> Generator[Progress, None, None]:
    """Learn a dictionary: add up statistics over the data, update, commit, until the schedule ends.

    Raises:
        JobError, ModelError, StorageError: the job cannot be done as it is.
        EngineError: members disagree about the parameters.
    """
    device = prepare_process(job)
    watch = Stopwatch()
    comm = Timed(comm, watch)
    data = open_dataset(job.data)
    layout = slices.arrange(comm, job.atom_groups)
    model = job.build_share(layout.atoms)
    schedule = job.build_schedule(model)
    rows = min(job.rows or data.rows, data.rows)
    budget = feed_budget(job, model, schedule, data)
    feed = Feed(data, model, schedule, layout.rows, rows=rows, seed=job.seed, budget=budget, device=device)
    run_id = run_id_of(job, data)
    logs.about(run=run_id)
    store = ArtifactStore(job.store) if comm.rank == 0 else None
    run = store.run(run_id) if store is not None else None
    found = comm.broadcast(_resume(run) if run is not None else None)
    if found is not None:
        found.params = slices.read(found.memory, model, found.params, layout.held(model.atoms))
    state = found or _begin(job, model, feed, run, comm, layout)
    state.params = {name: value.to(device) for name, value in state.params.items()}
    if state.memory and not layout.dealt:
        memories.read(state.memory, model, feed.kept, device)

    clock = Clock(job, state)
    say = lambda kind, **more: Progress(  # noqa: E731
        kind=kind,
        run_id=run_id,
        step=state.step,
        steps=feed.updates,
        seconds=clock.seconds(),
        rows=round(clock.rows),
        spent=watch.seconds(),
        **more,
    )
    yield say("start", message=f"continues at update {state.step}" if state.step else "starts")
    try:
        for read in watch.waiting(feed.run(state.step)):
            update = replace(read, batches=lambda read=read: watch.waiting(read.batches()))
            stage = survey(model, state.params, update, comm)
            last = state.step + 1 == feed.updates
            wish = COMMIT if last or clock.commit_due() else CONTINUE
            stats, wish = total(model, state.params, checked(update.batches(), comm), stage, layout.rows, wish)
            wish = float(layout.atoms.allreduce(torch.tensor([wish]))[0])
            metrics = model.metrics(state.params, stats)
            params = model.update(state.params, stats, stage)
            state.whole = False
            state.params, state.step = params, state.step + 1
            clock.record(metrics, rows if schedule.update_every == "pass" else rows * schedule.passes / feed.updates)
            if wish >= COMMIT:
                agree(layout.rows, state.params)
                if layout.dealt:
                    agree(comm, slices.shared(model, state.params))
                with watch.on(COMMITTING):
                    generation = remember(run, state, model, feed, comm, layout)
                if store is not None and run is not None:
                    with watch.on(COMMITTING):
                        commit(run, state, job, generation, without=model.per_atom if layout.dealt else ())
                        if clock.tidy_due():
                            tidy(store)
                clock.committed()
            state.whole = True
            if wish >= COMMIT:
                yield say("commit", metrics=metrics, rows_per_second=clock.rate)
            elif clock.report_due():
                yield say("step", metrics=metrics, rows_per_second=clock.rate)
    except (KeyboardInterrupt, GeneratorExit):
        # Alone, this worker may keep what it has done; in a group the others would wait in the next reduction. What is
        # kept of rows may be ahead of the parameters by a part of a pass: then the last commit stands.
        mine = comm.size == 1 and not model.kept_rows()
        if run is not None and mine and state.whole and state.step > state.kept:
            # Another process may have taken the run over: then there is nothing to keep. The store may be away: then
            # the last commit stands, and the interruption does not wait for it.
            with suppress(StoreConflict, Unreachable):
                commit(run, state, job)
        raise
    yield say("done", rows_per_second=clock.rate, metrics=_last(state), result={"run_id": run_id, "step": state.step})


def encode(job: EncodeJob, comm: Communicator) -> Generator[Progress, None, None]:
    """Write the sparse codes of a data set, shard by shard; shards that are done stay done.

    Raises:
        JobError, ModelError, StorageError: the job cannot be done as it is.
    """
    from .encoding import ShardEncoder

    device = prepare_process(job)
    data = open_dataset(job.data)
    dictionary = comm.broadcast(load_dictionary(job) if comm.rank == 0 else None)
    assert dictionary is not None
    encoder = ShardEncoder(job, data, dictionary, device)
    if comm.rank == 0:
        encoder.create()
    comm.barrier()
    writer = encoder.open()
    todo = comm.broadcast([s.index for s in writer.missing()])
    mine = [s for s in writer.shards() if s.index in set(todo[comm.rank :: comm.size])]
    begun = time.monotonic()
    rows = entries = 0
    say = lambda kind, done, **more: Progress(  # noqa: E731
        kind=kind, step=done, steps=len(todo), rows=rows * comm.size, seconds=time.monotonic() - begun, **more
    )
    yield say("start", 0, message=f"{len(todo)} of {len(writer.shards())} shards to encode{encoder.note}")
    for i, shard in enumerate(mine):
        comm.check()
        entries += encoder.encode_shard(writer, shard)
        rows += shard.stop - shard.start
        rate = rows * comm.size / max(time.monotonic() - begun, 1e-9)
        yield say("step", min((i + 1) * comm.size, len(todo)), rows_per_second=rate)
    counts = comm.allreduce(torch.tensor([rows, entries, *encoder.squares], dtype=torch.float64))
    if comm.rank == 0:
        writer.finish()
    comm.barrier()
    metrics = {"rows": float(data.rows)}
    if counts[0] > 0:
        metrics["entries_per_row"] = float(counts[1] / counts[0])
    if counts[3] > 0:
        metrics["relative_error"] = float((counts[2] / counts[3]).sqrt())
    rate = float(counts[0]) / max(time.monotonic() - begun, 1e-9)
    metrics["rows_per_second"] = rate
    yield say(
        "done", len(todo), rows_per_second=rate, metrics=metrics, result={"out": job.out, "dictionary": dictionary.ref}
    )


def harvest(job: HarvestJob, comm: Communicator) -> Generator[Progress, None, None]:
    """Write the activations of a network, shard by shard; see activations/harvesting.py."""
    from .activations.harvesting import harvest as run

    yield from run(job, comm, prepare_process(job))


PROGRAMS: dict[str, Program] = {"learn": learn, "encode": encode, "harvest": harvest}


# -- the steps of a program -----------------------------------------------------------------------------------------


def prepare_process(job: Job) -> torch.device:
    """Threads, device and import path of this worker."""
    folder = os.path.abspath(job.module_path or os.getcwd())
    if folder not in sys.path:
        # Last, so that a file of the user's cannot stand in for a library.
        sys.path.append(folder)
    torch.set_num_threads(threads_of(job))
    return device_of(job)


def survey(model: Model, params: Params, update: Update, comm: Communicator) -> Stage:
    """The update's stage, refined by the model's preliminary statistics."""
    stage = update.stage
    for _ in range(model.surveys_at(stage)):
        found = add_up(model.survey(params, b, stage) for b in checked(update.batches(), comm))
        stage = model.refine(params, found.unflatten(comm.allreduce(found.flatten())), stage)
    return stage


def total(
    model: Model, params: Params, batches: Iterable[Batch], stage: Stage, comm: Communicator, wish: float
) -> tuple[Stats, float]:
    """The statistics of all data, and the largest wish that rank 0 sent along.

    Rank 0's wish (to commit) travels in the same message as the statistics, so that all members act on it together.
    """
    mine = add_up(model.statistics(params, b, stage) for b in batches)
    vector = mine.flatten()
    tail = vector.new_tensor([wish if comm.rank == 0 else 0.0])
    summed = comm.allreduce(torch.cat([vector, tail]))
    return mine.unflatten(summed[:-1]), float(summed[-1])


def checked(batches: Iterable[Batch], comm: Communicator) -> Iterable[Batch]:
    """The same batches; between two of them an interruption may happen."""
    for batch in batches:
        comm.check()
        yield batch


def add_up(parts: Iterable[Stats]) -> Stats:
    """The sum of statistics."""
    return reduce(lambda a, b: a + b, parts)


def agree(comm: Communicator, params: Params) -> None:
    """Stop the run unless every member holds the same parameters.

    Raises:
        EngineError: their checksums differ.
    """
    checksum = 0
    for _, value in sorted(params.items()):
        checksum = zlib.crc32(value.detach().cpu().contiguous().numpy().reshape(-1).view(np.uint8).data, checksum)
    mine = float(checksum)
    # A 32-bit checksum and its sum over 10^5 members are exact in float64.
    mean = float(comm.allreduce(torch.tensor([mine], dtype=torch.float64))[0]) / comm.size
    if mean != mine:
        raise EngineError(
            f"rank {comm.rank} holds other parameters than the rest of the group (checksum {mine:.0f}): "
            "the workers' processors or libraries differ; use equal machines or --dtype float64"
        )


def remember(
    run: RunBranch | None, state: RunState, model: Model, feed: Feed, comm: Communicator, layout: Layout
) -> str:
    """Write what the model keeps of every row, or the atoms where no worker has all; the generation's name, which the
    next commit has to give (or empty).

    Raises:
        EngineError: it could not be written; the commit before it is kept.
    """
    if not model.kept_rows() and not layout.dealt:
        return ""
    name = run.memory.new(state.step) if run is not None else ""
    uri = comm.broadcast(run.memory.at(name).uri if run is not None else "")
    try:
        if layout.dealt:
            slices.write(uri, model, state.params, comm, layout)
        else:
            memories.write(uri, model, feed.kept, comm, rows=feed.rows, block_rows=feed.block_rows)
    except Unreachable:
        raise
    except StorageError as err:
        raise _not_committed(state, err) from err
    return name


def commit(run: RunBranch, state: RunState, job: LearnJob, generation: str = "", without: tuple[str, ...] = ()) -> None:
    """Write the state as the run's next commit, and remove what the ones before it had beside them.

    `without`: parameters that `generation` holds.

    Raises:
        StoreConflict: another process works on this run.
        Unreachable: the store is away for now.
        EngineError: it could not be written; the commit before it is kept.
    """
    try:
        run.commit(state.step, state.arrays(without), _columns(state), job.to_dict(), memory=generation)
        if generation or state.memory:
            run.memory.keep(generation)
    except (StoreConflict, Unreachable):
        raise
    except StorageError as err:
        raise _not_committed(state, err) from err
    state.kept = state.step


def _not_committed(state: RunState, err: StorageError) -> EngineError:
    return EngineError(
        f"update {state.step} could not be committed: {err}. The commit of update {state.kept} is kept: "
        "mend the store and run the same job again"
    )


def tidy(store: ArtifactStore) -> None:
    """Remove what newer commits have replaced from a store on this machine: a run of days would fill its disk."""
    if locate(store.uri).is_local:
        try:
            store.garbage_collect(dry_run=False, older_than_days=TIDY_SECONDS / 86400)
        except StorageError:
            LOG.warning("old commits in %s could not be removed", store.uri, exc_info=True)


class Clock:
    """When to commit and to report, and how fast the run is."""

    def __init__(self, job: LearnJob, state: RunState) -> None:
        self._job, self._state = job, state
        self._begun = self._last_commit = self._last_update = self._last_tidy = time.monotonic()
        self._last_report = 0.0
        # A continued run's wall clock goes on where its history ends.
        self._before = state.history.get("seconds", [0.0])[-1]
        self.rate = 0.0
        self.rows = 0.0
        self.updates = 0

    def seconds(self) -> float:
        """Wall seconds of the run, interruptions left out."""
        return self._before + time.monotonic() - self._begun

    def commit_due(self) -> bool:
        """Whether the last commit is old enough."""
        return time.monotonic() - self._last_commit >= self._job.commit_seconds

    def committed(self) -> None:
        """A commit was made now."""
        self._last_commit = time.monotonic()

    def tidy_due(self) -> bool:
        """Whether old commits were removed long enough ago; counts as done then."""
        now = time.monotonic()
        if now - self._last_tidy < TIDY_SECONDS:
            return False
        self._last_tidy = now
        return True

    def report_due(self) -> bool:
        """Whether the last report is old enough; counts as reported then."""
        now = time.monotonic()
        if now - self._last_report < self._job.report_seconds:
            return False
        self._last_report = now
        return True

    def record(self, metrics: dict[str, float], rows: float) -> None:
        """Put an update's metrics into the history; `rows` rows were read for it."""
        now = time.monotonic()
        speed = rows / max(now - self._last_update, 1e-9)
        self.rate = speed if not self.updates else 0.9 * self.rate + 0.1 * speed
        self._last_update = now
        self.rows += rows
        self.updates += 1
        for name, value in {**metrics, "seconds": self.seconds()}.items():
            self._state.history.setdefault(name, []).append(value)


def _resume(run: RunBranch) -> RunState | None:
    found = run.latest()
    if found is None:
        return None
    params = {name: torch.from_numpy(np.array(value)) for name, value in found.arrays.items()}
    history = {name: list(map(float, values)) for name, values in found.history.items()}
    memory = run.memory.at(found.memory).uri if found.memory else ""
    return RunState(found.step, params, history, kept=found.step, memory=memory)


def _begin(
    job: LearnJob, model: Model, feed: Feed, run: RunBranch | None, comm: Communicator, layout: Layout
) -> RunState:
    """The start values, committed: from here on the run can be resumed, and a second process that begins it fails."""
    params: Params = {}
    if layout.rows.rank == 0:
        params = model.init(feed.probe(), torch.Generator().manual_seed(job.seed))
        params = initial_params(job, params, layout.held(model.atoms))
        model.check_start(params)
    if not layout.dealt:
        if run is not None:
            run.commit(0, RunState(0, params).arrays(), {}, job.to_dict())
        return RunState(0, comm.broadcast(params))
    # Computed by several: what is to be the same is the same bits.
    params = layout.rows.broadcast(params) | comm.broadcast(slices.shared(model, params))
    state = RunState(0, params)
    generation = remember(run, state, model, feed, comm, layout)
    if run is not None:
        run.commit(0, state.arrays(model.per_atom), {}, job.to_dict(), memory=generation)
    return state


def _columns(state: RunState) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.asarray(values, dtype=np.float64) for name, values in state.history.items()}


def _last(state: RunState) -> dict[str, float]:
    return {name: values[-1] for name, values in state.history.items() if values}


def run_program(name: str, job: Job, comm: Communicator) -> Generator[Progress, None, None]:
    """The program called `name`, for `job`; what it says is logged too."""
    if name not in PROGRAMS:
        raise JobError(f"unknown program {name!r}; choose one of {', '.join(PROGRAMS)}")
    logs.start()
    logs.about(run=job.label, engine=job.engine, rank=comm.rank, workers=comm.size)
    for message in PROGRAMS[name](job, comm):
        # Commits are rank 0's.
        if message.kind in ("start", "done") or (message.kind == "commit" and comm.rank == 0):
            logs.event(LOG, message)
        yield message
