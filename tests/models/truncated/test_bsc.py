"""BSC against exact enumeration, and the guarantees of its EM steps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsefleet.models import Batch, ModelError, Probe, Schedule, Stage, make_model

from .. import reference

PLAIN = Stage(step=0, steps=1)


def problem(seed: int, rows=12, dim=5, atoms=6, sigma=0.7):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(dim, atoms))
    y = (rng.random((rows, atoms)) < 0.3) @ weights.T + sigma * rng.normal(size=(rows, dim))
    params = {
        "W": torch.from_numpy(weights + 0.2 * rng.normal(size=weights.shape)),
        "pi": torch.tensor(rng.uniform(0.05, 0.6), dtype=torch.float64),
        "sigma": torch.tensor(sigma * rng.uniform(0.5, 2), dtype=torch.float64),
    }
    return torch.from_numpy(y), params


def exact(atoms=6, **more):
    return make_model("bsc", {"atoms": atoms, "h_prime": atoms, "gamma": atoms, "dtype": "float64", **more})


def bars(rows: int, seed: int, size=5, pi=0.2, sigma=2.0, amplitude=10.0):
    rng = np.random.default_rng(seed)
    weights = np.zeros((size, size, 2 * size))
    for i in range(size):
        weights[i, :, i] = weights[:, i, size + i] = amplitude
    weights = weights.reshape(size * size, 2 * size)
    s = rng.random((rows, 2 * size)) < pi
    return torch.from_numpy(s @ weights.T + sigma * rng.normal(size=(rows, size * size))), weights, s


def run(model, y, passes, ramps=None, seed=0, params=None):
    y = y.to(model.torch_dtype)
    schedule = Schedule(passes=passes, update_every="pass", batch_rows=len(y), ramps=ramps or {})
    probe = Probe(len(y), y.double().mean(0), y.double().var(0), y.double())
    params = params or model.init(probe, torch.Generator().manual_seed(seed))
    trace = []
    for step in range(passes):
        stage, batch = schedule.at(step, passes, seed=seed, rows=len(y)), Batch(y)
        for _ in range(model.surveys_at(stage)):
            stage = model.refine(params, model.survey(params, batch, stage), stage)
        stats = model.statistics(params, batch, stage)
        trace.append(model.metrics(params, stats))
        params = model.update(params, stats, stage)
    return params, trace


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), atoms=st.integers(1, 7), dim=st.integers(1, 6))
def test_all_states_equal_enumeration(seed, atoms, dim):
    y, params = problem(seed, dim=dim, atoms=atoms)
    states, joints = reference.bsc_log_joints(
        y.numpy(), params["W"].numpy(), float(params["pi"]), float(params["sigma"])
    )
    evidence = reference.log_sum(joints)
    q = np.exp(joints - evidence[:, None])
    model = exact(atoms)
    found = model.posterior(params, y)
    np.testing.assert_allclose(found.log_evidence.numpy(), evidence, rtol=1e-10, atol=1e-10)
    mean = model.moments(found)[0]
    np.testing.assert_allclose(mean.numpy(), q @ states, atol=1e-10)
    stats = model.statistics(params, Batch(y), PLAIN)
    np.testing.assert_allclose(stats.ss.numpy(), np.einsum("nm,mh,mk->hk", q, states, states), atol=1e-9)
    np.testing.assert_allclose(stats.ys.numpy(), y.numpy().T @ (q @ states), atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), h_prime=st.integers(1, 6), gamma=st.integers(1, 6))
def test_fewer_states_lower_the_free_energy(seed, h_prime, gamma):
    y, params = problem(seed)
    gamma = min(gamma, h_prime)
    truncated = make_model("bsc", {"atoms": 6, "h_prime": h_prime, "gamma": gamma, "dtype": "float64"})
    whole = exact().posterior(params, y).log_evidence
    assert bool((truncated.posterior(params, y).log_evidence <= whole + 1e-10).all())


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("anneal_prior", [False, True])
def test_tempered_posterior_equals_enumeration(temperature, anneal_prior):
    y, params = problem(1)
    pi = float(params["pi"])
    states, joints = reference.bsc_log_joints(y.numpy(), params["W"].numpy(), pi, float(params["sigma"]))
    prior = (states * np.log(pi) + (1 - states) * np.log1p(-pi)).sum(1)
    tempered = joints / temperature if anneal_prior else (joints - prior) / temperature + prior
    q = np.exp(tempered - reference.log_sum(tempered)[:, None])
    model = exact(anneal_prior=anneal_prior)
    stage = PLAIN.with_values(T=temperature)
    found = model.posterior(params, y, stage)
    np.testing.assert_allclose(model.moments(found)[0].numpy(), q @ states, atol=1e-10)
    np.testing.assert_allclose(found.log_evidence.numpy(), reference.log_sum(joints), atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_exact_em_never_lowers_the_free_energy(seed):
    y, params = problem(seed, rows=80)
    _, trace = run(exact(), y, 40, params=params)
    values = np.array([m["free_energy"] for m in trace])
    assert (np.diff(values) >= -1e-9 * np.abs(values[:-1])).all()


def test_a_converged_run_is_stationary():
    y, _ = problem(4, rows=60, atoms=3, dim=3)
    model = exact(3)
    params, _ = run(model, y, 3000, params=problem(4, atoms=3, dim=3)[1])
    for name, value in params.items():
        for index in np.ndindex(*value.shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = {n: p.clone() for n, p in params.items()}
                moved[name][index] += step
                values.append(float(model.posterior(moved, y).log_evidence.mean()))
            assert abs(values[0] - values[1]) / 2e-5 < 1e-4, (name, index)


def test_noise_from_statistics_equals_a_second_pass():
    y, params = problem(5)
    model = exact()
    stats = model.statistics(params, Batch(y), PLAIN)
    new = model.update(params, stats, PLAIN)
    states, joints = reference.bsc_log_joints(
        y.numpy(), params["W"].numpy(), float(params["pi"]), float(params["sigma"])
    )
    q = np.exp(joints - reference.log_sum(joints)[:, None])
    errors = ((y.numpy()[:, None] - states @ new["W"].numpy().T) ** 2).sum(2)
    assert float(new["sigma"]) ** 2 == pytest.approx((q * errors).sum() / y.numel(), rel=1e-10)


def test_an_unused_atom_stays_where_it_is():
    y, params = problem(6)
    params["W"][:, 2] = -1e3 * params["W"][:, :1].abs().sum() * torch.ones(5, dtype=torch.float64)
    model = exact()
    stats = model.statistics(params, Batch(y), PLAIN)
    assert float(stats.s[2]) < 1e-12
    assert torch.allclose(model.update(params, stats, PLAIN)["W"][:, 2], params["W"][:, 2], rtol=1e-6)


def test_scaling_data_and_parameters_shifts_the_free_energy():
    y, params = problem(7)
    scaled = {"W": params["W"] * 3, "pi": params["pi"], "sigma": params["sigma"] * 3}
    before, after = exact().posterior(params, y), exact().posterior(scaled, y * 3)
    assert torch.allclose(after.log_evidence, before.log_evidence - 5 * np.log(3))


def test_permuting_atoms_permutes_the_statistics():
    y, params = problem(8)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    model = exact()
    stats = model.statistics(params, Batch(y), PLAIN)
    other = model.statistics({**params, "W": params["W"][:, order]}, Batch(y), PLAIN)
    assert torch.allclose(other.ss, stats.ss[order][:, order])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_values_stay_finite(dtype):
    y, params = problem(9)
    model = make_model("bsc", {"atoms": 6, "h_prime": 4, "gamma": 3, "dtype": dtype})
    params["sigma"] = torch.tensor(1e-3, dtype=torch.float64)
    for rows in (y * 1e3, y * 0, y[:1], y[:1].expand(5, -1)):
        stats = model.statistics(params, Batch(rows.to(model.torch_dtype)), PLAIN)
        assert bool(torch.isfinite(stats.flatten()).all())
        assert all(bool(torch.isfinite(p).all()) for p in model.update(params, stats, PLAIN).values())


def test_float32_is_close_to_float64_and_guarded():
    y, params = problem(10)
    single = make_model("bsc", {"atoms": 6, "h_prime": 6, "gamma": 6, "dtype": "float32"})
    found = single.posterior(params, y.float())
    assert torch.allclose(found.log_evidence, exact().posterior(params, y.float().double()).log_evidence, rtol=1e-5)
    # A block whose scores are huge against the noise is computed in float64.
    assert single.posterior({**params, "sigma": torch.tensor(1e-4)}, y.float()).single.dtype == torch.float64


def test_bars_are_found():
    y, weights, s = bars(1000, 0)
    model = make_model("bsc", {"atoms": 10, "h_prime": 8, "gamma": 5})
    params, _ = run(model, y, 150, {"T": ((0, 5), (0.8, 1)), "ncut": ((0, 0), (2 / 3, 1))})
    learned = params["W"].numpy()
    cosine = (learned / np.linalg.norm(learned, axis=0)).T @ (weights / np.linalg.norm(weights, axis=0))
    assert (cosine.max(0) > 0.95).all() and len(set(cosine.argmax(0))) == 10
    assert float(params["sigma"]) == pytest.approx(2.0, rel=0.02)
    assert float(params["pi"]) == pytest.approx(s.mean(), abs=0.005)


def test_the_cut_removes_the_bias_of_the_noise():
    y, _, s = bars(2000, 0, sigma=1.0)
    model = make_model("bsc", {"atoms": 10, "h_prime": 6, "gamma": 3})
    cut, _ = run(model, y, 80, {"T": ((0, 2), (0.7, 1)), "ncut": ((0, 0), (2 / 3, 1))})
    plain, _ = run(model, y, 80, {"T": ((0, 2), (0.7, 1))})
    assert float(cut["sigma"]) == pytest.approx(1.0, abs=0.12)
    assert float(plain["sigma"]) > 1.5
    assert float(cut["pi"]) == pytest.approx(s.mean(), abs=0.01)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"gamma": 9}, "gamma=9"),
        ({"gamma": 0}, "gamma=0"),
        ({"h_prime": 0}, "h_prime=0"),
        ({"h_prime": 40, "gamma": 20, "atoms": 100}, "states per point"),
        ({"atoms": 0}, "atoms=0"),
        ({"start": "nowhere"}, "start"),
        ({"gama": 3}, "did you mean 'gamma'"),
        ({"gamma": "many"}, "gamma='many'"),
    ],
)
def test_impossible_settings_are_refused(given_, words):
    with pytest.raises(ModelError, match=words):
        make_model("bsc", {"atoms": 10, **given_})
