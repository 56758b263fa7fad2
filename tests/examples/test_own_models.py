"""The examples of models of one's own are models."""

from pathlib import Path

import pytest
import torch
from sparsefleet.models import Batch, ModelError, Probe, make_model
from sparsefleet.models.peers import Share

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def learned(model, x: torch.Tensor, steps: int):
    probe = Probe(len(x), x.double().mean(0), x.double().var(0), x.double())
    params = model.init(probe, torch.Generator().manual_seed(0))
    losses = []
    for step in range(steps):
        stage = model.schedule().at(step, steps, seed=0, rows=len(x))
        stats = model.statistics(params, Batch(x), stage)
        found = model.metrics(params, stats)
        losses.append(found.get("loss", found.get("error")))
        params = model.update(params, stats, stage)
    return params, losses


@pytest.mark.parametrize(
    ("name", "settings"), [("own_model:KMeans", {}), ("own_selection:Nucleus", {"k": 6, "learning_rate": 0.02})]
)
def test_they_learn_and_encode(name, settings):
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
    model = make_model(name, {"atoms": 24, **settings})
    params, losses = learned(model, x, 30)
    assert losses[-1] < 0.8 * losses[0]
    codes = model.encode(params, Batch(x))
    assert codes.indices.shape[0] == 400
    assert ((codes.indices >= 0) == (codes.values != 0)).all()


def test_a_nucleus_is_the_shortest_that_holds_the_share():
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(2))
    whole = make_model("own_selection:Nucleus", {"atoms": 24, "k": 6, "share": 1.0})
    params, _ = learned(whole, x, 3)
    full = whole.encode(params, Batch(x)).values.square()
    part = make_model("own_selection:Nucleus", {"atoms": 24, "k": 6, "share": 0.7}).encode(params, Batch(x)).values
    kept = part.square()
    total = full.sum(1)
    assert (kept.sum(1) >= 0.7 * total - 1e-5).all()
    smallest = torch.where(kept > 0, kept, torch.inf).amin(1)
    assert (kept.sum(1) - smallest < 0.7 * total + 1e-5).all()
    assert float((kept > 0).sum(1).float().mean()) < float((full > 0).sum(1).float().mean())
    with pytest.raises(ModelError, match="encoder_precision='bfloat16': Nucleus selects in its own way"):
        make_model("own_selection:Nucleus", {"atoms": 24, "k": 6, "encoder_precision": "bfloat16"})
    with pytest.raises(ModelError, match="own_selection:Nucleus needs all atoms on every worker; use --atom-groups 1"):
        whole.sliced(Share(0, 2))
    with pytest.raises(ModelError, match=r"share=0.0 must lie in \(0, 1\]"):
        make_model("own_selection:Nucleus", {"atoms": 24, "k": 6, "share": 0.0})
