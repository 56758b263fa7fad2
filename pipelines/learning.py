"""Learning a dictionary, from a checked job to a published version. Plain functions; flows.py wraps them for Prefect.

learn = check, best_fit (owns the workers), publish
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..models import TRAINING
from ..storage import ArtifactStore, Dataset, NotFound, StorageError, Unreachable, open_dataset
from ..storage.artifacts import Checkpoint, RunBranch, Version
from ..storage.artifacts.names import check_alias
from ..workers import engines, logs
from ..workers.encoding import check_complete
from ..workers.engines.patience import patiently
from ..workers.errors import EngineError, JobError
from ..workers.job import Job, LearnJob
from ..workers.progress import Progress
from ..workers.slices import columns
from . import monitoring, report
from .metrics import ordered
from .paths import absolute, make_importable
from .reporter import Reporter, silent

LOG = logging.getLogger(__name__)
DRY_ROWS = 4096
DRY_PASSES = 4
START_SEED = 1000
"""Seeds of two starts differ by this, so that the runs of neighbouring seeds have no start in common."""
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Fit:
    """What the workers did: enough to find their result in the store."""

    run_id: str
    step: int
    seconds: float
    metrics: dict[str, float]
    rows_per_second: float
    spent: dict[str, float] = field(default_factory=dict[str, float])
    """Rank 0's seconds by what they went into."""
    seed: int = 0
    others: tuple[Fit, ...] = ()
    """The fits from the job's other starts, which are not published."""
    outs: tuple[str, ...] = ()
    """The data sets that a harvest wrote."""


@dataclass(frozen=True)
class LearnResult:
    """A published version, and how it came about."""

    name: str
    number: int
    snapshot: str
    store: str
    fit: Fit
    figures: dict[str, bytes] = field(repr=False)

    @property
    def ref(self) -> str:
        """NAME@NUMBER."""
        return f"{self.name}@{self.number}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the pictures left out."""
        return {
            "version": self.ref,
            "snapshot": self.snapshot,
            "store": self.store,
            "run": self.fit.run_id,
            "steps": self.fit.step,
            "seconds": self.fit.seconds,
            "spent": self.fit.spent,
            "metrics": self.fit.metrics,
            "starts": starts_of(self.fit),
            "figures": sorted(self.figures),
        }


def learn(job: LearnJob, reporter: Reporter = silent) -> LearnResult:
    """Learn a dictionary and publish it as a version. The same call continues a run that was interrupted.

    Args:
        job: what to learn, from which data, where.
        reporter: receives the run's messages.

    Raises:
        JobError, ModelError, StorageError: the job cannot be done as it is; nothing was started.
        EngineError: the workers failed; what was committed is kept.
    """
    job = check(job)
    return publish(job, best_fit(job, reporter))


def check(job: LearnJob) -> LearnJob:
    """The job with absolute addresses, if it can be done: model, schedule, data, memory and start values are looked at.

    Raises:
        JobError, ModelError, StorageError: it cannot; the message says why.
    """
    from ..workers.plan import plan

    job = absolute(job)
    make_importable(job.module_path)
    data = open_dataset(job.data)
    if data.kind != "dense":
        raise JobError(
            f"data={job.data!r} holds codes; learning needs a data set of rows, as `sparsefleet ingest` makes"
        )
    check_complete(data, job.build_model())
    for alias in job.aliases:
        check_alias(alias)
    plan(job)
    return pinned(job)


def pinned(job: LearnJob) -> LearnJob:
    """The job with the exact version that `init` means now, so that a run can be resumed after its alias has moved."""
    if job.init is None or job.init_is_file:
        return job
    return job.model_copy(update={"init": ArtifactStore(job.store, create=False).resolve(job.init).ref})


def best_fit(job: LearnJob, reporter: Reporter = silent) -> Fit:
    """The fit of highest free energy over the job's starts; the runs of all are kept until one is published.

    Raises:
        JobError: there are several starts, and the model reports no free energy to choose by.
        EngineError: as `fit`.
    """
    if job.starts == 1:
        return replace(fit(job, reporter), seed=job.seed)
    fits: list[Fit] = []
    for start in range(job.starts):
        seed = job.seed + START_SEED * start
        say = f"start {start + 1} of {job.starts}"
        # Whoever resumes one of them alone shall move no alias: which is the best is not known yet.
        one = job.model_copy(update={"seed": seed, "starts": 1, "aliases": []})
        fits.append(replace(_comparable(one, lambda p, say=say: reporter(_from_start(p, say))), seed=seed))
    best = max(fits, key=lambda f: f.metrics["free_energy"])
    return replace(best, others=tuple(f for f in fits if f is not best))


def _comparable(job: LearnJob, reporter: Reporter) -> Fit:
    """As `fit`; JobError at the first metrics that have no free energy, and the run is dropped if it began here."""
    begun, lacking = "", False

    def watch(progress: Progress) -> None:
        nonlocal begun, lacking
        if progress.kind == "start" and not progress.step:
            begun = progress.run_id
        lacking = bool(progress.metrics) and "free_energy" not in progress.metrics
        if lacking:
            raise JobError(f"model {job.model!r} reports no free energy to choose a start by: leave out --starts")
        reporter(progress)

    try:
        return fit(job, watch)
    finally:
        if lacking and begun:
            ArtifactStore(job.store, create=False).run(begun).drop()


def starts_of(fit: Fit) -> list[dict[str, float]]:
    """Seed and free energy of every start, by seed; empty where there was one."""
    every = sorted((fit, *fit.others), key=lambda f: f.seed) if fit.others else []
    return [{"seed": f.seed, "free_energy": f.metrics["free_energy"]} for f in every]


def _from_start(progress: Progress, start: str) -> Progress:
    if progress.kind not in ("start", "done"):
        return progress
    return progress.model_copy(update={"message": f"{start}: {progress.message}".rstrip(": ")})


def fit(job: Job, reporter: Reporter = silent, program: str = "learn") -> Fit:
    """Run a job's workers to the end; they are gone when this returns or raises."""
    last: Progress | None = None
    logs.start()
    meters = monitoring.meters(job, job.label)
    with closing(engines.run(program, job)) as messages:
        for last in messages:
            if meters is not None:
                meters(last)
            logs.about(run=last.run_id or job.label, engine=job.engine)
            if last.kind == "restart" and logs.wanted():
                logs.event(LOG, last, logging.WARNING)
            reporter(last)
    if last is None or last.kind != "done":
        raise EngineError(f"engine {job.engine!r} ended without a result; run the same command again to continue")
    step = int(last.result.get("step", last.step))
    metrics = {name: last.metrics[name] for name in ordered(last.metrics) if name != "seconds"}
    return Fit(
        str(last.result.get("run_id", last.run_id)),
        step,
        last.seconds,
        metrics,
        last.rows_per_second,
        last.spent,
        outs=tuple(last.result.get("outs", ())),
    )


def publish(job: LearnJob, fit: Fit) -> LearnResult:
    """Make a finished run's last commit a version of `job.name`, point the aliases at it, drop the run's branch.

    A store that is away is waited for. What was done before is recognised, so that nothing is published twice.
    """
    return patiently(lambda: _publish(job, fit))


def _publish(job: LearnJob, fit: Fit) -> LearnResult:
    store = ArtifactStore(job.store)
    run = store.run(fit.run_id)
    found = run.latest()
    if found is None or found.step != fit.step:
        raise EngineError(f"run {fit.run_id} is no longer in {job.store} as it ended; was the store changed meanwhile?")
    data = open_dataset(job.data)
    arrays = {n: a for n, a in found.arrays.items() if not n.startswith(TRAINING)}
    pieces = {n: c for n, c in columns(run, found, job.build_model()).items() if not n.startswith(TRAINING)}
    history = {n: np.asarray(v) for n, v in found.history.items()}
    try:
        figures = pictures(job, data, visible(job, run, found), history)
    except Exception:
        # A version without pictures is better than a run without a version.
        LOG.exception("the pictures of run %s could not be drawn", fit.run_id)
        figures = {}
    parents = [] if job.init is None or job.init_is_file else [job.init]
    card = make_card(job, data, fit, history, parents)
    card["run"]["commit"] = found.snapshot
    try:
        version = published(store, job.name, found) or store.publish(
            job.name, arrays=arrays, card=card, history=history, figures=figures, pieces=pieces
        )
        for alias in job.aliases:
            store.set_alias(job.name, alias, f"{job.name}@{version.number}")
        run.drop()
        for other in fit.others:
            store.run(other.run_id).drop()
    except Unreachable:
        raise
    except StorageError as err:
        raise EngineError(
            f"what was learned could not be published: {err}. It is kept in run {fit.run_id}: "
            "mend the store and run the same command again"
        ) from err
    LOG.info("%s published in %s", version.ref, job.store)
    return LearnResult(job.name, version.number, version.snapshot, job.store, fit, figures)


def published(store: ArtifactStore, name: str, made_from: Checkpoint) -> Version | None:
    """The version that a process made of this commit, if one was killed before it could drop the run."""
    try:
        version = store.resolve(name)
    except NotFound:
        return None
    while version.written_at >= made_from.written_at:
        if store.card(version.ref).get("run", {}).get("commit") == made_from.snapshot:
            return version
        if version.number == 1:
            break
        version = store.resolve(f"{name}@{version.number - 1}")
    return None


def visible(job: LearnJob, run: RunBranch, found: Checkpoint) -> Arrays:
    """The parameters of a commit that its pictures show: of atoms that no worker holds all of, the first."""
    first = columns(run, found, job.build_model()).items()
    return {
        **found.arrays,
        **{n: c.read(0, min(job.atoms, report.TILES)) for n, c in first if not n.startswith(TRAINING)},
    }


def pictures(job: LearnJob, data: Dataset, params: Arrays, history: Arrays) -> dict[str, bytes]:
    """`atoms.png` and `convergence.png`; without matplotlib only tiles."""
    tensors = {n: torch.from_numpy(np.array(a)) for n, a in params.items()}
    atoms = job.build_model().dictionary(tensors).double().cpu().numpy()
    usage = report.usage_of(params, job.atoms)
    shape = data.patch_shape
    seen = data.to_pixels(atoms) if shape is not None else atoms
    plots = report.can_plot()
    atoms_png = report.atoms_picture(seen, shape, usage) if plots or shape is not None else None
    convergence_png = report.convergence_picture(history) if plots else None
    found = {"atoms.png": atoms_png, "convergence.png": convergence_png}
    return {name: png for name, png in found.items() if png is not None}


def make_card(job: LearnJob, data: Dataset, fit: Fit, history: Arrays, parents: list[str]) -> dict[str, Any]:
    """Everything that one needs to know, or to make it again."""
    model = job.build_model()
    seconds = float(history["seconds"][-1]) if "seconds" in history and len(history["seconds"]) else fit.seconds
    return {
        "kind": "dictionary",
        "job": job.to_dict(),
        "model": {"name": job.model, **model.describe()},
        "schedule": job.build_schedule(model).to_dict(),
        "data": {
            "uri": data.uri,
            "fingerprint": data.fingerprint,
            "rows": data.rows,
            "dim": data.dim,
            **({"row": str(data.attributes["row"])} if "row" in data.attributes else {}),
        },
        "parents": parents,
        "run": {"id": fit.run_id, "updates": fit.step},
        "engine": {"name": job.engine, "workers": job.workers, "device": job.device},
        "seed": fit.seed,
        "starts": starts_of(fit),
        "wall_seconds": seconds,
        "spent_seconds": fit.spent,
        "metrics": fit.metrics,
        "licence": {"dictionary": job.licence} if job.licence else {},
        "notes": job.notes,
    }


def dry_run(job: LearnJob, reporter: Reporter = silent) -> Fit:
    """A few passes over the first rows on this machine, in a store that is thrown away: real metrics, nothing kept.

    Raises:
        JobError, ModelError, StorageError: the job could not be done either.
    """
    job = check(job)
    schedule = job.build_schedule(job.build_model())
    rows = min(job.rows or DRY_ROWS, DRY_ROWS)
    with tempfile.TemporaryDirectory(prefix="sparsefleet-") as folder:
        changes: dict[str, Any] = {
            "store": str(Path(folder) / "store"),
            "rows": rows,
            "passes": min(schedule.passes, DRY_PASSES),
            "batch_rows": min(schedule.batch_rows, max(rows // 4, 1)),
            "engine": "local",
            "workers": 1,
            "atom_groups": 1,
            "report_seconds": 0.0,
        }
        if job.init is not None and not job.init_is_file:
            changes["init"] = str(Path(folder) / "init.npz")
            start: dict[str, Any] = dict(ArtifactStore(job.store, create=False).load(job.init).arrays)
            np.savez(changes["init"], allow_pickle=False, **start)
        return fit(job.model_copy(update=changes), reporter)
