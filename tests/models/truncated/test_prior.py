"""The truncated Bernoulli prior."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from sparsefleet.models.truncated.prior import mass, mass_and_mean, truncated_pi, truncated_pis


@given(pi=st.floats(1e-4, 0.9), atoms=st.integers(1, 400), gamma=st.integers(1, 10))
def test_mass_and_mean_equal_the_binomial(pi, atoms, gamma):
    sizes = np.arange(min(gamma, atoms) + 1)
    terms = binom.pmf(sizes, atoms, pi)
    mass, mean = mass_and_mean(pi, atoms, gamma)
    assert mass == pytest.approx(terms.sum(), rel=1e-8, abs=1e-200)
    assert mean == pytest.approx((sizes * terms).sum(), rel=1e-8, abs=1e-200)


@given(pi=st.floats(1e-3, 0.4), atoms=st.integers(2, 300), gamma=st.integers(1, 12))
def test_pi_is_recovered_from_the_mean(pi, atoms, gamma):
    mass, mean = mass_and_mean(pi, atoms, gamma)
    if gamma >= atoms:
        mean, mass = pi * atoms, 1.0
    if mass < 1e-6 or mean / mass > gamma - 1e-3:
        return
    assert truncated_pi(mean / mass, atoms, gamma) == pytest.approx(pi, rel=1e-4)


@pytest.mark.parametrize(("pi", "atoms", "gamma"), [(0.02, 200, 8), (0.3, 10, 4), (0.1, 3, 3)])
def test_equal_priors_per_atom_are_one_prior(pi, atoms, gamma):
    pis = torch.full((atoms,), pi, dtype=torch.float64)
    assert mass(pis, atoms, gamma) == pytest.approx(mass(pis[0], atoms, gamma), rel=1e-10)
    inside, mean = mass_and_mean(pi, atoms, gamma)
    means = torch.full((atoms,), mean / inside / atoms, dtype=torch.float64)
    np.testing.assert_allclose(truncated_pis(means, gamma).numpy(), pi, rtol=1e-4)


def test_priors_per_atom_explain_a_simulation():
    rng = np.random.default_rng(0)
    pi = rng.uniform(0.02, 0.4, 12)
    s = rng.random((400_000, 12)) < pi
    inside = s[s.sum(1) <= 3]
    assert mass(torch.from_numpy(pi), 12, 3) == pytest.approx(len(inside) / len(s), abs=3e-3)
    found = truncated_pis(torch.from_numpy(inside.mean(0)), 3).numpy()
    # One common shift is exact for the mean and close for each atom.
    np.testing.assert_allclose(found, pi, atol=0.03)
    assert found.sum() == pytest.approx(pi.sum(), rel=0.02)


@pytest.mark.parametrize("means", [[0.0, 0.0, 0.0], [0.9, 0.9, 0.9], [1.0, 0.0, 0.0]])
def test_impossible_means_give_finite_priors(means):
    found = truncated_pis(torch.tensor(means, dtype=torch.float64), 2)
    assert bool(((found > 0) & (found < 1)).all())
