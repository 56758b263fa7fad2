"""Result files as ProSper writes them: PyTables' extendable arrays, one row a step; and files that must not be read."""

import contextlib
import hashlib
import pickle

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsefleet.storage import BadData, NotFound
from sparsefleet.storage.prosper import parameters_of, read_prosper

DTYPES = [np.float64, np.float32, np.int64, np.int32, np.uint8, np.int8, np.bool_]


def append(file, name, rows):
    """A table as `AutoTable.append` leaves it after all steps: zlib, shuffled, growing along the first axis."""
    rows = np.asarray(rows)
    table = file.create_dataset(
        name, data=rows, maxshape=(None, *rows.shape[1:]), chunks=True, compression="gzip", shuffle=True
    )
    table.attrs["CLASS"] = np.bytes_("EARRAY")


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(1, 6),
    dim=st.integers(1, 5),
    atoms=st.integers(1, 4),
    extra=st.dictionaries(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True).filter(lambda n: n not in ("W", "pi", "sigma")),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(1, 3), max_size=2)),
        max_size=4,
    ),
    seed=st.integers(0, 999),
)
def test_last_rows_and_courses_come_back(tmp_path_factory, steps, dim, atoms, extra, seed):
    path = tmp_path_factory.mktemp("h5") / "result.h5"
    rng = np.random.default_rng(seed)
    written = {"W": rng.normal(size=(steps, dim, atoms)), "pi": rng.random(steps), "sigma": rng.random(steps)}
    for name, (dtype, shape) in extra.items():
        written[name] = rng.integers(0, 2, (steps, *shape)).astype(dtype)
    with h5py.File(path, "w") as file:
        for name, rows in written.items():
            append(file, name, rows)
    found = read_prosper(path)
    assert set(found.last) == set(written)
    for name, rows in written.items():
        np.testing.assert_array_equal(found.last[name], rows[-1].astype(float))
        if rows.ndim == 1 or rows.shape[1:] == (1,):
            np.testing.assert_array_equal(found.course[name], rows.astype(float).reshape(-1))
        else:
            assert name not in found.course
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.skipped == []
    assert {"W", "pi", "sigma"} <= set(parameters_of(found)) <= {"W", "pi", "sigma", "sigma_sq", "mu", "psi", "psi_sq"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "result.h5"


def test_texts_and_pickled_objects_are_never_read(path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    with h5py.File(path, "w") as file:
        append(file, "W", np.ones((1, 2, 2)))
        objects = file.create_dataset("model", (1,), dtype=h5py.vlen_dtype(np.uint8))
        objects[0] = np.frombuffer(pickle.dumps(Bomb()), np.uint8)
        objects.attrs["PSEUDOATOM"] = np.bytes_("object")
        file.create_dataset("comment", data=["a", "b"], dtype=h5py.string_dtype())
        file.create_dataset("complex", data=np.ones(2, complex))
        file.create_group("folder")
        file.create_dataset("empty", (0, 3), "f8", maxshape=(None, 3))
    found = read_prosper(path)
    assert found.skipped == ["comment", "complex", "empty", "folder", "model"]
    assert set(found.last) == {"W"}


def test_tables_of_absurd_sizes_are_refused_before_they_are_read(path):
    for name, shape, chunks in (
        ("row", (2, 1 << 20, 1 << 20), (1, 64, 64)),
        ("steps", (10**12,), (1024,)),
        ("chunk", (10, 10), None),
    ):
        with h5py.File(path, "w") as file:
            if chunks is None:
                file.create_dataset(name, (1 << 32,), "f8", chunks=(1 << 28,), maxshape=(None,))
            else:
                file.create_dataset(name, shape, "f8", chunks=chunks, maxshape=(None, *shape[1:]))
        with pytest.raises(BadData, match="which no result"):
            read_prosper(path)


def test_other_files_are_not_followed(path, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["W"] = np.ones((1, 2, 2))
    (tmp_path / "raw.bin").write_bytes(np.ones(4).tobytes())

    def external(file):
        file.create_dataset("W", (1, 2, 2), "f8", external=[(str(tmp_path / "raw.bin"), 0, 32)])

    def virtual(file):
        layout = h5py.VirtualLayout((1, 2, 2), "f8")
        layout[...] = h5py.VirtualSource(str(tmp_path / "other.h5"), "W", (1, 2, 2))
        file.create_virtual_dataset("W", layout)

    for make in (
        lambda file: file.__setitem__("W", h5py.ExternalLink(str(tmp_path / "other.h5"), "W")),
        lambda file: file.__setitem__("W", h5py.SoftLink("/nowhere")),
        external,
        virtual,
    ):
        with h5py.File(path, "w") as file:
            make(file)
        with pytest.raises(BadData, match=r"not followed|other files"):
            read_prosper(path)


def test_what_is_no_result_file_is_one_clear_error(path, tmp_path):
    with pytest.raises(NotFound):
        read_prosper(tmp_path / "none.h5")
    path.write_bytes(b"not HDF5 at all")
    with pytest.raises(BadData, match="cannot be read as HDF5"):
        read_prosper(path)
    with h5py.File(path, "w") as file:
        append(file, "pi", np.ones(3))
    with pytest.raises(BadData, match=r"has no table W .* it has pi"):
        parameters_of(read_prosper(path))
    with h5py.File(path, "w") as file:
        append(file, "W", np.full((2, 2, 2), np.nan))
    with pytest.raises(BadData, match="NaN or Inf"):
        parameters_of(read_prosper(path))


@settings(max_examples=30, deadline=None)
@given(cut=st.floats(0, 1), flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4))
def test_a_damaged_file_is_refused_or_read(tmp_path_factory, cut, flips):
    path = tmp_path_factory.mktemp("h5") / "result.h5"
    with h5py.File(path, "w") as file:
        append(file, "W", np.random.default_rng(0).normal(size=(3, 4, 2)))
        append(file, "pi", np.ones(3))
    content = bytearray(path.read_bytes())
    for place, value in flips:
        content[int(place * (len(content) - 1))] = value
    path.write_bytes(content[: max(1, int(len(content) * (1 - cut / 4)))])
    with contextlib.suppress(BadData):
        read_prosper(path)
