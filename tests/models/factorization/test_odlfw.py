"""ODL-FW (reconstructed): recovery, drift, what it refuses."""

import pytest
import torch
from sparsefleet.models import Batch, ModelError, Probe, Stage, make_model
from sparsefleet.models.factorization.odlfw import ITERATE
from sparsefleet.models.factorization.steps import polar

M, THETA, B = 20, 0.2, 20


def orthogonal(seed, dim=M):
    return polar(torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def stream(truth, batches, seed, noise=0.0):
    generator = torch.Generator().manual_seed(100 + seed)
    shape = batches * B, len(truth)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    x *= torch.rand(*shape, generator=generator, dtype=torch.float64) < THETA
    return x @ truth + noise * torch.randn(*shape, generator=generator, dtype=torch.float64)


def begin(model, y, seed=0):
    return model.init(Probe(len(y), y.mean(0), y.var(0), y[:2000]), torch.Generator().manual_seed(seed))


def learn(model, params, y, shards=1, first=0, **values):
    for step, batch in enumerate(y.split(B)):
        stage = Stage(step=first + step, steps=10**6, values=values)
        parts = [model.statistics(params, Batch(part), stage) for part in batch.tensor_split(shards)[::-1]]
        params = model.update(params, sum(parts[1:], start=parts[0]), stage)
    return params


def error(model, params, truth):
    return 1 - float((model.dictionary(params).T @ truth.T).pow(4).sum()) / len(truth)


@pytest.mark.parametrize("p", [3, 4])
def test_it_finds_the_dictionary_and_keeps_getting_better(p):
    truth = orthogonal(1)
    y = stream(truth, 800, 1)
    model = make_model("odlfw", {"atoms": M, "p": p, "dtype": "float64"})
    early = learn(model, begin(model, y), y[: 200 * B])
    late = learn(model, early, y[200 * B :], first=200)
    first, last = error(model, early, truth), error(model, late, truth)
    assert last < 0.5 * first and last < (0.003 if p == 3 else 0.01)
    assert float(torch.linalg.svdvals(late[ITERATE]).max()) <= 1 + 1e-9
    assert float((model.dictionary(late).T @ truth.T).abs().amax(0).min()) > 0.99
    stage = Stage(step=9, steps=10)
    assert model.metrics(late, model.statistics(late, Batch(y), stage))["gap"] >= 0


def test_it_follows_a_change():
    model = make_model("odlfw", {"atoms": M, "dtype": "float64"})
    params = begin(model, stream(orthogonal(1), 10, 1))
    for seed in (1, 2):
        truth = orthogonal(seed)
        params = learn(model, params, stream(truth, 500, seed, noise=0.05), gamma=0.05, rho=0.1)
        assert error(model, params, truth) < 0.02


def test_shards_do_not_matter():
    y = stream(orthogonal(1), 40, 1)
    model = make_model("odlfw", {"atoms": M, "dtype": "float64", "whiten": True})
    one, four = learn(model, begin(model, y), y), learn(model, begin(model, y), y, shards=4)
    assert all(torch.allclose(one[k], four[k], rtol=1e-10, atol=1e-10) for k in one)


def test_whitening_finds_a_complete_dictionary():
    generator = torch.Generator().manual_seed(5)
    truth = torch.nn.functional.normalize(
        orthogonal(1) + 0.1 * torch.randn(M, M, generator=generator, dtype=torch.float64), dim=1
    )
    y = stream(truth, 1500, 1)
    model = make_model("odlfw", {"atoms": M, "dtype": "float64", "whiten": True})
    atoms = model.dictionary(learn(model, begin(model, y), y)).T
    assert float((atoms @ truth.T).abs().amax(0).min()) > 0.98


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"p": 5}, "p"), ({"steps": "none"}, "steps"), ({"nonzeros": 99}, "nonzeros=99 of atoms=20")],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ModelError, match=words):
        make_model("odlfw", {"atoms": M, **settings})


def test_as_many_atoms_as_dimensions():
    y = stream(orthogonal(1), 5, 1)
    with pytest.raises(ModelError, match="atoms=7: an orthogonal dictionary of rows of 20 dimensions has 20 atoms"):
        begin(make_model("odlfw", {"atoms": 7}), y)


def test_a_given_start_is_brought_into_the_ball():
    model = make_model("odlfw", {"atoms": M})
    own = begin(model, stream(orthogonal(1), 5, 1))[ITERATE]
    assert torch.allclose(model.adopt(ITERATE, 3 * own, own), own)
    with pytest.raises(ModelError, match="has shape"):
        model.adopt(ITERATE, own[:3], own)
