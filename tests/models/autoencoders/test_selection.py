"""The search by blocks against torch.topk."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsefleet.models.autoencoders.selection import chunk_rows, top_k, top_k_by_blocks


@settings(deadline=None, max_examples=150)
@given(data=st.data(), width=st.integers(1, 900), rows=st.integers(0, 4), seed=st.integers(0, 99))
def test_finds_what_torch_finds(data, width, rows, seed):
    k = data.draw(st.integers(1, min(width, 60)))
    u = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    expected = u.topk(k, dim=1)
    for find in (top_k, top_k_by_blocks):
        values, indices = find(u, k)
        assert torch.equal(values.sort(1).values, expected.values.sort(1).values)
        assert torch.equal(indices.sort(1).values, expected.indices.sort(1).values)
        assert torch.equal(u.gather(1, indices), values)


@pytest.mark.parametrize("find", [top_k, top_k_by_blocks])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_ties_and_clusters_keep_k_different_entries(k, find):
    u = torch.zeros(3, 500)
    u[1, 100:140] = 1.0  # neighbours
    u[2, ::16] = 1.0  # one block
    values, indices = find(u, k)
    assert torch.equal(values.sort(1).values, u.topk(k, dim=1).values.sort(1).values)
    assert all(len(set(row)) == k for row in indices.tolist())


def test_reads_strided_rows():
    wide = torch.randn(6, 1000, generator=torch.Generator().manual_seed(0))
    view = wide[:, 3:803]
    assert torch.equal(top_k(view, 7)[0].sort(1).values, view.topk(7, dim=1).values.sort(1).values)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_buffers_stay_below_256_mb(device):
    for atoms in (1, 300, 2**14, 2**20, 2**27):
        rows = chunk_rows(10**6, atoms, 4, torch.device(device))
        assert rows == 1 or rows * atoms * 4 <= 256 << 20
    assert chunk_rows(7, 300, 4, torch.device(device)) == 7
