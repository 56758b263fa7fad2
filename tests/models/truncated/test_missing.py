"""Rows with missing entries: posteriors of the observed dimensions alone, and EM that still climbs."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sparsefleet.models import Batch, ModelError, Stage, make_model

from . import learning, posteriors

ATOMS, DIM, infer = posteriors.ATOMS, posteriors.DIM, posteriors.infer
CASES = [c for c in posteriors.CASES if c.settings.get("noise") != "full"]
each = pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join([c.name, *map(str, c.settings)]))
STAGE = Stage(step=0, steps=9)


def with_holes(y, seed=1, share=0.4):
    rng = np.random.default_rng(seed)
    gone = torch.from_numpy(rng.random(tuple(y.shape)) < share)
    gone[0], gone[1] = False, torch.arange(y.shape[1]) > 0
    return y.masked_fill(gone, float("nan"))


def observed(params, row):
    """The row and the parameters of its observed dimensions."""
    seen = ~torch.isnan(row)
    cut = {"W": params["W"][seen]}
    if "offset" in params:
        cut["offset"] = params["offset"][seen]
    if "sigma" in params and params["sigma"].ndim:
        cut["sigma"] = params["sigma"][seen]
    return row[seen][None], {**params, **cut}


@each
@pytest.mark.parametrize("sizes", [(ATOMS, ATOMS), (3, 2)], ids=["all states", "few states"])
def test_a_row_counts_by_what_was_observed_of_it(case, sizes):
    y, params = posteriors.problem(case)
    y = with_holes(y)
    settings = {"h_prime": sizes[0], "gamma": sizes[1]}
    found = infer(case.model(missing=True, **settings), params, y, top_states=4, adaptive=1)
    for n, row in enumerate(y):
        part, cut = observed(params, row)
        expected = infer(case.model(**settings), cut, part, top_states=4, adaptive=1)
        for name in ("log_likelihood", "entropy", "gamma", "top_probabilities"):
            np.testing.assert_allclose(found[name][n], expected[name][0], rtol=1e-8, atol=1e-10, err_msg=name)
        for name in ("", "map_", "top_"):
            got = posteriors.dense(found[f"{name}indices"][n], found[f"{name}values"][n])
            wanted = posteriors.dense(expected[f"{name}indices"][0], expected[f"{name}values"][0])
            # Maximal causes have states of equal probability, of which any may be named.
            if case.name not in ("mca", "mmca") or not name:
                np.testing.assert_allclose(got, wanted, atol=1e-8, err_msg=name)
        seen = ~torch.isnan(row).numpy()
        np.testing.assert_allclose(found["reconstruction"][n][seen], expected["reconstruction"][0], atol=1e-8)
        assert np.isfinite(found["reconstruction"][n]).all()


@each
def test_reconstruction_fills_the_holes_with_the_expectation(case):
    y, params = posteriors.problem(case)
    y = with_holes(y)
    found = infer(case.model(missing=True), params, y)
    for n, row in enumerate(y):
        part, cut = observed(params, row)
        states, exact, _ = posteriors.enumerated(case, part, cut)
        if case.name in ("mca", "mmca"):
            rho = case.model().rho(None)
            means = posteriors.reference.superpose(states, params["W"].numpy(), signed=case.name == "mmca", rho=rho)[0]
            expected = exact["probability"][0] @ means
        else:
            offset = params.get("offset", torch.zeros(DIM)).numpy()
            expected = exact["mean"][0] @ params["W"].numpy().T + offset
        np.testing.assert_allclose(found["reconstruction"][n], expected, atol=1e-8)
        np.testing.assert_allclose(found["log_likelihood"][n], exact["log_likelihood"][0], rtol=1e-9)


@each
def test_a_row_without_any_value_follows_the_prior(case):
    y, params = posteriors.problem(case)
    found = infer(case.model(missing=True), params, torch.full_like(y[:2], float("nan")))
    np.testing.assert_allclose(found["log_likelihood"], 0, atol=1e-9)


@each
def test_statistics_add_whether_or_not_a_part_has_holes(case):
    y, params = posteriors.problem(case)
    y[3:] = with_holes(y[3:])
    model = case.model(missing=True)
    params = params | {n: p for n, p in start(model, y).items() if n.startswith("training/")}
    whole = model.statistics(params, Batch(y), STAGE).flatten()
    parts = model.statistics(params, Batch(y[:3]), STAGE) + model.statistics(params, Batch(y[3:]), STAGE)
    assert torch.allclose(parts.flatten(), whole, rtol=1e-9, atol=1e-9)


@each
def test_without_holes_nothing_changes(case):
    y, params = posteriors.problem(case)
    one = case.model().statistics(params, Batch(y), STAGE).flatten()
    two = case.model(missing=True).statistics(params, Batch(y), STAGE).flatten()
    assert torch.equal(one, two)


def start(model, y):
    filled = torch.nan_to_num(y)
    return model.init(learning.probe_of(filled), torch.Generator().manual_seed(3))


@each
def test_the_free_energy_of_what_was_observed_never_falls(case):
    y, _ = posteriors.problem(case, rows=80)
    y = with_holes(y, share=0.3)
    model = case.model(missing=True)
    _, trace = learning.run(model, y, 25, params=start(model, y))
    energies = [t["free_energy"] for t in trace]
    assert all(np.isfinite(energies))
    if case.name not in ("mca", "mmca"):
        assert all(b >= a - 1e-9 * abs(a) for a, b in pairwise(energies))
    assert energies[-1] > energies[0]


@each
def test_temperature_cut_and_float32_work_with_holes(case):
    y, _ = posteriors.problem(case, rows=80)
    y = with_holes(y, share=0.3)
    model = case.model(missing=True, dtype="float32", h_prime=3, gamma=2)
    ramps = {"T": ((0, 2), (0.5, 1)), "ncut": ((0, 0), (0.5, 1))}
    params, trace = learning.run(model, y, 12, ramps, params=start(model, y))
    assert all(bool(torch.isfinite(p).all()) for p in params.values())
    assert trace[-1]["used_share"] > 0.3
    # All atoms are candidates: of those that tie on the one entry of a row, either precision may choose others.
    single, double = (case.model(missing=True, dtype=d, gamma=2) for d in ("float32", "float64"))
    one = single.statistics(params, Batch(y.float()), STAGE).flatten().double()
    two = double.statistics(params, Batch(y), STAGE).flatten()
    assert float((one - two).norm() / two.norm()) < 1e-4


@each
@pytest.mark.parametrize("bad", [float("inf"), -float("inf")])
def test_infinite_values_are_still_refused(case, bad):
    y, params = posteriors.problem(case)
    y = with_holes(y)
    y[2, 0] = bad
    with pytest.raises(ModelError, match="NaN or infinite"):
        case.model(missing=True).statistics(params, Batch(y), STAGE)


def test_correlated_noise_and_missing_entries_are_refused_together():
    with pytest.raises(ModelError, match="missing"):
        make_model("gsc", {"atoms": 4, "noise": "full", "missing": True})


def test_learning_finds_the_bars_behind_holes():
    rng = np.random.default_rng(0)
    weights = learning.bar_atoms(4)
    y = torch.from_numpy((rng.random((800, 8)) < 0.2) @ weights.T + rng.normal(size=(800, 16)))
    y = with_holes(y, share=0.3)
    model = make_model("bsc", {"atoms": 8, "h_prime": 6, "gamma": 4, "missing": True})
    best = max(
        (learning.run(model, y, 60, {"T": ((0, 3), (0.6, 1))}, params=start_at(model, y, s)) for s in range(2)),
        key=lambda run: run[1][-1]["free_energy"],
    )
    cosine, _ = learning.match(best[0]["W"], weights)
    assert (cosine > 0.98).all()
    assert float(best[0]["sigma"]) == pytest.approx(1, rel=0.1)


def start_at(model, y, seed):
    filled = torch.where(torch.isnan(y), torch.nanmean(y, 0), y)
    return model.init(learning.probe_of(filled), torch.Generator().manual_seed(seed))
