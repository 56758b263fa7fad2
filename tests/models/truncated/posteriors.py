"""Small problems whose posteriors can be enumerated, one per model and setting, and their every output."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from sparsefleet.models import OUTPUTS, Batch, Wanted, make_model

from .. import reference

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
        cov = (
            p["noise_covariance"] if "noise_covariance" in p else np.diag(np.broadcast_to(p["sigma"] ** 2, y.shape[1]))
        )
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
        offset = p.get("offset", np.zeros(y.shape[1]))
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


def number_of(case, states, indices, values):
    """Where each row's state stands among `states` [S, H]; a spike-and-slab state is its atoms."""
    found = dense(indices, np.ones_like(values) if case.name == "gsc" else values)
    return np.array([int(np.flatnonzero((states == row).all(1))[0]) for row in found])
