"""What a model keeps of rows is in every commit: a resumed run equals the undisturbed one bit by bit."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from sparsefleet.models import Schedule, make_model
from sparsefleet.storage import ArtifactStore, StorageError, StoreConflict, locate, open_dataset
from sparsefleet.workers import JobError, LearnJob, memories, run
from sparsefleet.workers.communicator import Solo
from sparsefleet.workers.feed import Feed

SETTINGS = {"h_prime": 5, "gamma": 3, "states": "evolutionary", "evolution": {"size": 12, "warm_up": 1}}


def job_of(data, store, **more):
    job = {"data": data, "atoms": 16, "passes": 12, "dtype": "float64", "batch_rows": 300, "settings": SETTINGS}
    return LearnJob.parse({**job, "store": str(store), "commit_seconds": 0, "report_seconds": 0, **more})


def result(job):
    """The last commit, and what it keeps of rows by name."""
    *_, last = run("learn", job)
    return found(job, last.run_id)


def found(job, run_id):
    branch = ArtifactStore(job.store).run(run_id)
    checkpoint = branch.latest()
    place = branch.memory.at(checkpoint.memory)
    kept = {name: open_dataset(place.child(name).uri) for name in place.folders()}
    return checkpoint, {name: data.read(0, data.rows) for name, data in kept.items()}


def stopped(job, step):
    """Run until `step` is committed, then end as by Ctrl-C."""
    messages = run("learn", job)
    for message in messages:
        if message.step >= step:
            break
    messages.close()
    return message.run_id


@pytest.mark.parametrize("settings", [SETTINGS, {"h_prime": 5, "gamma": 3, "hysteresis": True}], ids=["sets", "lists"])
def test_a_resumed_run_equals_the_undisturbed_one(make_data, tmp_path, settings):
    data = make_data(1000)
    whole, kept = result(job_of(data, tmp_path / "whole", settings=settings))
    broken = job_of(data, tmp_path / "broken", settings=settings)
    for step in (3, 4, 9):
        stopped(broken, step)
    again, kept_again = result(broken)
    assert all(np.array_equal(whole.arrays[n], again.arrays[n]) for n in whole.arrays)
    assert kept.keys() == kept_again.keys() != set()
    assert all(np.array_equal(kept[n], kept_again[n]) for n in kept)
    assert np.array_equal(whole.history["free_energy"], again.history["free_energy"])


def test_only_the_last_commits_memory_stays_and_goes_with_the_run(make_data, tmp_path):
    job = job_of(make_data(700), tmp_path / "store")
    run_id = stopped(job, 5)
    branch = ArtifactStore(job.store).run(run_id)
    (left,) = branch.memory.place.folders()
    assert branch.latest().memory == left
    # What a process that was killed between writing and committing leaves is removed by the next commit.
    (branch.memory.place.path / "7-deadbeef" / "states").mkdir(parents=True)
    checkpoint, _ = result(job)
    assert branch.memory.place.folders() == [checkpoint.memory]
    assert ArtifactStore(job.store).verify() == []
    branch.drop()
    assert not branch.memory.place.path.exists()


def test_a_process_that_lost_its_run_removes_nothing(make_data, tmp_path):
    job = job_of(make_data(700), tmp_path / "store")
    slow = run("learn", job)
    while next(slow).step < 3:
        pass
    checkpoint, _ = result(job)
    with pytest.raises(StoreConflict):
        list(slow)
    again, _ = found(job, ArtifactStore(job.store).runs()[0].run_id)
    assert again.memory == checkpoint.memory


def test_memory_that_is_gone_or_of_another_shape_is_named(make_data, tmp_path):
    job = job_of(make_data(700), tmp_path / "store")
    run_id = stopped(job, 5)
    branch = ArtifactStore(job.store).run(run_id)
    uri = branch.memory.at(branch.latest().memory).uri
    other = make_model("bsc", {"atoms": 16, "states": "evolutionary"})
    with pytest.raises(StorageError, match="is not what this model keeps of a row"):
        memories.read(uri, other, [], torch.device("cpu"))
    branch.memory.clear()
    with pytest.raises(StorageError, match=r"nothing there|no data set"):
        list(run("learn", job))


def test_a_model_updated_per_batch_cannot_keep_rows(make_data):
    model = make_model("bsc", {"atoms": 4, "states": "evolutionary"})
    schedule = Schedule(passes=1, update_every="batch", batch_rows=10)
    with pytest.raises(JobError, match="keeps states of every row"):
        Feed(open_dataset(make_data()), model, schedule, Solo(), rows=100, seed=0, budget=0, device=torch.device("cpu"))


def test_folders_of_a_place(tmp_path: Path):
    place = locate(str(tmp_path))
    assert locate(str(tmp_path / "nothing")).folders() == []
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "a").mkdir()
    (tmp_path / "file").touch()
    assert place.folders() == ["a", "b"]
    place.child("b").clear()
    assert place.folders() == ["a"]


@pytest.mark.e2e
def test_a_run_goes_on_with_another_number_of_workers(make_data, tmp_path):
    data = make_data(1000)
    whole, kept = result(job_of(data, tmp_path / "whole"))
    broken = job_of(data, tmp_path / "broken")
    run_id = stopped(broken, 5)
    group = {"engine": "mpi", "workers": 2, "threads": 1}
    killed = False
    for message in run("learn", job_of(data, tmp_path / "broken", **group)):
        assert message.run_id in ("", run_id)
        if message.kind == "commit" and message.step == 8 and not killed:
            killed = True
            _ranks()[-1].send_signal(signal.SIGKILL)
    again, kept_again = found(broken, run_id)
    assert killed and message.kind == "done" and again.step == 12
    difference = max(float(np.abs(whole.arrays[n] - again.arrays[n]).max()) for n in whole.arrays)
    assert difference <= 1e-9
    assert np.array_equal(kept["states"], kept_again["states"])


def _ranks():
    import psutil

    children = psutil.Process(os.getpid()).children(recursive=True)
    return [p for p in children if "mpi_main" in " ".join(p.cmdline()) and "python" in Path(p.cmdline()[0]).name]
