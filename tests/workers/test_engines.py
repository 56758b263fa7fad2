"""The engines, for real: the same job gives the same parameters, workers may die, errors keep their words."""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from sparsefleet.models import ModelError
from sparsefleet.storage import ArtifactStore, open_dataset
from sparsefleet.workers import EncodeJob, EngineError, JobError, LearnJob, run

GROUPS = ["mpi", "ray"]
OWN_MODEL = Path(__file__).parents[1] / "own_mean.py"
e2e = pytest.mark.e2e


@pytest.fixture(scope="module", autouse=True)
def ray_cluster():
    """One cluster for all tests of this file; the engine uses it because it is there."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture
def own(tmp_path: Path) -> str:
    shutil.copy(OWN_MODEL, tmp_path)
    return str(tmp_path)


def learn(job: dict, engine: str, store: Path) -> dict[str, np.ndarray]:
    """The final checkpoint's parameters."""
    workers = {} if engine == "local" else {"workers": 2, "threads": 1}
    typed = LearnJob.parse({**job, "engine": engine, "store": str(store), **workers})
    *_, last = run("learn", typed)
    assert last.kind == "done"
    return ArtifactStore(str(store)).run(last.run_id).latest().arrays


def distance(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max(float(np.linalg.norm(a[n] - b[n]) / max(np.linalg.norm(a[n]), 1e-30)) for n in a)


@e2e
@pytest.mark.parametrize("engine", GROUPS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
def test_em_gives_the_same_parameters(make_data, tmp_path, engine, dtype, tolerance):
    job = {
        "data": make_data(),
        "atoms": 24,
        "passes": 20,
        "dtype": dtype,
        "batch_rows": 200,
        "settings": {"h_prime": 6, "gamma": 3},
    }
    alone = learn(job, "local", tmp_path / "local")
    assert distance(alone, learn(job, engine, tmp_path / engine)) <= tolerance


@e2e
@pytest.mark.parametrize("engine", GROUPS)
@pytest.mark.parametrize("model", ["topk", "batchtopk"])
def test_gradient_steps_give_the_same_parameters(make_data, tmp_path, engine, model):
    job = {
        "data": make_data(),
        "model": model,
        "atoms": 32,
        "passes": 3,
        "dtype": "float64",
        "batch_rows": 150,
        "settings": {"k": 4},
    }
    alone = learn(job, "local", tmp_path / "local")
    assert distance(alone, learn(job, engine, tmp_path / engine)) <= 1e-10


@e2e
@pytest.mark.parametrize("engine", GROUPS)
def test_a_model_from_outside_runs(make_data, tmp_path, own, engine):
    job = {"data": make_data(), "model": "own_mean:Mean", "atoms": 3, "passes": 5, "module_path": own}
    alone = learn(job, "local", tmp_path / "local")
    assert distance(alone, learn(job, engine, tmp_path / engine)) <= 1e-12


@e2e
@pytest.mark.parametrize("engine", GROUPS)
def test_a_killed_worker_changes_nothing(make_data, tmp_path, own, engine):
    job = {
        "data": make_data(),
        "model": "own_mean:Mean",
        "atoms": 3,
        "passes": 30,
        "module_path": own,
        "settings": {"pause": 0.02},
        "commit_seconds": 0.3,
        "report_seconds": 0,
    }
    alone = learn({**job, "settings": {"pause": 0.02}}, "local", tmp_path / "local")
    typed = LearnJob.parse({**job, "engine": engine, "workers": 2, "threads": 1, "store": str(tmp_path / engine)})
    killed, restarted = False, False
    for message in run("learn", typed):
        restarted |= message.kind == "restart"
        if message.kind == "commit" and not killed:
            killed = True
            os.kill(_workers(engine)[-1].pid, signal.SIGKILL)
    assert restarted and message.kind == "done"
    found = ArtifactStore(str(tmp_path / engine)).run(message.run_id).latest()
    assert distance(alone, found.arrays) <= 1e-12
    assert len(found.history["rows"]) == 30 and set(found.history["rows"]) == {2000.0}


@e2e
@pytest.mark.parametrize("engine", ["local", *GROUPS])
def test_an_error_in_a_worker_keeps_its_words(make_data, tmp_path, own, engine):
    job = {"data": make_data(), "model": "own_mean:Mean", "atoms": 3, "module_path": own, "settings": {"fail_at": 2}}
    with pytest.raises(ModelError, match="fail_at=2: told to fail"):
        learn(job, engine, tmp_path / "store")


@e2e
@pytest.mark.parametrize("engine", GROUPS)
def test_restarts_are_bounded(make_data, tmp_path, own, engine):
    job = LearnJob.parse({
        "data": make_data(), "model": "own_mean:Mean", "atoms": 3, "module_path": own, "settings": {"pause": 0.05},
        "engine": engine, "workers": 2, "threads": 1, "restarts": 0, "report_seconds": 0,
        "store": str(tmp_path / "store"),
    })  # fmt: skip

    def follow() -> None:
        for message in run("learn", job):
            if message.kind == "step":
                os.kill(_workers(engine)[0].pid, signal.SIGKILL)

    with pytest.raises(EngineError, match="run the same job again"):
        follow()


@e2e
@pytest.mark.parametrize("engine", GROUPS)
def test_closing_the_run_ends_its_processes(make_data, tmp_path, own, engine):
    job = LearnJob.parse({
        "data": make_data(), "model": "own_mean:Mean", "atoms": 3, "module_path": own, "settings": {"pause": 0.05},
        "engine": engine, "workers": 2, "threads": 1, "store": str(tmp_path / "store"), "report_seconds": 0,
    })  # fmt: skip
    going = run("learn", job)
    while next(going).kind != "step":
        pass
    workers = _workers(engine)
    assert len(workers) >= 2
    going.close()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


@e2e
def test_a_cluster_that_grows_is_waited_for(make_data, tmp_path, monkeypatch):
    job = LearnJob(data=make_data(), store=str(tmp_path / "s"), atoms=3, engine="ray", workers=9, threads=1)
    with pytest.raises(JobError, match="need 9 CPUs, but the Ray cluster has 2"):
        list(run("learn", job))
    monkeypatch.setenv("SPARSEFLEET_RAY_WAIT", "3")
    with pytest.raises(EngineError, match=r"no room for 9 workers of .* within 3 s"):
        list(run("learn", job))
    monkeypatch.setenv("SPARSEFLEET_RAY_WAIT", "soon")
    with pytest.raises(JobError, match="SPARSEFLEET_RAY_WAIT='soon'"):
        list(run("learn", job))


@e2e
@pytest.mark.parametrize("engine", ["local", *GROUPS])
def test_encode_writes_the_same_codes(make_data, tmp_path, engine):
    data = make_data()
    store = tmp_path / "store"
    params = learn({"data": data, "atoms": 24, "passes": 5, "name": "d"}, "local", store)
    card = {"job": LearnJob.parse({"data": data, "atoms": 24, "passes": 5, "name": "d"}).to_dict()}
    ArtifactStore(str(store)).publish("d", arrays=params, card=card)
    codes = {}
    for name in dict.fromkeys(["local", engine]):
        workers = {} if name == "local" else {"workers": 2, "threads": 1}
        out = str(tmp_path / f"codes-{name}.zarr")
        job = EncodeJob.parse(
            {"data": data, "dictionary": "d", "store": str(store), "out": out, "engine": name, **workers}
        )
        *_, last = run("encode", job)
        assert last.metrics["rows"] == 2000
        found = open_dataset(out)
        codes[name] = found.read(0, 2000, array="indices"), found.read(0, 2000, array="values")
    np.testing.assert_array_equal(codes[engine][0], codes["local"][0])
    np.testing.assert_allclose(codes[engine][1], codes["local"][1], rtol=1e-4, atol=1e-6)
    assert (codes["local"][0] >= 0).any(1).mean() > 0.5


@e2e
@pytest.mark.parametrize("engine", GROUPS)
def test_coders_write_the_same_codes(make_data, tmp_path, engine):
    data = make_data()
    np.savez(tmp_path / "d.npz", W=np.random.default_rng(3).normal(size=(open_dataset(data).dim, 40)))
    codes: dict[str, list[np.ndarray]] = {}
    for name in ("local", engine):
        workers = {} if name == "local" else {"workers": 2, "threads": 1}
        out = str(tmp_path / f"codes-{name}.zarr")
        fixed = {"data": data, "dictionary": str(tmp_path / "d.npz"), "out": out, "batch_rows": 150}
        coder = {"coder": "omp", "coder_settings": {"nonzeros": 5}}
        *_, last = run("encode", EncodeJob.parse({**fixed, **coder, "engine": name, **workers}))
        assert last.metrics["entries_per_row"] == 5 and last.metrics["relative_error"] < 1
        codes[name] = [open_dataset(out).read(0, 2000, array=a) for a in ("indices", "values")]
    for here, there in zip(codes["local"], codes[engine], strict=True):
        np.testing.assert_array_equal(here, there)


@e2e
@pytest.mark.parametrize("engine", GROUPS)
@pytest.mark.parametrize("model", ["ksvd", "online"])
def test_factorizations_give_the_same_atoms(make_data, tmp_path, engine, model):
    data = make_data()
    # Most atoms are the same one: they are replaced, by the same rows on every engine.
    start = np.random.default_rng(5).normal(size=(24, open_dataset(data).dim))
    start[4:] = start[3]
    np.savez(tmp_path / "start.npz", atoms=start)
    job = {
        "data": data,
        "model": model,
        "atoms": 24,
        "passes": 8,
        "dtype": "float64",
        "batch_rows": 250,
        "init": str(tmp_path / "start.npz"),
        "settings": {"coder": "omp", "nonzeros": 1},
    }
    found = {}
    for name in ("local", engine):
        workers = {} if name == "local" else {"workers": 2, "threads": 1}
        *_, last = run("learn", LearnJob.parse({**job, "engine": name, "store": str(tmp_path / name), **workers}))
        found[name] = ArtifactStore(str(tmp_path / name)).run(last.run_id).latest()
    replaced = [list(found[name].history["replaced"]) for name in found]
    assert sum(replaced[0]) >= 3 and replaced[0] == replaced[1]
    assert distance(found["local"].arrays, found[engine].arrays) <= 1e-10


def test_the_same_job_again_continues(make_data, tmp_path, own):
    job = {"data": make_data(), "model": "own_mean:Mean", "atoms": 3, "passes": 30, "module_path": own}
    job["commit_seconds"] = 0
    whole = learn(job, "local", tmp_path / "whole")
    typed = LearnJob.parse({**job, "store": str(tmp_path / "broken"), "report_seconds": 0})
    first = run("learn", typed)
    while next(first).step < 11:
        pass
    first.close()
    second = list(run("learn", typed))
    assert second[0].step == 11 and "continues" in second[0].message
    found = ArtifactStore(typed.store).run(second[0].run_id).latest()
    assert distance(whole, found.arrays) == 0.0


def test_start_values_from_a_file(make_data, tmp_path):
    data = make_data()
    start = {"W": np.random.default_rng(0).normal(size=(16, 4))}
    np.savez(tmp_path / "start.npz", **start)
    job = {
        "data": data,
        "atoms": 4,
        "passes": 1,
        "init": str(tmp_path / "start.npz"),
        "settings": {"h_prime": 4, "gamma": 2},
    }
    found = learn(job, "local", tmp_path / "a")
    other = learn({**job, "init": None}, "local", tmp_path / "b")
    assert distance(found, other) > 1e-3
    np.savez(tmp_path / "start.npz", W=np.ones((16, 5)))
    with pytest.raises(JobError, match=r"W has shape \(16, 5\)"):
        learn(job, "local", tmp_path / "c")
    np.savez(tmp_path / "start.npz", V=np.ones((16, 4)))
    with pytest.raises(JobError, match="are not of model 'bsc'"):
        learn(job, "local", tmp_path / "d")


def _workers(engine: str) -> list[psutil.Process]:
    """The running worker processes of this test's group."""
    mark = "mpi_main" if engine == "mpi" else "ray::Member"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        mine = psutil.Process().children(recursive=True)
        found = [p for p in mine if mark in " ".join(_words(p)) and "mpirun" not in " ".join(_words(p)[:2])]
        found = [p for p in found if engine != "mpi" or "python" in Path(_words(p)[0]).name]
        if len(found) >= 2:
            return sorted(found, key=lambda p: p.pid)
        time.sleep(0.1)
    raise AssertionError(f"no workers of engine {engine}")


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() or [""]
    except psutil.Error:
        return [""]
