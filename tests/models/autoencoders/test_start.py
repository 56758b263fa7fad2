"""The start values of an autoencoder."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsefleet.models.autoencoders.start import geometric_median, root_dim_scale, unit_rows


def summed_distance(rows: torch.Tensor, point: torch.Tensor) -> float:
    return float((rows - point).norm(dim=1).sum())


@settings(deadline=None, max_examples=40)
@given(m=st.integers(1, 60), dim=st.integers(1, 6), seed=st.integers(0, 99), outliers=st.integers(0, 5))
def test_no_nearby_point_is_closer_to_all_rows(m, dim, seed, outliers):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(m, dim, generator=generator, dtype=torch.float64)
    rows[:outliers] += 100.0
    median = geometric_median(rows, iterations=2000, tolerance=1e-9)
    best = summed_distance(rows, median)
    for _ in range(20):
        step = 0.05 * torch.randn(dim, generator=generator, dtype=torch.float64)
        assert best <= summed_distance(rows, median + step) * (1 + 2e-3)


def test_outliers_do_not_move_it():
    rows = torch.randn(500, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[:20] += 1e6
    assert geometric_median(rows).norm() < 0.5


@pytest.mark.parametrize("rows", [[[1.0, 2.0]], [[1.0, 2.0]] * 5, [[-1.0], [0.0], [1.0]], [[0.0], [0.0], [9.0]]])
def test_rows_at_the_iterate_give_no_nan(rows):
    found = geometric_median(torch.tensor(rows, dtype=torch.float64))
    middle = torch.tensor(sorted(rows)[len(rows) // 2], dtype=torch.float64)
    torch.testing.assert_close(found, middle, atol=1e-2, rtol=0)


def test_a_row_at_the_mean_does_not_hold_the_iterate():
    rows = torch.tensor([[0.0], [0.0], [0.1], [3.0], [8.9]], dtype=torch.float64)
    rows = torch.cat([rows, rows.mean(0, keepdim=True)])
    assert summed_distance(rows, geometric_median(rows)) <= 1.01 * summed_distance(rows, rows.median(0).values)


def test_scale_gives_a_mean_norm_of_root_dim():
    rows = 3 * torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    assert (root_dim_scale(rows) * rows).norm(dim=1).mean() == pytest.approx(4.0, rel=1e-5)
    assert root_dim_scale(torch.zeros(3, 16)) == 1.0


def test_unit_rows_keep_rows_of_zeros():
    rows = unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
