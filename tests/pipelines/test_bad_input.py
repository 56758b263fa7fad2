"""Bad sources, numbers, names, stores and addresses: exit code 2, one line that names the value, nothing written."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder full of things that are not what they should be."""
    folder = tmp_path_factory.mktemp("bad")
    rng = np.random.default_rng(0)
    good = rng.normal(size=(500, 8)).astype(np.float32)
    bad = good.copy()
    bad[7, 1], bad[9] = np.nan, np.inf
    np.save(folder / "good.npy", good)
    np.save(folder / "nan.npy", bad)
    np.save(folder / "zero.npy", np.zeros((0, 8)))
    np.save(folder / "line.npy", np.zeros(8))
    np.save(folder / "complex.npy", np.zeros((5, 2), complex))
    np.save(folder / "object.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    (folder / "cut.npy").write_bytes((folder / "good.npy").read_bytes()[:500])
    (folder / "text.jpg").write_text("hello")
    (folder / "empty.png").touch()
    Image.fromarray(rng.integers(0, 255, (10, 10, 3), dtype=np.uint8)).save(folder / "small.png")
    (folder / "folder").mkdir()
    (folder / "not-a-store").mkdir()
    (folder / "not-a-store" / "x").write_text("x")
    return folder


SOURCES = {
    "text as an image": ("images", "text.jpg", "text.jpg is not an image"),
    "an empty image": ("images", "empty.png", "empty.png is empty"),
    "a folder without images": ("images", "folder", "has no images"),
    "an image smaller than a patch": ("images", "small.png", "a patch of 16×16 does not fit"),
    "no such image": ("images", "missing.png", "missing.png: no such file"),
    "NaN and Inf": ("arrays", "nan.npy", "NaN or Inf in row 7, 9"),
    "no rows": ("arrays", "zero.npy", "there is nothing in it"),
    "one dimension": ("arrays", "line.npy", "has shape [8]"),
    "complex numbers": ("arrays", "complex.npy", "complex128"),
    "objects": ("arrays", "object.npy", "object"),
    "a file that was cut off": ("arrays", "cut.npy", "is cut off"),
    "a folder as a matrix": ("arrays", "folder", "a matrix is read from"),
}

JOBS = {
    "negative workers": (["--workers", "-2"], "workers=-2"),
    "workers of one process": (["--workers", "2"], "engine local is one process"),
    "too many atoms to count": (["--atoms", "99999999999999"], "atoms=99999999999999"),
    "more atoms than memory": (["--atoms", "2000000000"], "GiB per worker, but a worker may use"),
    "no passes": (["--passes", "0"], "passes=0"),
    "NaN seconds": (["--commit-seconds", "nan"], "commit_seconds=NaN"),
    "half precision": (["--dtype", "float16"], "'float16' is not one of"),
    "a word for a number": (["--set", "model.gamma=nan"], "gamma='nan'"),
    "a GPU that is not there": (["--device", "cuda"], "sees no CUDA device"),
    "a store that is none": (["--store", "{place}/not-a-store"], "is not an artifact store"),
    "a store nobody may write": (["--store", "/proc/store"], "/proc/store"),
    "S3 without credentials": (["--store", "s3://bucket/x"], "needs credentials"),
    "an unknown version": (["--init", "d@7"], "no version 7"),
    "an unknown alias": (["--init", "d@best"], "no alias 'best'"),
    "an unknown name": (["--init", "nobody"], "'nobody'"),
    "an address where nobody listens": (["--engine", "ray", "--address", "127.0.0.1:1"], "no Ray cluster answers"),
    "an address that is none": (["--engine", "ray", "--address", "nonsense"], "address='nonsense'"),
    "no launcher": (["--engine", "mpi", "--launcher", "nompirun"], "finds no 'nompirun'"),
}

STORES = {
    "an alias like a number": (["alias", "d", "3", "1"], "'3' looks like a version"),
    "an alias like a version": (["alias", "d", "v3", "1"], "'v3' looks like a version"),
    "the alias that moves by itself": (["alias", "d", "latest", "1"], "'latest'"),
    "an alias of nothing": (["alias", "d", "best", "9"], "no version 9"),
    "a name that climbs": (["show", "../d"], "'../d'"),
    "a format that is none": (["export", "d", "--out", "d.docx"], "docx"),
}


def refused(answer, words: str) -> None:
    assert answer.code == 2, answer.err
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert words in answer.err


@pytest.mark.parametrize("name", SOURCES)
def test_sources(sparsefleet, place, tmp_path, name):
    kind, source, words = SOURCES[name]
    before = set(os.listdir(place))
    refused(sparsefleet("ingest", kind, str(place / source), "--out", str(tmp_path / "out.zarr")), words)
    assert set(os.listdir(place)) == before
    assert not [n for n in os.listdir(tmp_path) if "out" in n]


@pytest.fixture
def with_a_version(sparsefleet, bars):
    assert sparsefleet("learn", "--data", bars, "--atoms", "4", "--passes", "2", "--name", "d").code == 0


@pytest.mark.parametrize("name", JOBS)
def test_jobs(sparsefleet, bars, place, with_a_version, monkeypatch, tmp_path, name):
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(variable, raising=False)
    flags, words = JOBS[name]
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    refused(sparsefleet("learn", "--data", bars, "--name", "d", *(f.format(place=place) for f in flags)), words)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", STORES)
def test_stores(sparsefleet, with_a_version, name):
    args, words = STORES[name]
    refused(sparsefleet("artifacts", *args), words)


def test_an_endpoint_that_does_not_answer(sparsefleet, bars, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for flags in (["--data", "s3://bucket/x"], ["--data", bars, "--store", "s3://bucket/x"]):
        refused(sparsefleet("learn", *flags), "http://127.0.0.1:9 does not answer")
