"""Matrices from files: every format, larger than memory, shuffled, whitened, interrupted, refused."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sparsefleet.storage import NotFound, StorageError
from sparsefleet.storage.datasets import Dataset, Shard, open_dataset
from sparsefleet.storage.ingest import ArraysSource, ImagesSource, ingest
from sparsefleet.storage.ingest import sources as module
from sparsefleet.storage.ingest.arrays import Gather
from sparsefleet.storage.ingest.sources import Rows

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def matrix(rows: int = 300, dim: int = 5, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, dim)).astype(dtype)


def test_fingerprints_stay_as_they_were(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(60.0).reshape(20, 3))
    photos = ImagesSource(sources=["sklearn:china.jpg"], out=str(tmp_path / "i.zarr"), patch=4, rows=50)
    known = {
        "d57782ac950bc0b4440daa9ed0c1491d75895e37d9439eb2b838e4a809d93d4f": job(tmp_path, tmp_path / "x.npy"),
        "7958ac7339af3612a91e8a2d36001254e810261c1f738fb998f05d513dc9a29d": photos,
    }
    for fingerprint, source in known.items():
        assert ingest(source).fingerprint == fingerprint, "runs on older data sets would not be continued"


def job(tmp_path: Path, *sources: Path | str, **more: Any) -> ArraysSource:
    return ArraysSource(**({"sources": [str(s) for s in sources], "out": str(tmp_path / "out.zarr")} | more))


def everything(found: Dataset) -> np.ndarray:
    return found.read(0, found.rows)


def npy(path: Path, x: np.ndarray) -> Path:
    np.save(path, x, allow_pickle=True)
    return path


def write_npy(folder: Path, x: np.ndarray) -> str:
    return str(npy(folder / "x.npy", x))


def write_fortran(folder: Path, x: np.ndarray) -> str:
    return str(npy(folder / "x.npy", np.asfortranarray(x)))


def write_big_endian(folder: Path, x: np.ndarray) -> str:
    return str(npy(folder / "x.npy", x.astype(x.dtype.newbyteorder(">"))))


def write_npz(folder: Path, x: np.ndarray) -> str:
    np.savez(folder / "x.npz", data=x)
    return str(folder / "x.npz")


def write_npz_compressed(folder: Path, x: np.ndarray) -> str:
    np.savez_compressed(folder / "x.npz", data=x, other=np.ones(3))
    return str(folder / "x.npz") + "::data"


def write_hdf5(folder: Path, x: np.ndarray) -> str:
    import h5py

    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("group/data", data=x, chunks=(7, x.shape[1]), compression="gzip")
        file["labels"] = np.arange(len(x))
    return str(folder / "x.h5")


def write_hdf5_named(folder: Path, x: np.ndarray) -> str:
    import h5py

    with h5py.File(folder / "x.hdf5", "w") as file:
        file["group/data"] = x
        file["more"] = x * 2
    return str(folder / "x.hdf5") + "::/group/data"


def write_columns(folder: Path, x: np.ndarray) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({f"c{i}": column for i, column in enumerate(x.T)} | {"name": ["a"] * len(x)})
    pq.write_table(table, folder / "x.parquet", row_group_size=64)
    return str(folder / "x.parquet")


def write_chosen_columns(folder: Path, x: np.ndarray) -> str:
    write_columns(folder, x[:, ::-1])
    return str(folder / "x.parquet") + "::" + ",".join(f"c{i}" for i in reversed(range(x.shape[1])))


def write_lists(folder: Path, x: np.ndarray) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fixed = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
    pq.write_table(pa.table({"v": fixed, "name": ["a"] * len(x)}), folder / "x.parquet", row_group_size=64)
    return str(folder / "x.parquet") + "::v"


def write_uneven_type(folder: Path, x: np.ndarray) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"v": pa.array(list(x))}), folder / "x.parquet")
    return str(folder / "x.parquet")


WRITERS: list[Callable[[Path, np.ndarray], str]] = [
    write_npy,
    write_fortran,
    write_big_endian,
    write_npz,
    write_npz_compressed,
    write_hdf5,
    write_hdf5_named,
    write_columns,
    write_chosen_columns,
    write_lists,
    write_uneven_type,
]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_format_comes_back(tmp_path: Path, write: Callable[[Path, np.ndarray], str], dtype: str) -> None:
    x = matrix(dtype=dtype)
    found = ingest(job(tmp_path, write(tmp_path, x), dtype=dtype, shard_rows=70))
    assert found.dtype == dtype
    np.testing.assert_array_equal(everything(found), x)
    assert found.verify() == []
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.name != "out.zarr") == [found_suffix(write)]


def found_suffix(write: Callable[[Path, np.ndarray], str]) -> str:
    """The ending of the one file that `write` leaves: nothing else may remain beside the data set."""
    for part, suffix in (("npz", ".npz"), ("named", ".hdf5"), ("hdf5", ".h5"), ("_npy", ".npy")):
        if part in write.__name__ and write is not write_uneven_type:
            return suffix
    return ".npy" if write in (write_fortran, write_big_endian) else ".parquet"


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool", "float16"])
def test_other_numbers_become_floats(tmp_path: Path, dtype: str) -> None:
    x = (np.arange(60).reshape(20, 3) % 7).astype(dtype)
    np.testing.assert_array_equal(everything(ingest(job(tmp_path, npy(tmp_path / "x.npy", x)))), x.astype("float32"))


def test_rows_with_more_axes_are_flattened(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3, 4)).astype("float32")
    found = ingest(job(tmp_path, npy(tmp_path / "x.npy", x)))
    assert found.patch_shape == (3, 4)
    np.testing.assert_array_equal(everything(found), x.reshape(20, 12))


def test_files_are_concatenated_in_order(tmp_path: Path) -> None:
    parts = [matrix(rows) for rows in (30, 1, 45)]
    for i, part in enumerate(parts):
        npy(tmp_path / f"{i}.npy", part)
    found = ingest(job(tmp_path, tmp_path / "*.npy", shard_rows=8))
    np.testing.assert_array_equal(everything(found), np.concatenate(parts))
    assert [source["name"] for source in found.attributes["sources"]] == ["0.npy", "1.npy", "2.npy"]
    assert str(tmp_path) not in str(found.attributes)


@FEW
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    shard_rows=st.integers(1, 50),
    shuffle=st.booleans(),
    seed=st.integers(0, 5),
)
def test_every_row_comes_once(tmp_path: Path, counts: list[int], shard_rows: int, shuffle: bool, seed: int) -> None:
    numbers = np.split(np.arange(sum(counts), dtype="float64")[:, None], np.cumsum(counts)[:-1])
    files = [Rows(str(i), len(part), (1,), lambda a, b, part=part: part[a:b]) for i, part in enumerate(numbers)]
    gather = Gather(files, job(tmp_path, "x", shard_rows=shard_rows, shuffle=shuffle, seed=seed, dtype="float64"))
    blocks = [
        gather.block(Shard(i, at, min(at + gather.shard_rows, gather.rows)))
        for i, at in enumerate(range(0, gather.rows, gather.shard_rows))
    ]
    rows = np.concatenate(blocks)[:, 0]
    np.testing.assert_array_equal(np.sort(rows) if shuffle else rows, np.arange(sum(counts)))


def test_shuffling_mixes_over_the_whole_and_can_be_repeated(tmp_path: Path) -> None:
    x = np.arange(6000, dtype="float32")[:, None]
    source = npy(tmp_path / "x.npy", x)
    first, again, other = (
        ingest(job(tmp_path, source, shuffle=True, seed=seed, out=str(tmp_path / name)))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    np.testing.assert_array_equal(everything(first), everything(again))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert (everything(first) != everything(other)).mean() > 0.9
    for shard in first.shards():
        block = first.read(shard.start, shard.stop)[:, 0]
        if len(block) > 100:
            assert block.min() < 2500 < 3500 < block.max()
            assert np.abs(np.corrcoef(np.arange(len(block)), block)[0, 1]) < 0.5


@pytest.mark.parametrize("shuffle", [False, True])
def test_centring_and_whitening(tmp_path: Path, shuffle: bool) -> None:
    x = matrix(4000, 6, "float64") @ np.diag([5, 3, 1, 1, 0.5, 0.1]) + 7
    source = npy(tmp_path / "x.npy", x)
    centred = ingest(job(tmp_path, source, center=True, dtype="float64", shuffle=shuffle, out=str(tmp_path / "a")))
    np.testing.assert_allclose(centred.side("mean"), x.mean(0), rtol=1e-12)
    assert centred.side("whiten") is None
    np.testing.assert_allclose(everything(centred).mean(0), 0, atol=1e-12)
    white = ingest(job(tmp_path, source, whiten="zca", keep=1.0, epsilon=0, shuffle=shuffle, out=str(tmp_path / "b")))
    np.testing.assert_allclose(np.cov(everything(white).T), np.eye(6), atol=1e-3)
    assert white.dtype == np.float32


def test_an_interrupted_ingest_continues_to_the_same_data_set(tmp_path: Path) -> None:
    x = matrix(1000, 4)
    np.savez_compressed(tmp_path / "x.npz", x=x.reshape(1000, 2, 2))
    work = job(tmp_path, tmp_path / "x.npz", shuffle=True, whiten="pca", shard_rows=64)

    def stop(done: int, total: int, what: str) -> None:
        if what == "writing shards" and done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(work, stop)
    with pytest.raises(StorageError, match="unfinished"):
        open_dataset(work.out)
    found = ingest(work)
    undisturbed = ingest(work.model_copy(update={"out": str(tmp_path / "u.zarr")}))
    np.testing.assert_array_equal(everything(found), everything(undisturbed))
    assert found.fingerprint == undisturbed.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.zarr", "u.zarr", "x.npz"]


@pytest.mark.parametrize("more", [{}, {"shuffle": True}, {"whiten": "zca"}])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_nan_is_refused_with_file_and_row_and_nothing_is_left(tmp_path: Path, bad: float, more: dict[str, Any]) -> None:
    x = matrix(500, dtype="float64")
    npy(tmp_path / "a.npy", x)
    x[[321, 400], 2] = bad
    work = job(tmp_path, tmp_path / "a.npy", npy(tmp_path / "b.npy", x), **more)
    with pytest.raises(StorageError, match=r"b\.npy as float32: NaN or Inf in row (321|400)"):
        ingest(work)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "b.npy"]


def bad_sources(folder: Path) -> dict[str, tuple[str, str]]:
    import h5py
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "empty.npy").touch()
    for suffix in ("npy", "npz", "h5", "parquet"):
        (folder / f"text.{suffix}").write_text("this is no matrix, whatever its name says " * 9)
    whole = npy(folder / "x.npy", matrix()).read_bytes()
    (folder / "cut.npy").write_bytes(whole[:-8])
    npy(folder / "object.npy", np.array([[1, None]], dtype=object))
    npy(folder / "complex.npy", matrix().astype("complex64"))
    npy(folder / "one.npy", np.arange(5.0))
    npy(folder / "zero.npy", np.zeros((0, 5)))
    npy(folder / "narrow.npy", np.zeros((9, 4)))
    npy(folder / "words.npy", np.array([["a", "b"]]))
    np.savez(folder / "two.npz", a=matrix(), b=matrix())
    np.savez(folder / "object.npz", a=np.array([[1, None]], dtype=object))
    np.savez_compressed(folder / "cut.npz", a=matrix())
    flipped = bytearray((folder / "cut.npz").read_bytes())
    flipped[400] ^= 255
    (folder / "cut.npz").write_bytes(bytes(flipped))
    with h5py.File(folder / "two.h5", "w") as file:
        file["a"], file["b"], file["words"] = matrix(), matrix(), ["x", "y"]
    pq.write_table(pa.table({"name": ["a"], "n": [1.0]}), folder / "x.parquet")
    pq.write_table(pa.table({"v": [[1.0, 2.0], [3.0]]}), folder / "uneven.parquet")
    pq.write_table(pa.table({"v": [1.0, None]}), folder / "null.parquet")
    pq.write_table(pa.table({"v": [[1.0], None]}), folder / "nulls.parquet")
    pq.write_table(pa.table({"v": pa.array([], pa.float32())}), folder / "none.parquet")
    pq.write_table(pa.table({"v": ["a"]}), folder / "words.parquet")
    return {
        "missing.npy": ("missing.npy", "missing.npy: no such file"),
        "table.csv": ("x.csv", "no such file"),
        "empty": ("empty.npy", "empty.npy cannot be read (it is empty)"),
        "text npy": ("text.npy", "text.npy cannot be read"),
        "text npz": ("text.npz", "text.npz cannot be read"),
        "text h5": ("text.h5", "text.h5 cannot be read"),
        "text parquet": ("text.parquet", "text.parquet cannot be read"),
        "cut": ("cut.npy", "cut.npy is cut off"),
        "objects": ("object.npy", "holds object: a data set needs real numbers"),
        "objects npz": ("object.npz", "holds object"),
        "complex": ("complex.npy", "holds complex64"),
        "words": ("words.npy", "holds <U1"),
        "one axis": ("one.npy", "has shape [5]: a matrix [rows, numbers] is needed"),
        "no rows": ("zero.npy", "has shape [0, 5]: there is nothing in it"),
        "widths": ("narrow.npy", "narrow.npy has rows of [4]"),
        "npy key": ("x.npy::a", "leave out ::a"),
        "npz keys": ("two.npz", "holds 2 arrays (a, b): name one as"),
        "npz key": ("two.npz::c", "has no 'c'; it has a, b"),
        "npz damaged": ("cut.npz", "cut.npz cannot be read"),
        "h5 keys": ("two.h5", "holds 2 matrices (a, b): name one as"),
        "h5 key": ("two.h5::c", "has no 'c'; it has a, b, words"),
        "h5 words": ("two.h5::words", "holds object"),
        "column": ("x.parquet::m", "has no column 'm'; it has name, n"),
        "column type": ("x.parquet::name", "column 'name' is string"),
        "uneven": ("uneven.parquet", "has 1 numbers in row 1, others have 2"),
        "null": ("null.parquet", "NaN or Inf in row 1"),
        "nulls": ("nulls.parquet", "is empty in row 1"),
        "parquet rows": ("none.parquet", "has no rows"),
        "parquet words": ("words.parquet", "no column of numbers"),
    }


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[str, str]]]:
    folder = tmp_path_factory.mktemp("bad")
    return folder, bad_sources(folder)


@pytest.mark.parametrize("number", range(29))
def test_what_is_no_matrix_is_refused_and_nothing_is_left(
    tmp_path: Path, bad: tuple[Path, dict[str, tuple[str, str]]], number: int
) -> None:
    folder, cases = bad
    assert len(cases) == 29
    source, message = list(cases.values())[number]
    with pytest.raises(StorageError) as caught:
        ingest(job(tmp_path, *([folder / "x.npy"] if source == "narrow.npy" else []), folder / source))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_table_of_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(StorageError, match=r"read from \.npy, \.npz, \.h5"):
        ingest(job(tmp_path, tmp_path / "x.csv"))
    with pytest.raises(NotFound):
        ingest(job(tmp_path, tmp_path / "*.npy"))


def test_large_files_are_hashed_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = npy(tmp_path / "x.npy", np.zeros((300_000, 4)))
    assert module.file_fingerprint(path)["whole"]
    monkeypatch.setattr(module, "WHOLE_HASH", 1000)
    first = module.file_fingerprint(path)
    assert not first["whole"]
    with path.open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"x")
    assert module.file_fingerprint(path)["sha256"] != first["sha256"]


MEMORY_PROBE = """
import sys, threading, time, psutil
from sparsefleet.storage.ingest import ArraysSource, ingest
import dask, zarr, h5py, pyarrow.parquet
ingest(ArraysSource(sources=[sys.argv[1]], out=sys.argv[3]))  # imports and pools
me, peak, ended = psutil.Process(), 0, threading.Event()
start = me.memory_info().rss
def watch():
    global peak
    while not ended.wait(0.005):
        peak = max(peak, me.memory_info().rss)
thread = threading.Thread(target=watch); thread.start()
ingest(ArraysSource(sources=[sys.argv[2]], out=sys.argv[4], shuffle=True, whiten="pca", overwrite=True))
ended.set(); thread.join()
print((peak - start) / 1e6)
"""


def test_memory_stays_flat(tmp_path: Path) -> None:
    small, large = npy(tmp_path / "small.npy", matrix()), tmp_path / "large.npz"
    rows, dim = 800_000, 128  # 410 MB
    block = np.random.default_rng(0).normal(size=(8000, dim)).astype("float32")
    with zipfile.ZipFile(large, "w") as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"shape": (rows, dim), "fortran_order": False, "descr": "<f4"})  # pyright: ignore
        for _ in range(rows // len(block)):
            file.write(block.data)
    outs = [str(tmp_path / "warm.zarr"), str(tmp_path / "out.zarr")]
    command = [sys.executable, "-c", MEMORY_PROBE, str(small), str(large), *outs]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert answer.returncode == 0, answer.stderr
    assert float(answer.stdout) < 250
    assert open_dataset(outs[1]).rows == rows
