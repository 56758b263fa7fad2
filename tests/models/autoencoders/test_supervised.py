"""Supervised dictionaries and what is measured with them, against slow and obvious twins in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sparsefleet.models import Codes, ModelError
from sparsefleet.models.autoencoders.supervised import (
    exchanged,
    f1_scores,
    least_squares_codes,
    mean_codes,
    necessity,
    sufficiency,
    union_f1,
)

ROWS, DIM, SIZES, ATOMS = 90, 6, (4, 5, 2), 11


@pytest.fixture
def made():
    """Rows [n, D] and values [n, A]; value 4 of attribute 1 never occurs, and attribute 2 depends on attribute 0."""
    g = torch.Generator().manual_seed(2)
    x = torch.randn(ROWS, DIM, generator=g, dtype=torch.float64)
    first, second = (torch.randint(0, 4, (ROWS,), generator=g) for _ in range(2))
    third = (first + torch.randint(0, 2, (ROWS,), generator=g) > 2).long()
    return x, torch.stack([first, second, third], 1)


def codes(seed):
    """Dense codes [n, H] and the same as `Codes`, three entries a row."""
    g = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randperm(ATOMS, generator=g)[:3] for _ in range(ROWS)])
    values = torch.rand(ROWS, 3, generator=g, dtype=torch.float64) + 0.1
    return Codes(indices.int(), values)


def test_mean_codes_are_means(made):
    x, values = made
    found = mean_codes(x, values, SIZES)
    torch.testing.assert_close(found.bias, x.mean(0))
    for a, size in enumerate(SIZES):
        for v in range(size):
            rows = [x[n] for n in range(ROWS) if int(values[n, a]) == v]
            expected = torch.stack(rows).mean(0) - x.mean(0) if rows else torch.zeros(DIM, dtype=torch.float64)
            torch.testing.assert_close(found.vectors[a][v], expected)


def test_least_squares_codes_are_those_of_lstsq(made):
    x, values = made
    found = least_squares_codes(x, values, SIZES)
    design = np.zeros((ROWS, 1 + sum(SIZES)))
    design[:, 0] = 1
    for n in range(ROWS):
        for a in range(3):
            design[n, 1 + sum(SIZES[:a]) + int(values[n, a])] = 1
    solved = np.linalg.lstsq(design, x.numpy(), rcond=None)[0]
    torch.testing.assert_close(found.reconstruct(values), torch.from_numpy(design @ solved))
    bias = solved[0].copy()
    for a, size in enumerate(SIZES):
        part = solved[1 + sum(SIZES[:a]) :][:size]
        seen = [v for v in range(size) if bool((values[:, a] == v).any())]
        mean = part[seen].mean(0)
        bias += mean
        for v in range(size):
            expected = part[v] - mean if v in seen else np.zeros(DIM)
            torch.testing.assert_close(found.vectors[a][v], torch.from_numpy(expected))
    torch.testing.assert_close(found.bias, torch.from_numpy(bias))


def test_what_is_a_sum_of_vectors_is_found_and_edited_exactly(made):
    _, values = made
    g = torch.Generator().manual_seed(4)
    truth = [torch.randn(size, DIM, generator=g, dtype=torch.float64) for size in SIZES]
    make = lambda v: sum(t[c] for t, c in zip(truth, v.T)) + 3.0  # noqa: E731
    found = least_squares_codes(make(values), values, SIZES)
    torch.testing.assert_close(found.reconstruct(values), make(values))
    changed = values.clone()
    changed[:, 1] = (values[:, 1] + 1) % 4
    edited = found.edit(make(values), 1, values[:, 1], changed[:, 1])
    torch.testing.assert_close(edited, make(changed))


def test_exchanges_are_those_of_trying_every_latent():
    clean, other = codes(0), codes(1)
    g = torch.Generator().manual_seed(5)
    atoms = torch.randn(DIM, ATOMS, generator=g, dtype=torch.float64)
    shift = torch.randn(ROWS, DIM, generator=g, dtype=torch.float64)
    found = exchanged(clean, other, atoms, shift, 4)
    assert found.shape == (5, ROWS, DIM)
    before, after = clean.dense(ATOMS), other.dense(ATOMS)
    for n in range(ROWS):
        moved, used = torch.zeros(DIM, dtype=torch.float64), set()
        for m in range(5):
            torch.testing.assert_close(found[m, n], moved)
            tries = {j: moved + (after[n, j] - before[n, j]) * atoms[:, j] for j in range(ATOMS) if j not in used}
            best = min(tries, key=lambda j, tries=tries, n=n: float((shift[n] - tries[j]).norm()))
            if (shift[n] - tries[best]).norm() < (shift[n] - moved).norm():
                moved = tries[best]
                used.add(best)


def test_f1_is_counted(made):
    _, values = made
    active = codes(3).dense(ATOMS) > 0.5
    active[:, 7] = False
    for a, size in enumerate(SIZES):
        found, union = f1_scores(active, values[:, a], size), union_f1(active, values[:, a], size, most=2)
        for j in range(ATOMS):
            on = {n for n in range(ROWS) if active[n, j]}

            def f1(wanted, on=on, a=a):
                mine = {n for n in range(ROWS) if int(values[n, a]) in wanted}
                precision, recall = (len(on & mine) / len(s) if s else 0.0 for s in (on, mine))
                return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

            single = [f1({v}) for v in range(size)]
            assert found[:, j].tolist() == pytest.approx(single)
            order = sorted(range(size), key=lambda v, single=single: -single[v])
            assert float(union[j]) == pytest.approx(max(f1(set(order[:1])), f1(set(order[:2]))))
        assert not bool(found[:, 7].any())


def test_shares_of_the_logit_difference():
    clean, mean = torch.tensor([4.0, 6.0]), torch.tensor([1.0, 1.0])
    assert sufficiency(clean, mean, clean) == 1.0
    assert sufficiency(clean, mean, mean) == 0.0
    assert necessity(clean, mean, torch.tensor([3.0, 3.0])) == 0.5
    with pytest.raises(ModelError, match="does not matter"):
        sufficiency(clean, clean, mean)


def test_what_does_not_fit_is_refused(made):
    x, values = made
    with pytest.raises(ModelError, match="attribute 0 has 2 values, but rows have 0 to 3"):
        mean_codes(x, values, (2, 5, 2))
    with pytest.raises(ModelError, match="for 89 rows and 3 attributes"):
        least_squares_codes(x[1:], values, SIZES)
    with pytest.raises(ModelError, match="0 rows"):
        mean_codes(x[:0], values[:0], SIZES)
    with pytest.raises(ModelError, match="do not belong to 89 values"):
        f1_scores(torch.zeros(ROWS, 2, dtype=torch.bool), values[1:, 0], 4)
    with pytest.raises(ModelError, match="exchanges=-1"):
        exchanged(codes(0), codes(1), torch.zeros(DIM, ATOMS), x, -1)
    with pytest.raises(ModelError, match="90 and 90 rows for 89 shifts"):
        exchanged(codes(0), codes(1), torch.zeros(DIM, ATOMS), x[1:], 1)
