"""Non-negative and semi-non-negative factorisation."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sparsefleet.models import Batch, ModelError, Probe, Stage, make_model
from sparsefleet.models.factorization.coding import ATOMS
from sparsefleet.models.factorization.nonnegative import nonnegative_codes
from sparsefleet.models.factorization.snmf import SNMF, factorise
from sparsefleet.models.kernels import native

N, D, H = 300, 16, 6


def mixtures(seed=0, signed=True):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(H, D)) if signed else rng.random((H, D)) * (rng.random((H, D)) < 0.5)
    weights = rng.exponential(size=(N, H)) * (rng.random((N, H)) < 0.4)
    return torch.from_numpy(weights @ features + 0.01 * rng.random((N, D)))


def learn(model, x, steps, shards=1, watch=None):
    params = model.init(Probe(len(x), x.mean(0), x.var(0), x), torch.Generator().manual_seed(0))
    for step in range(steps):
        stage = Stage(step=step, steps=steps, rows=len(x))
        cuts = [len(x) * i // shards for i in range(shards + 1)]
        parts = [model.statistics(params, Batch(x[a:b], a), stage) for a, b in pairwise(cuts)]
        stats = sum(parts[1:], start=parts[0])
        if watch is not None:
            watch.append(model.metrics(params, stats))
        params = model.update(params, stats, stage)
    return params


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("atoms", [3, D])
def test_codes_are_non_negative_least_squares(atoms, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(native, "library", lambda: None)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, D, generator=generator, dtype=torch.float64)
    dictionary = torch.randn(atoms, D, generator=generator, dtype=torch.float64)
    dictionary[0] = 0
    x[3] = 0
    codes = nonnegative_codes(x, dictionary, tolerance=1e-10, sweeps=5000)
    assert bool((codes >= 0).all()) and not codes[3].any() and not codes[:, 0].any()
    for row, code in zip(x.numpy(), codes, strict=True):
        _, residual = nnls(dictionary.numpy().T, row)
        assert float((torch.from_numpy(row) - code @ dictionary).norm()) == pytest.approx(residual, abs=1e-6)
    one = nonnegative_codes(x[7:8], dictionary, tolerance=1e-10, sweeps=5000)
    assert torch.allclose(one[0], codes[7], atol=1e-12)
    sparse = nonnegative_codes(x, dictionary, penalty=2.0)
    assert int((sparse > 0).sum()) < int((codes > 0).sum())


@pytest.mark.parametrize("start", ["kmeans", "svd", "random", "rows"])
def test_semi_nmf_never_raises_the_error(start):
    watch = []
    learn(make_model("snmf", {"atoms": H, "start": start, "dtype": "float64"}), mixtures(), 60, watch=watch)
    errors = [m["relative_error"] for m in watch]
    assert all(b <= a + 1e-7 for a, b in pairwise(errors)) and errors[-1] < 0.1


def test_winner_take_all_keeps_the_largest_entries_and_the_best_features():
    x, share = mixtures(), 0.4
    model = make_model("snmf", {"atoms": H, "share": share, "dtype": "float64"})
    watch = []
    params = learn(model, x, 60, watch=watch)
    errors = [m["relative_error"] for m in watch]
    assert any(b > a for a, b in pairwise(errors)), "if the error never rose there would be nothing to test"
    kept = (params[ATOMS] != 0).sum(1)
    assert int(kept.max()) <= math.ceil(share * D)
    best = x - model.encode(params, Batch(x)).dense(H) @ params[ATOMS]
    assert float(best.norm() / x.norm()) == pytest.approx(min(errors), rel=1e-6)
    assert watch[-1]["best_error"] == pytest.approx(min(errors), rel=1e-9)


@pytest.mark.parametrize(("name", "settings"), [("snmf", {"share": 0.5, "levels": (3,)}), ("nmf", {})])
def test_shards_do_not_matter(name, settings):
    x = mixtures(signed=name == "snmf")
    model = make_model(name, {"atoms": H, "dtype": "float64", **settings})
    one, four = learn(model, x, 50), learn(model, x, 50, shards=4)
    assert all(torch.allclose(one[k], four[k], rtol=1e-5, atol=1e-6) for k in one)


def test_the_hierarchy_explains_less_the_higher_it_is():
    x = mixtures()
    model = make_model("snmf", {"atoms": 12, "levels": [6, 3], "dtype": "float64"})
    params = learn(model, x, 60)
    codes = nonnegative_codes(x, params[ATOMS])
    scale = codes.square().sum(0).sqrt()
    base, errors = codes / scale, [float((x - codes @ params[ATOMS]).norm())]
    chain = torch.eye(12, dtype=torch.float64)
    for level in (1, 2):
        weights, atoms = params[f"level{level}/weights"], params[f"level{level}/atoms"]
        assert bool((weights >= 0).all()) and weights.any()
        chain = chain @ weights
        errors.append(float((x - base @ chain @ atoms).norm()))
        # What the next level stands for are these features at the length of their weights.
        chain = chain / torch.linalg.vector_norm(weights, dim=0)
    assert all(b >= a - 1e-9 for a, b in pairwise(errors))


def test_the_hierarchy_stands_on_the_best_features_and_their_own_use(monkeypatch):
    x, below = mixtures(), []
    real = SNMF._hierarchy
    monkeypatch.setattr(SNMF, "_hierarchy", lambda self, f, stage: (below.append(f), real(self, f, stage))[1])
    model = make_model("snmf", {"atoms": 12, "share": 0.4, "levels": [3], "dtype": "float64"})
    watch = []
    params = learn(model, x, 31, watch=watch)
    assert watch[-1]["relative_error"] > watch[-1]["best_error"], "the last features must not be the best ones"
    use = nonnegative_codes(x, params[ATOMS]).square().sum(0).sqrt()
    torch.testing.assert_close(below, [params[ATOMS] * use[:, None]], rtol=1e-9, atol=1e-9)


def test_more_atoms_than_dimensions_fit_every_row():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, D, generator=generator, dtype=torch.float64)
    dictionary = torch.randn(3 * D, D, generator=generator, dtype=torch.float64)
    codes = nonnegative_codes(x, dictionary)
    assert float((x - codes @ dictionary).norm() / x.norm()) < 0.1


def test_factorise_finds_an_exact_factorisation():
    x = mixtures()
    features, weights = factorise(x, H, torch.Generator().manual_seed(0))
    assert float((x - weights @ features).norm() / x.norm()) < 0.05 and bool((weights >= 0).all())


def test_nmf_lowers_the_error_and_stays_non_negative():
    x = mixtures(signed=False)
    watch = []
    params = learn(make_model("nmf", {"atoms": H, "dtype": "float64"}), x, 80, watch=watch)
    losses = [m["loss"] for m in watch]
    assert all(b <= a + 1e-8 for a, b in pairwise(losses)) and watch[-1]["relative_error"] < 0.06
    assert bool((params[ATOMS] >= 0).all())


def test_nmf_is_as_good_as_scikit_learn():
    from sklearn.decomposition import NMF

    x = mixtures(signed=False)
    watch = []
    learn(make_model("nmf", {"atoms": H, "dtype": "float64"}), x, 120, watch=watch)
    peer = NMF(H, init="nndsvd", max_iter=400, tol=1e-6).fit(x.numpy())
    assert watch[-1]["relative_error"] <= 1.05 * peer.reconstruction_err_ / float(x.norm())


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("snmf", {"share": 0.0}, "share=0.0"),
        ("snmf", {"levels": [6]}, r"levels=\[6\] must fall from below atoms=6"),
        ("nmf", {"penalty": -1.0}, "penalty=-1.0"),
        ("nmf", {"penalty": float("inf")}, "penalty=inf"),
        ("nmf", {"sweeps": 0}, "sweeps=0"),
    ],
)
def test_settings_that_cannot_be(name, settings, words):
    with pytest.raises(ModelError, match=words):
        make_model(name, {"atoms": H, **settings})


def test_nmf_refuses_negative_start_values():
    own = torch.ones(H, D)
    with pytest.raises(ModelError, match="negative entries"):
        make_model("nmf", {"atoms": H}).adopt(ATOMS, -own, own)
