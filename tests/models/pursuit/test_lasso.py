"""Lasso and its kin: every solver against scikit-learn, SPAMS and the optimality conditions; odd input."""

import numpy as np
import pytest
import torch
from sparsefleet.models import Codes, ModelError
from sparsefleet.models.kernels import native
from sparsefleet.models.pursuit import Status, lasso, squared_errors, threshold

SOLVERS = ["homotopy", "descent", "fista"]


@pytest.fixture(params=SOLVERS)
def solver(request):
    if request.param != "fista" and native.library() is None:
        pytest.skip("the kernels were not compiled (no C++ compiler at set-up)")
    return request.param


def tensors(*arrays, dtype=torch.float64):
    return [torch.from_numpy(np.ascontiguousarray(a)).to(dtype) for a in arrays]


@pytest.fixture(scope="module")
def smooth():
    """Signals and atoms that correlate, as patches of photographs do: x [n, D], atoms [D, H]."""
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(400, 40)), axis=1)
    walk -= walk.mean(1, keepdims=True)
    walk /= np.linalg.norm(walk, axis=1, keepdims=True)
    return walk[:300], walk[300:].T


def test_equals_scikit_learn(solver, smooth, reference):
    sklearn = pytest.importorskip("sklearn.linear_model")
    x, d = smooth
    found = lasso(*tensors(x, d), 0.1, solver=solver, tolerance=1e-9, iterations=20_000)
    peer = sklearn.Lasso(alpha=0.1 / len(d), fit_intercept=False, tol=1e-14, max_iter=10**6).fit(d, x.T).coef_
    ours, theirs = (reference.objective(x, d, a, 0.1).mean() for a in (found.codes.dense(100).numpy(), peer))
    assert ours <= theirs * (1 + 1e-6)
    assert set(found.status.tolist()) == {Status.CONVERGED}
    torch.testing.assert_close(found.error, squared_errors(*tensors(x, d), found.codes), atol=1e-9, rtol=0)


def test_equals_spams(solver, smooth, reference):
    spams = pytest.importorskip("spams")
    x, d = smooth
    peer = spams.lasso(np.asfortranarray(x.T), np.asfortranarray(d), lambda1=0.1, mode=2, numThreads=1)
    assert peer.nnz > 0
    found = lasso(*tensors(x, d), 0.1, solver=solver, tolerance=1e-9, iterations=20_000)
    ours, theirs = (reference.objective(x, d, a, 0.1) for a in (found.codes.dense(100).numpy(), peer.toarray().T))
    assert (ours <= theirs * (1 + 1e-6)).all()


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.05])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_optimality_conditions_hold(solver, smooth, nonnegative, ridge, weighted):
    x, d = tensors(*smooth)
    penalty = torch.linspace(0.05, 0.2, 100).double() if weighted else torch.full((100,), 0.1).double()
    found = lasso(
        x, d, penalty, ridge=ridge, nonnegative=nonnegative, solver=solver, tolerance=1e-12, iterations=100_000
    )
    assert (found.status == Status.CONVERGED).double().mean() > 0.99
    a = found.codes.dense(100)[found.status == Status.CONVERGED]
    gradient = (x[found.status == Status.CONVERGED] - a @ d.T) @ d - ridge * a
    up = gradient if nonnegative else gradient.abs()
    assert (up <= penalty * (1 + 1e-4)).all()
    gap = torch.where(a == 0, 0, gradient - penalty * a.sign())
    assert gap.abs().max() < 1e-4
    assert not nonnegative or (a >= 0).all()


def test_the_tolerance_bounds_the_objective(solver, smooth, reference):
    x, d = smooth
    exact = lasso(*tensors(x, d), 0.1, solver=solver, tolerance=1e-10, iterations=20_000)
    rough = lasso(*tensors(x, d), 0.1, solver=solver, tolerance=1e-3)
    best, near = (reference.objective(x, d, f.codes.dense(100).numpy(), 0.1) for f in (exact, rough))
    assert (near - best <= 1e-3 * 0.5 * (x * x).sum(1) + 1e-12).all()


def test_float32(solver, smooth, reference):
    x, d = smooth
    found = lasso(*tensors(x, d, dtype=torch.float32), 0.1, solver=solver)
    exact = lasso(*tensors(x, d), 0.1, tolerance=1e-9)
    near, best = (reference.objective(x, d, f.codes.dense(100).double().numpy(), 0.1) for f in (found, exact))
    assert set(found.status.tolist()) == {Status.CONVERGED}
    assert (near - best <= 1.01e-4 * 0.5 * (x * x).sum(1)).all()


def test_the_path_goes_on_by_descent_where_it_gets_long(smooth, reference):
    # More than 32 of 100 atoms are active: the automatic choice leaves the path.
    x, d = smooth
    found = lasso(*tensors(x, d), 0.003, tolerance=1e-6, iterations=100_000)
    exact = lasso(*tensors(x, d), 0.003, tolerance=1e-9, solver="homotopy")
    assert exact.nonzeros.max() > 32
    near, best = (reference.objective(x, d, f.codes.dense(100).numpy(), 0.003) for f in (found, exact))
    done = (found.status == Status.CONVERGED).numpy()
    assert done.mean() > 0.9
    assert (near - best <= 1.01e-6 * 0.5)[done].all()


# -- odd dictionaries and signals --------------------------------------------------------------------------------------


def test_duplicate_and_zero_atoms(solver, smooth, reference):
    x, d = smooth
    odd = np.concatenate([d, d, np.zeros((40, 3))], axis=1)
    found = lasso(*tensors(x, odd), 0.1, solver=solver)
    plain = lasso(*tensors(x, d), 0.1, tolerance=1e-9)
    a = found.codes.dense(203).numpy()
    assert np.isfinite(a).all() and (a[:, 200:] == 0).all()
    best = reference.objective(x, d, plain.codes.dense(100).numpy(), 0.1)
    assert (reference.objective(x, odd, a, 0.1) - best <= 1.01e-4 * 0.5).all()
    assert set(found.status.tolist()) == {Status.CONVERGED}


def test_zero_signals_no_signals_and_a_large_penalty(solver, smooth):
    x, d = tensors(*smooth)
    zero = lasso(torch.zeros(2, 40).double(), d, 0.1, solver=solver)
    assert zero.nonzeros.tolist() == [0, 0] and set(zero.status.tolist()) == {Status.ZERO}
    none = lasso(x[:0], d, 0.1, solver=solver)
    assert none.codes.indices.shape[0] == 0 and none.error.shape == (0,)
    large = lasso(x, d, 2.0, solver=solver)
    assert (large.nonzeros == 0).all() and set(large.status.tolist()) == {Status.CONVERGED}
    torch.testing.assert_close(large.error, x.square().sum(1))


def test_codes_cut_to_their_largest_entries(solver, smooth):
    x, d = tensors(*smooth)
    whole = lasso(x, d, 0.15, solver=solver, tolerance=1e-7)
    cut = lasso(x, d, 0.15, solver=solver, tolerance=1e-7, nonzeros=4)
    assert cut.codes.indices.shape == (300, 4)
    over = whole.nonzeros > 4
    assert 0 < over.sum() < 300 and (cut.status[over] == Status.FULL).all()
    assert torch.equal(cut.codes.dense(100)[~over], whole.codes.dense(100)[~over])
    kept = whole.codes.dense(100).abs().topk(4, dim=1).values
    torch.testing.assert_close(cut.codes.values.abs().sort(dim=1, descending=True).values, kept)


def test_a_start_near_the_end_gives_the_same(solver, smooth, reference):
    x, d = smooth
    cold = lasso(*tensors(x, d), 0.1, tolerance=1e-9, iterations=20_000)
    for start in (cold.codes, Codes(cold.codes.indices.flip(1), cold.codes.values.flip(1) + 0.1)):
        warm = lasso(*tensors(x, d), 0.1, solver=solver, warm=start, tolerance=1e-9, iterations=20_000)
        ours, best = (reference.objective(x, d, f.codes.dense(100).numpy(), 0.1) for f in (warm, cold))
        assert (np.abs(ours - best) < 1e-8).all()


def test_atoms_keep_their_length(solver, smooth):
    # Twice the atoms and twice the penalty: half the coefficients.
    x, d = tensors(*smooth)
    one = lasso(x, d, 0.1, solver=solver, tolerance=1e-10, iterations=20_000)
    two = lasso(x, 2 * d, 0.2, solver=solver, tolerance=1e-10, iterations=20_000)
    torch.testing.assert_close(two.codes.dense(100), one.codes.dense(100) / 2, atol=1e-5, rtol=0)


def test_orthonormal_atoms_are_thresholded(solver):
    rng = torch.Generator().manual_seed(0)
    d = torch.linalg.qr(torch.randn(16, 16, generator=rng).double()).Q
    x = torch.randn(50, 16, generator=rng).double()
    exact = threshold(x, d, penalty=0.5).codes.dense(16)
    torch.testing.assert_close(lasso(x, d, 0.5, solver=solver, tolerance=1e-12).codes.dense(16), exact)


def test_iterations_that_run_out_are_said(smooth):
    x, d = tensors(*smooth)
    for solver in ("fista", "descent"):
        found = lasso(x, d, 0.01, solver=solver, tolerance=1e-12, iterations=3)
        assert (found.status == Status.UNFINISHED).any() and found.codes.values.isfinite().all()


X, D = torch.ones(4, 3), torch.eye(3)


def start(indices, values=None, dtype=torch.int32):
    indices = torch.tensor(indices).to(dtype)
    return Codes(indices, torch.ones(indices.shape) if values is None else values)


BAD = {
    "no penalty": (lambda: lasso(X, D, 0.0), "penalty must be positive"),
    "negative penalty": (lambda: lasso(X, D, -1.0), "penalty must be"),
    "penalty of other atoms": (lambda: lasso(X, D, torch.ones(2)), "one for each of 3 atoms"),
    "NaN penalty": (lambda: lasso(X, D, float("nan")), "penalty must be"),
    "negative ridge": (lambda: lasso(X, D, 0.1, ridge=-1), "ridge=-1"),
    "no tolerance": (lambda: lasso(X, D, 0.1, tolerance=0), "tolerance=0"),
    "unknown solver": (lambda: lasso(X, D, 0.1, solver="lars"), "solver='lars'"),
    "complex": (lambda: lasso(X + 0j, D + 0j, 0.1), "real numbers only"),
    "NaN signal": (lambda: lasso(X * float("nan"), D, 0.1), "signal 0 holds NaN"),
    "no room": (lambda: lasso(X, D, 0.1, nonzeros=0), "nonzeros=0"),
    "no iterations": (lambda: lasso(X, D, 0.1, iterations=0), "iterations=0"),
    "too large atoms": (lambda: lasso(X, D * 1e25, 0.1), "atoms hold NaN, infinite or too large"),
    "NaN in the gram": (lambda: lasso(X, D, 0.1, gram=D / 0), "gram holds NaN"),
    "another's start": (lambda: lasso(X, D, 0.1, warm=start([[2]])), r"indices \(1, 1\).*one row for each"),
    "an empty start of others": (lambda: lasso(X, D, 0.1, warm=start([[], []])), r"indices \(2, 0\)"),
    "a start of int64": (lambda: lasso(X, D, 0.1, warm=start([[1]] * 4, dtype=torch.int64)), "torch.int64"),
    "values of another shape": (lambda: lasso(X, D, 0.1, warm=start([[1]] * 4, torch.ones(4, 2))), r"values \(4, 2\)"),
    "an atom that is none": (lambda: lasso(X, D, 0.1, warm=start([[1], [2], [3], [0]])), "warm holds atom 3"),
    "a start of NaN": (lambda: lasso(X, D, 0.1, warm=start([[1]] * 4, torch.ones(4, 1) / 0)), "warm holds NaN"),
    "an atom twice": (lambda: lasso(X, D, 0.1, warm=start([[1, -1, -1]] * 3 + [[2, 0, 2]])), "twice.* signal 3"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, message = BAD[name]
    with pytest.raises(ModelError, match=message):
        call()
