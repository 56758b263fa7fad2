"""A store that somebody made to harm its reader: nothing of it is run, unpacked, or written elsewhere."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from sparsefleet.storage.artifacts import ArtifactStore
from sparsefleet.storage.artifacts.names import run_branch, versions_branch
from sparsefleet.storage.errors import StorageError
from zarr.codecs import Crc32cCodec, GzipCodec


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def forge(store: ArtifactStore, branch: str, change: Any) -> None:
    """A commit with its seal, as the store's own writer would make it, after `change` of the group."""
    repo = store._repo  # pyright: ignore[reportPrivateUsage]
    with repo.session(branch, lasting=True) as session:
        change(session.group)
        assert session.base is not None
        session.commit("forged", {**session.base.metadata, "version": 2})


def strange(group: zarr.Group, kind: str, folder: str) -> None:
    """An array that no store of ours holds."""
    more: dict[str, Any] = {
        "words": {"shape": 2, "dtype": "str"},
        "bytes": {"shape": 2, "dtype": "variable_length_bytes"},
        "times": {"shape": 2, "dtype": "datetime64[ns]"},
        "packed": {"shape": 2, "dtype": "float64", "compressors": [GzipCodec()]},
        "huge": {"shape": (2**31, 2**20), "chunks": (2**20, 1), "dtype": "float64", "compressors": [Crc32cCodec()]},
    }[kind]
    group.create_array(f"{folder}/W2", **more)


@pytest.mark.parametrize("kind", ["words", "bytes", "times", "packed", "huge"])
@pytest.mark.filterwarnings("ignore")
def test_arrays_that_we_never_write_are_not_read(full: ArtifactStore, tmp_path: Path, kind: str) -> None:
    forge(full, versions_branch("photos"), lambda group: strange(group, kind, "params"))
    with pytest.raises(StorageError, match=r"not read|not fit|damaged") as caught:
        full.load("photos@2")
    assert "\n" not in str(caught.value)
    with pytest.raises(StorageError):
        full.export("photos@2", tmp_path / "out.npz")
    assert full.verify("photos@2") != []
    full.run("r").commit(1, {"W": np.ones(3)}, {}, {})
    forge(full, run_branch("r"), lambda group: strange(group, kind, ""))
    with pytest.raises(StorageError):
        full.run("r").latest()


def test_a_pickle_in_an_array_of_bytes_stays_one(full: ArtifactStore, tmp_path: Path) -> None:
    payload = np.frombuffer(pickle.dumps(Bomb(tmp_path / "bombed")), np.uint8)
    full.publish("photos", arrays={"W": payload}, card={})
    assert full.load("photos").arrays["W"].tobytes() == payload.tobytes()
    full.export("photos", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert found["W"].dtype == np.uint8
    assert not (tmp_path / "bombed").exists()


@pytest.mark.parametrize("key", ["b", "a/b.png", ".b.png"])
def test_figures_are_written_nowhere_else(full: ArtifactStore, tmp_path: Path, key: str) -> None:
    def change(group: zarr.Group) -> None:
        made = group.create_array(f"figures/{key}", shape=3, dtype="uint8", compressors=[Crc32cCodec()])
        made[...] = 1

    forge(full, versions_branch("photos"), change)
    with pytest.raises(StorageError):
        full.export("photos@2", tmp_path / "out", format="folder")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ref", ["../photos", "photos/../x@1", "/etc/passwd", "photos@../1", "a\0b", "photos@1/.."])
def test_names_lead_nowhere_else(full: ArtifactStore, ref: str) -> None:
    for use in (full.load, full.history, full.verify, full.run):
        with pytest.raises(StorageError):
            use(ref)
    with pytest.raises(StorageError):
        full.publish(ref, arrays={"W": np.ones(2)}, card={})
    with pytest.raises(StorageError):
        full.publish("x", arrays={ref: np.ones(2)}, card={})
