"""Numbers that autoencoders are judged by, against their definitions on dense arrays."""

from __future__ import annotations

import pytest
import torch
from sparsefleet.models import Batch, ModelError
from sparsefleet.models.autoencoders.measures import evaluate, recovery, summary

from .test_family import DIM, data, make, moved


@pytest.mark.parametrize("name", ["topk", "abstopk", "relu"])
def test_sums_add_and_agree_with_the_dense_definitions(name):
    model = make(name)
    raw = data(model, 120)
    raw = raw - raw.mean(0) + 0.2
    params = moved(model, raw)
    parts = [evaluate(model, params, Batch(p)) for p in raw.split(50)]
    whole = evaluate(model, params, Batch(raw))
    torch.testing.assert_close((parts[0] + parts[1] + parts[2]).flatten(), whole.flatten())
    found = summary(whole)
    codes = model.encode(params, Batch(raw))
    z, again = codes.dense(model.atoms), model.reconstruct(params, codes)
    error = (raw - again).square().sum(1)
    expected = {
        "fvu": error.sum() / (raw - raw.mean(0)).square().sum(),
        "normalized_mse": (error / raw.square().sum(1)).mean(),
        "shrinkage": (raw * again).sum() / raw.square().sum(),
        "bias": again.square().sum() / (raw * again).sum(),
        "l0": (z != 0).double().sum(1).mean(),
        "l1": z.abs().sum(1).mean(),
        "dead_fraction": (z == 0).all(0).double().mean(),
        "dense_fraction": ((z != 0).double().mean(0) > 0.1).double().mean(),
    }
    for key, value in expected.items():
        assert found[key] == pytest.approx(float(value)), key
    assert found["explained_variance"] == pytest.approx(1 - found["fvu"])
    above, below = (z > 0).double().sum(0), (z < 0).double().sum(0)
    rarer = torch.minimum(above, below)[above + below > 0] >= 0.1 * (above + below)[above + below > 0]
    assert found["bidirectional_fraction"] == pytest.approx(float(rarer.double().mean()))


def test_a_constant_offset_is_an_error():
    """A variance of the residual in place of its square would forgive it."""
    model = make("topk")
    raw = data(model, 120)
    params = moved(model, raw)
    before = summary(evaluate(model, params, Batch(raw)))["fvu"]
    params["b_enc"] = params["b_enc"] - 100  # all codes are 0: what is reconstructed is b_dec
    params["b_dec"] = raw.mean(0) * params["scale"]
    none = summary(evaluate(model, params, Batch(raw)))
    assert none["fvu"] == pytest.approx(1) and none["dead_fraction"] == 1 and none["bidirectional_fraction"] == 0
    params["b_dec"] = params["b_dec"] + 2 * params["scale"]
    shifted = summary(evaluate(model, params, Batch(raw)))["fvu"]
    assert shifted == pytest.approx(1 + 4 * DIM / float(raw.var(0, correction=0).sum()))
    assert before < 1.5


def test_a_large_mean_does_not_flatter_the_explained_variance():
    model = make("topk")
    raw = data(model, 120)
    params = moved(model, raw)
    found = summary(evaluate(model, params, Batch(raw)))
    shifted = {**params, "b_dec": params["b_dec"] + 30 * params["scale"]}
    again = summary(evaluate(model, shifted, Batch(raw + 30)))
    assert again["explained_variance"] == pytest.approx(found["explained_variance"])


def test_rows_that_do_not_vary_and_no_rows():
    model = make("topk")
    raw = data(model, 10)
    params = moved(model, raw)
    for rows in (raw[:0], raw[:1].expand(4, -1), raw * 0):
        assert all(value == value for value in summary(evaluate(model, params, Batch(rows))).values())


def test_recovery_ignores_signs_and_lengths():
    truth = torch.eye(4)[:, :3]
    atoms = torch.stack([-2 * truth[:, 0], truth[:, 0] + 0.1 * truth[:, 1], truth[:, 1] + truth[:, 2]], dim=1)
    found = recovery(atoms, truth)
    assert found["recovered"] == pytest.approx(1 / 3)
    assert found["atoms_per_direction"] == pytest.approx(2 / 3)
    assert found["mean_max"] == pytest.approx((1 + 2 * 0.5**0.5) / 3)
    with pytest.raises(ModelError, match="4 dimensions, the true directions 5"):
        recovery(atoms, torch.eye(5))
