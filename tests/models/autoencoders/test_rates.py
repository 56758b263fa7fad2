"""Learning rates and coefficients along a run."""

from itertools import pairwise

import pytest
from sparsefleet.models.autoencoders.rates import warm_and_decay, warm_up


@pytest.mark.parametrize("steps", [1, 2, 10, 100, 50_000])
def test_rate_rises_then_falls_and_never_reaches_zero(steps):
    factors = [warm_and_decay(step, steps) for step in range(steps)]
    assert all(0 < f <= 1 for f in factors)
    rises = [b >= a for a, b in pairwise(factors)]
    assert rises == sorted(rises, reverse=True)
    if steps == 50_000:
        assert factors[0] == 1 / 1000
        assert factors[999] == factors[40_000] == 1
        assert factors[45_000] == pytest.approx(0.5)


def test_coefficients_rise_during_a_twentieth():
    assert [warm_up(s, 100) for s in (0, 4, 5, 99)] == [0.2, 1, 1, 1]
    assert warm_up(0, 1) == 1
