"""The search for badly represented rows, and what it replaces."""

import pytest
import torch
from sparsefleet.models.factorization import replacement as r
from sparsefleet.models.factorization.start import distinct_rows
from sparsefleet.models.factorization.steps import normalised

H, D = 30, 8


def rows(n, seed=0):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def search(params, x, error, start=0, step=0):
    return r.histogram_and_candidates(params, x, error, x.square().sum(1), start=start, step=step, atoms=H)


def test_candidates_add_up_however_rows_are_dealt():
    x = rows(5000)
    error = x.square().sum(1) * torch.rand(5000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    params = {**r.start_values(x, 5000, H), r.LEVEL: torch.tensor(511.7, dtype=torch.float64)}
    errors, whole = search(params, x, error)
    parts = [search(params, x[i : i + 700], error[i : i + 700], start=i) for i in range(0, 5000, 700)]
    assert torch.equal(sum(p[0] for p in parts), errors)
    # A slot that holds one row holds it to the last bit, wherever the rest was added.
    summed = sum(p[1] for p in parts)
    single = whole[:, -1] == 1
    assert single.any() and torch.equal(summed[single], whole[single])
    original = {tuple(row) for row in x.tolist()}
    assert all(tuple(row) in original for row in whole[single, :-2].tolist())


@pytest.mark.parametrize("kind", ["spread", "equal", "two values"])
def test_the_level_lets_about_as_many_rows_through_as_there_are_slots(kind):
    x = rows(20_000)
    draw = torch.rand(len(x), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    share = {"spread": draw**4, "equal": draw * 0 + 0.3, "two values": 0.1 + 0.5 * (draw < 1e-3)}[kind]
    error = x.square().sum(1) * share
    params = r.start_values(x, len(x), H)
    errors, first = search(params, x, error)
    assert 20 < float(first[:, -1].sum()) < 160
    params[r.LEVEL] = r.next_level(errors, H)
    _, found = search(params, x, error, step=1)
    wanted = r.slots(H)
    assert 0.6 * wanted <= float(found[:, -1].sum()) <= 1.5 * wanted
    assert int((found[:, -1] == 1).sum()) >= wanted // 5
    if kind == "spread":
        chosen = found[found[:, -1] == 1]
        assert float(chosen[:, -2].min()) > float(share.quantile(0.99))


def test_faint_zero_and_perfect_rows_are_no_candidates():
    x = rows(100)
    x[:50] = 0
    error = x.square().sum(1)
    error[60:] = 0
    _, found = search(r.start_values(x, 50, H), x, error)
    assert float(found[:, -1].sum()) <= 10


def test_unused_and_coherent_atoms_are_named():
    counts = torch.full((H,), 1000.0, dtype=torch.float64)
    counts[:4] = torch.tensor([0.0, 3.0, 4.0, 1000.0])
    power = torch.ones(H, dtype=torch.float64)
    power[5] = 1e-9
    assert r.unused(counts, power).nonzero().flatten().tolist() == [0, 1, 2, 5]
    atoms, _ = normalised(rows(H))
    atoms[7], atoms[9] = -atoms[8], atoms[8]
    counts[:] = 10
    counts[9] = 50
    assert r.coherent(atoms, counts).nonzero().flatten().tolist() == [7, 8]


def test_new_atoms_are_unlike_all_others_and_no_more_than_a_tenth():
    atoms, _ = normalised(rows(H))
    bad = torch.zeros(H, dtype=torch.bool)
    bad[:10] = True
    counts = torch.arange(H, dtype=torch.float64).flip(0)
    fresh = rows(40, seed=3)
    fresh[0], fresh[1] = 2 * atoms[20], fresh[2]
    slots = torch.cat([fresh, torch.rand(40, 1).double(), torch.ones(40, 1).double()], 1)
    slots[5, -1] = 2
    new, replaced = r.replace(atoms, bad, counts, slots)
    assert replaced.nonzero().flatten().tolist() == [7, 8, 9]
    assert torch.equal(new[~replaced], atoms[~replaced])
    kept = ~bad | replaced
    cosines = (new[kept] @ new[kept].T - torch.eye(int(kept.sum()))).abs()[replaced[kept]]
    assert float(cosines.max()) <= 0.9
    none, left = r.replace(atoms, bad, counts, slots * 0)
    assert torch.equal(none, atoms) and not left.any()


def test_distinct_rows():
    x = rows(40)
    x[::2] = x[1::2] * 3
    x[0] = 0
    atoms = distinct_rows(x, 15, torch.Generator().manual_seed(0))
    assert torch.allclose(atoms.norm(dim=1), torch.ones(15, dtype=torch.float64))
    cosines = (atoms @ atoms.T).fill_diagonal_(0)
    assert float(cosines.abs().max()) <= 0.95
    more = distinct_rows(x * 0, 15, torch.Generator().manual_seed(0))
    assert torch.allclose(more.norm(dim=1), torch.ones(15, dtype=torch.float64))
