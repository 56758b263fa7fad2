"""The truncated Bernoulli prior."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from sparsefleet.models.truncated.prior import mass_and_mean, truncated_pi


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
