"""Spike-and-slab coding against exact enumeration, and the guarantees of its EM steps."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from sparsefleet.models import Batch, ModelError, Stage, make_model
from sparsefleet.models.kernels import native
from sparsefleet.models.truncated import gsc as gsc_module
from sparsefleet.models.truncated import small

from .. import reference
from . import learning

PLAIN = Stage(step=0, steps=1)
DIM, ATOMS = 6, 5
KINDS = list(product(("diagonal", "full"), ("scalar", "diagonal", "full")))
each = pytest.mark.parametrize(("slab", "noise"), KINDS)


def gsc(slab="diagonal", noise="scalar", **more):
    whole = {"atoms": ATOMS, "h_prime": ATOMS, "gamma": ATOMS, "dtype": "float64", "renormalise": False}
    return make_model("gsc", {**whole, "slab": slab, "noise": noise, **more})


def problem(seed, slab="diagonal", noise="scalar", rows=12):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(DIM, ATOMS))
    s, z = rng.random((rows, ATOMS)) < 0.4, rng.normal(1.0, 0.7, size=(rows, ATOMS))
    y = (s * z) @ weights.T + 0.5 * rng.normal(size=(rows, DIM))
    root = 0.4 * rng.normal(size=(ATOMS, ATOMS)) + 0.6 * np.eye(ATOMS)
    spread = 0.2 * rng.normal(size=(DIM, DIM)) + 0.5 * np.eye(DIM)
    params = {
        "W": weights + 0.2 * rng.normal(size=weights.shape),
        "pi": rng.uniform(0.1, 0.6, ATOMS),
        "mu": rng.normal(1.0, 0.5, ATOMS),
        "psi": root @ root.T if slab == "full" else rng.uniform(0.2, 1, ATOMS),
    }
    if noise == "full":
        params["noise_covariance"] = spread @ spread.T
    else:
        params["sigma"] = rng.uniform(0.4, 0.8, DIM if noise == "diagonal" else ())
    return torch.from_numpy(y), {n: torch.from_numpy(np.asarray(p)) for n, p in params.items()}


def covariances(params):
    """(Ψ, Σ) as matrices."""
    p = {n: v.numpy() for n, v in params.items()}
    psi = p["psi"] if p["psi"].ndim == 2 else np.diag(p["psi"])
    cov = p["noise_covariance"] if "noise_covariance" in p else np.eye(DIM) * p["sigma"] ** 2
    return psi, cov


def exact(y, params):
    states, joints, means, covs = reference.gsc_posterior(
        y.numpy(), params["W"].numpy(), params["pi"].numpy(), params["mu"].numpy(), *covariances(params)
    )
    return states, joints, np.exp(joints - reference.log_sum(joints)[:, None]), means, covs


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_small_matrices_equal_lapack(size):
    a = torch.randn(40, size, size + 2, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    a = a @ a.mT
    rows = [[a[:, i, j] for j in range(size)] for i in range(size)]
    full = lambda m: torch.stack([torch.stack([*r, *[torch.zeros(40)] * (size - len(r))], 1) for r in m], 1)  # noqa: E731
    factor, log_det = small.inverse_factor(rows, 0.0)
    assert torch.allclose(full(small.gram(factor)), a.inverse(), rtol=1e-8)
    assert torch.allclose(log_det, a.logdet())
    assert torch.allclose(full(small.lower_factor(rows, 0.0)), torch.linalg.cholesky(a))


@each
@pytest.mark.parametrize("seed", range(2))
def test_all_states_equal_enumeration(slab, noise, seed):
    y, params = problem(seed, slab, noise)
    states, joints, q, means, covs = exact(y, params)
    model = gsc(slab, noise)
    found, stats = model.posterior(params, y), model.statistics(params, Batch(y), PLAIN)
    np.testing.assert_allclose(found.log_evidence.numpy(), reference.log_sum(joints), rtol=1e-10, atol=1e-10)
    active = means * states
    np.testing.assert_allclose(found.s.numpy(), q @ states, atol=1e-10)
    np.testing.assert_allclose(found.sz.numpy(), np.einsum("nm,nmh->nh", q, active), atol=1e-9)
    second = np.einsum("nm,nmh,nmk->hk", q, active, active) + np.einsum("nm,mhk,mh,mk->hk", q, covs, states, states)
    np.testing.assert_allclose(stats.zz.numpy(), second, atol=1e-8)
    np.testing.assert_allclose(stats.ys.numpy(), y.numpy().T @ found.sz.numpy(), atol=1e-9)


@each
@pytest.mark.parametrize("seed", range(2))
def test_the_update_of_the_slab_is_exact(slab, noise, seed):
    y, params = problem(seed, slab, noise, rows=40)
    states, _, q, means, covs = exact(y, params)
    model = gsc(slab, noise)
    new = model.update(params, model.statistics(params, Batch(y), PLAIN), PLAIN)
    if slab == "full":
        mu = np.einsum("nm,nmh->h", q, means) / 40
        second = np.einsum("nm,nmh,nmk->hk", q, means, means) + np.einsum("nm,mhk->hk", q, covs)
        np.testing.assert_allclose(new["mu"].numpy(), mu, rtol=1e-8)
        np.testing.assert_allclose(new["psi"].numpy(), second / 40 - np.outer(mu, mu), atol=1e-8)
        assert torch.equal(new["psi"], new["psi"].T) or torch.allclose(new["psi"], new["psi"].T, atol=1e-12)
        assert float(torch.linalg.eigvalsh(new["psi"]).min()) > 0
    else:
        usage = (q @ states).sum(0)
        mu = np.einsum("nm,nmh,mh->h", q, means, states) / usage
        square = np.einsum("nm,nmh,mh->h", q, means**2, states) + np.einsum("nm,mhh,mh->h", q, covs, states)
        np.testing.assert_allclose(new["mu"].numpy(), mu, rtol=1e-8)
        np.testing.assert_allclose(new["psi"].numpy(), square / usage - mu**2, rtol=1e-7)
    np.testing.assert_allclose(new["pi"].numpy(), (q @ states).mean(0), rtol=1e-9)


@pytest.mark.parametrize("slab", ["diagonal", "full"])
def test_the_variance_of_the_slab_is_about_a_mean_that_is_fixed(slab):
    y, params = problem(1, slab, rows=40)
    states, _, q, means, covs = exact(y, params)
    model = gsc(slab, fixed=["mu"])
    new = model.update(params, model.statistics(params, Batch(y), PLAIN), PLAIN)
    apart = means - params["mu"].numpy()
    if slab == "full":
        wanted = (np.einsum("nm,nmh,nmk->hk", q, apart, apart) + np.einsum("nm,mhk->hk", q, covs)) / 40
    else:
        whole = np.einsum("nm,nmh,mh->h", q, apart**2, states) + np.einsum("nm,mhh,mh->h", q, covs, states)
        wanted = whole / (q @ states).sum(0)
    np.testing.assert_allclose(new["psi"].numpy(), wanted, rtol=1e-7, atol=1e-8)
    assert torch.equal(new["mu"], params["mu"])


@each
def test_noise_from_statistics_equals_a_second_pass(slab, noise):
    # With the posterior's covariance of the slab: leaving it out biases the noise upwards.
    y, params = problem(3, slab, noise, rows=30)
    states, _, q, means, covs = exact(y, params)
    model = gsc(slab, noise)
    new = model.update(params, model.statistics(params, Batch(y), PLAIN), PLAIN)
    weights, total = new["W"].numpy(), np.zeros((DIM, DIM))
    for m, s in enumerate(states):
        error = y.numpy() - (means[:, m] * s) @ weights.T
        loaded = weights * s
        total += np.einsum("n,nd,ne->de", q[:, m], error, error) + q[:, m].sum() * loaded @ covs[m] @ loaded.T
    total /= len(y)
    expected = {"full": total, "diagonal": np.diag(total), "scalar": np.trace(total) / DIM}[noise]
    found = new["noise_covariance"] if noise == "full" else new["sigma"].square()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-10)


@each
def test_exact_em_never_lowers_the_free_energy(slab, noise):
    y, params = problem(4, slab, noise, rows=60)
    _, trace = learning.run(gsc(slab, noise, renormalise=True), y, 30, params=params)
    values = np.array([m["free_energy"] for m in trace])
    assert (np.diff(values) >= -1e-9 * np.abs(values[:-1])).all()


@each
def test_em_beside_a_fixed_parameter_never_lowers_the_free_energy(slab, noise):
    y, params = problem(4, slab, noise, rows=60)
    params["mu"] = params["mu"] + 0.5
    for name in params:
        learned, trace = learning.run(gsc(slab, noise, fixed=[name]), y, 25, params=params)
        values = np.array([m["free_energy"] for m in trace])
        assert (np.diff(values) >= -1e-9 * np.abs(values[:-1])).all(), name
        assert torch.equal(learned[name], params[name])


@pytest.mark.parametrize("slab", ["diagonal", "full"])
@pytest.mark.parametrize("anneal_prior", [False, True])
def test_tempered_posterior_equals_enumeration(slab, anneal_prior):
    y, params = problem(5, slab)
    states, joints, _, means, _ = exact(y, params)
    pi = params["pi"].numpy()
    prior = (states * np.log(pi) + (1 - states) * np.log1p(-pi)).sum(1)
    tempered = joints / 3 if anneal_prior else (joints - prior) / 3 + prior
    q = np.exp(tempered - reference.log_sum(tempered)[:, None])
    found = gsc(slab, anneal_prior=anneal_prior).posterior(params, y, PLAIN.with_values(T=3.0))
    np.testing.assert_allclose(found.s.numpy(), q @ states, atol=1e-10)
    np.testing.assert_allclose(found.sz.numpy(), np.einsum("nm,nmh->nh", q, means * states), atol=1e-9)
    np.testing.assert_allclose(found.log_evidence.numpy(), reference.log_sum(joints), atol=1e-10)


def test_fewer_states_lower_the_free_energy_and_are_normalised():
    y, params = problem(6)
    whole = gsc().posterior(params, y).log_evidence
    for h_prime, gamma in ((1, 1), (3, 1), (3, 2), (4, 4)):
        found = gsc(h_prime=h_prime, gamma=gamma).posterior(params, y)
        assert bool((found.log_evidence <= whole + 1e-10).all())
        assert bool(((found.s >= -1e-12) & (found.s <= 1 + 1e-12)).all())


def test_atoms_may_be_rescaled_without_a_change():
    y, params = problem(7, "full")
    scale = torch.tensor([0.5, 2.0, -1.0, 3.0, 1.0], dtype=torch.float64)
    other = {
        **params,
        "W": params["W"] * scale,
        "mu": params["mu"] / scale,
        "psi": params["psi"] / torch.outer(scale, scale),
    }
    model = gsc("full")
    assert torch.allclose(model.posterior(other, y).log_evidence, model.posterior(params, y).log_evidence)
    stats = model.statistics(params, Batch(y), PLAIN)
    plain, unit = model.update(params, stats, PLAIN), gsc("full", renormalise=True).update(params, stats, PLAIN)
    assert torch.allclose(unit["W"].norm(dim=0), torch.ones(ATOMS).double())
    assert torch.allclose(model.posterior(unit, y).log_evidence, model.posterior(plain, y).log_evidence)


def test_symmetries():
    y, params = problem(8)
    model = gsc(h_prime=3, gamma=2)
    scaled = {**params, "W": params["W"] * 3, "sigma": params["sigma"] * 3}
    before = model.posterior(params, y).log_evidence
    assert torch.allclose(model.posterior(scaled, y * 3).log_evidence, before - DIM * np.log(3))
    order = torch.tensor([3, 1, 4, 0, 2])
    permuted = {**{n: params[n][order] for n in ("pi", "mu", "psi")}, "W": params["W"][:, order]}
    other = model.statistics({**params, **permuted}, Batch(y), PLAIN)
    one = model.statistics(params, Batch(y), PLAIN)
    assert torch.allclose(other.zz, one.zz[order][:, order])


@each
def test_uneven_blocks_and_tiles_give_the_same_parameters(slab, noise, monkeypatch):
    y, params = problem(9, slab, noise, rows=230)
    model = gsc(slab, noise, h_prime=3, gamma=3)
    whole = model.update(params, model.statistics(params, Batch(y), PLAIN), PLAIN)
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(gsc_module, "TILE_ELEMENTS", 1)
    edges = (0, 1, 6, 6, 230)
    parts = [model.statistics(params, Batch(y[a:b], a), PLAIN) for a, b in pairwise(edges)]
    total = parts[0] + parts[1] + parts[2] + parts[3]
    for name, value in model.update(params, total, PLAIN).items():
        assert torch.allclose(value, whole[name], rtol=1e-9, atol=1e-11), name


def test_the_slab_that_shrinks_to_its_mean_is_binary_coding():
    y, params = problem(10)
    params["psi"] = torch.full((ATOMS,), 1e-14, dtype=torch.float64)
    params["mu"] = torch.ones(ATOMS, dtype=torch.float64)
    binary = make_model("bsc", {"atoms": ATOMS, "h_prime": ATOMS, "gamma": ATOMS, "individual_priors": True})
    same = {n: params[n] for n in ("W", "pi", "sigma")}
    expected = binary.posterior(same, y).log_evidence
    assert torch.allclose(gsc().posterior(params, y).log_evidence, expected, rtol=1e-8)
    single = gsc(dtype="float32").posterior(params, y.float()).log_evidence
    assert torch.allclose(single, expected, rtol=1e-4)


@each
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_data_stays_finite(slab, noise, dtype):
    y, params = problem(11, slab, noise)
    model = gsc(slab, noise, h_prime=3, gamma=3, dtype=dtype, renormalise=True)
    if noise != "full":
        params["sigma"] = params["sigma"] * 0 + 1e-3
    params["W"][:, 1] = params["W"][:, 0]
    for rows in (y * 1e3, y * 0, y[:1], y[:1].expand(5, -1)):
        now = params
        for _ in range(4):
            stats = model.statistics(now, Batch(rows.to(model.torch_dtype)), PLAIN)
            assert bool(torch.isfinite(stats.flatten()).all())
            now = model.update(now, stats, PLAIN)
            assert all(bool(torch.isfinite(p).all()) for p in now.values())


def test_an_unused_atom_keeps_its_slab_and_its_direction():
    y, params = problem(12)
    params["W"][:, 2], params["mu"][2], params["psi"][2] = 1e3, 50.0, 0.01
    model = gsc()
    stats = model.statistics(params, Batch(y), PLAIN)
    assert float(stats.s[2]) < 1e-12
    new = model.update(params, stats, PLAIN)
    assert torch.allclose(new["W"][:, 2], params["W"][:, 2], rtol=1e-6)
    assert float(new["mu"][2]) == 50.0 and float(new["psi"][2]) == 0.01


def test_a_run_by_enumeration_reaches_the_truth():
    # 3 × 3 bars, enumerated; the free energy of the truth is a lower bound on what is learned.
    rng = np.random.default_rng(0)
    truth = learning.bar_atoms(3, 2.0)
    s, z = rng.random((500, 6)) < 0.25, rng.normal(1.5, 0.5, size=(500, 6))
    y = torch.from_numpy((s * z) @ truth.T + 0.4 * rng.normal(size=(500, 9)))
    model = make_model("gsc", {"atoms": 6, "h_prime": 6, "gamma": 6, "dtype": "float64"})
    start = {
        "W": torch.from_numpy(truth + rng.normal(size=truth.shape)),
        "pi": torch.full((6,), 0.3).double(),
        "mu": torch.ones(6).double(),
        "psi": torch.ones(6).double(),
        "sigma": torch.tensor(1.0).double(),
    }
    params, trace = learning.run(model, y, 120, params=start)
    at_truth = {
        "W": torch.from_numpy(truth),
        "pi": torch.full((6,), 0.25).double(),
        "mu": torch.full((6,), 1.5).double(),
        "psi": torch.full((6,), 0.25).double(),
        "sigma": torch.tensor(0.4).double(),
    }
    cosine, _ = learning.match(params["W"], truth)
    assert (cosine > 0.999).all()
    assert trace[-1]["free_energy"] > float(model.posterior(at_truth, y).log_evidence.mean())
    assert float(params["sigma"]) == pytest.approx(0.4, rel=0.03)


def test_bars_are_found_with_the_true_noise():
    rng = np.random.default_rng(0)
    truth = learning.bar_atoms()
    s, z = rng.random((1000, 10)) < 0.2, rng.normal(1.0, 1.0, size=(1000, 10))
    y = torch.from_numpy((s * z) @ truth.T + rng.normal(size=(1000, 25)))
    # Few states find the atoms; more of them then find the noise.
    few = make_model("gsc", {"atoms": 10, "h_prime": 6, "gamma": 3})
    start, _ = learning.run(few, y, 60, {"T": ((0, 4), (0.8, 1))})
    params, _ = learning.run(make_model("gsc", {"atoms": 10, "h_prime": 10, "gamma": 5}), y, 12, params=start)
    cosine, _ = learning.match(params["W"], truth, signs=True)
    assert (cosine > 0.95).all()
    assert float(params["sigma"]) ** 2 == pytest.approx(1.0, rel=0.05)
    assert float(params["pi"].mean()) == pytest.approx(s.mean(), abs=0.03)


@pytest.mark.parametrize(
    ("given", "words"),
    [({"slab": "none"}, "slab"), ({"noise": "pink"}, "noise"), ({"h_prime": 40, "gamma": 20, "atoms": 99}, "states")],
)
def test_impossible_settings_are_refused(given, words):
    with pytest.raises(ModelError, match=words):
        make_model("gsc", {"atoms": 10, **given})
