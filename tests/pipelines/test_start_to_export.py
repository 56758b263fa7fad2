"""From an array and start values to exported parameters, as one types it, for every probabilistic model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sparsefleet.models import Batch, Stage, make_model
from sparsefleet.storage import open_dataset

ATOMS, DIM, ROWS = 6, 9, 120
MODELS = ["bsc", "tsc", "dsc", "gsc", "mca", "mmca"]
RNG = np.random.default_rng(0)
TRUTH = np.abs(RNG.normal(size=(DIM, ATOMS))) * 4
START = {"W": TRUTH + 0.2 * RNG.random((DIM, ATOMS)), "sigma": np.array(1.0)}
PRIOR = {
    "dsc": {"pi": np.array([0.7, 0.2, 0.1])},
    "gsc": {"pi": np.full(ATOMS, 0.2), "mu": np.ones(ATOMS), "psi": np.full(ATOMS, 0.5)},
}


def start_of(model: str) -> dict:
    return START | PRIOR.get(model, {"pi": np.array(0.2)})


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.npy"
    s = RNG.random((ROWS, ATOMS)) < 0.25
    np.save(path, s @ TRUTH.T + RNG.normal(size=(ROWS, DIM)))
    return path


@pytest.fixture
def learned(sparsefleet, rows, tmp_path):
    """Learns from a file of start values and gives the exported arrays."""
    made = sparsefleet("ingest", "arrays", rows, "--out", "D")
    assert made.code == 0, made.err

    def run(model, start, *more):
        np.savez(tmp_path / "params.npz", **start)
        settings = ["--set", "model.h_prime=5", "--set", "model.gamma=3"]
        job = ["--data", "D", "--model", model, "--atoms", ATOMS, "--init", "params.npz", *settings, *more]
        done = sparsefleet("learn", *job, "--name", "found", "--no-flow")
        assert done.code == 0, done.err
        done = sparsefleet("artifacts", "export", "found", "--format", "npz", "--out", "F.npz", "--overwrite")
        assert done.code == 0, done.err
        with np.load("F.npz", allow_pickle=False) as found:
            return dict(found)

    return run


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("model", MODELS)
def test_start_values_iterations_and_annealing_reach_the_export(learned, model, dtype):
    start = {name: value.astype(dtype) for name, value in start_of(model).items()}
    values = ["--set", "model.values=[0,1,2]"] if model == "dsc" else []
    found = learned(model, start, "--iterations", 4, "--set", "annealing=none", *values)
    assert found["W"].shape == (DIM, ATOMS)
    for name, value in start.items():
        assert found[name].shape == value.shape
        assert np.isfinite(found[name]).all()
    assert ("values" in found) == (model == "dsc")
    assert found["free_energy"].shape == (4,)
    # The first entry belongs to the start values; without annealing every update improves on them.
    assert found["free_energy"][0] < found["free_energy"][1:].min()


def test_the_first_free_energy_is_that_of_the_start_values(learned):
    found = learned("bsc", start_of("bsc"), "--iterations", 2, "--set", "model.annealing=none", "--dtype", "float64")
    model = make_model("bsc", {"atoms": ATOMS, "h_prime": 5, "gamma": 3, "dtype": "float64"})
    params = {name: torch.from_numpy(value) for name, value in start_of("bsc").items()}
    x = torch.from_numpy(open_dataset("D").read(0, ROWS)).double()
    stats = model.statistics(params, Batch(x), Stage(step=0, steps=1, rows=ROWS))
    assert found["free_energy"][0] == pytest.approx(model.metrics(params, stats)["free_energy"], rel=1e-12)


def test_annealing_is_the_usual_one_unless_it_is_switched_off(learned):
    runs = [
        learned("bsc", start_of("bsc"), "--iterations", 3, *more)["W"]
        for more in (
            ["--set", "model.annealing=default"],
            ["--set", "annealing=none"],
            ["--set", "annealing=none", "--set", "schedule.T=[[0.05,2],[0.4,1]]"],
            [],
        )
    ]
    np.testing.assert_array_equal(runs[0], runs[3])
    assert np.abs(runs[1] - runs[0]).max() > 1e-6
    assert np.abs(runs[2] - runs[1]).max() > 1e-6


@pytest.mark.parametrize("slab", ["diagonal", "full"])
def test_slab_covariance_as_one_number_a_diagonal_or_a_matrix(learned, slab):
    forms = [np.array(0.5), np.full(ATOMS, 0.5), 0.5 * np.eye(ATOMS)]
    more = ["--iterations", 2, "--set", "annealing=none", "--set", f"model.slab={slab}"]
    found = [learned("gsc", start_of("gsc") | {"psi": psi}, *more) for psi in forms]
    assert found[0]["psi"].shape == ((ATOMS,) if slab == "diagonal" else (ATOMS, ATOMS))
    for other in found[1:]:
        np.testing.assert_array_equal(other["psi"], found[0]["psi"])
        np.testing.assert_array_equal(other["W"], found[0]["W"])


def test_an_export_is_a_start(learned):
    first = learned("gsc", start_of("gsc"), "--iterations", 2, "--set", "annealing=none")
    again = learned("gsc", first, "--iterations", 1, "--set", "annealing=none")
    assert again["free_energy"][0] > first["free_energy"][-1]


CORRELATED = np.eye(ATOMS) + 0.1
REFUSED = {
    "a noise of nothing": ("bsc", {"sigma": np.array(0.0)}, "sigma=0.0"),
    "a probability above 1": ("bsc", {"pi": np.array(1.5)}, "pi holds 1.5"),
    "a prior per atom": ("bsc", {"pi": np.full(ATOMS, 0.2)}, "pi has shape (6,)"),
    "probabilities of other values": ("dsc", {"pi": np.array([0.5, 0.1, 0.1])}, "pi adds up to 0.7"),
    "other values": ("dsc", {"values": np.array([0.0, 1.0, 3.0])}, "these parameters belong to"),
    "a correlated slab": ("gsc", {"psi": CORRELATED}, "set model.slab=full"),
    "a slab that is no covariance": ("gsc", {"psi": np.eye(ATOMS) - 1.0}, "psi is no covariance"),
    "a slab of other size": ("gsc", {"psi": np.ones(ATOMS + 1)}, "psi has shape (7,)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_start_values_that_cannot_be_are_refused(sparsefleet, rows, tmp_path, name):
    model, wrong, said = REFUSED[name]
    assert sparsefleet("ingest", "arrays", rows, "--out", "D").code == 0
    np.savez(tmp_path / "params.npz", **(start_of(model) | wrong))
    job = ["--data", "D", "--model", model, "--atoms", ATOMS, "--init", "params.npz", "--iterations", 1]
    answer = sparsefleet("learn", *job, "--no-flow")
    assert answer.code == 2
    assert said in answer.err
    assert answer.err.splitlines()[-1].startswith("error: ")
