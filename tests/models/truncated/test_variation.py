"""Parents and children: the probabilities that they are drawn with, and what a state may look like."""

from itertools import combinations

import numpy as np
import pytest
import torch
from sparsefleet.models import Stage
from sparsefleet.models.truncated.draws import Draws
from sparsefleet.models.truncated.variation import (
    Alphabet,
    binomial,
    crossed,
    flip_rates,
    flipped_once,
    flipped_sparsely,
    parents,
)

MANY = 20_000


def draws(rows=MANY, step=0, start=0):
    return Draws(Stage(step=step, steps=9, seed=4), start, rows, torch.device("cpu"))


def states(alphabet, *lists, rows=MANY):
    """[A, rows, P]: the same parents for every row."""
    out = torch.full((alphabet.slots, rows, len(lists)), alphabet.none)
    for p, codes in enumerate(lists):
        out[: len(codes), :, p] = torch.tensor(codes)[:, None]
    return out


def sets_of(children):
    """Every valid child as a sorted tuple of codes, [n][C]; checks that actives come first."""
    out = []
    codes = children.states.permute(1, 2, 0).tolist()
    none = max(max(c) for row in codes for c in row)
    for row, void in zip(codes, children.void.tolist()):
        out.append([None if v else tuple(sorted(k for k in c if k != none)) for c, v in zip(row, void)])
        for c in row:
            actives = [k for k in c if k != none]
            assert c[: len(actives)] == actives and len(set(actives)) == len(actives)
    return out


def close(count, total, p):
    """Whether a relative frequency is that of probability p, to four standard errors."""
    return abs(count / total - p) <= 4 * np.sqrt(p * (1 - p) / total) + 1e-12


def test_draws_belong_to_rows():
    whole = draws(10).uniform(3, 2)
    one = draws(4, start=5).uniform(3, 2)
    assert torch.equal(whole[5:9], one)
    assert not torch.equal(whole, draws(10, step=1).uniform(3, 2))
    again = draws(10)
    assert torch.equal(torch.cat([again.uniform(2), again.uniform(4)], 1), draws(10).uniform(6))


def test_draws_are_uniform_and_independent():
    u = draws().uniform(4).numpy()
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 4 / np.sqrt(12 * u.size)
    counts = np.bincount((u * 16).astype(int).ravel(), minlength=16)
    assert ((counts - u.size / 16) ** 2 / (u.size / 16)).sum() < 45
    assert np.abs(np.corrcoef(u.T) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.03
    assert np.all(np.bincount(draws().integer(5, 1).flatten().numpy()) > 0)


def test_parents_are_drawn_in_proportion_to_their_fitness_within_the_point():
    # Another point's joints must not matter, and the last state must not be favoured.
    joint = torch.tensor([[-1.0, -3.0, -2.0, -torch.inf], [-100.0, -50.0, 7.0, -200.0]])
    for row, weight in zip(joint, ([5.0, 3.0, 4.0, 0.0], [300.0, 350.0, 407.0, 200.0])):
        chosen = parents(row.expand(MANY, -1), 2, draws(), fitness=True)
        counts = np.bincount(chosen.flatten().numpy(), minlength=4)
        for count, w in zip(counts, weight):
            assert close(count, counts.sum(), w / sum(weight))
    two = parents(joint.repeat(MANY // 2, 1), 2, draws(), fitness=True)
    assert int((two[::2] == 3).sum()) == 0


def test_equal_joints_of_zero_are_all_parents():
    chosen = parents(torch.zeros(MANY, 3), 1, draws(), fitness=True)
    assert all(close(c, MANY, 1 / 3) for c in np.bincount(chosen.flatten().numpy()))


def test_uniform_parents_are_different_ones():
    joint = torch.tensor([-1.0, -3.0, -torch.inf, -2.0, -9.0]).expand(MANY, -1)
    chosen = parents(joint, 2, draws(), fitness=False).sort(1).values
    pairs, counts = np.unique(chosen.numpy(), axis=0, return_counts=True)
    assert pairs.tolist() == [list(p) for p in combinations([0, 1, 3, 4], 2)]
    assert all(close(c, MANY, 1 / 6) for c in counts)


def test_one_flip_changes_every_latent_equally_often():
    alphabet = Alphabet(5, 1, 5)
    found = sets_of(flipped_once(states(alphabet, [3, 1]), torch.zeros(MANY, 1).bool(), 2, draws(), alphabet))
    assert all(a != b for a, b in found), "children of one parent differ"
    every = [c for row in found for c in row]
    wanted = [(3,), (1,), (0, 1, 3), (1, 2, 3), (1, 3, 4)]
    assert set(every) == set(wanted)
    assert all(close(every.count(w), len(every), 1 / 5) for w in wanted)


def test_one_change_takes_every_other_value_equally_often():
    # Two levels of three atoms: code = level * 3 + atom.
    alphabet = Alphabet(3, 2, 3)
    found = sets_of(flipped_once(states(alphabet, [1]), torch.zeros(MANY, 1).bool(), 1, draws(), alphabet))
    every = [c for row in found for c in row]
    wanted = [(), (4,), (0, 1), (1, 3), (1, 2), (1, 5)]
    assert set(every) == set(wanted)
    assert all(close(every.count(w), MANY, 1 / 6) for w in wanted)


def test_a_full_state_cannot_grow():
    alphabet = Alphabet(4, 1, 2)
    found = flipped_once(states(alphabet, [0, 2]), torch.zeros(MANY, 1).bool(), 4, draws(), alphabet)
    assert all(sorted(c for c in row if c) == [(0,), (2,)] and row.count(None) == 2 for row in sets_of(found))


@pytest.mark.parametrize(
    ("size", "wanted"), [(4, 4.0), (4, 4.8), (5, 3.5), (0, 3.0), (9, 3.0), (2, 9.0), (3, 1.2)], ids=str
)
def test_sparse_flips_have_the_expected_number_and_lead_to_the_prior(size, wanted):
    atoms, flips = 20, 2.0
    alphabet = Alphabet(atoms, 1, atoms)
    before = set(range(0, 2 * size, 2))
    parent = states(alphabet, sorted(before))
    found = flipped_sparsely(parent, torch.zeros(MANY, 1).bool(), 1, draws(), alphabet, flips=flips, wanted=wanted)
    every = [set(row[0]) for row in sets_of(found)]
    changed = np.array([len(s ^ before) for s in every])
    assert abs(changed.mean() - flips) <= 3 * changed.std() / np.sqrt(MANY)
    sizes = np.array([len(s) for s in every])
    expected = wanted if abs(wanted - size) < flips else size + flips * np.sign(wanted - size)
    assert abs(sizes.mean() - expected) <= 3 * sizes.std() / np.sqrt(MANY) + 1e-12
    # Latents of one kind are flipped equally often, each by itself.
    rates = [float(r) for r in flip_rates(torch.tensor(size), atoms, flips, wanted)]
    for h in range(atoms):
        assert close(sum(h in (s ^ before) for s in every), MANY, rates[h in before])


def test_binomial_numbers():
    uniform = draws().uniform(1)
    for trials, rate in ((7, 0.3), (1, 0.9), (200, 0.01), (5, 0.0), (3, 1.0)):
        drawn = binomial(uniform, torch.tensor([trials]), torch.tensor([rate]).double(), most=50).double()
        assert abs(float(drawn.mean()) - trials * rate) <= 4 * np.sqrt(trials * rate * (1 - rate) / MANY) + 1e-12
        assert float(drawn.max()) <= trials


def test_crossed_children_share_their_parents_atoms():
    alphabet = Alphabet(6, 1, 4)
    a, b = {0, 4, 2}, {5, 3, 1}
    found = sets_of(crossed(states(alphabet, sorted(a), sorted(b)), torch.zeros(MANY, 2).bool(), draws(), alphabet))
    wanted = {}
    for cut in range(1, 6):
        for one, two in ((a, b), (b, a)):
            child = tuple(sorted({h for h in one if h < cut} | {h for h in two if h >= cut}))
            wanted.setdefault(child, 0)
            wanted[child] += 1
    every = [c for row in found for c in row]
    assert set(every) <= {*wanted, None}
    for child, times in wanted.items():
        if len(child) <= 4:
            assert close(every.count(child), len(every), times / 10)


def test_children_of_void_parents_are_void():
    alphabet = Alphabet(4, 1, 3)
    pool, void = states(alphabet, [1], [], rows=6), torch.tensor([[False, True]]).expand(6, -1)
    assert crossed(pool, void, draws(6), alphabet).void.all()
    assert flipped_once(pool, void, 2, draws(6), alphabet).void[:, 2:].all()
    assert flipped_sparsely(pool, void, 2, draws(6), alphabet, flips=1.0, wanted=1.0).void[:, 2:].all()
