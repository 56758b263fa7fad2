"""Dictionary updates from sums: errors without the data, monotone steps, orthogonality."""

import pytest
import torch
from sparsefleet.models import Codes
from sparsefleet.models.factorization.rank_one import ksvd_sweep
from sparsefleet.models.factorization.steps import coordinate_sweep, least_squares, normalised, polar
from sparsefleet.models.factorization.sums import cross_of, decode, moments_of, power_of

N, D, H, K = 200, 10, 70, 4


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64)
    indices = torch.stack([torch.randperm(H - 1, generator=generator)[:K] for _ in range(N)]).int()
    codes = Codes(indices, torch.randn(N, K, generator=generator, dtype=torch.float64))
    atoms, _ = normalised(torch.randn(H, D, generator=generator, dtype=torch.float64))
    return x, codes, atoms


def sums(x, codes):
    return moments_of(codes, H), cross_of(codes, x, H)


def direct(x, codes, atoms):
    return float((x - codes.dense(H) @ atoms).square().sum())


def test_sums_over_sparse_codes(problem):
    x, codes, atoms = problem
    moments, cross = sums(x, codes)
    assert torch.allclose(moments, codes.dense(H).T @ codes.dense(H)) and torch.allclose(cross, codes.dense(H).T @ x)
    assert torch.allclose(decode(codes, atoms), codes.dense(H) @ atoms)
    assert torch.allclose(power_of(codes, H), moments_of(codes, H).diagonal())


def test_least_squares_is_the_optimum_and_leaves_unused_atoms(problem):
    x, codes, atoms = problem
    moments, cross = sums(x, codes)
    fitted = least_squares(atoms, moments, cross)
    assert torch.allclose(fitted[H - 1], atoms[H - 1])
    best = torch.linalg.lstsq(codes.dense(H), x, driver="gelsd").solution
    assert direct(x, codes, fitted) == pytest.approx(direct(x, codes, best), rel=1e-7)


@pytest.mark.parametrize("settings", [{}, {"length": "ball"}, {"length": "ball", "nonnegative": True}])
def test_every_sweep_lowers_the_error(problem, settings):
    x, codes, atoms = problem
    atoms = atoms.abs() if settings.get("nonnegative") else atoms
    moments, cross = sums(x, codes)
    before = direct(x, codes, atoms)
    for _ in range(5):
        atoms = coordinate_sweep(atoms, moments, cross, **settings)
        after = direct(x, codes, atoms)
        assert after <= before + 1e-9
        before = after
        norm = atoms.norm(dim=1)
        assert float(norm.max()) <= 1 + 1e-12
        assert settings or torch.allclose(norm, torch.ones_like(norm))
        assert not settings.get("nonnegative") or bool((atoms >= 0).all())


def test_blocks_do_not_change_a_sweep(problem):
    x, codes, atoms = problem
    moments, cross = sums(x, codes)
    expected = atoms.clone()
    for j in range(H - 1):
        u = expected[j] + (cross[j] - moments[j] @ expected) / moments[j, j]
        expected[j] = u / u.norm()
    assert torch.allclose(coordinate_sweep(atoms, moments, cross), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("power", [None, 1, 4])
def test_ksvd_lowers_the_error_with_every_sweep(problem, power):
    x, codes, atoms = problem
    before = direct(x, codes, atoms)
    for _ in range(3):
        atoms, codes = ksvd_sweep(x, atoms, codes, power=power)
        assert direct(x, codes, atoms) <= before + 1e-9
        before = direct(x, codes, atoms)
    assert torch.allclose(atoms.norm(dim=1), torch.ones(H, dtype=torch.float64))


def test_ksvd_takes_codes_that_are_not_contiguous(problem):
    x, codes, atoms = problem
    turned = Codes(codes.indices.T.contiguous().T, codes.values.T.contiguous().T)
    for ours, wanted in zip(ksvd_sweep(x, atoms, turned), ksvd_sweep(x, atoms, codes), strict=True):
        if isinstance(ours, Codes):
            ours, wanted = ours.values, wanted.values
        torch.testing.assert_close(ours, wanted)


def test_exact_ksvd_is_the_best_rank_one_fit(problem):
    x, codes, atoms = problem
    one = Codes(codes.indices[:, :1] * 0, codes.values[:, :1])
    fitted, refitted = ksvd_sweep(x, atoms, one, power=None)
    values = torch.linalg.svdvals(x)
    assert direct(x, refitted, fitted) == pytest.approx(float(values[1:].square().sum()), rel=1e-10)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9)])
def test_polar_is_the_nearest_orthonormal(shape):
    matrix = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    nearest = polar(matrix)
    assert torch.allclose(nearest @ nearest.T, torch.eye(shape[0], dtype=torch.float64), atol=1e-12)
    other = polar(torch.randn(*shape, dtype=torch.float64))
    assert (matrix * nearest).sum() >= (matrix * other).sum()


def test_normalised_leaves_zeros():
    atoms, good = normalised(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert atoms.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]] and good.tolist() == [True, False]
