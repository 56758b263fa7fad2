"""Dictionaries dealt to groups of workers: the same result, commits that any number of groups can continue."""

from __future__ import annotations

import os
import signal
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
from sparsefleet.models import ModelError
from sparsefleet.storage import ArtifactStore
from sparsefleet.workers import JobError, LearnJob, run
from sparsefleet.workers.communicator import Communicator
from sparsefleet.workers.errors import EngineError
from sparsefleet.workers.plan import plan
from sparsefleet.workers.program import agree, learn
from sparsefleet.workers.progress import Progress
from sparsefleet.workers.slices import Layout, arrange, columns

from .groups import together

SETTINGS = {"k": 4, "aux_k": 3, "dead_tokens": 300}
MODELS = ["topk", "abstopk", "groupmax", "batchtopk", "matryoshka"]
e2e = pytest.mark.e2e


def job(make_data, store: Path, model: str = "topk", **more) -> LearnJob:
    values = {
        "data": make_data(), "store": str(store), "model": model, "atoms": 48, "passes": 3, "dtype": "float64",
        "batch_rows": 150, "settings": SETTINGS, "report_seconds": 0, "memory_gib": 8, **more,
    }  # fmt: skip
    return LearnJob.parse(values)


def dealt(one: LearnJob, workers: int, atom_groups: int, engine: str = "mpi") -> LearnJob:
    return one.model_copy(update={"engine": engine, "workers": workers, "threads": 1, "atom_groups": atom_groups})


def finish(one: LearnJob, steps: int | None = None) -> list[Progress]:
    """Rank 0's messages of the job's program, worked by threads; the first so many."""
    if one.workers == 1:
        return list(islice(run("learn", one), steps))
    return together(one.workers, lambda comm: list(islice(learn(one, comm), steps)))[0]


def params(one: LearnJob, run_id: str) -> dict[str, np.ndarray]:
    """All parameters of the last commit."""
    branch = ArtifactStore(one.store).run(run_id)
    found = branch.latest()
    beside = columns(branch, found, one.build_model())
    return {**found.arrays, **{n: c.read(0, c.shape[0]) for n, c in beside.items()}}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("workers", "atom_groups"), [(2, 2), (4, 2)])
def test_the_result_does_not_depend_on_the_layout(make_data, tmp_path, model, workers, atom_groups):
    alone = job(make_data, tmp_path / "alone", model)
    *_, done = finish(alone)
    many = alone.model_copy(update={"store": str(tmp_path / "many")})
    *_, last = finish(dealt(many, workers, atom_groups))
    assert last.run_id == done.run_id and last.step == done.step
    assert last.metrics == pytest.approx(done.metrics | {"seconds": last.metrics["seconds"]}, rel=1e-8)
    assert_same(params(many, last.run_id), params(alone, done.run_id))
    shared = ArtifactStore(many.store).run(last.run_id).latest().arrays
    assert "b_dec" in shared and "W_enc" not in shared and "training/first/W_dec" not in shared


@pytest.mark.parametrize("layouts", [[(2, 2), (1, 1)], [(1, 1), (4, 2), (3, 3)], [(2, 1), (2, 2), (4, 4), (1, 1)]])
def test_a_run_goes_on_in_another_layout(make_data, tmp_path, layouts):
    whole = job(make_data, tmp_path / "whole", passes=1)
    *_, done = finish(whole)
    broken = whole.model_copy(update={"store": str(tmp_path / "broken"), "commit_seconds": 0})
    for workers, atom_groups in layouts[:-1]:
        one = dealt(broken, workers, atom_groups) if workers > 1 else broken
        assert finish(one, 5)[-1].step >= 3
    workers, atom_groups = layouts[-1]
    first, *_, last = finish(dealt(broken, workers, atom_groups) if workers > 1 else broken)
    assert "continues" in first.message and last.step == done.step
    assert_same(params(broken, last.run_id), params(whole, done.run_id))
    memory = ArtifactStore(broken.store).run(last.run_id).memory
    assert len(memory.place.folders()) == (1 if atom_groups > 1 else 0)


def test_start_values_are_dealt_too(make_data, tmp_path):
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "start.npz", W_dec=rng.normal(size=(48, 16)), b_enc=rng.normal(size=48))
    alone = job(make_data, tmp_path / "alone", passes=1, init=str(tmp_path / "start.npz"))
    *_, done = finish(alone)
    many = alone.model_copy(update={"store": str(tmp_path / "many")})
    *_, last = finish(dealt(many, 2, 2))
    assert_same(params(many, last.run_id), params(alone, done.run_id))
    np.savez(tmp_path / "start.npz", W_dec=rng.normal(size=(47, 16)))
    with pytest.raises(JobError, match="W_dec has shape"):
        finish(dealt(many, 2, 2))


def test_neighbours_are_peers():
    def look(comm: Communicator) -> tuple[list[int], list[int], slice]:
        layout: Layout = arrange(comm, 3)
        same = lambda part: part.broadcast([comm.rank]) if part.size > 1 else []  # noqa: E731
        return same(layout.atoms), same(layout.rows), layout.held(9)

    assert together(6, look) == [([3 * (r // 3)], [r % 3], slice(3 * (r % 3), 3 * (r % 3) + 3)) for r in range(6)]


def test_other_parameters_on_a_peer_stop_the_run():
    import torch

    def work(comm: Communicator) -> None:
        agree(comm, {"b_dec": torch.full((3,), float(comm.rank))})

    with pytest.raises(EngineError, match="holds other parameters"):
        together(2, work)


def test_jobs_that_cannot_be_dealt(make_data, tmp_path):
    fixed = {"data": make_data(), "store": str(tmp_path / "s"), "model": "topk", "atoms": 48, "settings": {"k": 4}}
    with pytest.raises(JobError, match="atom_groups=2: engine local is one process, which holds all atoms"):
        LearnJob.parse({**fixed, "atom_groups": 2})
    with pytest.raises(JobError, match="atom_groups=2 do not divide workers=3"):
        LearnJob.parse({**fixed, "engine": "mpi", "workers": 3, "atom_groups": 2})
    for model in ("relu", "gsae", "bsc"):
        with pytest.raises(ModelError, match=f"atom_groups=2: {model} needs all atoms"):
            plan(LearnJob.parse({**fixed, "model": model, "settings": {}, "engine": "mpi", "workers": 2,
                                 "atom_groups": 2}))  # fmt: skip
    with pytest.raises(ModelError, match="atom_groups=2 do not divide atoms=49"):
        plan(LearnJob.parse({**fixed, "atoms": 49, "engine": "mpi", "workers": 2, "atom_groups": 2}))


def test_the_plan_knows_slices(make_data, tmp_path):
    fixed = {"data": make_data(), "store": str(tmp_path / "s"), "model": "topk", "atoms": 2**17, "settings": {"k": 4},
             "engine": "mpi", "workers": 4, "threads": 1, "batch_rows": 64}  # fmt: skip
    found = [plan(LearnJob.parse({**fixed, "atom_groups": n})) for n in (1, 2, 4)]
    assert [p.row_groups for p in found] == [4, 2, 1]
    assert found[2].model_bytes_per_worker < 0.4 * found[0].model_bytes_per_worker
    assert found[2].statistics_bytes < 0.3 * found[0].statistics_bytes
    assert found[0].peer_bytes_per_update == 0 < found[1].peer_bytes_per_update
    assert found[2].traffic_bytes_per_update == found[2].peer_bytes_per_update < found[0].traffic_bytes_per_update
    with pytest.raises(JobError, match="--atom-groups deals the atoms to several workers"):
        plan(LearnJob.parse({**fixed, "memory_gib": 0.6, "atom_groups": 2}))
    assert plan(LearnJob.parse({**fixed, "memory_gib": 0.8, "atom_groups": 4}))


@e2e
@pytest.mark.parametrize("engine", ["mpi", "ray"])
@pytest.mark.parametrize("model", ["topk", "batchtopk"])
def test_real_workers_deal_atoms(make_data, tmp_path, engine, model):
    alone = job(make_data, tmp_path / "alone", model)
    *_, done = run("learn", alone)
    many = dealt(alone.model_copy(update={"store": str(tmp_path / engine)}), 2, 2, engine)
    *_, last = run("learn", many)
    assert last.kind == "done"
    assert_same(params(many, last.run_id), params(alone, done.run_id))


@e2e
def test_a_grid_of_real_ranks(make_data, tmp_path):
    alone = job(make_data, tmp_path / "alone")
    *_, done = run("learn", alone)
    many = dealt(alone.model_copy(update={"store": str(tmp_path / "many")}), 4, 2)
    *_, last = run("learn", many)
    assert_same(params(many, last.run_id), params(alone, done.run_id))


@e2e
def test_a_killed_peer_changes_nothing(make_data, tmp_path):
    alone = job(make_data, tmp_path / "alone", passes=8)
    *_, done = run("learn", alone)
    changes = {"store": str(tmp_path / "many"), "commit_seconds": 0.2}
    many = dealt(alone.model_copy(update=changes), 2, 2)
    said = []
    for message in run("learn", many):
        if message.kind == "commit" and "restart" not in said and "killed" not in said:
            os.kill(max(rank.pid for rank in ranks()), signal.SIGKILL)
            said.append("killed")
        said.append(message.kind)
    assert "restart" in said and said[-1] == "done"
    assert_same(params(many, message.run_id), params(alone, done.run_id))


def ranks() -> list[psutil.Process]:
    """The running workers of this test's group."""
    mine = psutil.Process().children(recursive=True)
    words = {process: process.cmdline() or [""] for process in mine}
    return [p for p, said in words.items() if "python" in Path(said[0]).name and any("mpi_main" in w for w in said)]
