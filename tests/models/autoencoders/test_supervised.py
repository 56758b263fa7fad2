"""Supervised dictionaries and what is measured with them, against slow and obvious twins in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sparsefleet.models import Codes, ModelError
from sparsefleet.models.autoencoders.supervised import (
    coupled,
    detectors,
    exchange,
    f1_scores,
    guided_exchange,
    latent_weights,
    least_squares_codes,
    mean_codes,
    necessity,
    removed_weight,
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
    edited = found.edit(make(values), values, changed)
    torch.testing.assert_close(edited, make(changed))


def test_exchanges_are_those_of_trying_every_latent():
    clean, other = codes(0), codes(1)
    g = torch.Generator().manual_seed(5)
    atoms = torch.randn(DIM, ATOMS, generator=g, dtype=torch.float64)
    shift = torch.randn(ROWS, DIM, generator=g, dtype=torch.float64)
    found = exchange(clean, other, atoms, shift, 4)
    assert found.moved.shape == (5, ROWS, DIM) and found.latents.shape == (4, ROWS)
    before, after = clean.dense(ATOMS), other.dense(ATOMS)
    for n in range(ROWS):
        moved, used = torch.zeros(DIM, dtype=torch.float64), set()
        for m in range(5):
            torch.testing.assert_close(found.moved[m, n], moved)
            if m == 4:
                break
            tries = {j: moved + (after[n, j] - before[n, j]) * atoms[:, j] for j in range(ATOMS) if j not in used}
            best = min(tries, key=lambda j, tries=tries, n=n: float((shift[n] - tries[j]).norm()))
            if (shift[n] - tries[best]).norm() < (shift[n] - moved).norm():
                moved = tries[best]
                used.add(best)
                assert int(found.latents[m, n]) == best
            else:
                assert int(found.latents[m, n]) == -1


def test_detectors_are_counted(made):
    _, values = made
    z = codes(3)
    z.indices[2, 1], z.values[2, 1], z.values[5, 0] = -1, 0, 0
    dense = z.dense(ATOMS)
    for a, size in enumerate(SIZES):
        found = detectors(z, values[:, a], size, ATOMS)
        torch.testing.assert_close(found.scores, f1_scores(dense > 0, values[:, a], size))
        for v in range(size):
            for j in range(ATOMS):
                on = [float(dense[n, j]) for n in range(ROWS) if int(values[n, a]) == v and dense[n, j] > 0]
                assert float(found.levels[v, j]) == pytest.approx(sum(on) / len(on) if on else 0.0)


@pytest.mark.parametrize("size", [5, 2])
def test_guided_exchanges_are_those_of_a_loop(size):
    g = torch.Generator().manual_seed(size)
    atoms = torch.randn(DIM, ATOMS, generator=g, dtype=torch.float64)
    taught = torch.randint(0, size, (ROWS,), generator=g)
    known = detectors(codes(1), taught, size, ATOMS)
    # Latents that tell nothing, so that fewer than m are exchanged.
    known.scores[:, 3:9:2] = 0
    known.scores[1, 2:] = 0
    old = torch.randint(0, size, (ROWS,), generator=g)
    new = (old + torch.randint(1, size, (ROWS,), generator=g)) % size
    z = codes(0)
    z.indices[1, 2], z.values[1, 2], z.values[4, 0] = -1, 0, 0
    found = guided_exchange(z, atoms, known, old, new, 4)
    assert found.moved.shape == (5, ROWS, DIM) and found.latents.shape == (4, ROWS)
    both = 0
    for n in range(ROWS):
        row, was, now = z.dense(ATOMS)[n], known.scores[old[n]], known.scores[new[n]]
        out = sorted((j for j in range(ATOMS) if row[j] > 0 and was[j] > 0), key=lambda j, was=was: -float(was[j]))
        come = sorted((j for j in range(ATOMS) if now[j] > 0), key=lambda j, now=now: -float(now[j]))
        both += len(set(out) & set(come[:4]))
        for m in range(5):
            after = row.clone()
            after[out[:m]] = 0
            for j in come[:m]:
                after[j] = known.levels[new[n], j]
            torch.testing.assert_close(found.moved[m, n], atoms @ (after - row))
        assert found.latents[:, n].tolist() == (out + [-1] * 4)[:4]
    assert both, "no latent was both taken out and put in"


def test_an_edit_that_knows_the_value_is_exact_where_latents_are_values():
    """One latent for each value, always at the same level: exchanging one is the whole edit."""
    atoms = torch.eye(DIM, dtype=torch.float64)[:, :5] * 2
    values = torch.arange(ROWS) % 5
    z = Codes(values.int()[:, None], torch.full((ROWS, 1), 3.0))
    found = guided_exchange(z, atoms, detectors(z, values, 5, 5), values, (values + 1) % 5, 2)
    torch.testing.assert_close(found.moved[1], 3 * (atoms.T[(values + 1) % 5] - atoms.T[values]))
    torch.testing.assert_close(found.moved[2], found.moved[1])


def test_weights_are_shares_of_the_reconstruction():
    z = codes(0)
    z.values[0], z.indices[1, 2], z.values[1, 2] = 0, -1, 0
    g = torch.Generator().manual_seed(6)
    atoms = torch.randn(DIM, ATOMS, generator=g, dtype=torch.float64)
    found, latents = latent_weights(z, atoms), torch.randint(-1, ATOMS, (3, ROWS), generator=g)
    removed = removed_weight(z, atoms, latents)
    for n in range(ROWS):
        row = z.dense(ATOMS)[n]
        whole = atoms @ row
        each = [float(row[j] * (atoms[:, j] @ whole) / (whole @ whole)) if n else 0.0 for j in range(ATOMS)]
        assert float(found[n].sum()) == pytest.approx(1 if n else 0)
        for at, j in enumerate(z.indices[n].tolist()):
            assert float(found[n, at]) == pytest.approx(each[j] if j >= 0 else 0)
        assert float(removed[n]) == pytest.approx(sum(each[j] for j in set(latents[:, n].tolist()) - {-1}))


def test_pairs_of_attributes_are_edited_together(made):
    x, values = made
    pairs, sizes = coupled(values, SIZES, 2)
    assert sizes == (8, 10)
    for n in range(ROWS):
        io, s, order = values[n].tolist()
        assert pairs[n].tolist() == [2 * io + order, 2 * s + order]
    found = least_squares_codes(x, pairs, sizes)
    changed = values.clone()
    changed[:, 1] = (values[:, 1] + 1) % 4
    after, _ = coupled(changed, SIZES, 2)
    edited, removed = found.edit(x, pairs, after), found.removed_weight(pairs, after)
    for n in range(ROWS):
        old, new = found.vectors[1][pairs[n, 1]], found.vectors[1][after[n, 1]]
        torch.testing.assert_close(edited[n], x[n] - old + new)
        whole = found.vectors[0][pairs[n, 0]] + old
        assert float(removed[n]) == pytest.approx(float(old @ whole / (whole @ whole)))
    flipped, _ = coupled(torch.stack([*values.T[:2], 1 - values[:, 2]], 1), SIZES, 2)
    torch.testing.assert_close(found.removed_weight(pairs, flipped), torch.ones(ROWS, dtype=torch.float64))


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
    with pytest.raises(ModelError, match="most=-1"):
        exchange(codes(0), codes(1), torch.zeros(DIM, ATOMS), x, -1)
    with pytest.raises(ModelError, match="90 and 90 rows for 89 shifts"):
        exchange(codes(0), codes(1), torch.zeros(DIM, ATOMS), x[1:], 1)
    with pytest.raises(ModelError, match="do not belong to 89 values"):
        detectors(codes(0), values[1:, 0], 4, ATOMS)
    known, old = detectors(codes(0), values[:, 0], 4, ATOMS), values[:, 0]
    with pytest.raises(ModelError, match="90 rows for 90 old and 89 new"):
        guided_exchange(codes(0), torch.zeros(DIM, ATOMS), known, old, old[1:], 1)
    with pytest.raises(ModelError, match="most=-1"):
        guided_exchange(codes(0), torch.zeros(DIM, ATOMS), known, old, old, -1)
