"""Publishing, finding and reading versions; aliases, rollback and lineage; places that are no stores."""

import json
import math
import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sparsefleet.storage.artifacts import ArtifactStore
from sparsefleet.storage.artifacts import repository as repository_module
from sparsefleet.storage.errors import BadData, NotFound, StorageError

W = {"W": np.eye(2)}


class Elsewhere:
    """An array that gives its parts and remembers how long they were."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array, self.shape, self.dtype = array, array.shape, array.dtype
        self.longest = 0

    def read(self, start: int, stop: int) -> NDArray[Any]:
        self.longest = max(self.longest, stop - start)
        return self._array[start:stop]


@pytest.mark.parametrize("shape", [(3000, 700), (5,), (1, 3), (0, 4)])
def test_pieces_are_kept_like_arrays(tmp_path: Path, shape: tuple[int, ...]) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    array = np.random.default_rng(0).normal(size=shape)
    pieces = Elsewhere(array)
    store.publish("d", arrays={"b": np.ones(3), "a/W": array}, card={})
    store.publish("d", arrays={"b": np.ones(3)}, card={}, pieces={"a/W": pieces})
    one, other = store.load("d@1"), store.load("d@2")
    assert one.card["checksums"] == other.card["checksums"]
    np.testing.assert_array_equal(other.arrays["a/W"], array)
    assert store.verify() == []
    assert pieces.longest <= 1500

    with pytest.raises(StorageError, match="only numbers can be kept"):
        store.publish("d", arrays={}, card={}, pieces={"W": Elsewhere(np.array(["a"]))})
    with pytest.raises(StorageError, match="also the folder of another"):
        store.publish("d", arrays={"a": np.ones(3)}, card={}, pieces={"a/W": pieces})


def test_a_version_keeps_everything(full: ArtifactStore, parameters: dict[str, NDArray[np.float64]]) -> None:
    got = full.load("photos")
    assert got.arrays.keys() == parameters.keys()  # training/… is left out
    for key, array in parameters.items():
        np.testing.assert_array_equal(got.arrays[key], array)
        assert got.arrays[key].dtype == array.dtype
    np.testing.assert_array_equal(got.history["free_energy"], [-3.0, -2.5])
    np.testing.assert_array_equal(got.history["loss/train"], [np.nan])
    assert got.figures["atoms.png"].startswith(b"\x89PNG")
    card = got.card
    assert (card["name"], card["version"], card["seed"], card["format"]) == ("photos", 1, 5, 1)
    assert card["job"] == {"model": "bsc", "atoms": 4, "settings": {"gamma": 3}}
    assert card["data"]["rows"] == 100
    assert card["favourite"] == {"colour": "blue"}  # keys that we do not know are kept
    assert card["metrics"]["free_energy"] == -2.5
    assert math.isnan(card["metrics"]["sparsity"])
    assert card["packages"]["numpy"] == np.__version__
    assert abs(datetime.fromisoformat(card["created"]) - datetime.now(UTC)) < timedelta(minutes=10)
    assert card["checksums"].keys() >= {"params/W", "history/free_energy", "figures/atoms.png"}
    assert got.version == full.resolve("photos@1")
    assert got.version.summary["model"] == "bsc"
    assert got.version.aliases == ("latest",)
    assert full.card("photos")["checksums"] == card["checksums"]


def test_versions_count_up_and_hold_only_their_own_arrays(store: ArtifactStore) -> None:
    first = store.publish("a", arrays={"W": np.zeros(3), "old": np.ones(2)}, card={}, history={"x": [1.0]})
    second = store.publish("a", arrays={"W": np.ones(4)}, card={})
    other = store.publish("a.b", arrays=W, card={})
    assert (first.number, second.number, other.number) == (1, 2, 1)
    assert (first.parent, second.parent) == (None, first.snapshot)
    assert store.load("a").arrays.keys() == {"W"}
    assert store.load("a").history == {}
    assert store.load("a@1").arrays.keys() == {"W", "old"}
    assert store.names() == ["a", "a.b"]
    assert [v.number for v in store.history("a")] == [2, 1]
    group = store.open("a@1")
    assert group["params/W"].attrs is not None
    with pytest.raises((StorageError, ValueError, icechunk.IcechunkError)):
        group.attrs["x"] = 1  # versions never change


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    hnp.arrays(
        st.sampled_from(["f2", "f4", "f8", "<i4", ">f8", "u1", "?", "c16", "i8"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    )
)
def test_any_array_comes_back_bit_for_bit(store: ArtifactStore, array: NDArray[Any]) -> None:
    got = store.load(store.publish("a", arrays={"x": array, "y": array.T}, card={}).ref)
    native = array.astype(array.dtype.newbyteorder("="))
    for want, have in ((native, got.arrays["x"]), (native.T, got.arrays["y"])):
        assert (have.dtype, have.shape, have.tobytes()) == (want.dtype, want.shape, want.tobytes())
    assert store.verify(got.version.ref) == []


def test_large_arrays_are_chunked_along_the_first_axis(store: ArtifactStore) -> None:
    big = np.arange(3_000_000, dtype=np.float64).reshape(3000, 1000)
    store.publish("a", arrays={"W": big}, card={})
    made: Any = store.open("a")["params/W"]
    assert made.chunks == (1048, 1000)
    np.testing.assert_array_equal(store.load("a").arrays["W"], big)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"arrays": {"W": np.array(["x"])}}, "only numbers"),
        ({"arrays": {"W": np.array([object()])}}, "only numbers"),
        ({"arrays": {"W/../x": np.zeros(1)}}, "cannot be the name"),
        ({"history": {"F": np.zeros((2, 2))}}, "one number per step"),
        ({"figures": {"a.png": b"GIF89a"}}, "not a PNG"),
        ({"figures": {"../a.png": b""}}, "cannot be a figure"),
        ({"card": {"seed": "many"}}, "card cannot be kept: seed"),
        ({"card": {"job": {"x": object()}}}, "not a JSON value"),
        ({"card": {"parents": ["nobody@1"]}}, "no artifact is called 'nobody'"),
        ({"name": "a/b"}, "cannot be a name"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_leaves_no_version(
    store: ArtifactStore, change: dict[str, Any], why: str
) -> None:
    with pytest.raises(StorageError, match=why) as caught:
        store.publish(**{"name": "a", "arrays": W, "card": {}, **change})
    assert "\n" not in str(caught.value)
    assert store.names() == []
    assert store.verify() == []


def test_bad_data_is_a_value_error() -> None:
    assert issubclass(BadData, ValueError)


def test_unknown_references_say_what_there_is(full: ArtifactStore) -> None:
    with pytest.raises(NotFound, match="it has photos"):
        full.resolve("nobody")
    with pytest.raises(NotFound, match="no version 2: its newest is 1"):
        full.load("photos@2")
    with pytest.raises(NotFound, match="no alias 'best': it has latest"):
        full.resolve("photos@best")
    with pytest.raises(NotFound):
        full.history("nobody")
    with pytest.raises(NotFound):
        full.set_alias("nobody", "best", 1)
    with pytest.raises(NotFound):
        full.remove_alias("photos", "best")
    assert full.names() == ["photos"]


def test_aliases_move_and_go(store: ArtifactStore) -> None:
    for _ in range(3):
        store.publish("a", arrays=W, card={})
    assert store.set_alias("a", "best", 2).aliases == ("best",)
    store.set_alias("a", "best", 2)  # again: nothing to do
    store.set_alias("a", "staging", "a@best")
    store.set_alias("a", "first", "1")
    assert store.aliases("a") == {"best": 2, "staging": 2, "first": 1, "latest": 3}
    store.set_alias("a", "best", "latest")
    assert store.resolve("a@best").number == 3
    assert store.resolve("a@3").aliases == ("latest", "best")
    store.publish("a", arrays=W, card={})
    assert store.resolve("a@best").number == 3
    store.remove_alias("a", "best")
    assert store.aliases("a") == {"staging": 2, "first": 1, "latest": 4}
    store.publish("b", arrays=W, card={})
    with pytest.raises(StorageError, match="another artifact"):
        store.set_alias("a", "best", "b@1")
    with pytest.raises(StorageError, match="moves by itself"):
        store.set_alias("a", "latest", 1)
    with pytest.raises(StorageError, match="moves by itself"):
        store.remove_alias("a", "latest")


def test_rollback_publishes_the_old_content_again(full: ArtifactStore) -> None:
    full.publish("photos", arrays=W, card={})
    full.set_alias("photos", "good", 1)
    back = full.rollback("photos", "good")
    assert back.number == 3
    assert back.message == "rolled back to version 1"
    old, new = full.load("photos@1"), full.load("photos")
    assert new.card["rolled_back_to"] == 1
    assert new.card["checksums"] == old.card["checksums"]
    assert new.card["favourite"] == old.card["favourite"]
    assert new.figures == old.figures
    np.testing.assert_array_equal(full.load("photos@2").arrays["W"], np.eye(2))
    with pytest.raises(NotFound):
        full.rollback("photos", 9)


def test_lineage_names_exact_versions(store: ArtifactStore) -> None:
    store.publish("a", arrays=W, card={"data": {"uri": "/data/x"}})
    store.publish("a", arrays=W, card={})
    store.set_alias("a", "best", 1)
    store.publish("b", arrays=W, card={"parents": ["a@best"]})
    elsewhere = {"ref": "z@4", "store": "s3://other/store"}
    store.publish("c", arrays=W, card={"parents": ["b", {"ref": "a", "role": "init"}, "a@1", elsewhere]})
    store.set_alias("a", "best", 2)  # what was written down stays
    entries = store.lineage("c")
    assert [(e["ref"], e["depth"], e["missing"]) for e in entries] == [
        ("c@1", 0, False),
        ("b@1", 1, False),
        ("a@2", 1, False),
        ("a@1", 1, False),
        ("z@4", 1, True),
    ]
    assert entries[0]["parents"] == ["b@1", "a@2", "a@1", "z@4"]
    assert entries[2]["role"] == "init"
    assert entries[3]["data"] == "/data/x"
    assert entries[3]["snapshot"] == store.resolve("a@1").snapshot
    assert store.rollback("c", 1).number == 2


def test_a_store_can_be_pickled_and_opened_again(full: ArtifactStore) -> None:
    again = pickle.loads(pickle.dumps(full))  # noqa: S301 - our own object: workers receive it so
    assert again.uri == full.uri
    assert again.names() == ["photos"]


def test_a_store_is_made_only_where_nothing_is(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no artifact store is here"):
        ArtifactStore(str(tmp_path / "x"), create=False)
    assert not (tmp_path / "x").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound):
        ArtifactStore(str(tmp_path / "empty"), create=False)
    assert ArtifactStore(str(tmp_path / "empty")).names() == []
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(StorageError, match="not an artifact store"):
        ArtifactStore(str(tmp_path / "other"))
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.tex"]
    with pytest.raises(StorageError, match="Not a directory"):
        ArtifactStore(str(tmp_path / "other" / "thesis.tex"))
    with pytest.raises(StorageError, match="cannot be created"):
        ArtifactStore("/proc/store")


def test_other_repositories_are_not_taken_over(tmp_path: Path) -> None:
    icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "ice"))).create_branch(
        "mine", icechunk.Repository.open(icechunk.local_filesystem_storage(str(tmp_path / "ice"))).lookup_branch("main")
    )
    with pytest.raises(StorageError, match="not an artifact store"):
        ArtifactStore(str(tmp_path / "ice"))


def test_an_interrupted_creation_is_finished(tmp_path: Path) -> None:
    inside = tmp_path / "store" / "repository"
    inside.mkdir(parents=True)
    icechunk.Repository.create(icechunk.local_filesystem_storage(str(inside)))
    with pytest.raises(StorageError, match="not an artifact store"):
        ArtifactStore(str(tmp_path / "store"), create=False)
    store = ArtifactStore(str(tmp_path / "store"))
    store.publish("a", arrays=W, card={})
    assert ArtifactStore(str(tmp_path / "store"), create=False).names() == ["a"]


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: ArtifactStore) -> None:
    monkeypatch.setattr(repository_module, "FORMAT", 99)
    ArtifactStore(str(tmp_path / "newer"))
    monkeypatch.undo()
    with pytest.raises(StorageError, match="has format 99, newer than 1: update sparsefleet"):
        ArtifactStore(str(tmp_path / "newer"))
    monkeypatch.setattr("sparsefleet.storage.artifacts.card.FORMAT", 7)
    full.publish("photos", arrays=W, card={})
    monkeypatch.undo()
    with pytest.raises(StorageError, match="card of format 7, newer than 1"):
        full.load("photos")
    assert full.load("photos@1").version.number == 1


def test_a_disk_that_cannot_be_written_is_one_clear_error(full: ArtifactStore) -> None:
    lock = Path(full.uri, ".lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()  # as good as a read-only folder: the lock cannot be taken
    with pytest.raises(StorageError, match="cannot be written"):
        full.publish("photos", arrays=W, card={})
    assert full.load("photos").version.number == 1  # reading needs no lock


@pytest.mark.parametrize("killed", [False, True])
def test_a_new_store_is_whole_once_it_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool) -> None:
    place, real = str(tmp_path / "store"), Path.rename
    seen: list[list[str]] = []

    def rename(draft: Path, target: Path) -> Path:
        with pytest.raises(NotFound):
            ArtifactStore(place, create=False)
        done = real(draft, target)
        seen.append(ArtifactStore(place, create=False).names())
        if killed:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        if killed:
            with pytest.raises(KeyboardInterrupt):
                ArtifactStore(place)
        else:
            ArtifactStore(place)
    assert seen == [[]]
    store = ArtifactStore(place)
    assert len(list(Path(place, "seals").iterdir())) == 1
    store.publish("photos", arrays=W, card={})
    assert store.verify() == []


def test_what_ended_runs_kept_of_rows_is_garbage(full: ArtifactStore) -> None:
    runs = {name: full.run(name) for name in ("dead", "live")}
    for run in runs.values():
        run.commit(1, W, {}, {}, memory="1-a")
        run.memory.at("1-a").path.mkdir(parents=True)
    full._repo.delete_branch("run.dead")  # pyright: ignore[reportPrivateUsage]  # and the process dies here
    assert full.garbage_collect()["memories"] == 1
    assert runs["dead"].memory.place.path.exists()
    assert full.garbage_collect(dry_run=False)["memories"] == 1
    assert not runs["dead"].memory.place.path.exists()
    assert runs["live"].memory.at("1-a").path.exists()
    assert full.garbage_collect()["memories"] == 0


def test_garbage_is_what_nothing_refers_to(full: ArtifactStore) -> None:
    run = full.run("r1")
    for step in range(3):
        run.commit(step, {"W": np.random.default_rng(step).random((200, 200))}, {}, {})
    other = full.run("live")
    other.commit(1, W, {}, {})
    run.drop()
    assert full.garbage_collect(older_than_days=1)["chunks"] == 0  # too young
    planned = full.garbage_collect(older_than_days=0)
    assert planned["dry_run"]
    assert planned["chunks"] >= 3
    assert planned["bytes"] > 3 * 200 * 200 * 8
    done = full.garbage_collect(older_than_days=0, dry_run=False)
    assert done["bytes"] == planned["bytes"]
    assert full.garbage_collect(older_than_days=0)["bytes"] == 0
    assert full.verify() == []
    assert other.commit(2, W, {}, {})
    with pytest.raises(StorageError, match="older_than_days=-1"):
        full.garbage_collect(older_than_days=-1)


def test_doctor_of_a_folder(full: ArtifactStore) -> None:
    facts = full.doctor()
    assert facts["kind"] == "local"
    assert facts["several_writers"] == "one machine"
    json.dumps(facts)
