"""Concepts of latents, against plain loops over cases."""

from __future__ import annotations

import math

import pytest
import torch
from sparsefleet.models import Codes, ModelError
from sparsefleet.models.autoencoders.concepts import (
    Concepts,
    confidence,
    effects,
    find_concepts,
    ranking,
    scaled_latents,
    tag_shares,
    with_pairs,
)

CASES, ITEMS, TAGS, ATOMS, DIM, K, WIDTH = 60, 15, 4, 7, 5, 3, 3


@pytest.fixture
def made():
    """Codes, tags [I, T], items [n, K], rows [n, D] and atoms [D, H]; latent 6 never fires, some entries are empty."""
    g = torch.Generator().manual_seed(3)
    indices = torch.stack([torch.randperm(ATOMS - 1, generator=g)[:WIDTH] for _ in range(CASES)]).to(torch.int32)
    values = torch.rand(CASES, WIDTH, generator=g, dtype=torch.float64).sort(descending=True).values
    empty = torch.rand(CASES, generator=g) < 0.3
    values[empty, -1] = 0
    indices[empty, -1] = -1
    tags = (torch.rand(ITEMS, TAGS, generator=g) < 0.4).to(torch.uint8)
    items = torch.stack([torch.randperm(ITEMS, generator=g)[:K] for _ in range(CASES)])
    rows = torch.randn(CASES, DIM, generator=g, dtype=torch.float64)
    atoms = torch.nn.functional.normalize(torch.randn(DIM, ATOMS, generator=g, dtype=torch.float64), dim=0)
    return Codes(indices, values), tags, items, rows, atoms


def share(items, tags, t):
    """Of some items the fraction with tag t."""
    return sum(int(tags[i, t]) for i in items) / len(items)


def test_shares_are_counted(made):
    _, tags, items, _, _ = made
    found = tag_shares(items, tags)
    for n in range(CASES):
        for t in range(TAGS):
            assert float(found[n, t]) == pytest.approx(share(items[n].tolist(), tags, t))
    assert tag_shares(items[:0], tags).shape == (0, TAGS)
    with pytest.raises(ModelError, match="numbered 0 to 15, but 15 have tags"):
        tag_shares(torch.tensor([[0, 15]]), tags)


def test_pairs_are_what_enough_items_have_together(made):
    _, tags, _, _, _ = made
    # The last tag is implied by the first: their pair is the last tag again.
    tags = torch.cat([tags, tags[:, :1] * (torch.arange(ITEMS) < 9).to(tags)[:, None]], dim=1)
    found, names = with_pairs(tags, least=2)
    assert names[: TAGS + 1] == [(t,) for t in range(TAGS + 1)] and torch.equal(found[:, : TAGS + 1], tags)
    both = {
        (a, b): [int(tags[i, a] and tags[i, b]) for i in range(ITEMS)]
        for a in range(TAGS + 1)
        for b in range(a + 1, TAGS + 1)
    }
    expected = {
        pair: column
        for pair, column in both.items()
        if sum(column) >= 2 and all(column != tags[:, t].tolist() for t in pair)
    }
    assert (0, TAGS) not in expected and 0 < len(expected) < len(both)
    assert {pair: found[:, i].tolist() for i, pair in enumerate(names) if len(pair) == 2} == expected
    with pytest.raises(ModelError, match="no item has"):
        with_pairs(tags, least=0)


@pytest.mark.parametrize(("cases", "least"), [(5, 0.0), (5, 0.4), (1000, 0.3)])
def test_a_concept_is_the_tag_of_largest_lift(made, cases, least):
    codes, tags, items, _, _ = made
    shares = tag_shares(items, tags)
    found = find_concepts(codes, shares, ATOMS, cases=cases, least=least)
    dense = codes.dense(ATOMS)
    for j in range(ATOMS):
        active = [n for n in range(CASES) if dense[n, j] > 0]
        strongest = sorted(active, key=lambda n: -float(dense[n, j]))[:cases]
        lifts = []
        for t in range(TAGS):
            base = sum(float(shares[n, t]) for n in range(CASES)) / CASES
            top = sum(float(shares[n, t]) for n in strongest) / max(1, len(strongest))
            lifts.append((top / base if top >= least and base else 0.0, t, (top + base) / 2))
        lift, tag, threshold = max(lifts, key=lambda entry: entry[0])
        assert float(found.lift[j]) == pytest.approx(lift)
        assert int(found.tag[j]) == (tag if lift else -1)
        assert float(found.threshold[j]) == pytest.approx(threshold if lift else 0.0)
    assert int(found.tag[-1]) == -1


def test_confidence_is_counted(made):
    codes, tags, items, _, _ = made
    shares = tag_shares(items, tags)
    concepts = find_concepts(codes, shares, ATOMS, cases=4)
    found = confidence(codes, shares, concepts)
    dense = codes.dense(ATOMS)
    for j in range(ATOMS):
        active = [bool(dense[n, j] > 0) for n in range(CASES)]
        t = int(concepts.tag[j])
        said = [t >= 0 and float(shares[n, t]) >= float(concepts.threshold[j]) for n in range(CASES)]
        hits = sum(a and s for a, s in zip(active, said))
        precision = hits / sum(said) if any(said) else 0.0
        recall = hits / sum(active) if any(active) else 0.0
        false = (sum(said) - hits) / (CASES - sum(active))
        assert float(found.fired[j]) == sum(active)
        assert float(found.precision[j]) == pytest.approx(precision)
        assert float(found.recall[j]) == pytest.approx(recall)
        assert float(found.balanced_precision[j]) == pytest.approx(recall / (recall + false) if recall else 0.0)
        both = precision + recall
        assert float(found.f1[j]) == pytest.approx(2 * precision * recall / both if both else 0.0)


def test_latents_that_are_tags_are_named_and_predicted():
    """Each latent fires where, and as strongly as, one tag's items are recommended."""
    tags = torch.eye(3)
    items = torch.tensor([[0, 0], [1, 1], [2, 2], [0, 0], [1, 1], [2, 2]])
    codes = Codes(items[:, :1].to(torch.int32), torch.ones(6, 1))
    shares = tag_shares(items, tags)
    concepts = find_concepts(codes, shares, 3)
    assert concepts.tag.tolist() == [0, 1, 2]
    torch.testing.assert_close(concepts.lift, torch.full((3,), 3.0).double())
    found = confidence(codes, shares, concepts)
    for value in (found.precision, found.recall, found.f1, found.balanced_precision):
        assert value.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("factor", "change"), [(0.0, "own"), (2.0, "own"), (0.0, "other")])
def test_effects_are_those_of_editing_case_by_case(made, factor, change, monkeypatch):
    monkeypatch.setattr("sparsefleet.models.autoencoders.concepts.EDITS_AT_ONCE", 17)
    codes, tags, items, rows, atoms = made
    embeddings = torch.randn(ITEMS, DIM, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    seen = torch.zeros(CASES, ITEMS, dtype=torch.bool).scatter(1, items, value=True)

    def recommend(h, cases):
        return (h @ embeddings.T).masked_fill(seen[cases], -math.inf).topk(K, dim=1).indices

    concepts = find_concepts(codes, tag_shares(items, tags), ATOMS, cases=5, least=0.4)
    found = effects(rows, codes, atoms, concepts, tags, recommend, factor=factor, change=change)
    dense = codes.dense(ATOMS)
    for j in range(ATOMS):
        t, moved = int(concepts.tag[j]), []
        for n in range(CASES):
            if t < 0 or dense[n, j] <= 0:
                continue
            edited = j
            if change == "other":
                others = {i: float(dense[n, i]) for i in range(ATOMS) if i != j and dense[n, i] > 0}
                if not others:
                    continue
                edited = max(others, key=others.__getitem__)
            h = rows[n] + (factor - 1) * dense[n, edited] * atoms[:, edited]
            now, before = (recommend(x[None], torch.tensor([n]))[0].tolist() for x in (h, rows[n]))
            moved.append(share(now, tags, t) - share(before, tags, t))
        if moved:
            assert float(found[j]) == pytest.approx(sum(moved) / len(moved), abs=1e-12)
        else:
            assert math.isnan(float(found[j]))


def test_a_latent_is_scaled_in_place(made):
    codes, _, _, rows, atoms = made
    slots = torch.zeros(CASES, dtype=torch.int64)
    same = scaled_latents(rows, codes, atoms, slots, 1.0)
    torch.testing.assert_close(same, rows)
    gone = scaled_latents(rows, codes, atoms, slots, 0.0)
    n = 4
    torch.testing.assert_close(gone[n], rows[n] - codes.values[n, 0] * atoms[:, int(codes.indices[n, 0])])
    # An empty slot changes nothing.
    last = torch.full((CASES,), WIDTH - 1)
    empty = codes.values[:, -1] == 0
    assert bool(empty.any())
    torch.testing.assert_close(scaled_latents(rows, codes, atoms, last, 5.0)[empty], rows[empty])


def test_ranking_is_that_of_sorted_lists():
    g = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 9, (40, 12), generator=g).float()
    truth = torch.randint(0, 12, (40,), generator=g)
    seen = torch.rand(40, 12, generator=g) < 0.3
    for mask in (None, seen):
        found = ranking(scores, truth, (1, 5), seen=mask)
        for cut in (1, 5):
            hits, gains = [], []
            for n in range(40):
                true = int(truth[n])
                kept = [i for i in range(12) if i == true or mask is None or not mask[n, i]]
                # Among equals the true item is last.
                order = sorted(kept, key=lambda i, n=n, true=true: (-float(scores[n, i]), i == true))
                place = order.index(true)
                hits.append(float(place < cut))
                gains.append(1 / math.log2(place + 2) if place < cut else 0.0)
            assert found[f"hr@{cut}"] == pytest.approx(sum(hits) / 40)
            assert found[f"ndcg@{cut}"] == pytest.approx(sum(gains) / 40)


def test_a_constant_score_finds_nothing():
    """A recommender that scores all items alike must not count as perfect."""
    assert ranking(torch.zeros(3, 100), torch.tensor([0, 5, 99]))["hr@50"] == 0.0


def test_what_does_not_fit_is_refused(made):
    codes, tags, items, rows, atoms = made
    shares = tag_shares(items, tags)
    none = Concepts(torch.full((ATOMS,), -1), torch.zeros(ATOMS), torch.zeros(ATOMS))
    with pytest.raises(ModelError, match="codes of 60 cases do not belong to shares of 59"):
        find_concepts(codes, shares[1:], ATOMS)
    with pytest.raises(ModelError, match="cases=0"):
        find_concepts(codes, shares, ATOMS, cases=0)
    with pytest.raises(ModelError, match="do not belong to 59 rows"):
        effects(rows[1:], codes, atoms, none, tags, lambda h, at: items[at], factor=0.0)
    with pytest.raises(ModelError, match="no case"):
        ranking(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ModelError, match="NaN"):
        ranking(torch.full((1, 3), math.nan), torch.tensor([0]))
    # No latent has a concept: nothing is predicted, nothing moves, nothing fails.
    assert not bool(confidence(codes, shares, none).precision.any())
    assert bool(effects(rows, codes, atoms, none, tags, lambda h, at: items[at], factor=0.0).isnan().all())


def test_no_case_and_no_firing_latent():
    empty = Codes(torch.full((0, 2), -1, dtype=torch.int32), torch.zeros(0, 2))
    shares = torch.zeros(0, TAGS, dtype=torch.float64)
    found = find_concepts(empty, shares, ATOMS)
    assert found.tag.tolist() == [-1] * ATOMS
    assert not bool(confidence(empty, shares, found).recall.any())
