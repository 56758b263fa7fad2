"""`sparsefleet encode --coder …` and `sparsefleet coders`."""

import numpy as np
import pytest
from sparsefleet.models.pursuit import CODERS
from sparsefleet.pipelines import submitting
from sparsefleet.storage import ArraysSource, open_dataset
from sparsefleet.storage.ingest import ingest
from sparsefleet.workers import EncodeJob, JobError


@pytest.fixture
def atoms(tmp_path):
    """Files that hold a dictionary of eight bars, and some that do not."""
    bars = np.zeros((4, 4, 8), np.float32)
    for i in range(4):
        bars[i, :, i] = bars[:, i, 4 + i] = 3.0
    bars = bars.reshape(16, 8)
    np.savez(tmp_path / "bars.npz", W=bars)
    np.save(tmp_path / "bars.npy", bars)
    np.savez(tmp_path / "other.npz", V=bars)
    np.savez(tmp_path / "short.npz", W=bars[:9])
    np.savez(tmp_path / "nan.npz", D=bars * np.nan)
    np.save(tmp_path / "vector.npy", bars[0])
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npz").write_text("atoms")
    return bars


@pytest.mark.parametrize("file", ["bars.npz", "bars.npy"])
def test_a_dictionary_in_a_file(sparsefleet, bars, atoms, file):
    asked = ["encode", "--data", bars, "--dictionary", file, "--coder", "omp", "--set", "coder.nonzeros=3"]
    answer = sparsefleet(*asked, "--out", "c.zarr", "--json")
    assert answer.code == 0
    assert answer.json["metrics"]["relative_error"] < 0.4 and answer.json["metrics"]["rows_per_second"] > 0
    assert "normalised inside" in answer.err
    codes, x = open_dataset("c.zarr"), open_dataset(bars).read(0, 600)
    indices, values = codes.read(0, 600, "indices"), codes.read(0, 600, "values")
    assert indices.shape == (600, 3) and codes.attributes["coder_settings"] == {"nonzeros": 3}
    rebuilt = np.einsum("nk,nkd->nd", values, atoms.T[np.maximum(indices, 0)])
    found = np.sqrt(((x - rebuilt) ** 2).sum() / (x**2).sum())
    assert found == pytest.approx(answer.json["metrics"]["relative_error"], rel=1e-4)
    assert (indices >= 0).sum() / 600 == pytest.approx(answer.json["metrics"]["entries_per_row"])
    # Another coder is another data set of codes.
    other = sparsefleet(*asked, "--set", "coder.select=ols", "--out", "c.zarr")
    assert other.code == 2


@pytest.mark.parametrize("coder", ["omp", "lasso"])
def test_the_reconstruction_is_of_the_entries_that_are_kept(sparsefleet, bars, atoms, coder):
    asked = ["encode", "--data", bars, "--dictionary", "bars.npz", "--coder", coder, "--keep", 2]
    answer = sparsefleet(*asked, "--outputs", "reconstruction", "--out", "c.zarr", "--json")
    assert answer.code == 0, answer.err
    codes, x = open_dataset("c.zarr"), open_dataset(bars).read(0, 600)
    indices, values = codes.read(0, 600, "indices"), codes.read(0, 600, "values")
    assert indices.shape == (600, 2)
    rebuilt = np.einsum("nk,nkd->nd", values, atoms.T[np.maximum(indices, 0)])
    np.testing.assert_allclose(codes.read(0, 600, "reconstruction"), rebuilt, rtol=1e-4, atol=1e-5)
    found = np.sqrt(((x - rebuilt) ** 2).sum() / (x**2).sum())
    assert found == pytest.approx(answer.json["metrics"]["relative_error"], rel=1e-4)


@pytest.mark.parametrize("model", ["online", "mod"])
def test_what_was_exported_is_a_dictionary(sparsefleet, bars, model):
    few = ["--set", "model.nonzeros=3"] if model == "mod" else []
    assert (
        sparsefleet("learn", "--data", bars, "--model", model, "--atoms", 4, "--passes", 2, *few, "--name", "m").code
        == 0
    )
    assert sparsefleet("artifacts", "export", "m", "--format", "npz", "--out", "m.npz").code == 0
    same = []
    for dictionary, out in (("m.npz", "file.zarr"), ("m", "own.zarr")):
        asked = ["encode", "--data", bars, "--dictionary", dictionary, "--coder", "omp", "--set", "coder.nonzeros=2"]
        answer = sparsefleet(*asked, "--out", out)
        assert answer.code == 0, answer.err
        same.append(open_dataset(out).read(0, 600, "values"))
    np.testing.assert_allclose(same[0], same[1], rtol=1e-4, atol=1e-5)


def test_a_published_dictionary(sparsefleet, bars, store):
    asked = ["encode", "--data", bars, "--dictionary", "bars@best", "--store", store]
    answer = sparsefleet(*asked, "--coder", "lasso", "--set", "coder.penalty=0.5", "--out", "c.zarr", "--json")
    assert answer.code == 0 and answer.json["dictionary"] == "bars@1"
    assert 0 < answer.json["metrics"]["relative_error"] < 1
    own = sparsefleet(*asked, "--out", "own.zarr", "--json")
    assert own.code == 0 and "relative_error" not in own.json["metrics"]


def test_a_trial(sparsefleet, bars, atoms):
    asked = ["encode", "--data", bars, "--dictionary", "bars.npz", "--coder", "threshold", "--out", "c.zarr"]
    assert sparsefleet(*asked, "--dry-run", "--json").json["entries_per_row"] == 8
    assert sparsefleet(*asked, "--keep", "3", "--dry-run", "--json").json["entries_per_row"] == 3


def test_a_job_for_a_work_pool_is_checked_here():
    asked = {"data": "d", "dictionary": "bars.npz", "out": "c.zarr"}
    with pytest.raises(JobError, match="choose a coder"):
        submitting._check("encode", EncodeJob.parse(asked))


def test_the_coders_are_listed(sparsefleet):
    assert set(sparsefleet("coders", "--json").json) == set(CODERS)
    shown = sparsefleet("coders", "omp")
    assert "--set coder.nonzeros" in shown.out and "k, most entries" in shown.out
    assert {s["name"] for s in sparsefleet("coders", "elasticnet", "--json").json["settings"]} >= {"ridge", "penalty"}


@pytest.fixture
def odd():
    """Rows of which five are zero; dictionaries of nine atoms in six dimensions with odd lengths, of low rank, zero."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 6)).astype(np.float32)
    x[:5] = 0
    np.save("rows.npy", x)
    np.save("zero.npy", x * 0)
    ingest(ArraysSource(sources=["rows.npy"], out="rows.zarr"))
    ingest(ArraysSource(sources=["zero.npy"], out="zero.zarr"))
    odd = rng.normal(size=(6, 9)) * np.linspace(0.1, 10, 9)
    odd[:, 3] = 0
    low = rng.normal(size=(6, 2)) @ rng.normal(size=(2, 9))
    for name, atoms in {"odd": odd, "low": low, "none": odd * 0}.items():
        np.savez(f"{name}.npz", W=atoms.astype(np.float32))


@pytest.mark.parametrize("coder", ["omp", "somp", "nnomp", "gomp", "iht", "lasso", "elasticnet", "threshold"])
def test_odd_dictionaries_and_zero_rows(sparsefleet, odd, coder, recwarn):
    settings = [] if coder in ("lasso", "elasticnet") else ["--set", "coder.nonzeros=50"]
    for name in ("odd", "low", "none"):
        asked = ["encode", "--data", "rows.zarr", "--dictionary", f"{name}.npz", "--coder", coder, *settings]
        answer = sparsefleet(
            *asked, "--set", "coder.group=2" if coder == "somp" else "keep=9", "--out", f"{name}.zarr", "--json"
        )
        assert answer.code == 0, answer.err
        codes = open_dataset(f"{name}.zarr")
        indices, values = codes.read(0, 60, "indices"), codes.read(0, 60, "values")
        assert np.isfinite(values).all() and ((indices < 0) == (values == 0)).all()
        assert (indices[:5] == -1).all(), "a zero row has an empty code"
        assert not (indices == 3).any() or name == "low", "a zero atom is never chosen"
        if name == "odd":
            assert "1 are zero" in answer.err and ("normalised inside" in answer.err) == CODERS[coder].normalises
        if settings and coder != "threshold":
            assert "nonzeros=50 is more than 9 atoms of 6 dimensions allow: 6 are used" in answer.err
        if name == "low" and coder in ("omp", "somp", "nnomp"):
            assert (indices >= 0).sum(1).max() <= 2
        if coder != "threshold":
            assert answer.json["metrics"]["relative_error"] <= 1
    assert not [w for w in recwarn if "independent" in str(w.message)]
    asked = ["encode", "--data", "zero.zarr", "--dictionary", "odd.npz", "--coder", coder, "--out", "z.zarr", "--json"]
    assert sparsefleet(*asked).json["metrics"]["entries_per_row"] == 0


def test_rows_that_are_coded_together_are_not_cut(sparsefleet, odd):
    ingest(ArraysSource(sources=["rows.npy"], out="cut.zarr", shard_rows=25))
    asked = ["encode", "--dictionary", "odd.npz", "--coder", "somp", "--set", "coder.nonzeros=3", "--set"]
    answer = sparsefleet(*asked, "coder.group=10", "--data", "cut.zarr", "--out", "c.zarr")
    assert answer.code == 2 and "--shard-rows 20" in answer.err
    assert sparsefleet(*asked, "coder.group=5", "--data", "cut.zarr", "--out", "c.zarr", "--batch-rows", "7").code == 0
    first = open_dataset("c.zarr").read(5, 60, "indices").reshape(11, 5, 3)
    assert (first == first[:, :1]).all()


BAD = {
    "unknown coder": (["bars.npz", "--coder", "opm"], "did you mean 'omp'"),
    "unknown coder to show": (None, "unknown coder 'opm'"),
    "unknown setting": (["bars.npz", "--coder", "omp", "--set", "coder.nonzero=2"], "did you mean 'nonzeros'"),
    "a file without a coder": (["bars.npz"], "choose a coder"),
    "settings without a coder": (["bars", "--set", "coder.nonzeros=2"], "which coder"),
    "noise for a coder": (["bars.npz", "--coder", "omp", "--sigma", "1"], "sigma=1.0"),
    "holes for a coder": (["bars.npz", "--coder", "omp", "--missing"], "missing=True"),
    "no such file": (["none.npz", "--coder", "omp"], "no such file"),
    "no dictionary in it": (["other.npz", "--coder", "omp"], "['V']"),
    "a vector": (["vector.npy", "--coder", "omp"], "(8,)"),
    "a pickle": (["objects.npy", "--coder", "omp"], "cannot be read"),
    "no archive": (["text.npz", "--coder", "omp"], "cannot be read"),
    "NaN": (["nan.npz", "--coder", "omp"], "NaN"),
    "other dimensions": (["short.npz", "--coder", "omp"], "9 dimensions"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(sparsefleet, bars, atoms, name):
    args, message = BAD[name]
    asked = ["coders", "opm"] if args is None else ["encode", "--data", bars, "--out", "c.zarr", "--dictionary", *args]
    answer = sparsefleet(*asked)
    assert answer.code == 2
    line = answer.err.strip().splitlines()[-1]
    assert line.startswith("error: ") and message in line
