"""The fused E-step of the maximum superpositions against its torch twin."""

import pytest
import torch
from sparsefleet.models import Batch, Probe, Stage, make_model
from sparsefleet.models.kernels.maximal import MaximalRows

from .twins import both, close, compiled, on_threads, surveyed, update_differs

ROWS, DIM, ATOMS = 45, 21, 19
CASES = {
    "mca": ("mca", {"h_prime": 6, "gamma": 4}),
    "mca of single causes": ("mca", {"h_prime": 4, "gamma": 1}),
    "mca by relative overshoot": ("mca", {"h_prime": 5, "gamma": 5, "select": "relative"}),
    "mca smoothed": ("mca", {"h_prime": 5, "gamma": 3, "superposition": "smooth", "anneal_prior": False}),
    "mmca": ("mmca", {"h_prime": 6, "gamma": 4}),
    "mmca of pairs of all atoms": ("mmca", {"h_prime": 19, "gamma": 2}),
    "mmca smoothed": ("mmca", {"h_prime": 5, "gamma": 4, "superposition": "smooth"}),
}
each = pytest.mark.parametrize("case", CASES)
pytestmark = compiled


def problem(case, dtype="float64", rows=ROWS, ties=False):
    name, settings = CASES[case]
    model = make_model(name, {"atoms": ATOMS, "dtype": dtype, **settings})
    draw = torch.Generator().manual_seed(0)
    weights = 2 * torch.randn(DIM, ATOMS, generator=draw, dtype=torch.float64)
    weights = weights.abs() if name == "mca" else weights
    if ties:
        weights = weights.round() + 0.5
    s = (torch.rand(rows, ATOMS, generator=draw) < 2 / ATOMS).double()
    y = s @ weights.T + 0.5 * torch.randn(rows, DIM, generator=draw, dtype=torch.float64)
    params = model.init(Probe(rows, y.mean(0), y.var(0), y), draw)
    params["W"] = model.bounded(weights)
    params["sigma"] = torch.tensor(1.5, dtype=torch.float64)
    return model, params, y.to(model.torch_dtype)


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-11), ("float32", 5e-5)])
@pytest.mark.parametrize("temperature", [1.0, 1.9])
@each
def test_statistics_agree(monkeypatch, case, temperature, dtype, rtol):
    model, params, y = problem(case, dtype)
    stage = Stage(step=0, steps=2, rows=ROWS, values={"T": temperature})
    fast, slow = both(monkeypatch, lambda: model.statistics(params, Batch(y), stage))
    for name in ("ay", "a", "active", "residual", "yy", "used", "log_evidence", "rows"):
        assert close(getattr(fast, name), getattr(slow, name), rtol), name


@pytest.mark.parametrize("case", ["mca", "mmca", "mca by relative overshoot"])
def test_ties_are_split_evenly(monkeypatch, case):
    model, params, y = problem(case, ties=True)
    stage = Stage(step=0, steps=2, rows=ROWS)
    draw = torch.Generator().manual_seed(1)
    given = torch.stack([torch.randperm(ATOMS, generator=draw)[: model.candidates] for _ in range(ROWS)])
    batch = lambda: Batch(y, memo={"candidates": given})  # noqa: E731
    fast, slow = both(monkeypatch, lambda: model.statistics(params, batch(), stage))
    assert close(fast.flatten(), slow.flatten(), 1e-11)


@each
def test_means_and_scores_of_the_cut_agree(monkeypatch, case):
    model, params, y = problem(case)
    stage = Stage(step=0, steps=2, rows=ROWS, values={"T": 1.4})
    assert close(*both(monkeypatch, lambda: model.means(params, y)), 1e-11)
    assert close(*both(monkeypatch, lambda: model.log_z(params, Batch(y), stage)), 1e-11)


@each
def test_given_candidates_also_rank_points_for_the_cut(monkeypatch, case):
    model, params, y = problem(case)
    params["pi"] = torch.tensor(0.3, dtype=torch.float64)
    stage = Stage(step=0, steps=2, rows=ROWS, values={"ncut": 1.0})
    draw = torch.Generator().manual_seed(1)
    given = torch.stack([torch.randperm(ATOMS, generator=draw)[: model.candidates] for _ in range(ROWS)])
    batch = lambda: Batch(y, memo={"candidates": given})  # noqa: E731
    assert close(*both(monkeypatch, lambda: model.log_z(params, batch(), stage)), 1e-11)

    def cut():
        block = batch()
        return model.statistics(params, block, surveyed(model, params, block, stage))

    fast, slow = both(monkeypatch, cut)
    assert 0 < fast.used < ROWS
    assert close(fast.flatten(), slow.flatten(), 1e-11)


@pytest.mark.parametrize("case", ["mca", "mmca smoothed"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_any_number_of_threads_gives_the_same(monkeypatch, case, dtype):
    model, params, y = problem(case, dtype, rows=200)
    stage = Stage(step=0, steps=2, rows=200)
    one, three = on_threads(monkeypatch, MaximalRows, lambda: model.statistics(params, Batch(y), stage))
    assert len(one) == len(three) > 4
    assert all(torch.equal(a, b) for a, b in zip(one, three))


@each
def test_points_that_are_left_out(monkeypatch, case):
    model, params, y = problem(case)
    stage = Stage(step=0, steps=2, rows=ROWS, values={"partial": 0.6})
    fast, slow = both(monkeypatch, lambda: model.statistics(params, Batch(y), stage))
    assert 0 < fast.used < ROWS
    assert close(fast.flatten(), slow.flatten(), 1e-11)


@pytest.mark.parametrize("rows", [0, 1, 16, 130])
def test_any_number_of_rows_and_threads(monkeypatch, rows):
    model, params, y = problem("mmca", "float32")
    y = y[torch.arange(rows) % ROWS]
    stage = Stage(step=0, steps=2, rows=rows)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fast, slow = both(monkeypatch, lambda: model.statistics(params, Batch(y), stage), rows=rows)
    finally:
        torch.set_num_threads(threads)
    assert close(fast.flatten(), slow.flatten(), 5e-5)


@pytest.mark.parametrize("sigma", [1e-6, 1e6])
def test_extreme_noise(monkeypatch, sigma):
    model, params, y = problem("mca", "float32")
    params["sigma"] = torch.tensor(sigma, dtype=torch.float64)
    stage = Stage(step=0, steps=2, rows=ROWS)
    fast, slow = both(monkeypatch, lambda: model.statistics(params, Batch(y), stage))
    assert torch.isfinite(fast.flatten()).all()
    assert close(fast.flatten(), slow.flatten(), 1e-4)


def test_one_update_in_float32_is_that_in_float64():
    assert update_differs(problem, "mca", rows=1000) < 1e-4
