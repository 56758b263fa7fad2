"""Data sets: what is written comes back, what does not fit is refused."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsefleet.storage import BadData, NotFound, StorageError, StoreConflict
from sparsefleet.storage.datasets import (
    Shard,
    choose_layout,
    create_dataset,
    open_dataset,
    open_writer,
)
from sparsefleet.storage.locations import locate

from .datasets import FEW, filled, make, ramp


@pytest.mark.parametrize(("dtype", "value"), [("uint8", 0), ("int32", -1)])
def test_a_shard_of_nothing_but_the_fill_value_is_not_taken_for_a_lost_one(
    tmp_path: Path, dtype: str, value: int
) -> None:
    found = filled(tmp_path / "x.zarr", np.full((4, 2), value, dtype), shard_rows=2, chunk_rows=1)
    assert found.verify() == []


@FEW
@given(data=st.data())
def test_what_is_written_comes_back(tmp_path: Path, data: st.DataObject) -> None:
    rows, chunk = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 9))
    tail = tuple(data.draw(st.lists(st.integers(1, 4), max_size=2)))
    dtype = data.draw(st.sampled_from(["float32", "float64", "float16", "int32", "uint8"]))
    x = np.random.default_rng(rows).integers(0, 100, (rows, *tail)).astype(dtype)
    uri = tmp_path / "x.zarr"
    shutil.rmtree(uri, ignore_errors=True)
    filled(uri, x, shard_rows=chunk * data.draw(st.integers(1, 4)), chunk_rows=chunk, side={"mean": x[0]})
    found = open_dataset(str(uri))
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    block = found.read(start, stop)
    assert block.dtype == x.dtype
    np.testing.assert_array_equal(block, x[start:stop])
    block[...] = 0  # the caller's own
    np.testing.assert_array_equal(found.read(0, rows), x)
    np.testing.assert_array_equal(found.side("mean"), x[0])
    assert found.verify() == []


def test_all_values_of_the_header_are_shown(tmp_path: Path) -> None:
    found = filled(tmp_path / "x.zarr", ramp(), attributes={"patch_shape": [3, 1], "recipe": {}})
    assert (found.rows, found.dim, found.dtype, found.kind) == (21, 3, np.float32, "dense")
    assert (found.shard_rows, found.chunk_rows, found.nbytes, found.arrays) == (8, 4, 21 * 12, ("data",))
    assert found.shards() == [Shard(0, 0, 8), Shard(1, 8, 16), Shard(2, 16, 21)]
    assert found.patch_shape == (3, 1)
    assert found.uri == str(tmp_path / "x.zarr")
    assert found.side("whiten") is None


def test_fingerprint_is_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    first = filled(tmp_path / "a.zarr", ramp()).fingerprint
    assert filled(tmp_path / "b.zarr", ramp(), shard_rows=4).fingerprint == first
    assert filled(tmp_path / "c.zarr", ramp(), attributes={"recipe": {"seed": 2}}).fingerprint != first
    assert filled(tmp_path / "d.zarr", ramp(20)).fingerprint != first
    assert filled(tmp_path / "e.zarr", ramp(dtype="float64")).fingerprint != first


def test_codes(tmp_path: Path) -> None:
    indices = np.array([[0, 2], [1, -1], [-1, -1], [2, 1], [0, 1]], np.int32)
    values = np.where(indices < 0, 0, 1.5).astype(np.float32)
    writer = create_dataset(
        str(tmp_path / "c.zarr"),
        rows=5,
        arrays={"indices": ((2,), "int32"), "values": ((2,), "float32")},
        shard_rows=2,
        chunk_rows=1,
        attributes={"atoms": 3},
    )
    for shard in writer.shards():
        writer.write(shard, indices=indices[shard.slice], values=values[shard.slice])
    codes = writer.finish()
    assert (codes.kind, codes.dim, codes.dtype, codes.attributes["atoms"]) == ("codes", 2, np.float32, 3)
    np.testing.assert_array_equal(codes.read(0, 5, "indices"), indices)
    np.testing.assert_array_equal(codes.read(1, 4, "values"), values[1:4])
    assert codes.verify() == []
    with pytest.raises(BadData, match="no array 'data': it has indices, values"):
        codes.read(0, 1)


def test_verify_finds_atoms_that_do_not_exist(tmp_path: Path) -> None:
    writer = create_dataset(
        str(tmp_path / "c.zarr"),
        rows=2,
        arrays={"indices": ((1,), "int32"), "values": ((1,), "float32")},
        shard_rows=2,
        chunk_rows=2,
        attributes={"atoms": 3},
    )
    writer.write(writer.shards()[0], indices=np.array([[0], [3]], np.int32), values=np.ones((2, 1), np.float32))
    assert "names atoms outside of 0 to 2" in writer.finish().verify()[0]


@pytest.mark.parametrize(
    "shard", [Shard(0, 0, 4), Shard(0, 4, 12), Shard(3, 24, 32), Shard(-1, 0, 8), Shard(2, 16, 24)]
)
def test_parts_of_shards_are_refused(tmp_path: Path, shard: Shard) -> None:
    writer = make(tmp_path / "x.zarr", ramp())
    with pytest.raises(BadData, match="only whole shards are written"):
        writer.write(shard, data=ramp(len(shard)))
    assert writer.missing() == writer.shards()


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"data": ramp(7)}, r"data of shard 0 is float32\[7, 3\], it must be float32\[8, 3\]"),
        ({"data": ramp(8, 4)}, r"must be float32\[8, 3\]"),
        ({"data": ramp(8, dtype="float64")}, "is float64"),
        ({}, "a shard needs data"),
        ({"data": ramp(8), "more": ramp(8)}, "got data, more"),
        ({"data": np.where(ramp(8) == 7, np.nan, ramp(8)).astype("float32")}, r"NaN or Inf in row 2 of rows 0 to 7 \("),
        ({"data": np.full((8, 3), np.inf, "float32")}, r"row 0, 1, 2, 3, 4 and 3 more"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(tmp_path: Path, blocks: dict[str, np.ndarray], message: str) -> None:
    writer = make(tmp_path / "x.zarr", ramp())
    with pytest.raises(BadData, match=message):
        writer.write(writer.shards()[0], **blocks)
    assert writer.shards()[0] in writer.missing()


def test_large_finite_values_are_no_infinity(tmp_path: Path) -> None:
    x = np.full((8, 3), 3e38, np.float32)  # their sum overflows
    assert filled(tmp_path / "x.zarr", x).verify() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_rows": 3}, "shard_rows=8 is no multiple of chunk_rows=3"),
        ({"rows": 0}, "rows: Input should be greater"),
        ({"arrays": {"data": ((3,), "complex64")}}, "dtype 'complex64'"),
        ({"arrays": {"data": ((0,), "float32")}}, "shape.0"),
        ({"arrays": {"other": ((3,), "float32")}}, "needs data"),
        ({"arrays": {"data": ((3,), "float32"), "../x": ((3,), "float32")}}, "cannot name an array"),
        ({"side": {"data": np.ones(3)}}, "cannot name an array"),
        ({"side": {"done": np.ones(3)}}, "cannot name an array"),
        ({"attributes": {"x": float("nan")}}, "JSON"),
        ({"attributes": {"x": np.ones(3)}}, "JSON"),
    ],
)
def test_layouts_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "rows": 21,
        "arrays": {"data": ((3,), "float32")},
        "shard_rows": 8,
        "chunk_rows": 4,
        "attributes": {},
    }
    with pytest.raises(BadData, match=message):
        create_dataset(str(tmp_path / "x.zarr"), **(good | change))
    assert not (tmp_path / "x.zarr").exists()


def test_an_unfinished_data_set_is_refused_and_continued(tmp_path: Path) -> None:
    x, uri = ramp(), str(tmp_path / "x.zarr")
    writer = make(uri, x, side={"mean": x.mean(0)})
    writer.write(writer.shards()[1], data=x[8:16])
    with pytest.raises(StorageError, match="unfinished \\(2 of 3 shards missing\\)"):
        open_dataset(uri)
    with pytest.raises(StorageError, match=r"2 of 3 shards are not written \(0, 2"):
        writer.finish()
    with pytest.raises(StoreConflict, match=r"another recipe.*--overwrite"):
        make(uri, x, attributes={"recipe": {"seed": 9}})
    again = make(uri, x)
    assert [shard.index for shard in again.missing()] == [0, 2]
    np.testing.assert_array_equal(again.side("mean"), x.mean(0))
    for owner in (open_writer(uri), open_writer(uri)):
        shard = owner.missing()[0]
        owner.write(shard, data=x[shard.slice])
    np.testing.assert_array_equal(again.finish().read(0, 21), x)
    with pytest.raises(StoreConflict, match="is finished"):
        open_writer(uri)


def test_a_finished_data_set_is_kept_unless_told(tmp_path: Path) -> None:
    uri = tmp_path / "x.zarr"
    filled(uri, ramp())
    with pytest.raises(StoreConflict, match="holds a finished data set: choose another place or pass --overwrite"):
        make(uri, ramp())
    found = filled(uri, ramp(5), overwrite=True)
    assert open_dataset(str(uri)).fingerprint == found.fingerprint
    assert not (uri / "data" / "c" / "2").exists()


def test_what_is_no_data_set_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for place, reader in (("home", "is no data set"), ("file", "is a file"), ("file/x", "Not a directory|no data set")):
        with pytest.raises(StorageError):
            make(tmp_path / place, ramp(), overwrite=True)
        with pytest.raises(StorageError, match=reader):
            open_dataset(str(tmp_path / place))
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_a_start_that_died_while_laying_out_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zarr

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zarr.Group, "create_array", dies)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "x.zarr", ramp())
    with pytest.raises(StorageError):
        open_dataset(str(tmp_path / "x.zarr"))
    assert filled(tmp_path / "x.zarr", ramp()).verify() == []


def test_nothing_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no data set at .*sparsefleet ingest' or 'sparsefleet harvest'"):
        open_dataset(str(tmp_path / "none.zarr"))
    with pytest.raises(NotFound):
        open_writer(str(tmp_path / "none.zarr"))


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 2), (0, 22)])
def test_rows_out_of_range_are_refused(tmp_path: Path, start: int, stop: int) -> None:
    with pytest.raises(BadData, match="but it has 21"):
        filled(tmp_path / "x.zarr", ramp()).read(start, stop)


def test_shard_files_are_those_that_zarr_writes(tmp_path: Path) -> None:
    import zarr

    x, uri = ramp(), tmp_path / "x.zarr"
    found = filled(uri, x)
    array = zarr.open_array(str(uri / "data"))
    np.testing.assert_array_equal(array[:], x)
    array[...] = x + 1
    np.testing.assert_array_equal(found.read(0, 21), x + 1)
    np.testing.assert_array_equal(found.read(5, 20), x[5:20] + 1)


def test_threads_may_share_a_data_set(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(999, 7)).astype("float32")
    for dtype in ("float32", "int32"):
        y = x.astype(dtype)
        found = filled(tmp_path / f"{dtype}.zarr", y, shard_rows=64, chunk_rows=16)
        ranges = [(a, min(999, a + 100)) for a in range(0, 999, 13)]
        with ThreadPoolExecutor(8) as pool:
            for (a, b), block in zip(ranges, pool.map(lambda r, d=found: d.read(*r), ranges), strict=True):
                np.testing.assert_array_equal(block, y[a:b])


@settings(max_examples=200)
@given(rows=st.integers(1, 10**9), row_bytes=st.integers(1, 10**8))
def test_layouts_are_sensible(rows: int, row_bytes: int) -> None:
    shard, chunk = choose_layout(rows, row_bytes)
    assert shard % chunk == 0
    assert 1 <= chunk <= shard <= rows
    assert shard * row_bytes <= 64e6 or shard == 1
    assert chunk == 1 or chunk * row_bytes <= 4.1e6
    assert rows < 16 * 32 or -(-rows // shard) >= 16


def test_atoms_go_back_to_pixels(tmp_path: Path) -> None:
    unwhiten = np.random.default_rng(0).normal(size=(3, 5))
    white = filled(tmp_path / "x.zarr", ramp(), side={"unwhiten": unwhiten})
    atoms = np.random.default_rng(1).normal(size=(3, 4))
    np.testing.assert_allclose(white.to_pixels(atoms), unwhiten.T @ atoms)
    np.testing.assert_array_equal(filled(tmp_path / "y.zarr", ramp()).to_pixels(atoms), atoms)
    with pytest.raises(BadData, match=r"\[4, 3\] are not \[3, H\]"):
        white.to_pixels(atoms.T)


def test_s3_round_trip(s3_bucket: str) -> None:
    uri = f"{s3_bucket}/deep/x.zarr"
    x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
    with pytest.raises(NotFound, match="no data set at s3://"):
        open_dataset(uri)
    writer = make(uri, x, shard_rows=16, side={"mean": x.mean(0)})
    writer.write(writer.shards()[0], data=x[:16])
    writer = make(uri, x, shard_rows=16)
    assert len(writer.missing()) == 3
    for shard in writer.missing():
        writer.write(shard, data=x[shard.slice])
    writer.finish()
    found = open_dataset(uri)
    np.testing.assert_array_equal(found.read(0, 50), x)
    np.testing.assert_array_equal(found.read(5, 33), x[5:33])
    np.testing.assert_array_equal(found.side("mean"), x.mean(0))
    assert found.verify() == []
    obstore.delete(locate(uri).object_store(), "data/c/1/0")
    with pytest.raises(BadData, match="rows 10 to 20 of data are missing in part"):
        found.read(10, 20)
    assert len(found.verify()) == 1
    with pytest.raises(StoreConflict):
        make(uri, x)
    make(uri, x, overwrite=True).discard()
    with pytest.raises(NotFound):
        open_dataset(uri)


def test_the_rooms_public_face_is_there() -> None:
    import sparsefleet.storage as room

    assert all(getattr(room, name) is not None for name in room.__all__)
    with pytest.raises(AttributeError):
        _ = room.nothing
