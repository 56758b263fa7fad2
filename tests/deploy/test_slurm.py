"""The batch scripts on a real Slurm cluster of one node: MPI, Ray, arrays, requeueing, flow runs."""

import time
from pathlib import Path

import pytest
from sparsefleet.storage import ArtifactStore

from ..waiting import wait_for
from .conftest import ROOT, Slurm

pytestmark = pytest.mark.e2e
SCRIPTS = ROOT / "deploy" / "slurm"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def learn(rows: str, store: Path, *more: object) -> list[object]:
    words = ["learn", "--no-flow", "--data", rows, "--store", store, "--atoms", 3, "--commit-seconds", 0.2]
    return [*words, "--name", "fields", "--passes", 4, *more]


def submit(slurm: Slurm, script: str, options: list[str], words: list[object], log: Path) -> str:
    given = ["sbatch", "--parsable", f"--output={log}", "--open-mode=append", *options, SCRIPTS / script, *words]
    return slurm.call(*given).strip()


def ended(slurm: Slurm, job: str, log: Path) -> str:
    state = wait_for(lambda: (s := slurm.state(job)["JobState"]) in ENDED and s, 200, lambda: said(log) + slurm.why())
    return str(state)


def said(log: Path) -> str:
    return "".join(p.read_text() for p in log.parent.glob("*.log"))


def test_mpi_as_an_array_learns_one_dictionary_a_task(slurm, rows, tmp_path):
    log, store = tmp_path / "mpi-%j.log", tmp_path / "store"
    words = learn(rows, store, "--seed", "{task}", "--name", "seed-{task}")
    options = ["--ntasks-per-node=2", "--array=3,5"]
    job = submit(slurm, "mpi.sbatch", options, words, log)
    for task in (3, 5):
        assert ended(slurm, f"{job}_{task}", log) == "COMPLETED", said(log)
    found = ArtifactStore(str(store), create=False)
    assert {card["name"]: card["seed"] for card in (found.card(f"seed-{t}@1") for t in (3, 5))} == {
        "seed-3": 3,
        "seed-5": 5,
    }
    assert found.card("seed-3@1")["job"]["workers"] == 2
    assert found.verify() == []


@pytest.mark.alone
def test_ray_lives_as_long_as_the_job(slurm, rows, tmp_path):
    log, store = tmp_path / "ray-%j.log", tmp_path / "store"
    words = learn(rows, store, "--workers", 2, "--threads", 1)
    job = submit(slurm, "ray.sbatch", ["--cpus-per-task=2"], words, log)
    assert ended(slurm, job, log) == "COMPLETED", said(log)
    found = ArtifactStore(str(store), create=False)
    assert found.card("fields@1")["job"]["engine"] == "ray"
    assert found.verify() == []


def test_a_job_told_to_make_room_goes_back_to_the_queue_and_on_from_its_last_commit(slurm, rows, tmp_path):
    log, store = tmp_path / "mpi-%j.log", tmp_path / "store"
    job = submit(slurm, "mpi.sbatch", [], learn(rows, store, "--passes", 1_000_000), log)
    try:
        wait_for(lambda: committed(store) > 2, 120, lambda: said(log) + slurm.why())
        # As Slurm does it two minutes before the time limit.
        slurm.call("scancel", "--signal=USR1", "--batch", job)
        wait_for(lambda: slurm.state(job)["Restarts"] == "1", 60, lambda: said(log))
        wait_for(lambda: slurm.state(job)["JobState"] == "PENDING", 60, lambda: said(log))
        before = committed(store)
        # Slurm counts in seconds: a job that starts in the one in which it was put back has no valid credential.
        time.sleep(2)
        slurm.call("scontrol", "update", f"jobid={job}", "StartTime=now")
        wait_for(lambda: committed(store) > before, 120, lambda: said(log) + slurm.why())
    finally:
        slurm.call("scancel", job, check=False)
    assert "goes back to the queue" in said(log)
    assert "fields: continues at update" in said(log)
    assert ended(slurm, job, log) == "CANCELLED"
    assert ArtifactStore(str(store), create=False).verify() == []


def test_a_flow_run_becomes_a_job_with_its_environment_and_its_exit_code(slurm, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@ in $SLURM_JOB_ID for $PREFECT__FLOW_RUN_ID" > seen\nexit 3\n')
    python.chmod(0o755)
    import subprocess

    environment = slurm.environment | {"SPARSEFLEET_PYTHON": str(python), "PREFECT__FLOW_RUN_ID": "some-run"}
    given = environment | {"SPARSEFLEET_SBATCH": "--time=5 --comment=x"}
    script = str(SCRIPTS / "flow-run.sh")
    done = subprocess.run([script], cwd=tmp_path, env=given, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3, done.stderr
    seen = (tmp_path / "seen").read_text()
    assert seen.startswith("-m prefect.engine in ")
    assert seen.endswith(" for some-run\n")

    python.write_text("#!/bin/sh\nsleep 1000\n")
    running = subprocess.Popen([script], cwd=tmp_path, env=given, stdout=subprocess.PIPE, text=True)
    job = wait_for(lambda: slurm.call("squeue", "-h", "-o", "%i", "--name=sparsefleet-flow", "--states=R").strip())
    running.terminate()
    assert running.wait(60) != 0
    wait_for(lambda: slurm.state(job)["JobState"] == "CANCELLED")


def committed(store: Path) -> int:
    """The step of the unfinished run's last commit; -1 without one."""
    from sparsefleet.storage import StorageError

    try:
        runs = ArtifactStore(str(store), create=False).runs()
    except StorageError:
        return -1
    return runs[0].step if runs else -1
