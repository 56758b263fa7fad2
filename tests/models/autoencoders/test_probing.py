"""Sparse probes against plain loops: sums by passage, what is kept, what is tested on, and scikit-learn's answer."""

import numpy as np
import pytest
import torch
from sparsefleet.models import Codes, ModelError
from sparsefleet.models.autoencoders.probing import SPARSITIES, Pooled, accuracy, held_out, most_different, probe

pytest.importorskip("sklearn", reason="needs the extra activations")


def make(classes=3, documents=10, passages=6, latents=12, dim=5, seed=0):
    """Latent c is larger in passages of class c, with either sign; rows know nothing of classes."""
    rng = np.random.default_rng(seed)
    document = np.repeat(np.arange(classes * documents), passages)
    label = document % classes
    codes = rng.random((len(label), latents)) * 0.1
    codes[np.arange(len(label)), label] += np.where(label % 2, -1.0, 1.0)
    return codes, rng.standard_normal((len(label), dim)), [f"class {c}" for c in label], document


def test_rows_are_averaged_over_their_passages():
    g = torch.Generator().manual_seed(0)
    n, k, latents, dim, passages = 40, 3, 7, 4, 5
    indices = torch.stack([torch.randperm(latents, generator=g)[:k] for _ in range(n)]).to(torch.int32)
    values = torch.randn(n, k, generator=g)
    empty = torch.rand(n, generator=g) < 0.4
    indices[empty, -1], values[empty, -1] = -1, 0
    x = torch.randn(n, dim, generator=g)
    at = torch.randint(-1, passages - 1, (n,), generator=g)
    pooled = Pooled.empty(passages, latents, dim, torch.device("cpu"))
    for part in (slice(0, 13), slice(13, n)):
        pooled.add(at[part], Codes(indices[part], values[part]), x[part])
    codes, rows = pooled.means()
    dense = Codes(indices, values).dense(latents).double()
    for p in range(passages - 1):
        np.testing.assert_allclose(codes[p], dense[at == p].mean(0), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(rows[p], x[at == p].double().mean(0), rtol=1e-12, atol=1e-15)
    assert not codes[-1].any() and not rows[-1].any(), "no row belongs to the last passage"


def test_the_best_latents_are_those_that_differ_most():
    codes, _, labels, _ = make()
    positive = np.array(labels) == "class 1"
    gaps = [abs(sum(c[positive]) / positive.sum() - sum(c[~positive]) / (~positive).sum()) for c in codes.T]
    expected = sorted(range(len(gaps)), key=lambda j: (-gaps[j], j))[:4]
    assert most_different(codes, positive, 4).tolist() == expected
    assert expected[0] == 1, "it is negative in its class"
    assert most_different(np.zeros((4, 3)), np.array([True, True, False, False]), 2).tolist() == [0, 1]


def test_documents_are_learned_from_or_tested_on_never_both():
    _, _, labels, documents = make(documents=11)
    classes = np.array(labels)
    test = held_out(classes, documents, seed=3)
    assert not set(documents[test]) & set(documents[~test])
    for name in set(labels):
        assert len(set(documents[test & (classes == name)])) == 2
    assert (test == held_out(classes, documents, seed=3)).all() and (test != held_out(classes, documents, seed=4)).any()
    few = held_out(np.array(["a", "a", "b", "b"]), np.arange(4))
    assert few[:2].sum() == 1 and few[2:].sum() == 1


def test_accuracy_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    codes, _, labels, documents = make(seed=1)
    codes = codes + np.random.default_rng(2).normal(0, 0.8, codes.shape)
    codes[:, 3] = 7.0  # never varies
    positive, test = np.array(labels) == "class 0", held_out(np.array(labels), documents)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(codes[~test], positive[~test])
    assert accuracy(codes, positive, test) == pytest.approx(model.score(codes[test], positive[test]))
    assert 0.6 < accuracy(codes, positive, test) < 1


def test_one_latent_suffices_where_it_marks_the_class():
    codes, rows, labels, documents = make()
    found = probe(codes, rows, labels, documents)
    assert [p.label for p in found] == ["class 0", "class 1", "class 2"]
    for at, one in enumerate(found):
        assert one.best[0] == at and len(one.best) == max(SPARSITIES)
        assert set(one.latents) == set(one.raw) == set(SPARSITIES) and one.latents[1] == 1.0
        assert one.majority == pytest.approx(2 / 3) and one.full < 0.85
        assert one.learned + one.tested == len(labels)


def test_of_two_classes_there_is_one_task():
    found = probe(*make(classes=2))
    assert [p.label for p in found] == ["class 1"] and found[0].majority == 0.5


def test_fewer_features_than_a_probe_may_use():
    codes, rows, labels, documents = make(classes=2, latents=2, dim=1)
    (one,) = probe(codes, rows, labels, documents)
    assert len(one.best) == 2 and one.latents[5] == one.latents[2] and one.raw[5] == one.full


def test_what_cannot_be_told_apart_is_refused():
    codes, rows, labels, documents = make(classes=2)
    with pytest.raises(ModelError, match="there is only 'class 0' in these rows"):
        probe(codes, rows, ["class 0"] * len(labels), documents)
    with pytest.raises(ModelError, match="there is none"):
        probe(codes[:0], rows[:0], [], documents[:0])
    keep = (np.array(labels) == "class 0") | (documents == 1)
    with pytest.raises(ModelError, match="class 'class 1' has one document"):
        probe(codes[keep], rows[keep], [name for name, k in zip(labels, keep) if k], documents[keep])
