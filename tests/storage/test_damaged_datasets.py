"""Data sets that were damaged, or made by somebody else: found, named, refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsefleet.storage import BadData, StorageError
from sparsefleet.storage.datasets import open_dataset

from .datasets import FEW, filled, make, ramp


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


@FEW
@given(dtype=st.sampled_from(["float32", "int32"]), at=st.floats(0, 1, exclude_max=True))
def test_every_flipped_bit_is_found(tmp_path: Path, dtype: str, at: float) -> None:
    uri = tmp_path / "x.zarr"
    shutil.rmtree(uri, ignore_errors=True)
    found = filled(uri, np.random.default_rng(0).integers(0, 99, (21, 3)).astype(dtype))
    shard = uri / "data" / "c" / "1" / "0"
    flip(shard, int(at * shard.stat().st_size))
    assert len(found.verify()) == 1
    assert found.read(0, 8).shape == (8, 3)  # the other shards are as good as before
    with pytest.raises(BadData, match="damaged"):
        found.read(8, 16)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_cut_off_and_missing_shards_are_found(tmp_path: Path, dtype: str) -> None:
    found = filled(tmp_path / "x.zarr", ramp(dtype=dtype) + 1)
    shard = tmp_path / "x.zarr" / "data" / "c" / "1" / "0"
    content = shard.read_bytes()
    for kept in (0, 3, len(content) // 2, len(content) - 1):
        shard.write_bytes(content[:kept])
        assert found.verify(), kept
    shard.unlink()
    assert found.verify()
    if dtype == "float32":
        with pytest.raises(BadData, match="shard 1 is missing"):
            found.read(8, 16)


def test_a_changed_side_array_is_found(tmp_path: Path) -> None:
    import zarr

    found = filled(tmp_path / "x.zarr", ramp(), side={"mean": np.arange(3.0)})
    zarr.open_group(str(tmp_path / "x.zarr"))["mean"][0] = 5  # pyright: ignore
    assert "'mean' is not the one that was written" in found.verify()[0]
    with pytest.raises(BadData):
        open_dataset(str(tmp_path / "x.zarr")).side("mean")


def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    found = filled(tmp_path / "x.zarr", ramp(), side={"mean": np.arange(3.0)})
    meta = tmp_path / "x.zarr" / "mean" / "zarr.json"
    content = json.loads(meta.read_text())
    meta.write_text(json.dumps(content | {"shape": [2**50]}))
    assert "more than there is memory" in found_again(tmp_path)
    with pytest.raises(BadData, match="are more than 16,777,216 shards"):
        make(tmp_path / "y.zarr", np.broadcast_to(np.float32(0), (2**40, 3)), shard_rows=8)
    assert found.rows == 21


def found_again(folder: Path) -> str:
    """What a fresh look at a data set complains about."""
    (problem,) = open_dataset(str(folder / "x.zarr")).verify()
    return problem


def side_and_rows(uri: Path) -> None:
    found = open_dataset(str(uri))
    found.side("mean")
    found.read(0, 8)


def test_what_would_be_unpickled_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "x.zarr", ramp(), side={"mean": np.arange(3.0)})
    for name in ("mean", "data"):
        meta = tmp_path / "x.zarr" / name / "zarr.json"
        good = meta.read_text()
        for change in (
            {"data_type": "object"},
            {"data_type": {"name": "|O", "configuration": {}}},
            {"codecs": [{"name": "numcodecs.pickle", "configuration": {}}]},
            {"codecs": [{"name": "os.system", "configuration": {"command": "true"}}]},
        ):
            meta.write_text(json.dumps(json.loads(good) | change))
            with pytest.raises(StorageError) as refused:
                side_and_rows(tmp_path / "x.zarr")
            assert "\n" not in str(refused.value)
        meta.write_text(good)
    # A group of Zarr's older format, where arrays of objects are pickles, is no data set.
    (tmp_path / "old.zarr").mkdir()
    (tmp_path / "old.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    (tmp_path / "old.zarr" / ".zattrs").write_text("{}")
    with pytest.raises(StorageError):
        open_dataset(str(tmp_path / "old.zarr"))


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "x.zarr", ramp())
    meta = tmp_path / "x.zarr" / "zarr.json"
    content = json.loads(meta.read_text())
    content["attributes"]["sparsefleet"]["format"] = 2
    meta.write_text(json.dumps(content))
    with pytest.raises(StorageError, match=r"newer sparsefleet .format 2, this one reads 1.: update"):
        open_dataset(str(tmp_path / "x.zarr"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def damage(tree: Any, data: st.DataObject) -> Any:
    """`tree` with one of its values, at any depth, removed or replaced."""
    if isinstance(tree, dict) and tree and data.draw(st.integers(0, 9)):
        key = data.draw(st.sampled_from(sorted(tree)))
        if data.draw(st.integers(0, 4)) == 0:
            return {k: v for k, v in tree.items() if k != key}
        return tree | {key: damage(tree[key], data)}
    if isinstance(tree, list) and tree and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(tree) - 1))
        return [*tree[:at], damage(tree[at], data), *tree[at + 1 :]]
    return data.draw(JSON)


def opened_and_read(uri: Path) -> np.ndarray | StorageError:
    try:
        found = open_dataset(str(uri))
        return found.read(0, found.rows)
    except StorageError as error:
        return error


@settings(FEW, max_examples=120)
@given(data=st.data())
def test_damaged_metadata_gives_one_clear_error(tmp_path: Path, data: st.DataObject) -> None:
    uri = tmp_path / "x.zarr"
    if not uri.exists():
        filled(uri, ramp(), side={"mean": np.ones(3)})
    meta = uri / data.draw(st.sampled_from(["zarr.json", "data/zarr.json"]))
    good = meta.read_text()
    if data.draw(st.booleans()):
        damaged = json.dumps(damage(json.loads(good), data)).encode()
    else:
        cut = data.draw(st.integers(0, len(good)))
        damaged = good.encode()[:cut] + data.draw(st.binary(max_size=4)) + good.encode()[cut + 1 :]
    try:
        meta.write_bytes(damaged)
        answer = opened_and_read(uri)
    finally:
        meta.write_text(good)
    if isinstance(answer, StorageError):
        assert str(uri) in str(answer)
        assert "\n" not in str(answer)
    else:
        np.testing.assert_array_equal(answer, ramp())  # the damage was harmless
