"""A flipped bit anywhere is found; so is what is missing."""

import random
from pathlib import Path

import numpy as np
import pytest
import zarr
from sparsefleet.storage.artifacts import ArtifactStore
from sparsefleet.storage.artifacts.names import versions_branch
from sparsefleet.storage.errors import StorageError


@pytest.fixture
def used(full: ArtifactStore) -> ArtifactStore:
    """A store with two names, aliases and an unfinished run."""
    full.publish("photos", arrays={"W": np.ones((3, 2))}, card={})
    full.set_alias("photos", "best", 1)
    full.set_alias("photos", "best", 2)
    full.publish("sounds", arrays={"W": np.random.default_rng(0).random((300, 5))}, card={"parents": ["photos@1"]})
    full.run("r").commit(1, {"W": np.random.default_rng(1).random((40, 20))}, {"x": np.arange(4.0)}, {"model": "bsc"})
    return full


def files(store: ArtifactStore) -> list[Path]:
    return sorted(path for path in Path(store.uri).rglob("*") if path.is_file() and path.name != ".lock")


def problems(uri: str) -> list[str]:
    """As a fresh process would find them; a store that does not even open has said so, too."""
    try:
        store = ArtifactStore(uri, create=False)
    except StorageError as error:
        return [str(error)]
    return store.verify()  # never raises


def test_an_undamaged_store_has_no_problems(used: ArtifactStore) -> None:
    assert problems(used.uri) == []
    assert used.verify("photos@1") == []


def test_a_flipped_bit_in_any_file_is_found(used: ArtifactStore) -> None:
    chance = random.Random(5)
    for path in files(used):
        content = path.read_bytes()
        for _ in range(3):
            damaged = bytearray(content)
            damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged)
            found = problems(used.uri)
            assert found, f"{path}: {damaged!r}"
            assert all("\n" not in text for text in found)
        path.write_bytes(content)
    assert problems(used.uri) == []


def test_a_missing_file_is_found(used: ArtifactStore) -> None:
    for path in files(used):
        name = str(path.relative_to(used.uri))
        if name.startswith(("seals/", "shortcuts/")):
            continue  # made again when needed: an interrupted writer may leave out the newest
        assert problems_without(path, used.uri), name
    oldest = Path(used.uri, "seals", used.resolve("photos@1").snapshot)
    assert problems_without(oldest, used.uri)
    assert problems(used.uri) == []


def problems_without(path: Path, uri: str) -> list[str]:
    content = path.read_bytes()
    path.unlink()
    found = problems(uri)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return found


def test_reading_a_damaged_array_is_refused(used: ArtifactStore) -> None:
    largest = max(files(used), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(content)
    again = ArtifactStore(used.uri)
    with pytest.raises(StorageError, match="sounds@1 is damaged and cannot be read") as caught:
        again.load("sounds")
    assert "\n" not in str(caught.value)
    assert again.verify("photos") == []
    assert again.verify("sounds") != []


def test_an_array_exchanged_behind_the_cards_back_is_found(used: ArtifactStore) -> None:
    # Sound files, sound seal: only the card's checksum tells.
    repo = used._repo  # pyright: ignore[reportPrivateUsage]
    with repo.session(versions_branch("sounds"), lasting=True) as session:
        array = session.group["params/W"]
        assert isinstance(array, zarr.Array)
        array[0, 0] = 7.0
        assert session.base is not None
        session.commit("forged", {**session.base.metadata, "version": 2})
    assert used.verify("sounds@2") == ["sounds@2: array params/W is not the one that was published"]
