"""Learning: recovery, monotone errors, replacement, independence of shards, odd input."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from sparsefleet.models import Batch, ModelError, Probe, Stage, make_model
from sparsefleet.models.factorization.coding import ATOMS
from sparsefleet.models.factorization.steps import normalised

ROWS, DIM, H, ENTRIES = 600, 12, 20, 2


def sparse_rows(seed=0, noise=0.02):
    rng = np.random.default_rng(seed)
    atoms = rng.normal(size=(H, DIM))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    clean = np.stack([rng.normal(size=ENTRIES) @ atoms[rng.choice(H, ENTRIES, replace=False)] for _ in range(ROWS)])
    return torch.from_numpy(clean + noise * rng.normal(size=clean.shape)), torch.from_numpy(atoms)


def model_of(name, **settings):
    own = {"coder": "omp", "nonzeros": ENTRIES} if name != "procrustes" else {"nonzeros": ENTRIES}
    return make_model(name, {"atoms": DIM if name == "procrustes" else H, "dtype": "float64", **own, **settings})


def begin(model, x, seed=0):
    return model.init(Probe(len(x), x.mean(0), x.var(0), x), torch.Generator().manual_seed(seed))


def learn(model, x, steps, params=None, shards=1, rows=None, watch=None):
    params = params or begin(model, x)
    size = rows or len(x)
    for step in range(steps):
        stage = Stage(step=step, steps=steps, rows=len(x))
        first = step * size % len(x)
        batch = x[first : first + size]
        cuts = [len(batch) * i // shards for i in range(shards + 1)]
        order = [*range(shards)][:: 1 if shards == 1 else -1]
        stats = None
        for i in order:
            part = model.statistics(params, Batch(batch[cuts[i] : cuts[i + 1]], cuts[i]), stage)
            stats = part if stats is None else stats + part
        if watch is not None:
            watch.append(model.metrics(params, stats))
        params = model.update(params, stats, stage)
    return params


@pytest.mark.parametrize(("name", "steps", "rows"), [("mod", 30, None), ("ksvd", 30, None), ("online", 200, 60)])
def test_the_atoms_that_made_the_data_are_found(name, steps, rows):
    x, truth = sparse_rows()
    atoms = model_of(name).dictionary(learn(model_of(name), x, steps, rows=rows)).T
    assert int(((truth @ atoms.T).abs().amax(1) > 0.99).sum()) >= H - 3


@pytest.mark.parametrize("name", ["mod", "ksvd", "online", "procrustes"])
def test_shards_and_their_order_do_not_matter(name):
    watch: list[dict[str, float]] = []
    x, _ = sparse_rows()
    model = model_of(name)
    # Twins and zeros among the start values, so that atoms are replaced.
    start = begin(model, x)
    if name != "procrustes":
        start[ATOMS][:4] = start[ATOMS][4:8]
        start[ATOMS][15] = 0
    one = learn(model, x, 8, dict(start), watch=watch)
    four = learn(model, x, 8, dict(start), shards=4)
    assert (sum(m["replaced"] for m in watch) > 0) == (name != "procrustes")
    assert one.keys() == four.keys()
    for key in one:
        assert torch.allclose(one[key], four[key], rtol=1e-10, atol=1e-10), key


def test_procrustes_never_raises_the_error():
    x, _ = sparse_rows()
    watch = []
    learn(model_of("procrustes"), x, 25, watch=watch)
    losses = [m["loss"] for m in watch]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(losses)) and losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", ["mod", "online"])
def test_an_update_lowers_the_error_under_the_same_codes(name):
    x, _ = sparse_rows()
    model = replace(model_of(name), replace=False)
    params = learn(model, x, 2)
    stage = Stage(step=2, steps=9, rows=ROWS)
    stats = model.statistics(params, Batch(x), stage)
    after = model.update(params, stats, stage)[ATOMS]
    codes = model.encode(params, Batch(x)).dense(H)
    if name == "mod":
        # The optimum has atoms of other lengths: an update keeps their directions.
        best = torch.linalg.lstsq(codes, x).solution
        torch.testing.assert_close(after, normalised(best)[0], atol=1e-9, rtol=0)
        after = best
    assert float((x - codes @ after).square().sum()) < float(stats.error)


@pytest.mark.parametrize("name", ["mod", "ksvd"])
def test_twins_and_zeros_are_replaced(name):
    x, _ = sparse_rows(noise=0.1)
    params = begin(model_of(name), x)
    params[ATOMS][:4] = params[ATOMS][4:8]
    params[ATOMS][8:12] = 0
    model = model_of(name)
    watch: list[dict[str, float]] = []
    for step in range(5):
        stage = Stage(step=step, steps=40, rows=ROWS)
        stats = model.statistics(params, Batch(x), stage)
        watch.append(model.metrics(params, stats))
        params = model.update(params, stats, stage)
    stats = model.statistics(params, Batch(x), Stage(step=5, steps=40, rows=ROWS))
    cosines = (params[ATOMS] @ params[ATOMS].T).fill_diagonal_(0)
    assert float(cosines.abs().max()) <= 0.99
    assert bool((stats.counts > 0).all())
    assert sum(m["replaced"] for m in watch) >= 4


def test_online_forgets_what_it_replaced():
    x, _ = sparse_rows(noise=0.1)
    model = model_of("online")
    params = begin(model, x)
    params[ATOMS][:2] = params[ATOMS][4:6]
    stage = Stage(step=0, steps=40, rows=ROWS)
    # All rows at once are enough to judge the atoms; what was kept becomes the pass before.
    params = model.update(params, model.statistics(params, Batch(x), stage), stage)
    gone = params["training/moments_before"].diagonal() == 0
    assert 0 < int(gone.sum()) == int(params["training/replaced"])
    assert not params["training/cross_before"][gone].any() and not params["training/moments_before"][:, gone].any()
    # A few rows more are not enough to judge by: nothing is replaced, and that is what the metric says.
    few = Batch(x[:50])
    params = model.update(params, model.statistics(params, few, stage), stage)
    assert model.metrics(params, model.statistics(params, few, stage))["replaced"] == 0


@pytest.mark.parametrize("forgetting", ["batch", "power", "constant"])
def test_online_with_all_options(forgetting):
    x, _ = sparse_rows()
    model = model_of(
        "online", forgetting=forgetting, rate=0.9, constraint="ball", nonnegative_atoms=True, recent=False, sweeps=2
    )
    params = learn(model, x.abs(), 60, rows=60)
    assert bool((params[ATOMS] >= 0).all()) and float(params[ATOMS].norm(dim=1).max()) <= 1 + 1e-9
    assert "training/moments_before" not in params


def test_online_follows_a_source_that_changes():
    (first, _), (second, truth) = sparse_rows(0), sparse_rows(1)
    model = model_of("online", forgetting="constant", rate=0.8, recent=False)
    params = learn(model, first, 60, rows=60)
    params = learn(model, second, 300, params, rows=60)
    assert int(((truth @ params[ATOMS].T).abs().amax(1) > 0.98).sum()) >= H - 5


def test_lasso_codes_and_their_loss():
    x, _ = sparse_rows()
    model = model_of("online", coder="lasso", penalty=0.1)
    watch = []
    params = learn(model, x, 60, rows=100, watch=watch)
    codes = model.encode(params, Batch(x)).dense(H)
    loss = 0.5 * (x - codes @ params[ATOMS]).square().sum(1).mean() + 0.1 * codes.abs().sum(1).mean()
    assert watch[-1]["loss"] == pytest.approx(float(loss), rel=0.2) and watch[-1]["loss"] < 0.9 * watch[0]["loss"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"nonzeros": 21}, "nonzeros=21 of atoms=20"),
        ({"nonzeros": 0}, "nonzeros=0"),
        ({"coder": "lasso", "penalty": 0.0}, "penalty=0.0 must be above 0"),
        ({"coder": "lasso", "penalty": float("inf")}, "penalty=inf"),
        ({"coder": "omp", "nonnegative": True}, "need coder lasso"),
        ({"tolerance": 1.0}, "tolerance=1.0"),
        ({"forgetting": "constant", "rate": 1.0}, "rate=1.0"),
        ({"sweeps": 0}, "sweeps=0"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ModelError, match=words):
        model_of("online", **settings)


def test_more_atoms_than_rows_more_entries_than_dimensions_and_zero_rows():
    x = torch.zeros(5, 3, dtype=torch.float64)
    x[0] = torch.tensor([1.0, 2, 3])
    model = make_model("mod", {"atoms": 9, "nonzeros": 8, "dtype": "float64"})
    params = learn(model, x, 6)
    assert torch.allclose(params[ATOMS].norm(dim=1), torch.ones(9, dtype=torch.float64))
    codes = model.encode(params, Batch(x))
    assert codes.indices.shape[1] <= 3 and not codes.values[1:].any()


@pytest.mark.parametrize("name", ["mod", "ksvd", "online", "procrustes", "snmf", "nmf", "odlfw"])
@pytest.mark.parametrize("value", [float("nan"), 1e200])
def test_rows_that_are_not_finite_are_refused(name, value):
    x, _ = sparse_rows()
    model = make_model(name, {"atoms": DIM, "dtype": "float64"})
    params = begin(model, x)
    bad = x[:9].clone()
    bad[4, 3] = value
    for call in (
        lambda: model.statistics(params, Batch(bad), Stage(step=0, steps=9, rows=ROWS)),
        lambda: model.encode(params, Batch(bad)),
    ):
        with pytest.raises(ModelError, match="signal 4 holds NaN, infinite or too large"):
            call()


@pytest.mark.parametrize("name", ["mod", "ksvd", "online"])
def test_without_replacements_nothing_is_searched(name):
    x, _ = sparse_rows()
    model = model_of(name, replace=False)
    params = learn(model, x, 4)
    assert not {"training/level", "training/faint", "training/replaced"} & params.keys()
    stats = model.statistics(params, Batch(x), Stage(step=4, steps=9, rows=ROWS))
    assert stats.errors.numel() == stats.candidates.numel() == 0
    assert model.metrics(params, stats)["replaced"] == 0


def test_orthonormal_atoms_are_not_replaced():
    with pytest.raises(ModelError, match="replace=True: orthonormal"):
        make_model("procrustes", {"atoms": 5, "replace": True})


def test_thresholding_takes_more_entries_than_dimensions():
    model = make_model("mod", {"atoms": 9, "coder": "threshold", "nonzeros": 8, "dtype": "float64"})
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert model.encode(begin(model, x), Batch(x)).indices.shape == (30, 8)


def test_more_orthonormal_atoms_than_dimensions_are_refused():
    x, _ = sparse_rows()
    with pytest.raises(ModelError, match="atoms=20: there are at most 12 orthonormal"):
        begin(make_model("procrustes", {"atoms": 20}), x)


def test_given_atoms_are_normalised_and_it_is_said(caplog):
    model = model_of("mod")
    own = begin(model, sparse_rows()[0])[ATOMS]
    given = 2 * own.roll(1, 0)
    given[3] = 0
    taken = model.adopt(ATOMS, given, own)
    assert torch.allclose(taken.norm(dim=1), torch.ones(H, dtype=torch.float64)) and torch.equal(taken[3], own[3])
    assert "19 of 20 given atoms did not have norm 1" in caplog.text and "1 of 20 given atoms are zero" in caplog.text
    with pytest.raises(ModelError, match="has shape"):
        model.adopt(ATOMS, given[:5], own)
