"""Branches found by the beginning of their name say what a whole listing says."""

from pathlib import Path

import numpy as np
import pytest
from sparsefleet.storage import locate
from sparsefleet.storage.artifacts import ArtifactStore
from sparsefleet.storage.artifacts.refs import branch_names, snapshots
from sparsefleet.storage.errors import StorageError

W = {"W": np.eye(3)}
# The beginnings of one another, and characters that sort before and after the separators of a key.
NAMES = ["a", "a-b", "a.b", "a0", "ab", "z_"]


def fill(store: ArtifactStore) -> None:
    for name in NAMES:
        store.publish(name, arrays=W, card={})
        store.set_alias(name, "best", 1)
    store.publish("a", arrays=W, card={})
    store.run("r-1").commit(1, W)


def check(store: ArtifactStore, uri: str) -> None:
    place = locate(uri).child("repository")
    assert branch_names(place, "artifact.") == sorted(f"artifact.{n}" for n in NAMES)
    assert branch_names(place, "run.") == ["run.r-1"]
    assert branch_names(place, "nothing.") == []
    assert len(branch_names(place, "")) == 2 * len(NAMES) + 2
    assert store.names() == sorted(NAMES)
    assert [run.run_id for run in store.runs()] == ["r-1"]
    assert store.resolve("a@1").number == 1
    assert snapshots(place, ["artifact.ab", "artifact.gone"]) == {"artifact.ab": store.resolve("ab").snapshot}


def test_on_this_machine(store: ArtifactStore) -> None:
    fill(store)
    check(store, store.uri)


@pytest.mark.e2e
def test_on_s3(s3_bucket: str) -> None:
    store = ArtifactStore(f"{s3_bucket}/team/store")
    fill(store)
    check(store, store.uri)


def test_a_damaged_branch_stays_in_the_list_and_is_refused(store: ArtifactStore) -> None:
    fill(store)
    Path(store.uri, "repository/refs/branch.artifact.ab/ref.json").write_text("{")
    assert "ab" in store.names()
    with pytest.raises(StorageError):
        store.resolve("ab")


def test_the_folder_of_a_deleted_branch_is_no_branch(store: ArtifactStore) -> None:
    fill(store)
    Path(store.uri, "repository/refs/branch.artifact.ghost").mkdir()
    assert "ghost" not in store.names()
