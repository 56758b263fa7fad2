"""The fused E-step of the linear models against its torch twin."""

import pytest
import torch
from sparsefleet.models import Batch, Probe, Stage, make_model
from sparsefleet.models.kernels.linear import Joints, LinearRows

from .twins import both, close, compiled, on_threads, surveyed, update_differs

ROWS, DIM, ATOMS = 77, 12, 19
CASES = {
    "bsc": ("bsc", {"h_prime": 8, "gamma": 5}),
    "bsc of single causes": ("bsc", {"h_prime": 4, "gamma": 1}),
    "bsc of one candidate": ("bsc", {"h_prime": 1, "gamma": 1, "select": "singleton"}),
    "bsc of all atoms": ("bsc", {"h_prime": 19, "gamma": 2, "individual_priors": True}),
    "bsc with an offset": ("bsc", {"h_prime": 6, "gamma": 6, "offset": True}),
    "tsc": ("tsc", {"h_prime": 6, "gamma": 4}),
    "tsc by cosine": ("tsc", {"h_prime": 3, "gamma": 3, "select": "cosine"}),
    "dsc": ("dsc", {"h_prime": 5, "gamma": 4, "values": [0, 1, 2]}),
    "dsc of five values": ("dsc", {"h_prime": 4, "gamma": 3, "values": [-2, -1, 0, 1, 2], "anneal_prior": True}),
    "dsc of negative values": ("dsc", {"h_prime": 4, "gamma": 2, "values": [-1.5, 0], "select": "cosine"}),
}
each = pytest.mark.parametrize("case", CASES)
pytestmark = compiled


def problem(case, dtype="float64", rows=ROWS):
    name, settings = CASES[case]
    model = make_model(name, {"atoms": ATOMS, "dtype": dtype, **settings})
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(DIM, ATOMS, generator=draw, dtype=torch.float64)
    s = (torch.rand(rows, ATOMS, generator=draw) < 3 / ATOMS).double()
    y = s @ weights.T + 0.5 * torch.randn(rows, DIM, generator=draw, dtype=torch.float64)
    params = model.init(Probe(rows, y.mean(0), y.var(0), y), draw)
    params["W"] = weights + 0.1 * torch.randn(DIM, ATOMS, generator=draw, dtype=torch.float64)
    params["sigma"] = torch.tensor(0.7, dtype=torch.float64)
    if "offset" in params:
        params["offset"] = 0.1 * torch.randn(DIM, generator=draw, dtype=torch.float64)
    return model, params, y.to(model.torch_dtype)


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize("temperature", [1.0, 1.9])
@each
def test_statistics_agree(monkeypatch, case, temperature, dtype, rtol):
    model, params, y = problem(case, dtype)
    stage = Stage(step=0, steps=2, rows=ROWS, values={"T": temperature})
    fast, slow = both(monkeypatch, lambda: model.statistics(params, Batch(y), stage))
    for name in ("ys", "y", "ss", "s", "counts", "yy", "used", "log_evidence", "rows"):
        assert close(getattr(fast, name), getattr(slow, name), rtol), name


@each
def test_means_and_scores_of_the_cut_agree(monkeypatch, case):
    model, params, y = problem(case)
    stage = Stage(step=0, steps=2, rows=ROWS, values={"T": 1.4})
    assert close(*both(monkeypatch, lambda: model.means(params, y)), 1e-12)
    assert close(*both(monkeypatch, lambda: model.log_z(params, Batch(y), stage)), 1e-12)


@pytest.mark.parametrize("values", [{"partial": 0.6}, {"ncut": 1.0}])
@each
def test_points_that_are_left_out_and_given_candidates(monkeypatch, case, values):
    model, params, y = problem(case)
    stage = Stage(step=0, steps=2, rows=ROWS, values=values)
    draw = torch.Generator().manual_seed(1)
    given = torch.stack([torch.randperm(ATOMS, generator=draw)[: model.candidates] for _ in range(ROWS)])
    batch = lambda: Batch(y, memo={"candidates": given})  # noqa: E731
    assert close(*both(monkeypatch, lambda: model.log_z(params, batch(), stage)), 1e-12)

    def cut():
        block = batch()
        return model.statistics(params, block, surveyed(model, params, block, stage))

    fast, slow = both(monkeypatch, cut)
    assert 0 < fast.used < ROWS
    assert close(fast.flatten(), slow.flatten(), 1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_any_number_of_threads_gives_the_same(monkeypatch, dtype):
    model, params, y = problem("tsc", dtype, rows=300)
    stage = Stage(step=0, steps=2, rows=300, values={"T": 1.5})
    one, three = on_threads(monkeypatch, LinearRows, lambda: model.statistics(params, Batch(y), stage))
    assert len(one) == len(three) > 4
    assert all(torch.equal(a, b) for a, b in zip(one, three))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-7), (torch.float64, 1e-15)])
def test_the_exponential_is_exact_to_the_last_digits(dtype, error):
    b = torch.linspace(-60, 0, 4001, dtype=dtype)[:, None]
    zero, one = torch.zeros(1, 1, dtype=dtype), torch.ones(1, dtype=dtype)
    kernel = LinearRows(zero, one, Joints(zero, one), None, (zero, one[None]), candidates=1, active=1, beta=1.0)
    mean, log_z = b.clone(), torch.empty(2, len(b), dtype=torch.float64)
    chosen = torch.empty(len(b), 1, dtype=torch.int64)
    kernel.run(mean, chosen, *log_z, pairs=torch.zeros(1, 1, dtype=torch.float64))
    exact = b.double().exp()
    exact = exact / (1 + exact)
    # The sum and the quotient round twice more.
    assert float((mean.double() / exact - 1).abs().max()) < error + 1.5 * torch.finfo(dtype).eps


@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 129])
def test_any_number_of_rows(monkeypatch, rows):
    model, params, y = problem("bsc", "float32")
    y = y[torch.arange(rows) % ROWS]
    stage = Stage(step=0, steps=2, rows=rows)
    fast, slow = both(monkeypatch, lambda: model.statistics(params, Batch(y), stage), rows=rows)
    assert close(fast.flatten(), slow.flatten(), 2e-5)


def test_extreme_noise_falls_back_to_float64(monkeypatch):
    model, params, y = problem("bsc", "float32")
    params["sigma"] = torch.tensor(1e-4, dtype=torch.float64)
    stage = Stage(step=0, steps=2, rows=ROWS)
    fast, slow = both(monkeypatch, lambda: model.statistics(params, Batch(y), stage))
    assert torch.isfinite(fast.flatten()).all()
    assert close(fast.flatten(), slow.flatten(), 1e-6)


def test_one_update_in_float32_is_that_in_float64():
    assert update_differs(problem, "bsc", rows=2000) < 1e-4
