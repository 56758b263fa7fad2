"""Orthogonal matching pursuit: every form against scikit-learn, SPAMS and the definition; odd input."""

import numpy as np
import pytest
import torch
from sparsefleet.models import ModelError
from sparsefleet.models.kernels import native
from sparsefleet.models.pursuit import Status, batch_omp, omp, squared_errors

FORMS = ["compiled", "torch", "residual"]


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """One of the three forms."""
    if request.param == "compiled" and native.library() is None:
        pytest.skip("the kernels were not compiled (no C++ compiler at set-up)")
    if request.param != "compiled":
        monkeypatch.setattr(native, "usable", lambda *_: False)
    if request.param == "residual":
        monkeypatch.setattr(omp, "worth_a_gram", lambda *_: False)
    return request.param


def tensors(*arrays, dtype=torch.float64):
    return [torch.from_numpy(np.ascontiguousarray(a)).to(dtype) for a in arrays]


def dense(found, atoms):
    return found.codes.dense(atoms).numpy()


def test_equals_scikit_learn(form, reference):
    sklearn = pytest.importorskip("sklearn.linear_model")
    x, d, _ = reference.problem(1500, 32, 96, 6, noise=0.1)
    wanted = sklearn.orthogonal_mp_gram(d.T @ d, (x @ d).T, n_nonzero_coefs=6).T
    found = batch_omp(*tensors(x, d), nonzeros=6)
    assert found.codes.indices.dtype == torch.int32 and found.codes.indices.shape == (1500, 6)
    np.testing.assert_allclose(dense(found, 96), wanted, atol=1e-10)
    assert set(found.status.tolist()) == {Status.FULL}
    np.testing.assert_allclose(found.error, ((x - wanted @ d.T) ** 2).sum(1), atol=1e-10)


def test_float32_finds_the_same_supports(form, reference):
    x, d, _ = reference.problem(4000, 64, 256, 5, noise=0.05)
    wanted = batch_omp(*tensors(x, d), nonzeros=5)
    found = batch_omp(*tensors(x, d, dtype=torch.float32), nonzeros=5)
    same = (found.codes.indices == wanted.codes.indices).all(1)
    assert same.double().mean() >= 0.999
    torch.testing.assert_close(found.codes.values[same].double(), wanted.codes.values[same], atol=1e-4, rtol=0)
    exact = squared_errors(*tensors(x, d, dtype=torch.float32), found.codes)
    assert ((found.error - exact).abs() / torch.from_numpy((x * x).sum(1)) < 1e-5).all()


@pytest.mark.parametrize("select", ["omp", "ols"])
def test_is_what_the_definition_says(form, reference, select):
    x, d, _ = reference.problem(12, 15, 37, 4, noise=0.2)
    found = batch_omp(*tensors(x, d), nonzeros=4, select=select)
    for n in range(len(x)):
        support, values = reference.omp(x[n], d, 4, select)
        assert found.codes.indices[n].tolist() == support
        np.testing.assert_allclose(found.codes.values[n], values, atol=1e-10)


@pytest.mark.parametrize("select", ["omp", "ols"])
def test_a_penalty_stops_before_the_atom_that_does_not_pay(form, reference, select):
    x, d, _ = reference.problem(40, 15, 37, 4, noise=0.2)
    penalty = 0.05
    found = batch_omp(*tensors(x, d), penalty=penalty, select=select)
    assert set(found.nonzeros.tolist()) > {3, 4}
    for n in range(len(x)):
        k = int(found.nonzeros[n])
        assert found.status[n] == Status.CONVERGED
        errors = [reference.error(x[n], d[:, reference.omp(x[n], d, t, select)[0]]) for t in range(k + 2)]
        drops = -np.diff(errors)
        assert (drops[:k] >= 2 * penalty).all() and drops[k] < 2 * penalty
        assert found.codes.indices[n, :k].tolist() == reference.omp(x[n], d, k, select)[0]
        np.testing.assert_allclose(found.error[n], errors[k], atol=1e-10)


@pytest.mark.parametrize("penalty", [-1.0, float("nan"), float("inf")])
def test_a_penalty_that_is_none(penalty):
    with pytest.raises(ModelError, match="must be finite and not negative"):
        batch_omp(torch.ones(2, 3), torch.eye(3), nonzeros=1, penalty=penalty)


def test_complex_dictionaries(reference):
    rng = np.random.default_rng(0)
    d = rng.normal(size=(16, 40)) + 1j * rng.normal(size=(16, 40))
    d /= np.linalg.norm(d, axis=0)
    x = rng.normal(size=(10, 16)) + 1j * rng.normal(size=(10, 16))
    for options in ({}, {"budget": 100}):
        found = batch_omp(torch.from_numpy(x), torch.from_numpy(d), nonzeros=5, **options)
        for n in range(len(x)):
            support, values = reference.omp(x[n], d, 5)
            assert found.codes.indices[n].tolist() == support
            np.testing.assert_allclose(found.codes.values[n], values, atol=1e-10)
        assert not found.error.is_complex()
        exact = squared_errors(torch.from_numpy(x), torch.from_numpy(d), found.codes)
        torch.testing.assert_close(found.error, exact)


def test_ols_is_what_spams_calls_omp(reference):
    spams = pytest.importorskip("spams")
    x, d, _ = reference.problem(500, 32, 96, 5, noise=0.1)
    peer = spams.omp(np.asfortranarray(x.T), np.asfortranarray(d), L=5, eps=1e-10, lambda1=0, numThreads=1)
    assert peer.nnz > 0
    found = batch_omp(*tensors(x, d), nonzeros=5, select="ols")
    same = ((dense(found, 96) != 0) == (peer.toarray().T != 0)).all(1)
    assert same.mean() >= 0.999
    np.testing.assert_allclose(dense(found, 96)[same], peer.toarray().T[same], atol=1e-8)


def test_sparse_signals_are_recovered(form, reference):
    for k in (3, 6):
        x, d, a = reference.problem(400, 64, 128, k, seed=k)
        found = batch_omp(*tensors(x, d), nonzeros=k)
        assert ((dense(found, 128) != 0) == (a != 0)).all(1).mean() >= 0.98


# -- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.3, 1e-3, 1e-6])
def test_the_error_allowed_is_never_exceeded(form, reference, dtype, share):
    x, d = tensors(*reference.problem(300, 24, 64, 5, noise=0.05)[:2], dtype=dtype)
    allowed = share * x.square().sum(1)
    found = batch_omp(x, d, error=allowed)
    assert set(found.status.tolist()) == {Status.REACHED}
    wide = type(found.codes)(found.codes.indices, found.codes.values.double())
    exact = squared_errors(x.double(), d.double(), wide)
    assert (exact <= allowed * (1 + 1e-5) + 1e-9 * (dtype == torch.float32)).all()
    # The last atom was needed: without it, the best fit is worse than allowed.
    for n in range(100):
        support = found.codes.indices[n, : int(found.nonzeros[n]) - 1].numpy()
        left = reference.error(x[n].double().numpy(), d[:, support].double().numpy())
        assert left > float(allowed[n]) * (1 - 1e-4) - 1e-9


def test_an_error_and_a_number_of_atoms(form, reference):
    x, d = tensors(*reference.problem(200, 24, 64, 5, noise=0.05)[:2])
    found = batch_omp(x, d, nonzeros=3, error=2.0)
    assert found.codes.indices.shape == (200, 3)
    reached = found.status == Status.REACHED
    assert 0 < reached.sum() < 200
    assert (found.error[reached] <= 2).all() and (found.nonzeros[~reached] == 3).all()
    short = found.nonzeros < 3
    assert (found.codes.indices[short, 2] == -1).all() and (found.codes.values[short, 2] == 0).all()


def test_a_signal_within_the_error_has_an_empty_code(form):
    found = batch_omp(torch.full((2, 8), 0.1), torch.eye(8), nonzeros=2, error=1.0)
    assert found.nonzeros.tolist() == [0, 0] and set(found.status.tolist()) == {Status.REACHED}


def test_nothing_is_left_after_the_exact_code(form):
    x = torch.zeros(1, 8).double()
    x[0, 3] = 2.0
    found = batch_omp(x, torch.eye(8).double(), nonzeros=5)
    assert found.nonzeros.tolist() == [1] and found.status.tolist() == [Status.CONVERGED]


# -- odd dictionaries and signals --------------------------------------------------------------------------------------


def test_atoms_of_any_length(form, reference):
    x, d, _ = reference.problem(200, 20, 50, 4, noise=0.1)
    lengths = np.exp(np.random.default_rng(1).uniform(np.log(0.1), np.log(10), 50))
    unit = batch_omp(*tensors(x, d), nonzeros=4)
    long = batch_omp(*tensors(x, d * lengths), nonzeros=4)
    given = batch_omp(*tensors(x, d * lengths), nonzeros=4, gram=tensors((d * lengths).T @ (d * lengths))[0])
    for found in (long, given):
        assert torch.equal(found.codes.indices, unit.codes.indices)
        np.testing.assert_allclose(dense(found, 50) * lengths, dense(unit, 50), atol=1e-9)
        torch.testing.assert_close(found.error, unit.error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicate_atoms_stop_a_signal(form, reference, dtype):
    x, d = tensors(*reference.problem(300, 12, 6, 3, noise=0.5)[:2], dtype=dtype)
    found = batch_omp(x, torch.cat([d, d], 1), nonzeros=10)
    assert found.codes.values.isfinite().all() and found.codes.values.abs().max() < 1e3
    assert set(found.status.tolist()) <= {Status.DEPENDENT, Status.CONVERGED}
    # Of two equal atoms the first one is taken.
    assert int(found.codes.indices.max()) < 6 and (found.nonzeros <= 6).all()


def test_a_dictionary_of_low_rank(form):
    rng = torch.Generator().manual_seed(0)
    d = torch.randn(20, 3, generator=rng).double() @ torch.randn(3, 30, generator=rng).double()
    found = batch_omp(torch.randn(50, 20, generator=rng).double(), d, nonzeros=8)
    assert (found.nonzeros == 3).all() and found.codes.values.isfinite().all()
    assert set(found.status.tolist()) <= {Status.DEPENDENT, Status.CONVERGED}


def test_zero_atoms_are_never_chosen(form, reference):
    x, d = tensors(*reference.problem(50, 10, 20, 3)[:2])
    d[:, ::2] = 0
    found = batch_omp(x, d, nonzeros=4)
    assert (found.codes.indices % 2 == 1).all() and found.codes.values.isfinite().all()
    nothing = batch_omp(x, torch.zeros_like(d), nonzeros=4)
    assert (nothing.nonzeros == 0).all() and set(nothing.status.tolist()) == {Status.CONVERGED}


def test_zero_signals_and_no_signals(form, reference):
    x, d = tensors(*reference.problem(5, 10, 20, 3)[:2])
    x[2] = 0
    found = batch_omp(x, d, nonzeros=3)
    assert found.status[2] == Status.ZERO and found.nonzeros.tolist() == [3, 3, 0, 3, 3] and found.error[2] == 0
    none = batch_omp(x[:0], d, nonzeros=3)
    assert none.codes.indices.shape == (0, 3) and none.status.shape == (0,)


def test_ties_go_to_the_lowest_atom(form):
    found = batch_omp(torch.ones(3, 70).double(), torch.eye(70).double(), nonzeros=4)
    assert found.codes.indices.tolist() == [[0, 1, 2, 3]] * 3


def test_more_atoms_than_can_be_independent_are_cut(form, reference):
    x, d = tensors(*reference.problem(20, 10, 30, 3, noise=0.1)[:2])
    with pytest.warns(UserWarning, match="nonzeros=25"):
        found = batch_omp(x, d, nonzeros=25)
    assert found.codes.indices.shape == (20, 10)
    assert (found.error < 1e-9).all()


@pytest.fixture
def formed(monkeypatch):
    """The Gram matrices that are formed, one shape each."""
    shapes = []
    real = omp.gram_matrix
    monkeypatch.setattr(omp, "gram_matrix", lambda atoms: (shapes.append(tuple(atoms.shape)), real(atoms))[1])
    return shapes


def test_a_gram_matrix_that_does_not_fit_is_not_formed(reference, formed):
    x, d = tensors(*reference.problem(200, 16, 400, 4, noise=0.1)[:2])
    whole = batch_omp(x, d, nonzeros=4)
    assert len(formed) == 1
    small = batch_omp(x, d, nonzeros=4, budget=2**17)
    # Nor one that costs more than these few signals.
    few = batch_omp(x[:20], d, nonzeros=4)
    assert len(formed) == 1
    assert torch.equal(whole.codes.indices, small.codes.indices)
    assert torch.equal(whole.codes.indices[:20], few.codes.indices)


def test_few_doubtful_signals_need_no_gram_matrix_in_float64(reference, formed):
    x, d = tensors(*reference.problem(200, 16, 400, 3)[:2], dtype=torch.float32)
    # The first signals are made of three atoms: their error falls below what float32 can tell.
    x[3:] += 1
    found = batch_omp(x, d, nonzeros=3, error=1e-7)
    assert (found.error[:3] < 1e-4 * x[:3].square().sum(1)).any()
    assert len(formed) == 1
    batch_omp(x, d, nonzeros=3, error=1e-7, gram=d.T @ d, budget=2**17)
    assert len(formed) == 1


def test_neither_blocks_nor_threads_change_anything(reference):
    x, d = tensors(*reference.problem(5000, 16, 40, 4, noise=0.1)[:2])
    whole = batch_omp(x, d, nonzeros=4)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        parts = batch_omp(x, d, nonzeros=4, gram=d.T @ d, budget=2**18)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(whole.codes.indices, parts.codes.indices)
    torch.testing.assert_close(whole.codes.values, parts.codes.values, atol=1e-12, rtol=0)


X, D = torch.ones(4, 3), torch.eye(3)
BAD = {
    "other dimensions": (lambda: batch_omp(X, torch.eye(4), nonzeros=1), "3 dimensions, but atoms 4"),
    "one signal without rows": (lambda: batch_omp(X[0], D, nonzeros=1), "must be matrices"),
    "no atoms": (lambda: batch_omp(X, D[:, :0], nonzeros=1), "at least one atom"),
    "two types": (lambda: batch_omp(X.double(), D, nonzeros=1), "torch.float64 and atoms torch.float32"),
    "whole numbers": (lambda: batch_omp(X.int(), D.int(), nonzeros=1), "floating-point"),
    "nothing to stop at": (lambda: batch_omp(X, D), "nonzeros and error are both missing"),
    "no non-zeros": (lambda: batch_omp(X, D, nonzeros=0), "nonzeros=0"),
    "negative error": (lambda: batch_omp(X, D, error=-1.0), "negative"),
    "error of another shape": (lambda: batch_omp(X, D, error=torch.ones(3)), "one for each of 4"),
    "unknown rule": (lambda: batch_omp(X, D, nonzeros=1, select="best"), "select='best'"),
    "NaN in a signal": (lambda: batch_omp(X / (torch.arange(4) != 2)[:, None] * 0, D, nonzeros=1), "signal 2"),
    "half precision": (lambda: batch_omp(X.half(), D.half(), nonzeros=1), "torch.float16.*float32, float64"),
    "infinite atom": (lambda: batch_omp(X, D / 0, nonzeros=1), "atoms hold NaN"),
    "atoms too large for their squares": (
        lambda: batch_omp(X, D * 1e25, nonzeros=1),
        "atoms hold NaN, infinite or too",
    ),
    "gram of other atoms": (lambda: batch_omp(X, D, nonzeros=1, gram=torch.eye(2)), "gram is"),
    "NaN in the gram": (lambda: batch_omp(X, D, nonzeros=1, gram=D * float("nan")), "gram holds NaN"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, message = BAD[name]
    with pytest.raises(ModelError, match=message):
        call()
