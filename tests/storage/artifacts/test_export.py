"""Versions as ordinary files."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sparsefleet.storage.artifacts import ArtifactStore
from sparsefleet.storage.errors import StorageError

Arrays = dict[str, NDArray[np.float64]]


def test_npz_has_the_parameters_by_their_name(full: ArtifactStore, parameters: Arrays, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "photos.npz"
    assert full.export("photos", target) == [target]
    with np.load(target, allow_pickle=False) as got:
        assert set(got.files) == {*parameters, "free_energy"}
        np.testing.assert_array_equal(got["free_energy"], [-3.0, -2.5])
        for key, array in parameters.items():
            np.testing.assert_array_equal(got[key], array)
    first = target.read_bytes()
    full.export("photos@1", target, "npz", overwrite=True)
    assert target.read_bytes() == first  # the same version always gives the same file
    assert list(target.parent.iterdir()) == [target]


def test_safetensors_with_its_card(full: ArtifactStore, parameters: Arrays, tmp_path: Path) -> None:
    numpy_format = pytest.importorskip("safetensors.numpy")
    files = full.export("photos", tmp_path / "photos.safetensors")
    assert [path.name for path in files] == ["photos.safetensors", "photos.card.json"]
    got = numpy_format.load_file(files[0])
    assert got.keys() == parameters.keys()
    for key, array in parameters.items():
        np.testing.assert_array_equal(got[key], array)
    assert json.loads(files[1].read_text())["name"] == "photos"
    full.publish("c", arrays={"W": np.ones(2, complex)}, card={})
    with pytest.raises(StorageError, match="'W' is complex"):
        full.export("c", tmp_path / "c.safetensors")


def test_json_has_card_history_and_aliases(full: ArtifactStore, tmp_path: Path) -> None:
    full.set_alias("photos", "best", 1)
    (path,) = full.export("photos", tmp_path / "photos.json")
    got = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert got["history"] == {"free_energy": [-3.0, -2.5], "loss/train": ["NaN"]}
    assert got["aliases"] == {"best": 1, "latest": 1}
    assert got["card"]["metrics"] == {"free_energy": -2.5, "sparsity": "NaN"}


def test_a_folder_has_all_of_it(full: ArtifactStore, tmp_path: Path) -> None:
    target = tmp_path / "photos"
    files = full.export("photos", target, "folder")
    assert sorted(path.name for path in files) == ["atoms.png", "card.json", "history.csv", "parameters.npz"]
    rows = list(csv.reader((target / "history.csv").read_text().splitlines()))
    assert rows == [["step", "free_energy", "loss/train"], ["0", "-3.0", "nan"], ["1", "-2.5", ""]]
    with pytest.raises(StorageError, match="exists"):
        full.export("photos", target, "folder")
    full.publish("photos", arrays={"W": np.ones(2)}, card={})
    full.export("photos", target, "folder", overwrite=True)
    assert not (target / "atoms.png").exists()
    (target / "thesis.tex").write_text("x")
    with pytest.raises(StorageError, match="also holds 'thesis"):
        full.export("photos", target, "folder", overwrite=True)
    assert (target / "thesis.tex").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name != "store"] == ["photos"]


def test_nothing_of_the_user_is_replaced(full: ArtifactStore, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(StorageError, match="exists"):
            full.export("photos", mine, "folder", overwrite=overwrite)
        with pytest.raises(StorageError, match=r"exists and is a folder: give another path$"):
            full.export("photos", mine, "npz", overwrite=overwrite)
    file = tmp_path / "x.npz"
    file.write_text("mine")
    with pytest.raises(StorageError, match="exists: give another path or pass --overwrite"):
        full.export("photos", file)
    assert file.read_text() == "mine"
    (tmp_path / "y.card.json").write_text("mine")
    with pytest.raises(StorageError, match=r"y\.card\.json exists"):
        full.export("photos", tmp_path / "y.safetensors")
    assert not (tmp_path / "y.safetensors").exists()


def test_other_formats_and_places_are_refused(full: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot export as 'pkl': choose one of npz, safetensors, json, folder"):
        full.export("photos", tmp_path / "photos.pkl")
    with pytest.raises(StorageError, match="cannot be written"):
        full.export("photos", "/proc/photos.npz")
