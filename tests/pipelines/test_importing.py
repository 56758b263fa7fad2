"""`sparsefleet artifacts import`: results of ProSper as versions that encode like any other."""

import hashlib

import h5py
import numpy as np
import pytest
from sparsefleet.models import ModelError
from sparsefleet.pipelines.importing import import_prosper
from sparsefleet.storage import ArtifactStore, StorageError, open_dataset
from sparsefleet.workers import JobError

STEPS, DIM, ATOMS = 4, 16, 5


def tables(model, seed=0):
    """What ProSper logs for a model, by its own names."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(STEPS, DIM, ATOMS))
    common = {"T": np.linspace(2, 1, STEPS), "N": np.full(STEPS, 90), "L": rng.normal(size=STEPS), "W": weights}
    if model == "gsc":
        root = rng.normal(size=(STEPS, ATOMS, ATOMS))
        return common | {
            "pi": rng.uniform(0.1, 0.4, (STEPS, ATOMS)),
            "mu": rng.normal(size=(STEPS, ATOMS)),
            "sigma_sq": rng.uniform(0.5, 1, STEPS),
            "psi_sq": root @ root.transpose(0, 2, 1) + np.eye(ATOMS),
        }
    pi = np.tile([0.8, 0.15, 0.05], (STEPS, 1)) if model == "dsc" else rng.uniform(0.1, 0.3, STEPS)
    weights = np.abs(weights) if model == "mca" else weights
    return common | {"W": weights, "pi": pi, "sigma": rng.uniform(0.5, 1, STEPS)}


def write(path, found):
    with h5py.File(path, "w") as file:
        for name, rows in found.items():
            file.create_dataset(
                name, data=rows, maxshape=(None, *np.shape(rows)[1:]), compression="gzip", shuffle=True, chunks=True
            )
    return str(path)


def load(made, store):
    return ArtifactStore(store, create=False).load(made.version.ref)


@pytest.mark.parametrize("model", ["bsc", "tsc", "dsc", "mca", "mmca", "gsc"])
def test_the_last_step_becomes_a_version_that_encodes(sparsefleet, bars, tmp_path, model):
    logged = tables(model) | {"data": np.ones((1, 3, DIM))}
    path = write(tmp_path / "result.h5", logged)
    args = ["--model", model, *(["--values", "0,1,2"] if model == "dsc" else [])]
    common = ["artifacts", "import", path, "--name", "old", "--store", "s", "--json"]
    done = sparsefleet(*common, *args, "--set", "model.h_prime=4", "--set", "model.gamma=3")
    assert done.code == 0, done.err
    assert done.json["left_out"] == ["data"]
    assert done.json["updates"] == STEPS
    found = ArtifactStore("s", create=False).load("old")
    np.testing.assert_array_equal(found.arrays["W"], logged["W"][-1])
    np.testing.assert_allclose(found.arrays["pi"], logged["pi"][-1], rtol=1e-12)
    sigma = logged["sigma"] if "sigma" in logged else np.sqrt(logged["sigma_sq"])
    np.testing.assert_allclose(found.arrays["sigma"], sigma[-1])
    np.testing.assert_allclose(found.history["sigma"], sigma)
    np.testing.assert_allclose(found.history["L"], logged["L"])
    np.testing.assert_allclose(found.history["T"], logged["T"])
    with open(path, "rb") as file:
        assert found.card["imported"]["sha256"] == hashlib.sha256(file.read()).hexdigest()
    assert found.card["job"]["settings"]["h_prime"] == 4
    encoded = sparsefleet(
        "encode", "--data", bars, "--dictionary", "old", "--store", "s", "--out", "c.zarr", "--outputs", "map"
    )
    assert encoded.code == 0, encoded.err
    assert open_dataset("c.zarr").read(0, 600, "map_indices").max() < ATOMS
    shown = sparsefleet("artifacts", "show", "old", "--store", "s")
    assert shown.code == 0, shown.err


def test_learning_goes_on_from_an_imported_version(sparsefleet, bars, tmp_path):
    path = write(tmp_path / "r.h5", tables("bsc"))
    import_prosper(path, store=str(tmp_path / "s"), name="old", model="bsc")
    learn = ["learn", "--data", bars, "--store", tmp_path / "s", "--init", "old", "--atoms", str(ATOMS)]
    done = sparsefleet(*learn, "--passes", "2", "--name", "new")
    assert done.code == 0, done.err


def test_gsc_says_itself_what_it_is(tmp_path):
    logged = tables("gsc")
    logged["psi_sq"] = np.stack([np.diag(np.diag(p)) for p in logged["psi_sq"]])
    logged["sigma_sq"] = np.abs(np.random.default_rng(1).normal(size=(STEPS, DIM))) + 0.1
    made = import_prosper(write(tmp_path / "r.h5", logged), store=str(tmp_path / "s"), name="g")
    found = load(made, str(tmp_path / "s"))
    assert made.model == "gsc"
    assert found.card["job"]["settings"] == {"slab": "diagonal", "noise": "diagonal"}
    np.testing.assert_allclose(found.arrays["psi"], np.diag(logged["psi_sq"][-1]))
    np.testing.assert_allclose(found.arrays["sigma"], np.sqrt(logged["sigma_sq"][-1]))


def test_full_noise_and_slab_keep_their_symmetric_part(tmp_path):
    logged = tables("gsc")
    logged["psi_sq"] = logged["psi_sq"] + 0.01 * np.triu(np.ones((ATOMS, ATOMS)), 1)
    root = np.random.default_rng(1).normal(size=(STEPS, DIM, DIM))
    logged["sigma_sq"] = root @ root.transpose(0, 2, 1) + np.eye(DIM)
    made = import_prosper(write(tmp_path / "r.h5", logged), store=str(tmp_path / "s"), name="g")
    found = load(made, str(tmp_path / "s"))
    psi = logged["psi_sq"][-1]
    np.testing.assert_allclose(found.arrays["psi"], (psi + psi.T) / 2)
    np.testing.assert_allclose(found.arrays["noise_covariance"], logged["sigma_sq"][-1])


def test_an_offset_is_kept_and_one_of_zeros_is_not(tmp_path):
    for offset, named in ((np.zeros((STEPS, DIM)), False), (np.ones((STEPS, DIM)), True)):
        path = write(tmp_path / f"{named}.h5", tables("bsc") | {"mu": offset})
        made = import_prosper(path, store=str(tmp_path / "s"), name=f"b{named}", model="bsc")
        assert ("offset" in load(made, str(tmp_path / "s")).arrays) == named


BAD = {
    "no model": ({}, {}, "give --model bsc"),
    "no states": ({}, {"model": "dsc"}, "give the 1 states"),
    "slab that is none": (
        {"mu": np.ones((1, ATOMS)), "psi_sq": -np.ones((1, ATOMS, ATOMS))},
        {"model": "gsc"},
        "no covariance",
    ),
    "no noise": ({"sigma": None}, {"model": "bsc"}, "noise was not logged"),
    "no prior": ({"pi": None}, {"model": "bsc"}, "prior was not logged"),
    "prior that is none": ({"pi": np.full(2, 1.5)}, {"model": "bsc"}, "no probabilities"),
    "noise of zero": ({"sigma": np.zeros(2)}, {"model": "bsc"}, "above 0"),
    "no matrix": ({"W": np.ones((2, 3))}, {"model": "bsc"}, r"dictionary is \[D, H\]"),
    "too many candidates": ({}, {"model": "bsc", "settings": {"gamma": 99}}, "gamma=99"),
    "wrong prior": ({"pi": np.full((2, 3), 0.2)}, {"model": "bsc"}, r"pi is \[3\]"),
}


@pytest.mark.parametrize("setting", ["gamma=3", "model=3", "settings=3"])
def test_settings_of_nothing_are_refused_by_name(sparsefleet, tmp_path, setting):
    write(tmp_path / "r.h5", tables("bsc"))
    said = sparsefleet("artifacts", "import", "r.h5", "--name", "b", "--model", "bsc", "--set", setting)
    assert said.code == 2
    assert f"--set {setting.partition('=')[0]}" in said.err
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_and_nothing_is_published(tmp_path, name):
    changes, more, words = BAD[name]
    logged = {n: v for n, v in (tables("bsc") | changes).items() if v is not None}
    path = write(tmp_path / "r.h5", logged)
    with pytest.raises((JobError, ModelError, StorageError), match=words):
        import_prosper(path, store=str(tmp_path / "s"), name="x", **more)
    assert not (tmp_path / "s").exists()
