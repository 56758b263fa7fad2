"""Noisy-OR against enumeration, and the guarantees of its updates."""

from itertools import product

import numpy as np
import pytest
import torch
from sparsefleet.models import Batch, ModelError, Stage, Wanted, make_model
from sparsefleet.models.truncated.noisyor import BOUND, SAFE, TRIAL

from . import learning
from .posteriors import dense

ATOMS, DIM, ROWS = 4, 6, 50
PLAIN = Stage(step=0, steps=9, rows=ROWS)


def problem(seed, rows=ROWS):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.05, 0.95, size=(DIM, ATOMS))
    s = rng.random((rows, ATOMS)) < 0.35
    off = np.prod(1 - s[:, None] * weights, axis=2)
    y = torch.from_numpy((rng.random(off.shape) > off).astype(float))
    params = model_of().init(learning.probe_of(y), torch.Generator().manual_seed(seed))
    return y, {**params, "pi": torch.from_numpy(rng.uniform(0.1, 0.6, ATOMS))}


def model_of(**more):
    return make_model("noisyor", {"atoms": ATOMS, "dtype": "float64", "states": "all", **more})


def enumerated(y, params):
    """All states and log p(s, y_n), term by term."""
    weights, pi = params["W"].numpy(), params["pi"].numpy()
    states = np.array(list(product([0, 1], repeat=ATOMS)))
    joints = np.full((len(y), len(states)), -np.inf)
    for n, row in enumerate(y.numpy()):
        for m, s in enumerate(states):
            off = np.prod(1 - weights * s, axis=1)
            likelihood = np.prod(np.where(row > 0, 1 - off, off))
            if likelihood > 0:
                joints[n, m] = np.log(likelihood) + (np.log(np.where(s, pi, 1 - pi))).sum()
    return states, joints


def free_energy(y, params, q=None):
    """Σ log p(y), or Σ <log p(s, y)> under `q`."""
    _, joints = enumerated(y, params)
    if q is None:
        return float(np.logaddexp.reduce(joints, axis=1).sum())
    return float((q * np.where(q > 0, joints, 0)).sum())


def posterior(y, params):
    states, joints = enumerated(y, params)
    return states, np.exp(joints - np.logaddexp.reduce(joints, axis=1)[:, None])


@pytest.mark.parametrize("seed", range(3))
def test_the_posterior_is_that_of_enumeration(seed):
    y, params = problem(seed)
    states, q = posterior(y, params)
    stats = model_of().statistics(params, Batch(y), PLAIN)
    assert np.isclose(float(stats.log_evidence), free_energy(y, params), rtol=1e-11)
    mean = q @ states
    codes = model_of().encode(params, Batch(y))
    assert np.allclose(dense(codes.indices, codes.values), mean, atol=1e-4)
    assert np.allclose(stats.s.numpy(), mean.sum(0), atol=1e-9)
    off = np.array([np.prod(1 - params["W"].numpy() * s, axis=1) for s in states])
    with np.errstate(divide="ignore"):
        inverse = np.where(off < 1, 1 / (1 - off), 0)
    causes = np.einsum("nm,md,mh->dh", q, inverse, states)
    ones = np.einsum("nm,nd,md,mh->dh", q, y.numpy(), inverse, states)
    assert np.allclose(stats.causes.numpy(), causes, rtol=1e-9)
    assert np.allclose(stats.ones.numpy(), ones, rtol=1e-9)


def test_outputs_of_new_rows_equal_enumeration():
    y, params = problem(4)
    states, q = posterior(y, params)
    few = model_of(h_prime=2, gamma=1)
    wanted = Wanted(outputs=("mean", "map", "reconstruction", "log_likelihood"))
    found = few.infer(params, Batch(y), wanted)
    assert np.allclose(dense(found["indices"], found["values"]), q @ states, atol=1e-4)
    ones = 1 - np.exp(states @ np.log1p(-params["W"].numpy()).T)
    assert np.allclose(found["reconstruction"].numpy(), q @ ones, atol=1e-11)
    best = states[q.argmax(1)]
    assert [sorted(row[row >= 0].tolist()) for row in found["map_indices"]] == [
        np.flatnonzero(s).tolist() for s in best
    ]
    free_energy = few.metrics(params, few.statistics(params, Batch(y), PLAIN))["free_energy"]
    assert float(found["log_likelihood"].mean()) == pytest.approx(free_energy, rel=1e-12)


def test_sets_have_no_candidates_to_grow():
    y, params = problem(5)
    with pytest.raises(ModelError, match="adaptive=2 belongs to preselected states"):
        model_of().infer(params, Batch(y), Wanted(adaptive=2))


@pytest.mark.parametrize("seed", range(3))
def test_the_step_of_em_raises_the_expected_log_joint(seed):
    y, params = problem(seed)
    model = model_of()
    _, q = posterior(y, params)
    new = model.update(params, model.statistics(params, Batch(y), PLAIN), PLAIN)
    safe = {**params, "W": new[SAFE], "pi": new["pi"]}
    assert free_energy(y, safe, q) > free_energy(y, params, q)
    assert free_energy(y, safe) > free_energy(y, params)


def test_where_learning_ends_free_energy_is_stationary():
    y, params = problem(7)
    model = model_of()
    for step in range(400):
        stage = Stage(step=step, steps=1000)
        params = model.update(params, model.statistics(params, Batch(y), stage), stage)
    inner = (params["W"] > 100 * BOUND) & (params["W"] < 1 - 100 * BOUND)
    assert int(inner.sum()) > DIM
    for d, h in inner.nonzero().tolist()[:8]:
        value = []
        for sign in (1, -1):
            weights = params["W"].clone()
            weights[d, h] += sign * 1e-5
            value.append(free_energy(y, {**params, "W": weights}))
        assert abs(value[0] - value[1]) / 2e-5 < 1e-2 * ROWS


@pytest.mark.parametrize("states", ["all", "evolutionary"])
@pytest.mark.parametrize("seed", range(3))
def test_free_energy_falls_at_most_for_one_pass(states, seed):
    y, params = problem(seed)
    model, kept, values, trials = model_of(states=states, evolution={"size": 6}), {}, [], []
    for step in range(40):
        stage = Stage(step=step, steps=40, rows=ROWS)
        stats = model.statistics(params, Batch(y, 0, {}, kept), stage)
        values.append(float(stats.log_evidence))
        trials.append(float(params[TRIAL]))
        params = model.update(params, stats, stage)
    best = np.maximum.accumulate(values)
    fell = values < best - 1e-9 * np.abs(best)
    assert all(trials[i] == 1 for i in np.flatnonzero(fell)), "only an unchecked fixed-point step may lower it"
    assert not (fell[1:] & fell[:-1]).any()
    assert float(params[TRIAL]) == 0, "the last step is one that cannot fail"


def test_a_step_that_lost_is_replaced_by_that_of_em():
    y, params = problem(1)
    model = model_of()
    stats = model.statistics(params, Batch(y), PLAIN)
    first = model.update(params, stats, PLAIN)
    assert float(first[TRIAL]) == 1
    worse = {**first, "W": torch.full_like(first["W"], 0.999)}
    again = model.update(worse, model.statistics(worse, Batch(y), PLAIN), PLAIN)
    assert torch.equal(again["W"], first[SAFE]) and float(again[TRIAL]) == 0
    after = model.statistics(again, Batch(y), PLAIN)
    assert float(after.log_evidence) >= float(stats.log_evidence)


def test_bars_are_found():
    rng = np.random.default_rng(0)
    atoms = learning.bar_atoms(3, 0.9) + 0.02
    s = rng.random((300, 6)) < 0.3
    off = np.prod(1 - s[:, None] * atoms, axis=2)
    y = torch.from_numpy((rng.random(off.shape) > off).astype(np.float32))
    model = make_model("noisyor", {"atoms": 6, "evolution": {"size": 12}})
    params, kept = model.init(learning.probe_of(y), torch.Generator().manual_seed(0)), {}
    for step in range(40):
        stage = Stage(step=step, steps=40, rows=300)
        params = model.update(params, model.statistics(params, Batch(y, 0, {}, kept), stage), stage)
    assert (learning.match(params["W"], atoms)[0] > 0.95).all()
    codes = model.encode(params, Batch(y)).dense(6)
    half = model.encode(params, Batch(y[100:], 100)).dense(6)
    assert torch.equal(codes[100:], half), "codes depend on the row alone"


@pytest.mark.parametrize("bad", [0.5, -1.0, 2.0, float("nan")])
def test_rows_of_other_numbers_are_refused(bad):
    y, params = problem(0)
    y[3, 2] = bad
    with pytest.raises(ModelError, match="zeros and ones"):
        model_of().statistics(params, Batch(y), PLAIN)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ModelError, match="preselected"):
        model_of(states="preselected")
    with pytest.raises(ModelError, match="1,048,576 states"):
        make_model("noisyor", {"atoms": 20, "states": "all"})
    with pytest.raises(ModelError, match="no data is cut"):
        model_of().surveys_at(Stage(step=0, steps=1, values={"ncut": 1.0}))
