"""Posterior outputs of every model against enumeration of all states, and what adaptive refinement changes."""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sparsefleet.models import OUTPUTS, Batch, ModelError, Wanted, make_model
from sparsefleet.models.truncated.states import state_table

_spec = importlib.util.spec_from_file_location("reference", Path(__file__).parents[1] / "reference.py")
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

DIM, ATOMS, ROWS = 5, 4, 12
ALL = tuple(OUTPUTS)


@dataclass(frozen=True)
class Case:
    """A model and settings; H' = γ = H unless said otherwise."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def model(self, **more):
        whole = {"atoms": ATOMS, "h_prime": ATOMS, "gamma": ATOMS, "dtype": "float64"}
        return make_model(self.name, {**whole, **self.settings, **more})


CASES = [
    Case("bsc"),
    Case("bsc", {"offset": True, "individual_priors": True}),
    Case("tsc"),
    Case("dsc", {"values": [-1, 0, 0.5, 2]}),
    Case("gsc"),
    Case("gsc", {"slab": "full", "noise": "diagonal"}),
    Case("gsc", {"noise": "full"}),
    Case("mca"),
    Case("mca", {"superposition": "smooth"}),
    Case("mmca"),
    Case("mmca", {"superposition": "smooth"}),
]
each = pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join([c.name, *map(str, c.settings)]))


def problem(case, seed=0, rows=ROWS):
    """Rows, and parameters that explain them well enough for posteriors to be neither flat nor certain."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(DIM, ATOMS)) if case.name not in ("mca",) else rng.uniform(0.2, 2, (DIM, ATOMS))
    y = (rng.random((rows, ATOMS)) < 0.4) @ weights.T + 0.8 * rng.normal(size=(rows, DIM))
    params = {"W": weights, "pi": np.array(0.35), "sigma": np.array(0.9)}
    if case.settings.get("individual_priors"):
        params["pi"] = rng.uniform(0.1, 0.6, ATOMS)
    if case.settings.get("offset"):
        params["offset"] = rng.normal(size=DIM)
    if case.name == "dsc":
        params |= {"values": np.array(case.settings["values"], float), "pi": np.array([0.15, 0.6, 0.15, 0.1])}
    if case.name == "gsc":
        root = rng.normal(size=(ATOMS, ATOMS))
        psi = root @ root.T / ATOMS + 0.3 * np.eye(ATOMS)
        params |= {"pi": rng.uniform(0.1, 0.6, ATOMS), "mu": rng.normal(size=ATOMS)}
        params["psi"] = psi if case.settings.get("slab") == "full" else psi.diagonal().copy()
        if case.settings.get("noise") == "diagonal":
            params["sigma"] = rng.uniform(0.5, 1.2, DIM)
        if case.settings.get("noise") == "full":
            root = rng.normal(size=(DIM, DIM))
            del params["sigma"]
            params["noise_covariance"] = root @ root.T / DIM + 0.3 * np.eye(DIM)
    return torch.from_numpy(y), {n: torch.from_numpy(np.asarray(v, np.float64)) for n, v in params.items()}


def enumerated(case, y, params):
    """(states, outputs, coefficients [N, S, H]) of the full posterior."""
    y, p = y.numpy(), {n: v.numpy() for n, v in params.items()}
    weights, n = p["W"], len(y)
    if case.name in ("mca", "mmca"):
        rho = case.model().rho(None)
        signed = case.name == "mmca"
        states, joints, _, _ = reference.maximal_log_joints(
            y, weights, float(p["pi"]), float(p["sigma"]), signed=signed, rho=rho
        )
        means = reference.superpose(states, weights, signed=signed, rho=rho)[0]
        predictions = np.broadcast_to(means, (n, *means.shape))
        coefficients = np.broadcast_to(states, (n, *states.shape))
    elif case.name == "gsc":
        psi = p["psi"] if p["psi"].ndim == 2 else np.diag(p["psi"])
        cov = p["noise_covariance"] if "noise_covariance" in p else np.diag(np.broadcast_to(p["sigma"] ** 2, DIM))
        states, joints, means, _ = reference.gsc_posterior(y, weights, p["pi"], p["mu"], psi, cov)
        coefficients = means * states
        predictions = coefficients @ weights.T
    else:
        values = {"bsc": (0, 1), "tsc": (-1, 0, 1)}.get(case.name) or tuple(p["values"])
        pi = np.broadcast_to(p["pi"], ATOMS) if case.name != "dsc" else None
        prior = {
            "bsc": lambda: np.stack([1 - pi, pi], 1),
            "tsc": lambda: np.stack([pi / 2, 1 - pi, pi / 2], 1),
            "dsc": lambda: np.tile(p["pi"], (ATOMS, 1)),
        }[case.name]()
        offset = p.get("offset", np.zeros(DIM))
        states, joints = reference.discrete_log_joints(y - offset, weights, values, prior, float(p["sigma"]))
        coefficients = np.broadcast_to(states, (n, *states.shape))
        predictions = coefficients @ weights.T + offset
    return states, reference.every_output(states, joints, coefficients, predictions), coefficients


def dense(indices, values, atoms=ATOMS):
    out = np.zeros((*indices.shape[:-1], atoms))
    for at in np.ndindex(*indices.shape[:-1]):
        on = indices[at] >= 0
        out[at][indices[at][on]] = values[at][on]
    return out


def infer(model, params, y, **wanted):
    found = model.infer(params, Batch(y), Wanted(**{"outputs": ALL, **wanted}))
    return {n: v.numpy() for n, v in found.items()}


@each
def test_every_output_equals_enumeration(case):
    y, params = problem(case)
    states, exact, coefficients = enumerated(case, y, params)
    found = infer(case.model(), params, y, top_states=6)
    np.testing.assert_allclose(found["log_likelihood"], exact["log_likelihood"], rtol=1e-10)
    np.testing.assert_allclose(found["entropy"], exact["entropy"], atol=1e-9)
    np.testing.assert_allclose(found["reconstruction"], exact["reconstruction"], atol=1e-9)
    np.testing.assert_allclose(dense(found["indices"], found["values"]), exact["mean"], atol=1e-4)
    rows = np.arange(ROWS)
    for k in range(6):
        # Of states with the same probability (atoms that no other state shows) any may come first.
        which = number_of(case, states, found["top_indices"][:, k], found["top_values"][:, k])
        best = exact["probability"][rows, exact["order"][:, k]]
        np.testing.assert_allclose(exact["probability"][rows, which], best, atol=1e-9)
        np.testing.assert_allclose(found["top_probabilities"][:, k], best, atol=1e-9)
        listed = dense(found["top_indices"][:, k], found["top_values"][:, k])
        np.testing.assert_allclose(listed, coefficients[rows, which] * (states[which] != 0), atol=1e-9)
    np.testing.assert_array_equal(found["map_indices"], found["top_indices"][:, 0])
    np.testing.assert_array_equal(found["map_values"], found["top_values"][:, 0])


def number_of(case, states, indices, values):
    """Where each row's state stands among `states` [S, H]; a spike-and-slab state is its atoms."""
    found = dense(indices, np.ones_like(values) if case.name == "gsc" else values)
    return np.array([int(np.flatnonzero((states == row).all(1))[0]) for row in found])


@each
def test_marginals_cover_every_value(case):
    y, params = problem(case)
    states, exact, _ = enumerated(case, y, params)
    found = infer(case.model(), params, y)
    order = np.argsort(found["marginal_indices"], 1)
    marginals = found["marginals"].reshape(ROWS, ATOMS, -1)
    support = {"tsc": (-1, 1), "dsc": (-1, 0.5, 2)}.get(case.name)
    assert marginals.shape[2] == (len(support) if support else 1)
    for number, value in enumerate(support or ("active",)):
        truth = exact["probability"] @ (states != 0 if value == "active" else states == value)
        np.testing.assert_allclose(np.take_along_axis(marginals[..., number], order, 1), truth, atol=1e-9)


@each
def test_probabilities_of_the_listed_states_are_normalised(case):
    y, params = problem(case)
    model = case.model(h_prime=3, gamma=2)
    states = 1 + model.levels * ATOMS + model.multi_states
    found = infer(model, params, y, top_states=states + 3)
    assert found["top_probabilities"].shape == (ROWS, states + 3)
    np.testing.assert_allclose(found["top_probabilities"].sum(1), 1, rtol=1e-9)
    assert (found["top_probabilities"][:, 0] < 1).all()
    assert not found["top_probabilities"][:, states:].any()
    assert (found["top_indices"][:, states:] == -1).all()
    assert (np.diff(found["top_probabilities"], axis=1) <= 0).all()


@each
def test_states_are_listed_once_each(case):
    y, params = problem(case)
    model = case.model(h_prime=3, gamma=3)
    states = 1 + model.levels * ATOMS + model.multi_states
    found = infer(model, params, y, top_states=states)
    # A spike-and-slab state is its atoms; elsewhere the values are part of it.
    values = found["top_values"] if case.name != "gsc" else np.ones_like(found["top_values"])
    for row in dense(found["top_indices"], values):
        assert len({tuple(state) for state in row}) == states


@each
def test_encode_and_infer_give_the_same_codes(case):
    y, params = problem(case)
    model = case.model(h_prime=3, gamma=2)
    codes, found = model.encode(params, Batch(y)), infer(model, params, y)
    np.testing.assert_array_equal(found["indices"], codes.indices.numpy())
    np.testing.assert_allclose(found["values"], codes.values.numpy(), rtol=1e-12)


@each
def test_adaptive_inference_redoes_only_what_needs_it_and_leaves_nothing_behind(case):
    y, params = problem(case, rows=40)
    small = case.model(h_prime=2, gamma=1)
    plain = infer(small, params, y)
    again = infer(small, params, y, adaptive=2)
    hit = (plain["map_indices"] >= 0).sum(1) == 1
    assert hit.any()
    assert not hit.all()
    assert (again["gamma"][~hit] == 1).all()
    assert (again["gamma"][hit] >= 2).all()
    assert (again["h_prime"] == again["gamma"] + 1).all()
    np.testing.assert_array_equal(again["log_likelihood"][~hit], plain["log_likelihood"][~hit])
    for gamma in (2, 3):
        rows = again["gamma"] == gamma
        larger = infer(case.model(h_prime=gamma + 1, gamma=gamma), params, y[torch.from_numpy(rows)])
        np.testing.assert_allclose(again["log_likelihood"][rows], larger["log_likelihood"], rtol=1e-12)
        np.testing.assert_allclose(
            dense(again["map_indices"][rows], again["map_values"][rows]),
            dense(larger["map_indices"], larger["map_values"]),
            atol=1e-9,
        )
    # The next call begins with the model's own states.
    after = infer(small, params, y)
    assert all(np.array_equal(plain[n], after[n]) for n in plain)


@each
def test_adaptive_inference_reaches_the_exact_state(case):
    y, params = problem(case, rows=40)
    states, exact, _ = enumerated(case, y, params)
    found = infer(case.model(h_prime=3, gamma=1), params, y, adaptive=ATOMS)
    rows = np.flatnonzero(found["gamma"] == ATOMS)
    which = number_of(case, states, found["map_indices"], found["map_values"])[rows]
    np.testing.assert_allclose(exact["probability"][rows, which], exact["probability"].max(1)[rows], rtol=1e-9)
    assert (found["gamma"] <= ATOMS).all()
    assert (found["h_prime"] <= ATOMS).all()


@each
def test_no_rows_and_float32(case):
    y, params = problem(case)
    model = case.model(dtype="float32", h_prime=3, gamma=2)
    some, none = infer(model, params, y.float()), infer(model, params, y[:0].float(), adaptive=1)
    exact = infer(case.model(h_prime=3, gamma=2), params, y)
    assert {n: v.shape[1:] for n, v in infer(model, params, y.float(), adaptive=1).items()} == {
        n: v.shape[1:] for n, v in none.items()
    }
    for name, value in some.items():
        kind = "int32" if "indices" in name else "float64" if name in ("log_likelihood", "entropy") else "float32"
        assert value.dtype == kind, name
        if kind != "int32":
            assert np.isfinite(value).all()
    np.testing.assert_allclose(some["log_likelihood"], exact["log_likelihood"], rtol=1e-4)
    np.testing.assert_allclose(some["reconstruction"], exact["reconstruction"], atol=1e-3)


def test_state_tables_are_values_that_no_call_can_change():
    before = state_table(4, 2, torch.float64, torch.device("cpu")).held.clone()
    y, params = problem(CASES[0])
    infer(CASES[0].model(h_prime=4, gamma=2), params, y, adaptive=2)
    assert torch.equal(state_table(4, 2, torch.float64, torch.device("cpu")).held, before)


def test_growing_beyond_the_largest_table_is_refused():
    model = make_model("bsc", {"atoms": 60, "h_prime": 16, "gamma": 5})
    with pytest.raises(ModelError, match="states per point"):
        infer(model, {}, torch.zeros(1, 3), adaptive=9)
