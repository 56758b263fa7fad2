"""The pure Adam step against torch's."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from sparsefleet.models.autoencoders.adam import Adam, Moments, warm_and_decay


@pytest.mark.parametrize("shape", [(), (3, 5), (300_001,)])
def test_equals_torchs_adam(shape):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(shape, generator=generator, dtype=torch.float64)
    leaf = value.clone().requires_grad_(True)
    theirs = torch.optim.Adam([leaf], lr=1e-2, betas=(0.8, 0.95), eps=1e-7)
    ours = Moments(value, torch.zeros_like(value), torch.zeros_like(value))
    for count in range(1, 6):
        gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
        leaf.grad = 0.5 * gradient
        theirs.step()
        ours = Adam(rate=1e-2, betas=(0.8, 0.95), eps=1e-7, count=count).step(ours, gradient, 0.5)
        torch.testing.assert_close(ours.value, leaf.detach(), rtol=1e-12, atol=1e-12)


def test_bits_do_not_depend_on_the_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    value, gradient = torch.randn(1_000_003, generator=generator), torch.randn(1_000_003, generator=generator)
    old = Moments(value, 0.1 * gradient, gradient.square())
    adam = Adam(rate=1e-2, betas=(0.9, 0.999), eps=1e-8, count=3)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(adam.step(old, gradient))
    assert all(torch.equal(results[0].value, other.value) for other in results[1:])
    assert all(torch.equal(results[0].second, other.second) for other in results[1:])


@pytest.mark.parametrize("steps", [1, 2, 10, 100, 50_000])
def test_rate_rises_then_falls_and_never_reaches_zero(steps):
    factors = [warm_and_decay(step, steps) for step in range(steps)]
    assert all(0 < f <= 1 for f in factors)
    rises = [b >= a for a, b in pairwise(factors)]
    assert rises == sorted(rises, reverse=True) or factors[0] == 1
    if steps == 50_000:
        assert factors[0] == 1 / 1000
        assert factors[999] == factors[40_000] == 1
        assert factors[45_000] == pytest.approx(0.5)
