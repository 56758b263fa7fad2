"""Sums over codes and the sweep, compiled and in torch, against plain loops."""

import pytest
import torch
from sparsefleet.models.kernels import code_cross, code_moments, sweep_block

N, D, H, K = 40, 7, 12, 4


def codes(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randperm(H, generator=generator)[:K] for _ in range(N)]).int()
    values = torch.randn(N, K, generator=generator, dtype=dtype)
    none = torch.rand(N, K, generator=generator) < 0.3
    return indices.masked_fill(none, -1), values.masked_fill(none, 0)


def dense(indices, values):
    out = torch.zeros(N, H, dtype=torch.float64)
    for n in range(N):
        for i, v in zip(indices[n].tolist(), values[n].tolist(), strict=True):
            if i >= 0:
                out[n, i] = v
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threads", [1, 2])
def test_sums(twin, dtype, threads):
    indices, values = codes(dtype)
    x = torch.randn(N, D, dtype=dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        moments, cross = code_moments(indices, values, H), code_cross(x, indices, values, H)
    finally:
        torch.set_num_threads(before)
    a = dense(indices, values)
    assert torch.allclose(moments, a.T @ a, rtol=1e-12, atol=1e-12)
    assert torch.allclose(cross, a.T @ x.double(), rtol=1e-12, atol=1e-12)


def test_no_rows_and_no_entries(twin):
    empty = torch.empty(0, K, dtype=torch.int32), torch.empty(0, K)
    assert not code_moments(*empty, H).any()
    assert not code_cross(torch.empty(0, D), *empty, H).any()
    nothing = torch.empty(3, 0, dtype=torch.int32), torch.empty(3, 0)
    assert not code_moments(*nothing, H).any()
    assert not code_cross(torch.randn(3, D), *nothing, H).any()


@pytest.mark.parametrize("length", ["unit", "ball", "any"])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_sweep_block(twin, length, nonnegative):
    a = dense(*codes(torch.float64))
    a[:, 3] = 0
    x = torch.randn(N, D, dtype=torch.float64) * 0.3
    atoms = torch.nn.functional.normalize(torch.randn(H, D, dtype=torch.float64), dim=1).abs()
    moments, cross = a.T @ a, a.T @ x
    swept = atoms.clone()
    sweep_block(swept, moments, cross - moments @ atoms, length=length, nonnegative=nonnegative, least=1e-9)
    expected = atoms.clone()
    for j in range(H):
        if moments[j, j] <= 1e-9:
            continue
        u = expected[j] + (cross[j] - moments[j] @ expected) / moments[j, j]
        u = u.clamp(min=0) if nonnegative else u
        if length == "any":
            expected[j] = u
        elif u.norm() > 1e-12:
            expected[j] = u / max(1.0, float(u.norm())) if length == "ball" else u / u.norm()
    assert torch.allclose(swept, expected, rtol=1e-11, atol=1e-12)
    assert torch.equal(swept[3], atoms[3])
