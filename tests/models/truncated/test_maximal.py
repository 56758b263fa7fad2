"""MCA and MMCA against exact enumeration, and what keeps their EM steps from losing free energy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sparsefleet.models import Batch, ModelError, Stage, make_model
from sparsefleet.models.truncated import maximal

from .. import reference
from . import learning

PLAIN = Stage(step=0, steps=1)
DIM, ATOMS = 5, 6
NAMES = ["mca", "mmca"]
each = pytest.mark.parametrize("name", NAMES)


def model_of(name, **more):
    return make_model(name, {"atoms": ATOMS, "h_prime": ATOMS, "gamma": ATOMS, "dtype": "float64", **more})


def problem(name, seed, rows=12, *, ties=False):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.2, 4, size=(DIM, ATOMS))
    if name == "mmca":
        weights *= rng.choice([-1, 1], size=weights.shape)
    if ties:
        weights = np.abs(np.round(weights / 2) * 2 + 1) * np.sign(weights[:, :1])
    s = (rng.random((rows, ATOMS)) < 0.3).astype(float)
    clean = np.array([reference.superpose(row[None], weights, signed=name == "mmca", rho=None)[0][0] for row in s])
    y = clean + 0.5 * rng.normal(size=(rows, DIM))
    start = weights if ties else weights + 0.1 * rng.normal(size=weights.shape)
    model = model_of(name)
    params = {
        **model.init(learning.probe_of(torch.from_numpy(y)), torch.Generator().manual_seed(seed)),
        "W": model.bounded(torch.from_numpy(start)),
        "pi": torch.tensor(rng.uniform(0.1, 0.5), dtype=torch.float64),
        "sigma": torch.tensor(rng.uniform(0.4, 1.0), dtype=torch.float64),
    }
    return torch.from_numpy(y), params


def exact(name, y, params, rho):
    return reference.maximal_log_joints(
        y.numpy(), params["W"].numpy(), float(params["pi"]), float(params["sigma"]), signed=name == "mmca", rho=rho
    )


@each
@pytest.mark.parametrize("superposition", ["max", "smooth", "ties"])
@pytest.mark.parametrize("seed", range(2))
def test_all_states_equal_enumeration(name, superposition, seed):
    y, params = problem(name, seed, ties=superposition == "ties")
    model = model_of(name, superposition="smooth" if superposition == "smooth" else "max")
    rho = model.rho(None)
    states, joints, errors, shares = exact(name, y, params, rho)
    q = np.exp(joints - reference.log_sum(joints)[:, None])
    stats = model.statistics(params, Batch(y), PLAIN)
    evidence = model.posterior(params, y).log_evidence
    np.testing.assert_allclose(evidence.numpy(), reference.log_sum(joints), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(model.means(params, y).numpy(), q @ states, atol=1e-10)
    np.testing.assert_allclose(stats.a.numpy(), np.einsum("nm,mdh->dh", q, shares), atol=1e-9)
    np.testing.assert_allclose(stats.ay.numpy(), np.einsum("nm,nd,mdh->dh", q, y.numpy(), shares), atol=1e-9)
    assert float(stats.residual) == pytest.approx((q * errors).sum(), rel=1e-10)
    assert float(stats.active) == pytest.approx((q @ states).sum(), rel=1e-10)


@each
@pytest.mark.parametrize("temperature", [1.3, 4.0])
@pytest.mark.parametrize("anneal_prior", [False, True])
def test_tempered_posterior_equals_enumeration(name, temperature, anneal_prior):
    y, params = problem(name, 3)
    model = model_of(name, anneal_prior=anneal_prior)
    stage = PLAIN.with_values(T=temperature)
    rho = 1 / (1 - 1 / temperature)
    states, joints, errors, shares = exact(name, y, params, rho)
    prior = joints + errors / (2 * float(params["sigma"]) ** 2)
    tempered = joints / temperature if anneal_prior else (joints - prior) / temperature + prior
    q = np.exp(tempered - reference.log_sum(tempered)[:, None])
    stats = model.statistics(params, Batch(y), stage)
    np.testing.assert_allclose(stats.a.numpy(), np.einsum("nm,mdh->dh", q, shares), atol=1e-8)
    assert float(stats.active) == pytest.approx((q @ states).sum(), rel=1e-9)
    assert float(stats.log_evidence) == pytest.approx(reference.log_sum(joints).sum(), rel=1e-9)


@each
def test_fewer_states_lower_the_free_energy(name):
    y, params = problem(name, 4)
    whole = model_of(name).posterior(params, y).log_evidence
    for h_prime, gamma in ((1, 1), (3, 1), (3, 2), (5, 4)):
        found = model_of(name, h_prime=h_prime, gamma=gamma).posterior(params, y)
        assert bool((found.log_evidence <= whole + 1e-10).all())
        assert all(len(set(row)) == h_prime for row in found.candidates.tolist())


def accepted(trace):
    """Free energies of the dictionaries that were kept."""
    return np.array([m["free_energy"] for m, following in pairwise(trace) if following["taken_back"] == 0])


@each
@pytest.mark.parametrize("superposition", ["max", "smooth"])
@pytest.mark.parametrize("seed", range(3))
def test_backtracking_never_keeps_a_lower_free_energy(name, superposition, seed):
    y, params = problem(name, seed + 10, rows=60)
    _, trace = learning.run(model_of(name, superposition=superposition), y, 60, params=params)
    values = accepted(trace)
    assert len(values) > 5
    assert (np.diff(values) >= -1e-8 * np.abs(values[:-1])).all()


@each
def test_backtracking_with_frozen_states_never_keeps_a_lower_free_energy(name):
    y, params = problem(name, 5, rows=60)
    model = model_of(name, h_prime=3, gamma=2)
    frozen = {"candidates": model.posterior(params, y).candidates}
    _, trace = learning.run(model, y, 60, params=params, memo=frozen)
    values = accepted(trace)
    assert (np.diff(values) >= -1e-8 * np.abs(values[:-1])).all()


@each
def test_a_step_that_lost_is_halved_and_then_left_out(name):
    y, params = problem(name, 6, rows=40)
    model = model_of(name)
    stages = [Stage(step=i, steps=20) for i in range(20)]
    first = model.update(params, model.statistics(params, Batch(y), stages[0]), stages[0])
    assert torch.equal(first["training/W"], params["W"])
    step = first["W"] - params["W"]
    worse = {**first, "training/free_energy": first["training/free_energy"] + 1e6}
    for halvings in (1, 2, 3, 4):
        worse = model.update(worse, model.statistics(worse, Batch(y), stages[halvings]), stages[halvings])
        share = 0.5**halvings if halvings < 4 else 0.0
        assert torch.allclose(worse["W"], params["W"] + share * step, rtol=1e-10)
        assert torch.equal(worse["sigma"], first["sigma"])
    after = model.update(worse, model.statistics(worse, Batch(y), stages[5]), stages[5])
    assert not torch.equal(after["W"], worse["W"]), "after all halvings the run goes on"
    last = Stage(step=19, steps=20)
    lost = {**first, "training/free_energy": first["training/free_energy"] + 1e6}
    assert torch.equal(model.update(lost, model.statistics(lost, Batch(y), last), last)["W"], params["W"])


@each
@pytest.mark.parametrize("values", [{"T": 2.0}, {"ncut": 0.5}, {"partial": 0.5}, {"W_noise": 0.1}])
def test_free_energies_are_compared_only_where_they_mean_the_same(name, values):
    y, params = problem(name, 7)
    model = model_of(name)
    stage = Stage(step=1, steps=9, rows=len(y), values=values)
    known = {
        **params,
        "training/trial": torch.tensor(0.0).double(),
        "training/free_energy": torch.tensor(1e9).double(),
    }
    assert float(model.update(known, model.statistics(known, Batch(y), stage), stage)["training/trial"]) == -1


@each
def test_noise_and_prior_are_maximisers(name):
    y, params = problem(name, 8, rows=40)
    model = model_of(name)
    states, joints, errors, _ = exact(name, y, params, None)
    q = np.exp(joints - reference.log_sum(joints)[:, None])
    new = model.update(params, model.statistics(params, Batch(y), PLAIN), PLAIN)
    assert float(new["sigma"]) ** 2 == pytest.approx((q * errors).sum() / y.numel(), rel=1e-9)
    assert float(new["pi"]) == pytest.approx((q @ states).mean(), rel=1e-9)


@each
def test_singletons_count_once(name):
    # Not weighted with W², as a published program does.
    y, params = problem(name, 9)
    model = model_of(name, h_prime=1, gamma=1)
    stats = model.statistics(params, Batch(y), PLAIN)
    q = model.posterior(params, y).single.sum(0)
    assert torch.allclose(stats.a, q.expand(DIM, -1))


@each
def test_floors_apply_to_what_is_returned(name):
    y, params = problem(name, 10)
    model = model_of(name, superposition="max")
    y = y - 5
    noise = Stage(step=0, steps=3, values={"W_noise": 2.0})
    for stage in (PLAIN, noise):
        new = model.update(params, model.statistics(params, Batch(y), stage), stage)["W"]
        assert float((new if name == "mca" else new.abs()).min()) >= model.least_weight
    assert torch.equal(model.bounded(torch.tensor([[-1e-9, -3.0]])).sign(), torch.tensor([[-1.0, -1.0]])) == (
        name == "mmca"
    )


@each
def test_an_unused_atom_stays(name):
    y, params = problem(name, 11)
    params["W"][:, 2] = 1e5
    model = model_of(name)
    stats = model.statistics(params, Batch(y), PLAIN)
    assert float(stats.a[:, 2].max()) < 1e-12
    assert torch.equal(model.update(params, stats, PLAIN)["W"][:, 2], params["W"][:, 2])


def test_entries_that_few_points_dominate_change_slowly():
    y, params = problem("mmca", 12)
    model, free = model_of("mmca"), model_of("mmca", inertia=False)
    stats = model.statistics(params, Batch(y), PLAIN)
    moved = model.update(params, stats, PLAIN)["W"] - params["W"]
    whole = free.update(params, stats, PLAIN)["W"] - params["W"]
    rate = (1 - torch.exp(-stats.a / 2.5)).clamp(min=0.2)
    assert torch.allclose(moved, rate * whole, atol=1e-9)


@each
@pytest.mark.parametrize("superposition", ["max", "smooth"])
def test_symmetries(name, superposition):
    y, params = problem(name, 13)
    model = model_of(name, h_prime=4, gamma=3, superposition=superposition)
    before = model.posterior(params, y).log_evidence
    scaled = {**params, "W": params["W"] * 3, "sigma": params["sigma"] * 3}
    assert torch.allclose(model.posterior(scaled, y * 3).log_evidence, before - DIM * np.log(3))
    order = torch.randperm(ATOMS, generator=torch.Generator().manual_seed(0))
    one = model.statistics(params, Batch(y), PLAIN)
    other = model.statistics({**params, "W": params["W"][:, order]}, Batch(y), PLAIN)
    assert torch.allclose(other.a, one.a[:, order]) and torch.allclose(other.ay, one.ay[:, order])
    if name == "mmca":
        flip = torch.tensor([1.0, -1, 1, -1, -1], dtype=torch.float64)
        mirrored = model.statistics({**params, "W": params["W"] * flip[:, None]}, Batch(y * flip), PLAIN)
        assert torch.allclose(mirrored.ay, one.ay * flip[:, None])


@each
@pytest.mark.parametrize("superposition", ["max", "smooth"])
def test_uneven_blocks_and_tiles_give_the_same_parameters(name, superposition, monkeypatch):
    y, params = problem(name, 14, rows=23)
    y, params = y.repeat(1, 30), {**params, "W": params["W"].repeat(30, 1)}
    model = model_of(name, h_prime=4, gamma=3, superposition=superposition, backtrack=False)
    whole = model.update(params, model.statistics(params, Batch(y), PLAIN), PLAIN)
    monkeypatch.setattr(maximal, "TILE_ELEMENTS", 1)
    parts = [model.statistics(params, Batch(y[a:b], a), PLAIN) for a, b in pairwise((0, 1, 6, 6, 23))]
    for key, value in model.update(params, parts[0] + parts[1] + parts[2] + parts[3], PLAIN).items():
        assert torch.allclose(value, whole[key], rtol=1e-9, atol=1e-11), key


@each
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("superposition", ["max", "smooth", "annealed"])
def test_extreme_data_stays_finite(name, dtype, superposition):
    y, params = problem(name, 15)
    model = model_of(name, h_prime=4, gamma=3, dtype=dtype, superposition=superposition)
    params["sigma"] = torch.tensor(1e-3, dtype=torch.float64)
    params["W"] = model.bounded(params["W"] * torch.logspace(-6, 3, ATOMS, dtype=torch.float64))
    params["W"][:, 1] = params["W"][:, 0]
    for rows in (y * 1e3, y * 0, y[:1], y[:1].expand(5, -1), -y):
        now = params
        for values in ({"T": 4.0}, {"T": 1.01}, {}, {}):
            stage = PLAIN.with_values(**values)
            stats = model.statistics(now, Batch(rows.to(model.torch_dtype)), stage)
            assert bool(torch.isfinite(stats.flatten()).all())
            now = model.update(now, stats, stage)
            assert all(bool(torch.isfinite(p).all()) for p in now.values())


@each
def test_float32_is_close_to_float64(name):
    y, params = problem(name, 16, rows=40)
    for values in ({}, {"T": 1.02}, {"T": 3.0}):
        stage = PLAIN.with_values(**values)
        one = model_of(name, dtype="float32").statistics(params, Batch(y.float()), stage).flatten().double()
        two = model_of(name).statistics(params, Batch(y.float().double()), stage).flatten()
        assert float((one - two).norm() / two.norm()) < 1e-5


def test_candidates_overshoot_least():
    y, params = problem("mca", 17)
    weights = params["W"].numpy()
    over = np.maximum(weights[None] - y.numpy()[:, :, None], 0).sum(1)
    for select, score in (("overshoot", over), ("relative", over / weights.sum(0))):
        found = model_of("mca", h_prime=3, gamma=2, select=select).posterior(params, y).candidates.numpy()
        np.testing.assert_allclose(np.take_along_axis(score, found, 1), np.sort(score, 1)[:, :3], atol=1e-3)


def test_of_atoms_that_do_not_overshoot_the_largest_are_candidates():
    # Not those whose rounding is smallest, and never the dead one.
    y, params = problem("mca", 18)
    params["W"] = torch.arange(1.0, ATOMS + 1).double() * torch.ones(DIM, 1) / 100
    params["W"][:, 3] = 1e-4
    for select in ("overshoot", "relative"):
        for rows in (y.abs() + 1, (y.abs() + 1).float()):
            model = model_of("mca", h_prime=3, gamma=2, select=select)
            chosen = model.posterior(params, rows).candidates
            assert all(set(row) == {2, 4, 5} for row in chosen.tolist())


@pytest.mark.parametrize(
    ("name", "seed", "passes", "states"), [("mca", 1, 80, {"h_prime": 8, "gamma": 3}), ("mmca", 0, 100, {"gamma": 4})]
)
def test_bars_are_found(name, seed, passes, states):
    rng = np.random.default_rng(seed)
    truth = learning.bar_atoms()
    if name == "mmca":
        truth[:, 5:] *= -0.7
    s = (rng.random((600, 10)) < 0.2).astype(float)
    on = s[:, None, :] * truth
    clean = np.take_along_axis(on, np.abs(on).argmax(2)[:, :, None], 2)[:, :, 0]
    y = torch.from_numpy(clean + 2 * rng.normal(size=clean.shape))
    model = make_model(name, {"atoms": 10, "h_prime": 6, **states})
    params, _ = learning.run(model, y, passes, {"T": ((0, 4), (0.8, 1)), "ncut": ((0, 0), (2 / 3, 1))}, seed=seed)
    cosine, _ = learning.match(params["W"], truth)
    assert (cosine > 0.95).all()
    assert float(params["sigma"]) == pytest.approx(2.0, rel=0.05)
    assert float(params["pi"]) == pytest.approx(s.mean(), abs=0.02)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("mca", {"superposition": "sum"}, "superposition"),
        ("mca", {"select": "cosine"}, "select"),
        ("mca", {"least_weight": 0}, "least_weight=0"),
        ("mmca", {"select": "overshoot"}, "no setting 'select'"),
        ("mmca", {"h_prime": 40, "gamma": 20, "atoms": 99}, "states per point"),
    ],
)
def test_impossible_settings_are_refused(name, given, words):
    with pytest.raises(ModelError, match=words):
        make_model(name, {"atoms": 10, **given})
