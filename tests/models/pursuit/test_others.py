"""Pursuits in stages, iterative hard thresholding, one-shot thresholding: recovery, optimality, odd input."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sparsefleet.models import ModelError
from sparsefleet.models.pursuit import Status, batch_omp, iht, lasso, squared_errors, staged, threshold

RULES = ["gomp", "nnomp", "stomp", "cosamp", "sp", "mp"]
STEPS = ["fixed", "normalised", "accelerated"]


def tensors(*arrays, dtype=torch.float64):
    return [torch.from_numpy(np.ascontiguousarray(a)).to(dtype) for a in arrays]


def run(name, x, d, k):
    return iht(x, d, nonzeros=k, step=name, iterations=300) if name in STEPS else staged(x, d, name, nonzeros=k)


@pytest.mark.parametrize(("name", "share"), [("stomp", 0.97), ("cosamp", 0.97), ("sp", 0.97), ("mp", 0.9)])
def test_stages_recover_sparse_signals(name, share, reference):
    x, d, a = reference.problem(200, 64, 128, 4)
    found = run(name, *tensors(x, d), 4)
    assert ((found.codes.dense(128).numpy() != 0) == (a != 0)).all(1).mean() >= share


def test_groups_of_atoms_hold_the_right_ones(reference):
    x, d, a = reference.problem(200, 64, 128, 4)
    found = staged(*tensors(x, d), "gomp", nonzeros=12, group=3).codes.dense(128).numpy()
    assert ((found != 0) | (a == 0)).all(1).mean() >= 0.97


@pytest.mark.parametrize(("name", "share"), [("fixed", 0.4), ("normalised", 0.97), ("accelerated", 0.97)])
def test_hard_thresholding_recovers_sparse_signals(name, share, reference):
    x, d, a = reference.problem(200, 64, 128, 4)
    found = run(name, *tensors(x, d), 4)
    assert ((found.codes.dense(128).numpy() != 0) == (a != 0)).all(1).mean() >= share


def test_nonnegative_codes_are_recovered_and_fitted(reference):
    _, d, a = reference.problem(100, 64, 128, 4)
    a = np.abs(a) + 0.2 * (a != 0)
    x = a @ d.T + 0.01 * np.random.default_rng(1).normal(size=(100, 64))
    found = staged(*tensors(x, d), "nnomp", nonzeros=4)
    codes = found.codes.dense(128).numpy()
    assert (codes >= 0).all() and ((codes != 0) == (a != 0)).all(1).mean() >= 0.97
    for n in range(20):
        support = codes[n].nonzero()[0]
        np.testing.assert_allclose(codes[n, support], nnls(d[:, support], x[n])[0], atol=1e-8)


@pytest.mark.parametrize("name", RULES + STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_error_is_that_of_the_code(name, dtype, reference):
    x, d = tensors(*reference.problem(60, 24, 64, 5, noise=0.2)[:2], dtype=dtype)
    found = run(name, x, d, 5)
    assert found.codes.indices.shape == (60, 5)
    assert ((found.codes.indices < 0) == (found.codes.values == 0)).all()
    exact = squared_errors(x, d, found.codes)
    torch.testing.assert_close(found.error, exact, atol=1e-4 if dtype == torch.float32 else 1e-9, rtol=0)


@pytest.mark.parametrize("name", ["gomp", "cosamp", "sp", "stomp"])
def test_values_are_least_squares_on_the_support(name, reference):
    x, d, _ = reference.problem(20, 24, 64, 5, noise=0.2)
    found = run(name, *tensors(x, d), 5)
    for n in range(20):
        support = found.codes.indices[n][found.codes.indices[n] >= 0].numpy()
        assert float(found.error[n]) == pytest.approx(reference.error(x[n], d[:, support]), abs=1e-9)


def test_one_atom_at_a_time_is_omp(reference):
    x, d = tensors(*reference.problem(200, 24, 64, 5, noise=0.2)[:2])
    one, omp = staged(x, d, "gomp", nonzeros=5, group=1), batch_omp(x, d, nonzeros=5)
    torch.testing.assert_close(one.codes.dense(64), omp.codes.dense(64), atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", RULES + STEPS)
def test_atoms_of_any_length(name, reference):
    x, d, _ = reference.problem(50, 24, 64, 4, noise=0.05)
    lengths = np.exp(np.random.default_rng(1).uniform(-2, 2, 64))
    unit, long = run(name, *tensors(x, d), 4), run(name, *tensors(x, d * lengths), 4)
    torch.testing.assert_close(long.codes.dense(64) * tensors(lengths)[0], unit.codes.dense(64), atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", RULES + STEPS)
def test_odd_dictionaries_and_signals(name, reference):
    x, d = tensors(*reference.problem(30, 10, 8, 3, noise=0.3)[:2])
    x[4] = 0
    odd = torch.cat([d, d, torch.zeros(10, 4).double()], 1)
    found = run(name, x, odd, 6)
    assert found.codes.values.isfinite().all() and found.codes.values.abs().max() < 1e3
    assert int(found.codes.indices.max()) < 16
    assert found.status[4] == Status.ZERO and int(found.nonzeros[4]) == 0
    assert run(name, x[:0], odd, 6).codes.indices.shape == (0, 6)
    with pytest.warns(UserWarning, match="nonzeros=11"):
        run(name, x, d, 11)


@pytest.mark.parametrize("name", RULES)
def test_stages_stop_at_the_error(name, reference):
    x, d = tensors(*reference.problem(60, 24, 64, 5, noise=0.1)[:2])
    allowed = 0.3 * x.square().sum(1)
    found = staged(x, d, name, nonzeros=20, error=allowed)
    reached = found.status == Status.REACHED
    assert reached.double().mean() > (0.2 if name == "nnomp" else 0.9)
    assert (found.error[reached] <= allowed[reached]).all()


@pytest.mark.parametrize(("name", "k"), [("cosamp", 5), ("sp", 5), ("mp", 5), ("gomp", 20), ("stomp", 20)])
def test_stages_that_run_out_are_said(name, k, reference):
    x, d = tensors(*reference.problem(60, 24, 64, 5, noise=0.3)[:2])
    found = staged(x, d, name, nonzeros=k, stages=1)
    assert (found.status == Status.UNFINISHED).double().mean() > 0.9
    assert (staged(x, d, "gomp", nonzeros=5).status == Status.FULL).all()


# -- one shot ---------------------------------------------------------------------------------------------------------


def test_thresholding(reference):
    rng = torch.Generator().manual_seed(0)
    d = torch.linalg.qr(torch.randn(16, 16, generator=rng).double()).Q
    x = torch.randn(50, 16, generator=rng).double()
    b = x @ d
    best, omp = threshold(x, d, nonzeros=4), batch_omp(x, d, nonzeros=4)
    torch.testing.assert_close(best.codes.dense(16), omp.codes.dense(16))
    torch.testing.assert_close(best.error, omp.error)
    soft = threshold(x, d, penalty=0.4)
    torch.testing.assert_close(soft.codes.dense(16), b.sign() * (b.abs() - 0.4).clamp(min=0))
    positive = threshold(x, d, penalty=0.4, nonnegative=True)
    torch.testing.assert_close(positive.codes.dense(16), (b - 0.4).clamp(min=0))
    both = threshold(x, d, nonzeros=3, penalty=0.4)
    assert both.codes.indices.shape == (50, 3) and (both.nonzeros <= 3).all()
    assert threshold(x[:0], d, nonzeros=3).codes.indices.shape == (0, 3)
    assert threshold(x * 0, d, nonzeros=3).status.tolist() == [Status.ZERO] * 50
    for found, k in ((best, 4), (both, 3)):
        assert torch.equal(found.status == Status.FULL, found.nonzeros == k)
        assert set(found.status[found.nonzeros < k].tolist()) <= {Status.CONVERGED}


def test_thresholding_keeps_more_entries_than_dimensions(reference, recwarn):
    x, d = tensors(*reference.problem(20, 6, 30, 3)[:2])
    found = threshold(x, d, nonzeros=10)
    assert (found.nonzeros == 10).all() and threshold(x, d, nonzeros=99).codes.indices.shape == (20, 30)
    assert not recwarn.list


def test_a_bad_signal_is_named_by_its_place_in_the_data(reference):
    x, d = tensors(*reference.problem(20, 10, 20, 3)[:2])
    x[17, 2] = float("nan")
    for call in (lambda: iht(x, d, nonzeros=3, budget=1), lambda: threshold(x, d, nonzeros=3, budget=1)):
        with pytest.raises(ModelError, match="signal 17 holds NaN"):
            call()


X, D = torch.ones(4, 3), torch.eye(3)
BAD = {
    "unknown rule": (lambda: staged(X, D, "best", nonzeros=1), "rule='best'"),
    "no group": (lambda: staged(X, D, "gomp", nonzeros=1, group=0), "group=0"),
    "unknown step": (lambda: iht(X, D, nonzeros=1, step="long"), "step='long'"),
    "no iterations": (lambda: iht(X, D, nonzeros=1, iterations=0), "iterations=0"),
    "complex": (lambda: iht(X + 0j, D + 0j, nonzeros=1), "real numbers only"),
    "nothing to threshold by": (lambda: threshold(X, D), "nonzeros and penalty are both missing"),
    "negative threshold": (lambda: threshold(X, D, penalty=-1.0), "penalty must be"),
    "NaN": (lambda: staged(X * float("nan"), D, "sp", nonzeros=1), "signal 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, message = BAD[name]
    with pytest.raises(ModelError, match=message):
        call()


@pytest.mark.parametrize("pursue", [batch_omp, lambda x, w: lasso(x, w, 0.1), lambda x, w: iht(x, w, nonzeros=1)])
def test_arrays_of_numpy_are_refused_by_name(pursue):
    x, atoms = torch.ones(3, 4), torch.eye(4)
    with pytest.raises(ModelError, match=r"(signals|atoms) are a ndarray: give torch tensors"):
        pursue(x.numpy(), atoms.numpy())
    with pytest.raises(ModelError, match="signals are a ndarray: give torch tensors"):
        pursue(x.numpy(), atoms)
