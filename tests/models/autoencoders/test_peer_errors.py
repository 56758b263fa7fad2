"""Errors found in other libraries, one test each: none of them may be ours.

Others have tests of their own: gradients against dense autograd (`test_family.py`), scales folded into thresholds
(`test_exchange.py`), definitions of the explained variance (`test_measures.py`); fine-tuning that leaves the
non-negative orthant (`tests/models/factorization/test_nonnegative.py`, the hierarchy's weights), and searches for a KL
that begin at 1 and drop what they miss (`tests/benchmarks/test_searches.py`; `test_poles.py` beside it); rows of tokens
on which attention rests (`tests/workers/activations/test_harvesting.py`, tokens that are no rows); shuffled reading row
by row (`tests/workers/test_feed.py`, whole chunks); all of what resampling does, beside the one norm below
(`test_resampling.py`).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sparsefleet.models import Batch, Stage
from sparsefleet.models.autoencoders.autoencoder import WEIGHTS
from sparsefleet.models.autoencoders.measures import evaluate, summary
from sparsefleet.models.autoencoders.names import DEAD, RESIDUAL, SILENT
from sparsefleet.models.autoencoders.start import geometric_median, root_dim_scale
from sparsefleet.storage import create_dataset
from sparsefleet.workers.communicator import Solo
from sparsefleet.workers.feed import Feed

from .test_family import STAGE, VARIANTS, data, make, moved, step, surveyed, train

each = pytest.mark.parametrize("name", VARIANTS)


@each
def test_the_auxiliary_gradient_reaches_the_encoder_of_dead_latents(name):
    model = make(name, aux_k=4)
    raw = data(model, 80)
    params = moved(model, raw, dead=12)
    stage = surveyed(model, params, [Batch(raw)], STAGE)
    with_term = model.statistics(params, Batch(raw), stage)
    without = make(name, aux_coefficient=0.0).statistics(params, Batch(raw), stage)
    for found in ("encoder", "decoder"):
        apart = (getattr(with_term, found) - getattr(without, found)).abs().sum(1)
        assert bool((apart[:12] > 0).any()) and not apart[12:].any()
    assert bool((with_term.encoder_bias - without.encoder_bias)[:12].any())


@each
@pytest.mark.parametrize("rows", [60, 0])
def test_only_codes_other_than_zero_have_fired(twin, name, rows):
    model = make(name, aux_coefficient=0.0)
    raw = data(model, 60)
    params = moved(model, raw)
    raw = raw[:rows]
    params["b_enc"] = params["b_enc"] - 1000 if not model.signed else params["b_enc"]
    if model.signed:
        params["W_enc"], params["b_enc"] = params["W_enc"] * 0, params["b_enc"] * 0
    stage = surveyed(model, params, [Batch(raw)], STAGE)
    stats = model.statistics(params, Batch(raw), stage)
    assert not stats.fired.any() and not stats.decoder.any()
    assert model.metrics(params, stats)["l0"] == 0
    new = model.update(params, stats, stage)
    assert torch.equal(new[SILENT], params[SILENT] + rows)
    codes = model.encode(params, Batch(raw))
    assert bool((codes.indices == -1).all())
    torch.testing.assert_close(
        model.reconstruct(params, codes), (params["b_dec"] / params["scale"]).expand(rows, -1), rtol=0, atol=0
    )


@pytest.mark.parametrize("name", ["abstopk", "batchabstopk"])
def test_codes_below_zero_count_in_every_statistic(name):
    model = make(name)
    raw = data(model, 60)
    params = moved(model, raw)
    stage = surveyed(model, params, [Batch(raw)], STAGE)
    stats = model.statistics(params, Batch(raw), stage)
    assert model.metrics(params, stats)["l0"] == pytest.approx(3)
    only_below = (stats.negative > 0) & (stats.negative == stats.fired)
    assert bool(only_below.any())
    new = model.update(params, stats, stage)
    assert not new[SILENT][only_below].any(), "a latent that is only ever below 0 is alive"
    found = summary(evaluate(model, params, Batch(raw)))
    assert found["l1"] > 0 and found["dead_fraction"] < 1


def test_the_geometric_median_stands_rows_at_its_iterate():
    rows = torch.tensor([[0.0, 0], [2, 0], [-2, 0], [0, 2], [0, -2]]).double()  # the mean is a row
    assert torch.allclose(geometric_median(rows), torch.zeros(2).double(), atol=1e-6)
    assert bool(torch.isfinite(geometric_median(rows[:1].expand(7, -1))).all())


def test_thresholds_learn_by_their_own_derivative_not_by_that_of_their_logarithm():
    """One latent, one row just above its threshold: the derivative is known by hand."""
    model = make("jumprelu", atoms=1, bandwidth=0.2, sparsity=0.0)
    raw = torch.tensor([[0.55, 0.0]]).double()
    one = torch.ones(()).double()
    probe_rows = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()
    from sparsefleet.models import Probe

    params = model.init(Probe(50, probe_rows.mean(0), probe_rows.var(0), probe_rows), torch.Generator())
    params |= {"W_enc": torch.tensor([[1.0, 0]]).double(), "W_dec": torch.tensor([[1.0, 0]]).double(), "scale": one}
    params |= {"b_dec": torch.zeros(2).double(), "threshold": torch.tensor([0.5]).double()}
    params["b_enc"] = torch.tensor([0.02]).double()
    stats = model.statistics(params, Batch(raw), STAGE)
    # u = 0.57 > θ = 0.5; dL/dz = 2 (0.57 - 0.55); dz/dθ = -θ / ε.
    wanted = -0.5 / 0.2 * 2 * 0.02
    assert float(model.own_gradients(params, stats, STAGE)["threshold"]) == pytest.approx(wanted)


def test_thresholds_stay_at_or_above_zero():
    model = make("jumprelu", sparsity=0.0, learning_rate=1.0, start_threshold=0.02)
    raw = data(model)
    params, _ = train(model, moved(model, raw), raw, range(5), 5)
    assert float(params["threshold"].min()) == 0


def test_downstream_gradients_scale_inversely_to_the_rows():
    """Rows seven times as large have gradients of a seventh; the latents chosen are the same."""
    model = make("gsae", beta=3.0, encode_by="gradient")
    raw = data(model)
    dim = raw.shape[1] // 2
    scaled = torch.cat([raw[:, :dim] * 7, raw[:, dim:] / 7], dim=1)
    from .test_family import probe

    found = []
    for rows in (raw, scaled):
        params = model.init(probe(model, rows), torch.Generator().manual_seed(1))
        found.append(model.encode(params, Batch(rows)))
    assert torch.equal(found[0].indices, found[1].indices)
    torch.testing.assert_close(found[1].values, 7 * found[0].values)


@pytest.mark.parametrize("name", ["relu", "gated", "jumprelu"])
def test_resampled_encoder_rows_measure_themselves_by_the_rows_of_living_latents(name):
    """Not by the norms of W_enc's columns, of which there are D and not H."""
    model = make(name, resample=(0.3,), dead_tokens=5)
    raw = data(model)
    params = moved(model, raw, dead=12)
    params["b_enc"][:12] = -100
    size = torch.linspace(0.5, 3, len(params["W_enc"])).double()
    params["W_enc"] *= size[:, None]
    stage = surveyed(model, params, [Batch(raw)], STAGE)
    new = model.update(params, model.statistics(params, Batch(raw), stage), stage)
    norms = new["W_enc"].norm(dim=1)
    again = new["b_enc"] == 0
    living = (new[SILENT] < new[DEAD]) & ~again
    assert 6 <= int(again.sum()) <= 12 <= int((~living).sum())
    torch.testing.assert_close(norms[again], 0.2 * norms[living].mean().expand(int(again.sum())))


@pytest.mark.parametrize("name", ["topk", "abstopk", "relu"])
def test_a_step_along_the_auxiliary_gradient_explains_more_of_the_residual(name):
    """With the wrong sign of the residual, or with the bias added, it would explain less."""
    model = make(name, aux_k=4)
    raw = data(model, 80)
    params = moved(model, raw, dead=12)
    # Dead latents fire for nothing but the auxiliary term.
    on, off = (m.statistics(params, Batch(raw), STAGE) for m in (model, make(name, aux_k=4, aux_coefficient=0.0)))
    after = dict(params)
    for key, attribute in (("W_enc", "encoder"), ("W_dec", "decoder"), ("b_enc", "encoder_bias")):
        along = getattr(on, attribute) - getattr(off, attribute)
        after[key] = params[key].clone()
        after[key][:12] = params[key][:12] - 1e-4 * along[:12]
    held = {**after, **{key: after[key] for key in ("W_enc", "W_dec", "b_enc")}}
    again = model.statistics(held, Batch(raw), STAGE)
    assert float(again.auxiliary) < float(on.auxiliary)
    assert torch.equal(on.residual, off.residual), "the term must not change what is measured"


def test_the_auxiliary_term_does_not_depend_on_the_scale_of_the_data():
    losses = []
    for factor in (1.0, 50.0):
        model = make("topk", normalize="none", aux_k=4)
        raw = data(model, 80) * factor
        params = moved(model, raw / factor, dead=12)
        params["b_enc"], params["b_dec"] = params["b_enc"] * factor, params["b_dec"] * factor
        params[RESIDUAL] = params[RESIDUAL] * factor**2
        losses.append(model.metrics(params, model.statistics(params, Batch(raw), STAGE))["aux_loss"])
    assert losses[1] == pytest.approx(losses[0])


@each
def test_the_gradients_norm_is_that_of_all_workers_together(name):
    model = make(name, clip=1e-3, learning_rate=1e-2)
    raw = data(model)
    start = moved(model, raw)
    alone, _ = train(model, start, raw, range(3), 3)
    together, _ = train(model, start, raw, range(3), 3, workers=4)
    for key in WEIGHTS:
        torch.testing.assert_close(together[key], alone[key], rtol=1e-8, atol=1e-10)


@each
def test_atoms_have_norm_one_after_the_step_not_only_before(name):
    model = make(name, learning_rate=0.3)
    raw = data(model)
    new, _ = step(model, moved(model, raw), [raw], Stage(step=5, steps=10))
    torch.testing.assert_close(new["W_dec"].norm(dim=1), torch.ones(model.atoms).double())


def test_half_precision_rows_are_summed_in_full_precision(tmp_path):
    """The squares of these numbers overflow float16."""
    x = np.full((600, 4), 300.0, dtype=np.float16)
    uri = str(tmp_path / "half.zarr")
    layout = {"data": ((4,), "float16")}
    writer = create_dataset(uri, rows=600, arrays=layout, shard_rows=300, chunk_rows=100, attributes={"made": "a test"})
    for shard in writer.shards():
        writer.write(shard, data=x[shard.slice])
    data_set = writer.finish()
    model = make("topk", dtype="float32")
    options = {"rows": 600, "seed": 0, "budget": 2**20, "device": torch.device("cpu")}
    seen = Feed(data_set, model, model.schedule(), Solo(), **options).probe()
    assert seen.sample.dtype == torch.float64
    assert root_dim_scale(seen.sample) == pytest.approx(1 / 300)
    params = model.init(seen, torch.Generator())
    assert params["W_enc"].dtype == torch.float32 and float(params["scale"]) == pytest.approx(1 / 300)
