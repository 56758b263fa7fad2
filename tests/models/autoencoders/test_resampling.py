"""Resampling of dead latents: who is drawn, what begins anew, what stays, on any number of workers, resumed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsefleet.models import Batch, ModelError, Stage
from sparsefleet.models.autoencoders.names import DEAD, FIRST, SECOND, SILENT
from sparsefleet.models.autoencoders.rates import warm_again
from sparsefleet.models.autoencoders.relu import LAST, LOSSES, RESAMPLED
from sparsefleet.models.autoencoders.resampling import SHARE, draw_rows
from sparsefleet.models.truncated.draws import Draws

from .test_family import DIM, OUT, STAGE, data, make, moved, probe, step, surveyed, train

each = pytest.mark.parametrize("name", ["relu", "gated", "jumprelu"])
either = pytest.mark.parametrize("target", [None, "outputs"], ids=["autoencoder", "transcoder"])
HERE = (STAGE.step / STAGE.steps,)


def test_rows_are_drawn_in_proportion_to_their_squared_losses():
    losses = torch.tensor([0.0, 1.0, 2.0, 4.0]).repeat(250).double()
    place = torch.arange(len(losses)).double()[:, None]
    counts = torch.zeros(len(losses))
    for update in range(400):
        draws = Draws(Stage(step=update, steps=400, seed=1), 0, len(losses), torch.device("cpu"))
        slots = draw_rows(place, losses, float(losses.square().sum()), 20, draws)
        assert slots.shape == (61, 2) and float(slots[-1, 1]) == len(losses)
        slots = slots[:-1]
        counts[slots[slots[:, 1] == 1][:, 0].long()] += 1
    by_loss = counts.reshape(250, 4).sum(0)
    assert by_loss[0] == 0
    assert float(by_loss[2] / by_loss[1]) == pytest.approx(4, rel=0.2)
    assert float(by_loss[3] / by_loss[2]) == pytest.approx(4, rel=0.1)
    assert float(by_loss.sum()) / 400 == pytest.approx(20, rel=0.1), "as many as were looked for"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 50), st.integers(1, 40), st.integers(0, 2**40), st.data())
def test_drawn_rows_add_up_whatever_the_batches(rows, wanted, seed, more):
    cut = more.draw(st.integers(0, rows))
    draw = torch.Generator().manual_seed(seed)
    columns, losses = torch.randn(rows, 3, generator=draw).double(), torch.rand(rows, generator=draw).double()
    total = float(losses.square().sum())
    stage = Stage(step=3, steps=9, seed=seed)

    def part(begin: int, end: int) -> torch.Tensor:
        draws = Draws(stage, begin, end - begin, torch.device("cpu"))
        return draw_rows(columns[begin:end], losses[begin:end], total, wanted, draws)

    torch.testing.assert_close(part(0, cut) + part(cut, rows), part(0, rows))


@each
@either
def test_dead_latents_begin_along_rows_and_the_others_go_on_as_without(name, target):
    model, without = (make(name, target=target, dead_tokens=5, resample=at) for at in (HERE, ()))
    raw = data(model)
    params = moved(model, raw, dead=12)
    params["b_enc"][:12] = -100
    for key in [*params]:
        if key.startswith((FIRST, SECOND)):
            params[key] = torch.rand_like(params[key])
    plain, _ = step(without, {k: v for k, v in params.items() if k not in (RESAMPLED, LAST)}, [raw], STAGE)
    new, _ = step(model, params, [raw], STAGE)
    dead = plain[SILENT] >= plain[DEAD]
    again = dead & (new[SILENT] == 0)
    assert 6 <= int(again.sum()) <= int(dead.sum()) and int(new[RESAMPLED]) == int(again.sum())
    for key, value in plain.items():
        rows = ~again if value.shape[:1] == again.shape and key not in ("b_dec", f"{FIRST}b_dec") else ...
        assert torch.equal(new[key][rows], value[rows]), key
    inputs = raw[:, :DIM] * params["scale"]
    if target:
        targets = raw[:, DIM : DIM + OUT] * params["target_scale"] - params["b_dec"]
        middle = inputs.mean(0)
        inputs = inputs - middle
    else:
        targets = inputs = inputs - params["b_dec"]
        middle = torch.zeros(DIM).double()
    units = targets / targets.norm(dim=1, keepdim=True)
    closest = (units @ new["W_dec"][again].T).max(0)
    torch.testing.assert_close(closest.values, torch.ones(int(again.sum())).double())
    along = inputs[closest.indices]
    wanted = SHARE * plain["W_enc"][~dead].norm(dim=1).mean() * along / along.norm(dim=1, keepdim=True)
    torch.testing.assert_close(new["W_enc"][again], wanted)
    torch.testing.assert_close(new["b_enc"][again], -(wanted @ middle))
    zero = torch.zeros(int(again.sum())).double()
    fresh = {"gated": {"r_mag": zero, "b_mag": new["b_enc"][again]}, "jumprelu": {"threshold": zero + 0.1}}.get(
        name, {}
    )
    assert fresh.keys() == {*model.own}
    for key, start in fresh.items():
        assert torch.equal(new[key][again], start)
    for key in ("W_enc", "W_dec", "b_enc", *model.own):
        assert not new[FIRST + key][again].any() and not new[SECOND + key][again].any()


@each
@pytest.mark.parametrize("workers", [2, 3])
def test_the_same_rows_serve_on_any_number_of_workers(name, workers):
    model = make(name, resample=(0.3, 0.6), aux_coefficient=0.0, dead_tokens=100, learning_rate=1e-2)
    raw = data(model)
    start = moved(model, raw, dead=12)
    start["b_enc"][:12] = -100
    alone, losses = train(model, start, raw, range(25), 25)
    together, other = train(model, start, raw, range(25), 25, workers)
    assert int(alone[RESAMPLED]) >= 6
    assert other == pytest.approx(losses, rel=1e-9)
    for key, value in alone.items():
        torch.testing.assert_close(together[key], value, rtol=1e-7, atol=1e-9)


@each
def test_resuming_beyond_a_resampling_gives_the_same_bits(name):
    model = make(name, resample=(0.25, 0.75), aux_coefficient=0.0, dead_tokens=100, dtype="float32")
    raw = data(model).float()
    start = moved(model, raw.double(), dead=12)
    start["b_enc"][:12] = -100
    straight, _ = train(model, start, raw, range(16), 16)
    half, _ = train(model, start, raw, range(6), 16)
    resumed, _ = train(model, {k: v.clone() for k, v in half.items()}, raw, range(6, 16), 16)
    assert int(half[RESAMPLED]) > 0
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


@each
def test_resampling_brings_dead_latents_back(name):
    found = {}
    for resample in ((), (0.3, 0.5)):
        model = make(name, resample=resample, aux_coefficient=0.0, dead_tokens=500, learning_rate=3e-3)
        raw = data(model)
        start = model.init(probe(model, raw), torch.Generator().manual_seed(0))
        start["b_enc"][:24] = -100
        params, losses = train(model, start, raw, range(200), 200)
        found[bool(resample)] = float((params[SILENT] >= params[DEAD]).double().mean()), losses[-1]
    assert found[False][0] >= 24 / 64
    assert found[True][0] <= found[False][0] - 0.2
    assert found[True][1] <= 1.05 * found[False][1]


def test_where_none_is_dead_nothing_changes():
    model, without = make("relu", resample=HERE), make("relu")
    raw = data(model)
    params = moved(model, raw)
    stage = surveyed(model, params, [Batch(raw)], STAGE)
    assert len(model.statistics(params, Batch(raw), stage).drawn) == 1, "only the sum of all rows"
    new, metrics = step(model, params, [raw], STAGE)
    plain, _ = step(without, params, [raw], STAGE)
    assert all(torch.equal(new[key], plain[key]) for key in plain) and metrics["resampled"] == 0
    assert model.warmth(new, replace(STAGE, step=STAGE.step + 1)) == 1


@each
def test_badly_reconstructed_rows_serve(name):
    """Two of a hundred rows have nearly all of the squared losses: the new atoms are theirs."""
    model = make(name, resample=HERE, dead_tokens=5, dtype="float32")
    raw = data(model, 100).float()
    params = moved(model, raw.double(), dead=12)
    params = {key: value.float() if value.is_floating_point() else value for key, value in params.items()}
    params["b_enc"][:] = -1000  # no code is above 0 whatever the row
    outliers = torch.randn(2, DIM, generator=torch.Generator().manual_seed(5)) * 200
    raw[[17, 60]] = outliers
    new, _ = step(model, params, [raw], STAGE)
    again = (new["W_dec"] - params["W_dec"]).norm(dim=1) > 0.3
    assert 1 <= int(again.sum()) <= 2 and int(new[RESAMPLED]) == int(again.sum())
    units = torch.nn.functional.normalize(outliers * params["scale"] - params["b_dec"])
    assert bool(((units @ new["W_dec"][again].T).amax(0) > 0.9999).all())


@each
def test_fewer_are_looked_for_than_there_are_rows(name):
    model = make(name, resample=HERE, dead_tokens=5)
    raw = data(model)
    params = moved(model, raw, dead=64)
    params["b_enc"][:] = -100
    stage = surveyed(model, params, [Batch(raw[:40])], STAGE)
    assert len(model.statistics(params, Batch(raw[:40]), stage).drawn) == 1 + 3 * 10
    new, _ = step(model, params, [raw[:40]], STAGE)
    assert 0 < int(new[RESAMPLED]) <= 30
    torch.testing.assert_close(new["W_enc"].norm(dim=1).min(), torch.tensor(SHARE).double())


def test_a_row_without_direction_gives_no_atom():
    model = make("relu", target="outputs", resample=HERE, dead_tokens=5)
    raw = data(model)
    params = moved(model, raw, dead=12)
    params["b_enc"][:12] = -100
    raw[:, DIM:] = params["b_dec"] / params["target_scale"]  # targets of 0, which active latents miss
    new, _ = step(model, params, [raw], STAGE)
    assert int(new[RESAMPLED]) == 0 and bool(torch.isfinite(new["W_dec"]).all())
    assert model.warmth(new, replace(STAGE, step=STAGE.step + 1)) == 1, "nothing is new"


def test_thresholds_of_living_latents_stay_at_or_above_zero():
    model = make("jumprelu", resample=HERE, dead_tokens=5, learning_rate=1.0, sparsity=0.0, start_threshold=0.02)
    raw = data(model)
    params = moved(model, raw, dead=12)
    params["b_enc"][:12] = -100
    new, _ = step(model, params, [raw], STAGE)
    assert int(new[RESAMPLED]) > 0 and float(new["threshold"].min()) == 0


def test_losses_are_computed_once_for_both_rounds():
    model = make("relu", resample=HERE)
    batch = Batch(data(model))
    params = moved(model, batch.x, dead=12)
    model.survey(params, batch, STAGE)
    batch.memo[LOSSES].fill_(0)
    assert float(model.survey(params, batch, STAGE).total) == 0


def test_the_learning_rate_rises_again():
    assert [warm_again(step, 1000, 300) for step in (301, 326, 351, 900)] == pytest.approx([0.1, 0.55, 1, 1])
    assert warm_again(5, 1000, -1) == 1
    model = make("relu", resample=(0.3,), dead_tokens=5, learning_rate=1.0, clip=None, betas=(0.0, 0.0))
    raw = data(model)
    params = moved(model, raw, dead=12)
    params["b_enc"][:12] = -100
    assert int(params[LAST]) == -1
    new, _ = step(model, params, [raw], Stage(step=300, steps=1000))
    assert int(new[LAST]) == 300
    after = [model.warmth(new, Stage(step=at, steps=1000)) for at in (301, 326, 351)]
    assert after == pytest.approx([0.1, 0.55, 1])
    moving, _ = step(model, new, [raw], Stage(step=301, steps=1000))
    full, _ = step(model, {**new, LAST: params[LAST]}, [raw], Stage(step=301, steps=1000))
    torch.testing.assert_close(moving["b_dec"] - new["b_dec"], 0.1 * (full["b_dec"] - new["b_dec"]))


@pytest.mark.parametrize("fractions", [(0.0,), (1.0,), (0.5, 0.5), (0.6, 0.3), (float("nan"),)])
def test_fractions_out_of_order_are_refused(fractions):
    with pytest.raises(ModelError, match=r"resample=\[.*rise within \(0, 1\)"):
        make("relu", resample=fractions)
