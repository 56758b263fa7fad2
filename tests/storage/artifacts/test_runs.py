"""Checkpoints of runs."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sparsefleet.storage.artifacts import ArtifactStore
from sparsefleet.storage.artifacts.runs import CHAIN
from sparsefleet.storage.errors import BadData, StorageError, StoreConflict

JOB = {"model": "bsc", "atoms": 4, "dtype": "float32"}


def params(step: int) -> dict[str, NDArray[np.float64]]:
    return {"W": np.full((5, 4), float(step)), "sigma": np.array(step / 2), "training/adam/m": np.arange(step + 1.0)}


def test_a_checkpoint_brings_everything_back(store: ArtifactStore) -> None:
    run = store.run("r-1")
    assert run.latest() is None
    history = {"free_energy": np.array([1.0, np.nan, 3.0]), "a/b": np.zeros(0), "z": np.array([5.0])}
    snapshot = run.commit(3, params(3), history, JOB, "half way")
    got = store.run("r-1").latest()
    assert got is not None
    assert (got.step, got.job, got.message, got.snapshot) == (3, JOB, "half way", snapshot)
    assert got.arrays.keys() == params(3).keys()
    for key, array in params(3).items():
        np.testing.assert_array_equal(got.arrays[key], array)
    assert list(got.history) == list(history)
    for key, values in history.items():
        np.testing.assert_array_equal(got.history[key], values)


def test_arrays_may_come_go_and_change_their_shape(store: ArtifactStore) -> None:
    run = store.run("r")
    run.commit(1, {"W": np.zeros((2, 3)), "gone": np.ones(3), "a/b": np.ones(1)}, {"x": np.arange(100.0)})
    run.commit(2, {"W": np.ones((3, 3), np.float32), "new": np.array(1), "a": np.ones(2)}, {})
    got = run.latest()
    assert got is not None
    assert {k: (v.shape, v.dtype.kind) for k, v in got.arrays.items()} == {
        "W": ((3, 3), "f"),
        "new": ((), "i"),
        "a": ((2,), "f"),
    }
    assert got.history == {}


def test_many_commits_leave_one_chain_of_bounded_length(store: ArtifactStore) -> None:
    run = store.run("r")
    for step in range(2 * CHAIN + 3):
        run.commit(step, {"W": np.array([float(step)])}, {"x": np.arange(float(step))})
        got = run.latest()
        assert got is not None
        assert got.step == step == got.arrays["W"][0]
        assert len(got.history["x"]) == step
    refs = sorted(p.name for p in Path(store.uri, "repository", "refs").iterdir())
    assert refs == ["branch.main", "branch.run.r"]
    before = store.garbage_collect(older_than_days=0)
    assert before["snapshots"] >= CHAIN
    store.garbage_collect(older_than_days=0, dry_run=False)
    assert store.verify() == []
    assert run.commit(999, {"W": np.zeros(1)}, {})


def test_two_processes_on_one_run_are_told(store: ArtifactStore) -> None:
    old, new = store.run("r"), store.run("r")
    old.commit(1, params(1), {}, JOB)
    with pytest.raises(StoreConflict, match="run r: another process"):
        new.commit(1, params(1), {}, JOB)
    again = new.latest()  # from here on it builds on what is there
    assert again is not None
    assert again.step == 1
    new.commit(2, params(2), {}, JOB)
    for _ in range(CHAIN):  # also when the chain is cut
        with pytest.raises(StoreConflict, match="end one of the two"):
            old.commit(2, params(7), {}, JOB)
    latest = store.run("r").latest()
    assert latest is not None
    assert latest.step == 2


def test_a_dropped_run_is_not_revived_by_its_old_process(store: ArtifactStore) -> None:
    old, new = store.run("r"), store.run("r")
    old.commit(1, params(1), {}, JOB)
    new.latest()
    new.drop()
    new.drop()
    with pytest.raises(StoreConflict):
        old.commit(2, params(2), {}, JOB)
    assert store.runs() == []
    assert store.run("r").latest() is None
    new.commit(1, params(1), {}, JOB)


def test_unfinished_runs_are_listed_newest_first(full: ArtifactStore) -> None:
    for run_id in ("a.b", "c"):
        full.run(run_id).commit(4, params(1), {}, JOB)
    assert [(info.run_id, info.step, info.job) for info in full.runs()] == [("c", 4, JOB), ("a.b", 4, JOB)]
    assert full.names() == ["photos"]


def test_what_cannot_be_kept_is_refused(store: ArtifactStore) -> None:
    with pytest.raises(StorageError, match="cannot be a run"):
        store.run("a/b")
    with pytest.raises(BadData):
        store.run("r").commit(1, {"W": np.array(["x"])}, {})
    assert store.runs() == []
