"""The fused E-step of the spike-and-slab model against its torch twin."""

import pytest
import torch
from sparsefleet.models import Batch, Probe, Stage, make_model
from sparsefleet.models.kernels.slab import SlabRows

from .twins import both, close, compiled, on_threads, surveyed, update_differs

ROWS, DIM, ATOMS = 77, 12, 19
CASES = {
    "usual": {"h_prime": 6, "gamma": 4},
    "single causes": {"h_prime": 3, "gamma": 1},
    "pairs of all atoms": {"h_prime": 19, "gamma": 2},
    "largest states": {"h_prime": 7, "gamma": 6},
    "noise per dimension": {"h_prime": 5, "gamma": 5, "noise": "diagonal"},
    "correlated noise": {"h_prime": 5, "gamma": 3, "noise": "full", "anneal_prior": False},
}
pytestmark = compiled


def problem(case, dtype="float64", rows=ROWS):
    model = make_model("gsc", {"atoms": ATOMS, "dtype": dtype, **CASES[case]})
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(DIM, ATOMS, generator=draw, dtype=torch.float64)
    s = (torch.rand(rows, ATOMS, generator=draw) < 3 / ATOMS) * torch.randn(rows, ATOMS, generator=draw).double()
    y = s @ weights.T + 0.5 * torch.randn(rows, DIM, generator=draw, dtype=torch.float64)
    params = model.init(Probe(rows, y.mean(0), y.var(0), y), draw)
    params["W"] = weights + 0.1 * torch.randn(DIM, ATOMS, generator=draw, dtype=torch.float64)
    return model, params, y.to(model.torch_dtype)


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize("values", [{}, {"T": 1.9}, {"partial": 0.5}])
@pytest.mark.parametrize("case", CASES)
def test_statistics_agree(monkeypatch, case, values, dtype, rtol):
    model, params, y = problem(case, dtype)
    stage = Stage(step=0, steps=2, rows=ROWS, values=values)
    fast, slow = both(monkeypatch, lambda: model.statistics(params, Batch(y), stage))
    for name in ("ys", "zz", "s", "sz", "yy", "imputed", "spread", "used", "log_evidence", "rows"):
        assert close(getattr(fast, name), getattr(slow, name), rtol), name


@pytest.mark.parametrize("case", CASES)
def test_means_and_scores_of_the_cut_agree(monkeypatch, case):
    model, params, y = problem(case)
    stage = Stage(step=0, steps=2, rows=ROWS, values={"T": 1.4})
    assert close(*both(monkeypatch, lambda: model.means(params, y)), 1e-12)
    assert close(*both(monkeypatch, lambda: model.log_z(params, Batch(y), stage)), 1e-12)


@pytest.mark.parametrize("case", CASES)
def test_given_candidates_also_rank_points_for_the_cut(case):
    model, params, y = problem(case)
    stage = Stage(step=0, steps=2, rows=ROWS, values={"ncut": 1.0})
    draw = torch.Generator().manual_seed(1)
    given = torch.stack([torch.randperm(ATOMS, generator=draw)[: model.candidates] for _ in range(ROWS)])
    batch = Batch(y, memo={"candidates": given})
    expected = model.posterior(params, y, stage, given, moments=False)
    assert close(model.log_z(params, batch, stage), expected.log_z, 1e-12)
    stats = model.statistics(params, batch, surveyed(model, params, batch, stage))
    assert 0 < stats.used < ROWS
    assert close(stats.log_evidence, expected.log_evidence.sum(), 1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_any_number_of_threads_gives_the_same(monkeypatch, dtype):
    model, params, y = problem("usual", dtype, rows=300)
    stage = Stage(step=0, steps=2, rows=300, values={"T": 1.5})
    one, three = on_threads(monkeypatch, SlabRows, lambda: model.statistics(params, Batch(y), stage))
    assert len(one) == len(three) > 4
    assert all(torch.equal(a, b) for a, b in zip(one, three))


@pytest.mark.parametrize("rows", [0, 1, 16, 17, 129])
def test_any_number_of_rows(monkeypatch, rows):
    model, params, y = problem("usual", "float32")
    y = y[torch.arange(rows) % ROWS]
    stage = Stage(step=0, steps=2, rows=rows)
    fast, slow = both(monkeypatch, lambda: model.statistics(params, Batch(y), stage), rows=rows)
    assert close(fast.flatten(), slow.flatten(), 2e-5)


@pytest.mark.parametrize("sigma", [1e-6, 1e6])
def test_extreme_noise(monkeypatch, sigma):
    model, params, y = problem("usual", "float32")
    params["sigma"] = torch.tensor(sigma, dtype=torch.float64)
    stage = Stage(step=0, steps=2, rows=ROWS)
    fast, slow = both(monkeypatch, lambda: model.statistics(params, Batch(y), stage))
    assert torch.isfinite(fast.flatten()).all()
    assert close(fast.flatten(), slow.flatten(), 1e-5)


def test_one_update_in_float32_is_that_in_float64():
    assert update_differs(problem, "usual", rows=2000) < 1e-4
