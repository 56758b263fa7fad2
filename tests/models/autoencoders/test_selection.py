"""The search by blocks against torch.topk, and what is made of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsefleet.models.autoencoders.selection import chunk_rows, largest
from sparsefleet.models.kernels import pack, top_k
from sparsefleet.models.kernels.rows import top_k_by_blocks


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


@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("width", [40, 500, 4096])
def test_of_equal_entries_the_lower_index_comes_first(twin, width, k):
    rng = torch.Generator().manual_seed(k)
    u = torch.cat([torch.zeros(2, width), torch.randint(-3, 4, (20, width), generator=rng)]).double()
    u[1, width // 2] = 1
    values, indices = top_k(u, k)
    wanted = u.sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, wanted.values[:, :k]) and torch.equal(indices, wanted.indices[:, :k])


def test_largest_by_value_or_by_magnitude(twin):
    u = torch.tensor([[-5.0, 2, 3, -1], [-4, -3, -2, -1]])
    indices, values = largest(u, 2, signed=False)
    assert indices.tolist() == [[2, 1], [3, 2]] and values.tolist() == [[3, 2], [0, 0]]
    indices, values = largest(u, 2, signed=True)
    assert indices.tolist() == [[0, 2], [0, 1]] and values.tolist() == [[-5, 3], [-4, -3]]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("shape", [(0, 5), (3, 5), (0, 0), (3, 0)])
def test_there_is_a_slot_even_where_nothing_is_active(twin, shape, signed):
    values, indices = pack(torch.zeros(shape), signed=signed)
    assert values.shape == indices.shape == (shape[0], 1)
    assert not values.any() and not indices.any()


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
