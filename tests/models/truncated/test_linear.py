"""BSC, TSC and DSC against exact enumeration, and the guarantees of their EM steps."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sparsefleet.models import Batch, ModelError, Stage, make_model

from .. import reference
from . import learning

PLAIN = Stage(step=0, steps=1)
DIM = 5


@dataclass(frozen=True)
class Case:
    """A model, its values and its parameters, small enough to enumerate."""

    name: str
    values: tuple[float, ...]
    atoms: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self):
        return "-".join([self.name, *self.settings])

    def model(self, **more):
        own = {"values": self.values} if self.name == "dsc" else {}
        whole = {"atoms": self.atoms, "h_prime": self.atoms, "gamma": self.atoms, "dtype": "float64"}
        return make_model(self.name, {**whole, **own, **self.settings, **more})

    def problem(self, seed, rows=14):
        rng = np.random.default_rng(seed)
        weights = rng.normal(size=(DIM, self.atoms))
        s = rng.choice(self.values, p=self._probabilities(rng), size=(rows, self.atoms))
        y = s @ weights.T + 0.6 * rng.normal(size=(rows, DIM))
        each = [self._probabilities(rng) for _ in range(self.atoms if "individual_priors" in self.settings else 1)]
        pi = np.array(each) if self.name == "dsc" else 1 - np.array(each)[:, self.values.index(0)]
        params = {
            "W": torch.from_numpy(weights + 0.2 * rng.normal(size=weights.shape)),
            "pi": torch.from_numpy(pi if "individual_priors" in self.settings else np.asarray(pi[0])),
            "sigma": torch.tensor(rng.uniform(0.4, 1.2), dtype=torch.float64),
        }
        if self.name == "dsc":
            params["values"] = torch.tensor(self.values, dtype=torch.float64)
        if "offset" in self.settings:
            params["offset"] = torch.from_numpy(0.5 * rng.normal(size=DIM))
        return torch.from_numpy(y), params

    def _probabilities(self, rng):
        p = rng.uniform(0.2, 1, len(self.values))
        p[self.values.index(0)] = p.sum()
        return p / p.sum()

    def prior(self, params):
        """[H, K] probabilities of the values."""
        pi = params["pi"].numpy()
        if self.name == "dsc":
            return np.broadcast_to(pi, (self.atoms, len(self.values)))
        pi = np.broadcast_to(pi, (self.atoms,))
        zero = self.values.index(0)
        active = np.repeat(pi[:, None] / (len(self.values) - 1), len(self.values), 1)
        active[:, zero] = 1 - pi
        return active

    def enumerate(self, y, params):
        """States, joints and posterior probabilities."""
        rows = y.numpy() - (params["offset"].numpy() if "offset" in params else 0)
        states, joints = reference.discrete_log_joints(
            rows, params["W"].numpy(), self.values, self.prior(params), float(params["sigma"])
        )
        return states, joints, np.exp(joints - reference.log_sum(joints)[:, None])


FIVE = (-2.0, -1.0, 0.0, 1.0, 2.0)
CASES = [
    Case("bsc", (0.0, 1.0), 6, {"offset": True}),
    Case("bsc", (0.0, 1.0), 6, {"individual_priors": True, "select": "singleton"}),
    Case("tsc", (-1.0, 0.0, 1.0), 5),
    Case("tsc", (-1.0, 0.0, 1.0), 4, {"individual_priors": True, "offset": True}),
    Case("dsc", FIVE, 3),
    Case("dsc", (0.0, 1.0, 3.5), 4, {"offset": True}),
    Case("dsc", FIVE, 3, {"individual_priors": True, "select": "cosine"}),
]
each = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)


@each
@pytest.mark.parametrize("seed", range(3))
def test_all_states_equal_enumeration(case, seed):
    y, params = case.problem(seed)
    states, joints, q = case.enumerate(y, params)
    model = case.model()
    stats = model.statistics(params, Batch(y), PLAIN)
    found = model.posterior(params, y)
    rows = y.numpy() - (params["offset"].numpy() if "offset" in params else 0)
    np.testing.assert_allclose(found.log_evidence.numpy(), reference.log_sum(joints), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(model.means(params, y).numpy(), q @ states, atol=1e-10)
    np.testing.assert_allclose(stats.s.numpy(), (q @ states).sum(0), atol=1e-9)
    np.testing.assert_allclose(stats.ss.numpy(), np.einsum("nm,mh,mk->hk", q, states, states), atol=1e-9)
    np.testing.assert_allclose(stats.ys.numpy(), rows.T @ (q @ states), atol=1e-9)
    for i, value in enumerate(model.support):
        np.testing.assert_allclose(stats.counts[i].numpy(), (q @ (states == value)).sum(0), atol=1e-9)


@each
def test_fewer_states_lower_the_free_energy(case):
    y, params = case.problem(3)
    whole = case.model().posterior(params, y).log_evidence
    for h_prime, gamma in ((1, 1), (2, 1), (3, 2)):
        few = case.model(h_prime=h_prime, gamma=gamma).posterior(params, y)
        assert bool((few.log_evidence <= whole + 1e-10).all())
        assert torch.allclose(few.single.sum((1, 2)) + few.multi.sum(1), torch.ones(()).double(), atol=1.0)


@each
@pytest.mark.parametrize("anneal_prior", [False, True])
def test_tempered_posterior_equals_enumeration(case, anneal_prior):
    y, params = case.problem(1)
    states, joints, _ = case.enumerate(y, params)
    prior = case.prior(params)
    index = np.array([[case.values.index(v) for v in s] for s in states])
    log_prior = np.log(prior[np.arange(case.atoms), index]).sum(1)
    tempered = joints / 3 if anneal_prior else (joints - log_prior) / 3 + log_prior
    q = np.exp(tempered - reference.log_sum(tempered)[:, None])
    model = case.model(anneal_prior=anneal_prior)
    found = model.posterior(params, y, PLAIN.with_values(T=3.0))
    np.testing.assert_allclose(model.moments(found)[0].numpy(), q @ states, atol=1e-10)
    np.testing.assert_allclose(found.log_evidence.numpy(), reference.log_sum(joints), atol=1e-10)


@each
def test_exact_em_never_lowers_the_free_energy(case):
    y, params = case.problem(2, rows=70)
    _, trace = learning.run(case.model(), y, 25, params=params)
    values = np.array([m["free_energy"] for m in trace])
    assert (np.diff(values) >= -1e-9 * np.abs(values[:-1])).all()


@each
def test_em_beside_a_fixed_parameter_never_lowers_the_free_energy(case):
    y, params = case.problem(2, rows=70)
    for name in sorted(set(params) - {"values"}):
        learned, trace = learning.run(case.model(fixed=[name]), y, 25, params=params)
        values = np.array([m["free_energy"] for m in trace])
        assert (np.diff(values) >= -1e-9 * np.abs(values[:-1])).all(), name
        assert all(torch.equal(learned[n], params[n]) == (n in (name, "values")) for n in params), name


@each
def test_em_with_frozen_states_never_lowers_the_free_energy(case):
    y, params = case.problem(4, rows=70)
    model = case.model(h_prime=2, gamma=2)
    frozen = {"candidates": model.posterior(params, y).candidates}
    _, trace = learning.run(model, y, 25, params=params, memo=frozen)
    values = np.array([m["free_energy"] for m in trace])
    assert (np.diff(values) >= -1e-9 * np.abs(values[:-1])).all()


@pytest.mark.parametrize("case", [CASES[0], Case("tsc", (-1.0, 0.0, 1.0), 2), Case("dsc", (0.0, 1.0, 3.5), 2)])
def test_the_update_is_a_stationary_point(case):
    # The expected log-joint under the old posterior: its gradient vanishes at the new parameters.
    y, params = case.problem(5, rows=50)
    q = case.enumerate(y, params)[2]
    model = case.model()
    new = model.update(params, model.statistics(params, Batch(y), PLAIN), PLAIN)

    def expected(p):
        return float((q * case.enumerate(y, p)[1]).sum()) / len(y)

    for name in set(new) - {"values"}:
        for index in np.ndindex(*new[name].shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = {n: p.clone() for n, p in new.items()}
                moved[name][index] += step
                if case.name == "dsc" and name == "pi":
                    moved[name] /= moved[name].sum()
                ends.append(expected(moved))
            assert abs(ends[0] - ends[1]) / 2e-5 < 1e-5, (name, index)


@each
def test_noise_from_statistics_equals_a_second_pass(case):
    y, params = case.problem(6)
    states, _, q = case.enumerate(y, params)
    model = case.model()
    new = model.update(params, model.statistics(params, Batch(y), PLAIN), PLAIN)
    rows = y.numpy() - (new["offset"].numpy() if "offset" in new else 0)
    errors = ((rows[:, None] - states @ new["W"].numpy().T) ** 2).sum(2)
    assert float(new["sigma"]) ** 2 == pytest.approx((q * errors).sum() / y.numel(), rel=1e-9)


@each
def test_uneven_blocks_give_the_same_parameters(case):
    y, params = case.problem(7, rows=23)
    model = case.model(h_prime=2, gamma=2)
    whole = model.update(params, model.statistics(params, Batch(y), PLAIN), PLAIN)
    for edges in ((0, 23), (0, 1, 23), (0, 5, 5, 11, 23)):
        parts = [model.statistics(params, Batch(y[a:b], a), PLAIN) for a, b in pairwise(edges)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        for name, value in model.update(params, total, PLAIN).items():
            assert torch.allclose(value, whole[name], rtol=1e-10, atol=1e-12)


@each
def test_symmetries(case):
    y, params = case.problem(8)
    model = case.model(h_prime=3, gamma=2)
    before = model.posterior(params, y).log_evidence
    scaled = {**params, "W": params["W"] * 3, "sigma": params["sigma"] * 3}
    if "offset" in params:
        scaled["offset"] = params["offset"] * 3
    assert torch.allclose(model.posterior(scaled, y * 3).log_evidence, before - DIM * np.log(3))

    order = torch.randperm(case.atoms, generator=torch.Generator().manual_seed(0))
    permuted = {**params, "W": params["W"][:, order]}
    if "individual_priors" in case.settings:
        permuted["pi"] = params["pi"][order]
    one = model.statistics(params, Batch(y), PLAIN)
    other = model.statistics(permuted, Batch(y), PLAIN)
    assert torch.allclose(other.ss, one.ss[order][:, order])
    assert torch.allclose(other.ys, one.ys[:, order])

    if case.name == "tsc":
        flip = torch.tensor([1.0, -1, 1, -1, -1][: case.atoms], dtype=torch.float64)
        flipped = model.statistics({**params, "W": params["W"] * flip}, Batch(y), PLAIN)
        assert torch.allclose(flipped.ss, one.ss * flip * flip[:, None])


@each
def test_an_unused_atom_stays_and_candidates_are_distinct(case):
    y, params = case.problem(9)
    params["W"][:, 1] = 1e4
    model = case.model(h_prime=3, gamma=2)
    stats = model.statistics(params, Batch(y), PLAIN)
    assert float(stats.counts[:, 1].sum()) < 1e-12
    assert torch.allclose(model.update(params, stats, PLAIN)["W"][:, 1], params["W"][:, 1], rtol=1e-6)
    chosen = model.posterior(params, y, PLAIN.with_values(T=2.0)).candidates
    assert all(len(set(row)) == 3 for row in chosen.tolist())


@each
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_data_stays_finite(case, dtype):
    y, params = case.problem(10)
    params["sigma"] = torch.tensor(1e-3, dtype=torch.float64)
    model = case.model(h_prime=3, gamma=2, dtype=dtype)
    for rows in (y * 1e3, y * 0, y[:1], y[:1].expand(5, -1), y[:2]):
        found = model.posterior(params, rows.to(model.torch_dtype))
        zero = 1 - found.single.sum((1, 2)) - found.multi.sum(1)
        assert bool(((zero > -1e-5) & (zero < 1 + 1e-5)).all())
        stats = model.statistics(params, Batch(rows.to(model.torch_dtype)), PLAIN)
        assert bool(torch.isfinite(stats.flatten()).all())
        assert all(bool(torch.isfinite(p).all()) for p in model.update(params, stats, PLAIN).values())


@each
def test_duplicate_atoms_and_more_atoms_than_points(case):
    y, params = case.problem(11)
    params["W"][:, 1] = params["W"][:, 0]
    params, trace = learning.run(case.model(), y[:2], 10, params=params)
    assert all(bool(torch.isfinite(p).all()) for p in params.values())
    assert all(np.isfinite(m["free_energy"]) for m in trace)


def test_the_cut_keeps_what_it_should_where_densities_underflow():
    case = CASES[2]
    _, params = case.problem(12)
    params["sigma"] = torch.tensor(1e-3, dtype=torch.float64)
    rng = np.random.default_rng(0)
    y = torch.from_numpy(1e3 * rng.normal(size=(200, DIM)))
    model = case.model(h_prime=3, gamma=2)
    stage = Stage(step=0, steps=1, rows=200, values={"ncut": 1.0})
    batch = Batch(y)
    for _ in range(model.surveys_at(stage)):
        stage = model.refine(params, model.survey(params, batch, stage), stage)
    stats = model.statistics(params, batch, stage)
    assert int(stats.used) == int(200 * model.mass(params)) < 200
    assert int(stats.rows) == 200


@pytest.mark.parametrize(("name", "values"), [("bsc", (0.0, 1.0)), ("tsc", (-1.0, 0.0, 1.0))])
def test_dsc_contains_the_other_models(name, values):
    case = Case(name, values, 4)
    y, params = case.problem(13)
    model = case.model(h_prime=3, gamma=2, select="singleton")
    dsc = make_model("dsc", {"atoms": 4, "values": values, "h_prime": 3, "gamma": 2, "dtype": "float64"})
    same = {
        **params,
        "pi": torch.from_numpy(case.prior(params)[0].copy()),
        "values": torch.tensor(values, dtype=torch.float64),
    }
    one, two = model.statistics(params, Batch(y), PLAIN), dsc.statistics(same, Batch(y), PLAIN)
    assert torch.allclose(one.flatten(), two.flatten())


def test_probabilities_follow_the_order_of_the_values():
    rng = np.random.default_rng(0)
    weights = np.eye(4) * 8
    s = rng.choice([3.0, 0.0, 1.0], p=[0.1, 0.6, 0.3], size=(4000, 4))
    y = torch.from_numpy(s @ weights.T + rng.normal(size=(4000, 4)))
    model = make_model("dsc", {"atoms": 4, "values": [3, 0, 1], "h_prime": 4, "gamma": 4, "dtype": "float64"})
    params = model.init(learning.probe_of(y), torch.Generator().manual_seed(0)) | {"W": torch.from_numpy(weights)}
    params, _ = learning.run(model, y, 20, params=params)
    np.testing.assert_allclose(params["pi"].numpy(), [(s == v).mean() for v in (3, 0, 1)], atol=0.01)


@pytest.mark.parametrize("name", ["tsc", "dsc"])
def test_the_cut_does_not_bias_the_prior(name):
    values = (-1.0, 0.0, 1.0) if name == "tsc" else (0.0, 1.0, 2.0)
    rng = np.random.default_rng(1)
    atoms, weights = 8, 10 * np.eye(8)
    s = rng.choice(values, p=[0.1, 0.8, 0.1] if name == "tsc" else [0.8, 0.15, 0.05], size=(4000, atoms))
    y = torch.from_numpy(s @ weights.T + rng.normal(size=(4000, atoms)))
    model = make_model(name, {"atoms": atoms, "h_prime": 4, "gamma": 2, "dtype": "float64"})
    start = model.init(learning.probe_of(y), torch.Generator().manual_seed(0)) | {"W": torch.from_numpy(weights)}
    params, trace = learning.run(model, y, 25, {"ncut": ((0, 1),)}, params=start)
    assert trace[-1]["used_share"] < 0.9
    assert float(model.activity(params)) == pytest.approx((s != 0).mean(), abs=0.01)
    if name == "dsc":
        np.testing.assert_allclose(params["pi"].numpy(), [(s == v).mean() for v in values], atol=0.01)


@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[4]], ids=lambda c: c.id)
def test_noise_is_reproducible_bounded_and_absent_at_the_end(case):
    y, params = case.problem(14)
    model = case.model()
    stats = model.statistics(params, Batch(y), PLAIN)
    noise = {"W_noise": 0.3, "pi_noise": 5.0, "sigma_noise": 5.0}
    early, last = (Stage(step=s, steps=3, seed=1, values=noise) for s in (0, 2))
    plain = model.update(params, stats, PLAIN)
    one, two = model.update(params, stats, early), model.update(params, stats, early)
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert float((one["W"] - plain["W"]).std()) == pytest.approx(0.3, rel=0.5)
    assert float(one["pi"].min()) > 0 and float(one["pi"].max()) < 1 and float(one["sigma"]) > 0
    if case.name == "dsc":
        assert torch.allclose(one["pi"].sum(-1), torch.ones(()).double())
    assert all(torch.equal(model.update(params, stats, last)[n], plain[n]) for n in plain)


def test_partial_uses_a_fresh_share_of_the_points():
    case = CASES[2]
    y, params = case.problem(15, rows=400)
    model = case.model(h_prime=2, gamma=2)
    used = [model.statistics(params, Batch(y), Stage(step=i, steps=9, values={"partial": 0.25})).s for i in (0, 0, 1)]
    assert torch.equal(used[0], used[1])
    assert not torch.equal(used[0], used[2])


@pytest.mark.parametrize("name", ["tsc", "dsc"])
def test_bars_are_found(name):
    values, p = ((-1, 0, 1), (0.1, 0.8, 0.1)) if name == "tsc" else ((0, 1, 2), (0.8, 0.15, 0.05))
    rng = np.random.default_rng(0)
    truth = learning.bar_atoms()
    s = rng.choice(values, p=p, size=(1000, 10))
    y = torch.from_numpy(s @ truth.T + 2 * rng.normal(size=(1000, 25)))
    model = make_model(name, {"atoms": 10})
    passes, hot = (100, 3) if name == "tsc" else (60, 2)
    params, _ = learning.run(model, y, passes, {"T": ((0, hot), (0.7, 1)), "ncut": ((0, 0), (2 / 3, 1))})
    cosine, _ = learning.match(params["W"], truth, signs=name == "tsc")
    assert (cosine > 0.95).all()
    assert float(params["sigma"]) == pytest.approx(2.0, rel=0.04)
    if name == "tsc":
        assert float(params["pi"]) == pytest.approx((s != 0).mean(), abs=0.01)
    else:
        np.testing.assert_allclose(params["pi"].numpy(), [(s == v).mean() for v in values], atol=0.015)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("dsc", {"values": [1, 2]}, "give 0 once"),
        ("dsc", {"values": [0]}, "at least one other"),
        ("dsc", {"values": [0, 1, 1]}, "each once"),
        ("dsc", {"values": [0, float("inf")]}, "finite"),
        ("dsc", {"values": [-2, -1, 0, 1, 2], "h_prime": 8, "gamma": 5}, "states per point"),
        ("tsc", {"select": "best"}, "select"),
        ("tsc", {"values": [0, 1]}, "no setting 'values'"),
        ("tsc", {"gamma": 7}, "gamma=7"),
    ],
)
def test_impossible_settings_are_refused(name, given, words):
    with pytest.raises(ModelError, match=words):
        make_model(name, {"atoms": 10, **given})


def test_parameters_of_other_values_are_refused():
    case = CASES[5]
    y, params = case.problem(16)
    with pytest.raises(ModelError, match="belong to"):
        case.model(values=[0, 1, 2]).posterior(params, y)
