"""The pure Adam step against torch's."""

from __future__ import annotations

import pytest
import torch
from sparsefleet.models.kernels import Adam, Moments, tangent


@pytest.mark.parametrize("shape", [(), (3, 5), (300_001,)])
def test_equals_torchs_adam(twin, shape):
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


def test_bits_do_not_depend_on_the_number_of_threads(twin):
    generator = torch.Generator().manual_seed(0)
    value, gradient = torch.randn(1_000_003, generator=generator), torch.randn(1_000_003, generator=generator)
    old = Moments(value, 0.1 * gradient, gradient.square())
    adam = Adam(rate=1e-2, betas=(0.9, 0.999), eps=1e-8, count=3)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(adam.step(old, gradient))
    torch.set_num_threads(before)
    assert all(torch.equal(results[0].value, other.value) for other in results[1:])
    assert all(torch.equal(results[0].second, other.second) for other in results[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthogonal_steps_project_first_and_leave_unit_rows(twin, dtype):
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(70, 33, generator=generator).to(dtype)
    value = torch.nn.functional.normalize(torch.randn(70, 33, generator=generator).to(dtype), dim=1)
    old = Moments(value, 0.1 * gradient.flip(0), gradient.square())
    left = gradient - (gradient * value).sum(1, keepdim=True) * value
    adam = Adam(rate=1e-2, betas=(0.9, 0.99), eps=1e-8, count=2)
    wanted = adam.step(old, left, 0.5)
    part = tangent(gradient, value)
    found = adam.step(old, gradient, 0.5, orthogonal=part)
    assert part.norm == pytest.approx(float(left.norm()), rel=1e-5)
    torch.testing.assert_close(found.first, wanted.first)
    torch.testing.assert_close(found.value, torch.nn.functional.normalize(wanted.value, dim=1))
    torch.testing.assert_close(found.value.norm(dim=1), torch.ones(70, dtype=dtype))
