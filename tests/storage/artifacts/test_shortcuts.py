"""Shortcuts to versions: derived, never believed, made again; stores from before have tags, which are moved."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from sparsefleet.storage import StorageError, locate
from sparsefleet.storage.artifacts import ArtifactStore
from sparsefleet.storage.artifacts.shortcuts import adopt_tags, all_shortcuts

from .before import as_before, tag_text, tags

W = {"W": np.eye(3)}
# Names whose tags begin or end like those of another.
NAMES = ["a", "a.v1", "tag.artifact.a"]


@pytest.fixture
def filled(store: ArtifactStore) -> ArtifactStore:
    """Three versions of each name, each with its own content, and an unfinished run."""
    for name in NAMES:
        for number in (1, 2, 3):
            store.publish(name, arrays={"x": np.array(number)}, card={"notes": f"{name} {number}"})
    store.run("r").commit(1, W)
    return store


def check(uri: str) -> None:
    """Every version is found, by a store that is opened for it."""
    store = ArtifactStore(uri, create=False)
    assert store.names() == NAMES
    assert [run.run_id for run in store.runs()] == ["r"]
    for name in NAMES:
        for number in range(1, store.resolve(name).number + 1):
            got = store.load(f"{name}@{number}")
            assert (got.version.name, got.version.number) == (name, number)
            assert got.card["notes"] == f"{name} {number}"
    assert store.verify() == []


def paths(store: ArtifactStore) -> list[str]:
    return [f"{name}/{number}" for name, number, _ in all_shortcuts(locate(store.uri))]


def test_the_folder_that_lists_read_does_not_grow_with_versions(filled: ArtifactStore) -> None:
    refs = sorted(path.name for path in Path(filled.uri, "repository/refs").iterdir())
    assert refs == sorted(["branch.main", "branch.run.r", *(f"branch.artifact.{name}" for name in NAMES)])
    assert paths(filled) == [f"{name}/{number}" for name in NAMES for number in (1, 2, 3)]
    check(filled.uri)


@pytest.mark.parametrize("loss", ["a file", "a folder", "all"])
def test_a_missing_shortcut_is_found_on_the_branch_and_made_again(filled: ArtifactStore, loss: str) -> None:
    wanted, all_of_them = filled.resolve("a@2"), paths(filled)
    kept = Path(filled.uri, "shortcuts")
    for path in {"a file": [kept / "a/2"], "a folder": [*(kept / "a").iterdir()], "all": [*kept.glob("*/*")]}[loss]:
        path.unlink()
    if loss == "all":
        for folder in [*kept.iterdir(), kept]:
            folder.rmdir()
    assert ArtifactStore(filled.uri).resolve("a@2") == wanted
    assert (kept / "a/2").is_file()
    check(filled.uri)
    assert set(all_of_them) - set(paths(filled)) <= {f"{name}/3" for name in NAMES}  # the newest needs none


@pytest.mark.parametrize("said", ["another version", "another name", "nothing there", "no identifier", "{", "", "\xff"])
def test_a_wrong_shortcut_does_not_mislead(filled: ArtifactStore, said: str) -> None:
    wanted = filled.resolve("a@2")
    texts = {
        "another version": tag_text(filled.resolve("a@1").snapshot),
        "another name": tag_text(filled.resolve("a.v1@2").snapshot),
        "nothing there": tag_text("0" * 20),
        "no identifier": tag_text("../../../x"),
    }
    path = Path(filled.uri, "shortcuts/a/2")
    right = path.read_bytes()
    path.write_text(texts.get(said, said), encoding="latin-1")
    assert filled.verify() == ["shortcuts/a/2 is damaged: remove this file, it is made again"]
    assert filled.resolve("a@2") == wanted
    assert path.read_bytes() == right
    check(filled.uri)


def test_a_shortcut_to_a_version_that_is_not_there_counts_for_nothing(filled: ArtifactStore) -> None:
    for name, number in (("a", 4), ("ghost", 1)):
        path = Path(filled.uri, "shortcuts", name, str(number))
        path.parent.mkdir(exist_ok=True)
        path.write_text(tag_text(filled.resolve("a").snapshot))
    assert filled.names() == NAMES
    assert len(filled.verify()) == 2
    made = filled.publish("a", arrays=W, card={"notes": "a 4"})
    assert (made.number, filled.publish("ghost", arrays=W, card={}).number) == (4, 1)
    assert filled.resolve("a@4") == made
    assert filled.verify() == []


def test_a_store_from_before_is_read_as_it_is_and_moved_by_its_next_writer(filled: ArtifactStore) -> None:
    as_before(filled.uri)
    assert len(tags(filled.uri)) == 9
    check(filled.uri)
    assert len(tags(filled.uri)) == 9 and paths(filled) == []  # whoever reads changes nothing
    ArtifactStore(filled.uri).publish("a", arrays=W, card={"notes": "a 4"})
    assert tags(filled.uri) == []
    assert len(paths(filled)) == 10
    check(filled.uri)


def test_a_version_without_tag_in_a_store_from_before_gets_its_shortcut(filled: ArtifactStore) -> None:
    as_before(filled.uri)
    lost = Path(filled.uri, "repository/refs/tag.artifact.a.v2")
    (lost / "ref.json").unlink()
    lost.rmdir()
    assert ArtifactStore(filled.uri).resolve("a@2").number == 2
    assert tags(filled.uri) == []  # not hidden by a folder that holds one shortcut only
    assert len(paths(filled)) == 9
    check(filled.uri)


class Killed(BaseException):
    """As SIGKILL: nothing is tidied up."""


@pytest.mark.parametrize("step", range(0, 22, 3))
def test_a_move_that_was_killed_leaves_all_versions_and_is_finished_by_the_next_writer(
    filled: ArtifactStore, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    as_before(filled.uri)
    left = iter(range(step))

    def until_killed(do):
        def done(*args):
            if next(left, None) is None:
                raise Killed
            return do(*args)

        return done

    with monkeypatch.context() as patch:
        for module, name in ((os, "replace"), (os, "rmdir"), (Path, "rename")):
            patch.setattr(module, name, until_killed(getattr(module, name)))
        if step < 19:  # nine tags, each moved and its folder removed, and the folder's name
            with pytest.raises(Killed):
                adopt_tags(locate(filled.uri), Path(filled.uri, "repository/refs"))
        else:
            adopt_tags(locate(filled.uri), Path(filled.uri, "repository/refs"))
    check(filled.uri)
    assert ArtifactStore(filled.uri).garbage_collect(older_than_days=0)["snapshots"] == 0
    check(filled.uri)
    filled.publish("a", arrays=W, card={"notes": "a 4"})
    assert tags(filled.uri) == [] and not Path(filled.uri, ".new-shortcuts").exists()
    check(filled.uri)


def test_tags_that_an_earlier_program_adds_are_used_and_moved_by_garbage_collection(filled: ArtifactStore) -> None:
    path = Path(filled.uri, "shortcuts/a/2")
    tag = Path(filled.uri, "repository/refs/tag.artifact.a.v2/ref.json")
    tag.parent.mkdir()
    path.rename(tag)
    foreign = Path(filled.uri, "repository/refs/tag.mine/ref.json")
    foreign.parent.mkdir()
    foreign.write_bytes(tag.read_bytes())
    check(filled.uri)
    assert not path.exists()
    filled.garbage_collect(older_than_days=0)
    assert len(tags(filled.uri)) == 2  # only counted
    filled.garbage_collect(older_than_days=0, dry_run=False)
    assert tags(filled.uri) == ["tag.mine"] and path.is_file()
    check(filled.uri)


def test_versions_whose_branch_is_lost_are_kept(filled: ArtifactStore) -> None:
    """Its shortcuts are the last that lead to them: nothing may remove what they name."""
    shutil.rmtree(Path(filled.uri, "repository/refs/branch.artifact.a"))
    with pytest.raises(StorageError, match=r"a: no branch leads to its versions .* nothing was removed"):
        filled.garbage_collect(dry_run=False, older_than_days=0)
    problems = ArtifactStore(filled.uri, create=False).verify()
    assert any("no branch leads to its versions" in problem for problem in problems)
    assert not any("remove this file" in problem for problem in problems)
    lost = filled._repo.shortcut("a", 2)  # pyright: ignore[reportPrivateUsage]
    assert lost is not None
    assert filled._repo.commit(lost).metadata["version"] == 2  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("text", ['{"snapshot":"\\ud800"}', "[" * 5000, '{"snapshot":"../../x"}', "", "{}"])
def test_a_shortcut_of_any_text_misleads_nobody(filled: ArtifactStore, text: str) -> None:
    Path(filled.uri, "shortcuts/a/2").write_text(text)
    assert any("shortcuts/a/2 is damaged" in problem for problem in filled.verify())
    check(filled.uri)


def test_a_folder_in_the_place_of_a_shortcut_hides_no_version(filled: ArtifactStore) -> None:
    path = Path(filled.uri, "shortcuts/a/2")
    path.unlink()
    path.mkdir()
    assert ArtifactStore(filled.uri, create=False).load("a@2").card["notes"] == "a 2"


def test_a_version_is_published_although_its_shortcut_cannot_be_written(filled: ArtifactStore) -> None:
    kept = Path(filled.uri, "shortcuts/a")
    shutil.rmtree(kept)
    kept.write_text("in the way")
    assert filled.publish("a", arrays=W, card={}).number == 4
    kept.unlink()
    assert ArtifactStore(filled.uri, create=False).load("a@3").card["notes"] == "a 3"


def test_tags_of_stores_from_before_are_what_icechunk_writes(filled: ArtifactStore) -> None:
    snapshot = filled.resolve("a@1").snapshot
    filled._repo._repo.create_tag("artifact.a.v1", snapshot)  # pyright: ignore[reportPrivateUsage]
    assert Path(filled.uri, "repository/refs/tag.artifact.a.v1/ref.json").read_text() == tag_text(snapshot)
