"""Every variant against its dense definition, resumed, and dealt to workers."""

from __future__ import annotations

from functools import reduce
from itertools import accumulate
from operator import add

import pytest
import torch
from sparsefleet.models import Batch, ModelError, Params, Probe, Schedule, Stage, make_model
from sparsefleet.models.autoencoders.autoencoder import WEIGHTS, Autoencoder
from sparsefleet.models.autoencoders.batch import CANDIDATES
from sparsefleet.models.autoencoders.names import DEAD, RESIDUAL, SILENT

from . import dense
from .reference import sparse_rows, unit_atoms

ATOMS, DIM, OUT = 64, 12, 9
VARIANTS = {
    "topk": {"k": 3},
    "abstopk": {"k": 3},
    "groupmax": {"k": 4},
    "gsae": {"k": 3, "beta": 2.0},
    "batchtopk": {"k": 3},
    "batchabstopk": {"k": 3},
    "matryoshka": {"k": 3, "widths": (10, 30, 64)},
    "relu": {"sparsity": 0.7},
    "gated": {"sparsity": 0.7},
    "jumprelu": {"sparsity": 0.3, "bandwidth": 0.2, "start_threshold": 0.1},
}
each = pytest.mark.parametrize("name", VARIANTS)
either = pytest.mark.parametrize("target", [None, "outputs"], ids=["autoencoder", "transcoder"])
STAGE = Stage(step=30, steps=100, rows=400)


def make(name: str, **more) -> Autoencoder:
    model = make_model(name, {"atoms": ATOMS, "dtype": "float64", **VARIANTS[name], **more})
    assert isinstance(model, Autoencoder)
    return model


def data(model: Autoencoder, rows: int = 400, seed: int = 0) -> torch.Tensor:
    """Rows with all the columns that the model reads."""
    x = sparse_rows(rows, unit_atoms(20, DIM, seed), 3, 0.1, seed) + 0.3
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(DIM, OUT, generator=generator, dtype=torch.float64)
    parts = {"data": x, "outputs": (x @ mix).tanh(), "flipped": x.flip(1)}
    out = parts[model.target or "data"].shape[1]
    parts["gradients"] = torch.randn(rows, out, generator=generator, dtype=torch.float64)
    return torch.cat([parts[a] for a in model.arrays], dim=1)


def probe(model: Autoencoder, raw: torch.Tensor) -> Probe:
    out = OUT if model.target == "outputs" else DIM
    widths = tuple({"data": DIM}.get(a, out) for a in model.arrays)
    return Probe(len(raw), raw.mean(0), raw.var(0, correction=0), raw, widths)


def moved(model: Autoencoder, raw: torch.Tensor, dead: int = 0) -> Params:
    """Parameters off their start, the first `dead` latents dead."""
    generator = torch.Generator().manual_seed(3)
    params = model.init(probe(model, raw), generator)
    for name in (*WEIGHTS, *model.own):
        noise = torch.randn(params[name].shape, generator=generator)
        params[name] = params[name] + (0.02 if name == "threshold" else 0.1) * noise
    params[SILENT][:dead] = 5
    params[DEAD].fill_(5)
    params[RESIDUAL].fill_(0.7)
    return params


def surveyed(model: Autoencoder, params: Params, batches: list[Batch], stage: Stage) -> Stage:
    """The stage after all surveys, as the learning loop runs them."""
    for _ in range(model.surveys_at(stage)):
        stage = model.refine(params, reduce(add, (model.survey(params, b, stage) for b in batches)), stage)
    return stage


def step(model: Autoencoder, params: Params, parts: list[torch.Tensor], stage: Stage):
    """(new parameters, metrics) of one update with its rows dealt to workers."""
    starts = accumulate((len(part) for part in parts), initial=0)
    batches = [Batch(part, start) for part, start in zip(parts, starts, strict=False)]
    stage = surveyed(model, params, batches, stage)
    stats = reduce(add, (model.statistics(params, b, stage) for b in batches))
    return model.update(params, stats, stage), model.metrics(params, stats)


def train(model: Autoencoder, params: Params, raw: torch.Tensor, steps: range, of: int, workers: int = 1, batch=50):
    schedule = Schedule(passes=1, update_every="batch", batch_rows=batch)
    losses = []
    for i in steps:
        stage = schedule.at(i, of, seed=0, rows=len(raw))
        at = i * batch % (len(raw) - batch + 1)
        params, metrics = step(model, params, list(raw[at : at + batch].tensor_split(workers)), stage)
        losses.append(metrics["loss"])
    return params, losses


@each
@either
@pytest.mark.parametrize("dead", [0, 12])
def test_gradient_equals_dense_autograd(twin, name, target, dead):
    model = make(name, target=target, aux_k=5)
    raw = data(model, 80)
    params = moved(model, raw, dead)
    batch = Batch(raw)
    stage = surveyed(model, params, [batch], STAGE)
    stats = model.statistics(params, batch, stage)
    w = dense.weights(model, params)
    value, z = dense.loss(model, name, w, params, raw, dense.penalty_weight(model, STAGE.step, STAGE.steps))
    value.backward()
    found = {
        "W_enc": stats.encoder,
        "W_dec": stats.decoder,
        "b_enc": stats.encoder_bias,
        "b_dec": stats.decoder_bias,
        **model.own_gradients(params, stats, stage),
    }
    assert found.keys() == w.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient / len(raw), w[key].grad, rtol=1e-8, atol=1e-10, msg=lambda m, k=key: k + m)
    torch.testing.assert_close(stats.fired, (z != 0).double().sum(0))
    torch.testing.assert_close(stats.negative, (z < 0).double().sum(0))
    torch.testing.assert_close(stats.l1, z.abs().sum())


def test_the_target_penalty_of_jumprelu_equals_dense_autograd():
    model = make("jumprelu", penalty="target", l0=5.0)
    raw = data(model, 80)
    params = moved(model, raw)
    stats = model.statistics(params, Batch(raw), STAGE)
    w = dense.weights(model, params)
    dense.loss(model, "jumprelu", w, params, raw, model.sparsity)[0].backward()
    found = model.own_gradients(params, stats, STAGE)["threshold"] / len(raw)
    torch.testing.assert_close(found, w["threshold"].grad, rtol=1e-8, atol=1e-10)


@each
@either
def test_training_follows_dense_autograd_with_torchs_adam(name, target):
    model = make(name, target=target, dead_tokens=150, learning_rate=5e-3, aux_k=4)
    raw = data(model)
    start = model.init(probe(model, raw), torch.Generator().manual_seed(1))
    steps, batch = 40, 40
    _, losses = train(model, start, raw, range(steps), steps, batch=batch)
    parts = [raw[i * batch % (len(raw) - batch + 1) :][:batch] for i in range(steps)]
    expected = dense.own_loop(model, name, start, parts, lambda i: model.rate(Stage(step=i, steps=steps)))
    assert losses == pytest.approx(expected, rel=1e-6)


@each
@pytest.mark.parametrize("workers", [2, 3])
def test_updates_do_not_depend_on_the_number_of_workers(name, workers):
    model = make(name, dead_tokens=100, learning_rate=1e-2)
    raw = data(model)
    start = model.init(probe(model, raw), torch.Generator().manual_seed(1))
    alone, losses = train(model, start, raw, range(25), 25)
    together, other = train(model, start, raw, range(25), 25, workers)
    assert other == pytest.approx(losses, rel=1e-9)
    for key, value in alone.items():
        torch.testing.assert_close(together[key], value, rtol=1e-7, atol=1e-9, msg=lambda m, k=key: k + m)


@each
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_resuming_gives_the_same_bits(name, dtype):
    model = make(name, dtype=dtype, dead_tokens=100)
    raw = data(model).to(model.torch_dtype)
    start = model.init(probe(model, raw.double()), torch.Generator().manual_seed(1))
    straight, _ = train(model, start, raw, range(16), 16)
    half, _ = train(model, start, raw, range(8), 16)
    copied = {key: torch.from_numpy(value.numpy().copy()) for key, value in half.items()}
    resumed, _ = train(make(name, dtype=dtype, dead_tokens=100), copied, raw, range(8, 16), 16)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


@each
@either
def test_codes_reconstruct_the_rows_that_the_loss_measures(name, target):
    model = make(name, target=target, **({"encode_by": "gradient"} if name == "gsae" else {}))
    raw = data(model)
    params = moved(model, raw)
    if "threshold" in params and params["threshold"].ndim == 0:
        params["threshold"] = torch.tensor(0.4).double()
    outputs = raw[:, DIM : DIM + OUT] if target else raw[:, :DIM]
    again = model.reconstruct(params, model.encode(params, Batch(raw)))
    metrics = model.metrics(params, model.statistics(params, Batch(raw), STAGE))
    assert metrics["loss"] == pytest.approx(float((outputs - again).square().sum(1).mean()))
    assert metrics["fvu"] == pytest.approx(metrics["loss"] / float(outputs.var(0, correction=0).sum()))


@each
def test_exported_atoms_have_norm_one_after_every_update(name):
    model = make(name, learning_rate=0.1)
    raw = data(model)
    params, _ = train(model, model.init(probe(model, raw), torch.Generator()), raw, range(3), 3)
    torch.testing.assert_close(model.dictionary(params).norm(dim=0), torch.ones(ATOMS).double())


@each
def test_every_variant_learns(name):
    model = make(name, learning_rate=1e-2)
    raw = data(model, 2000)
    start = model.init(probe(model, raw), torch.Generator().manual_seed(1))
    _, losses = train(model, start, raw, range(150), 150, batch=200)
    assert losses[-1] < 0.6 * losses[0]


# -- the threshold over a batch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["batchtopk", "batchabstopk"])
@pytest.mark.parametrize("loud", [1.0, 30.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exactly_k_entries_a_row_are_kept_on_average(name, loud, dtype):
    # With loud rows some have more above the threshold than the candidates that they offer at first.
    model = make(name, atoms=400, k=3, dtype=dtype)
    raw = data(model, 90).to(model.torch_dtype)
    raw[:6] *= loud
    params = model.init(probe(model, raw.double()), torch.Generator().manual_seed(1))
    batches = [Batch(part) for part in raw.tensor_split([10, 11, 11, 70])]
    stage = surveyed(model, params, batches, STAGE)
    assert bool(stage.get("cut_all", 0)) == (loud > 1) or model.signed
    stats = reduce(add, (model.statistics(params, b, stage) for b in batches))
    assert float(stats.fired.sum()) == 3 * 90
    u = (raw * params["scale"] - params["b_dec"]) @ params["W_enc"].T
    scores = u.abs() if model.signed else u
    assert stage.get("threshold", 0) == float(scores.float().flatten().topk(3 * 90).values[-1])


def test_fewer_positive_entries_than_wanted_are_all_kept():
    model = make("batchtopk", k=8)
    raw = data(model, 50)
    params = moved(model, raw)
    params["b_enc"] = params["b_enc"] - 3
    batch = Batch(raw)
    stage = surveyed(model, params, [batch], STAGE)
    stats = model.statistics(params, batch, stage)
    u = (raw * params["scale"] - params["b_dec"]) @ params["W_enc"].T + params["b_enc"]
    assert 0 < float(stats.fired.sum()) == float((u > 0).sum()) < 8 * 50
    assert stage.get("threshold", -1) == 0


@pytest.mark.parametrize("name", ["batchtopk", "batchabstopk", "matryoshka"])
def test_the_learned_threshold_gives_about_k_entries(name):
    model = make(name, learning_rate=3e-3)
    raw = data(model, 2000)
    start = model.init(probe(model, raw), torch.Generator().manual_seed(1))
    params, _ = train(model, start, raw, range(100), 100, batch=200)
    found = (model.encode(params, Batch(raw)).indices >= 0).double().sum(1).mean()
    assert found == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize(("k", "entries"), [(3, 64), (16, 64), (40, 160), (200, 300)])
def test_the_plan_counts_the_entries_that_a_row_offers(k, entries):
    model = make("batchtopk", atoms=300, k=k, aux_coefficient=0.0)
    raw = data(model, 30)
    batch = Batch(raw)
    model.survey(moved(model, raw), batch, STAGE)
    assert batch.memo[CANDIDATES].shape == (30, entries)
    assert model.flops(DIM) == 2 * DIM * 300 + 8 * DIM * entries
    # What a row holds at once: an int64 and a value of each entry, at least.
    assert model.batch_bytes(1000, DIM, 8) - model.batch_bytes(0, DIM, 8) >= 1000 * 16 * max(entries, model.slots())


def test_the_running_threshold_starts_unbiased():
    model = make("batchtopk")
    raw = data(model)
    start = model.init(probe(model, raw), torch.Generator().manual_seed(1))
    stage = surveyed(model, start, [Batch(raw[:50])], Stage(step=0, steps=10_000, rows=400))
    new, _ = step(model, start, [raw[:50]], Stage(step=0, steps=10_000, rows=400))
    assert float(new["threshold"]) == pytest.approx(stage.get("threshold", 0))


# -- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("groupmax", {"k": 5}, r"k=5 groups of atoms=64: choose a k that divides it"),
        ("gsae", {"beta": -1.0}, r"beta=-1.0"),
        ("gsae", {"encode_by": "x"}, r"encode_by"),
        ("matryoshka", {"widths": (10, 64, 30)}, r"widths=\[10, 64, 30\] must rise"),
        ("matryoshka", {"widths": (10, 30)}, r"to atoms=64"),
        ("relu", {"sparsity": -1.0}, r"sparsity=-1.0"),
        ("jumprelu", {"normalize": "none"}, r"need data of known scale"),
        ("jumprelu", {"bandwidth": 0.0}, r"bandwidth=0.0"),
        ("jumprelu", {"penalty": "tanh"}, r"penalty"),
        ("jumprelu", {"penalty": "target", "l0": 64.5}, r"l0=64.5 active latents of atoms=64: .* at most 64$"),
        ("jumprelu", {"penalty": "target", "l0": 0.0}, r"l0=0.0 must be above 0"),
        ("jumprelu", {"start_threshold": -0.1}, r"start_threshold=-0.1"),
        ("topk", {"code_width": 0}, r"code_width=0"),
    ],
)
def test_settings_out_of_range_are_refused(name, settings, message):
    with pytest.raises(ModelError, match=message):
        make(name, **settings)


def test_an_l0_that_nothing_aims_at_may_be_larger_than_the_dictionary():
    assert make("jumprelu", l0=100.0).l0 == 100 and make("jumprelu", penalty="target", l0=64.0).l0 == 64


def test_default_widths_cover_all_latents():
    for atoms in (1, 5, 64, 4096):
        bands = make_model("matryoshka", {"atoms": atoms, "k": 1}).bands()
        assert bands[0][0] == 0 and bands[-1][1] == atoms
        assert all(a < b for a, b in bands)


def test_codes_are_cut_to_the_largest_entries():
    model = make("relu", code_width=4)
    raw = data(model, 30)
    params = moved(model, raw)
    few, all_ = model.encode(params, Batch(raw)), make("relu").encode(params, Batch(raw))
    assert few.values.shape == (30, 4) and all_.values.shape == (30, ATOMS)
    assert torch.equal(few.values, all_.values[:, :4])


def test_gradients_must_belong_to_what_is_decoded():
    model = make("gsae")
    raw = data(model)
    wrong = Probe(len(raw), raw.mean(0), raw.var(0), raw, (DIM + 2, DIM - 2))
    with pytest.raises(ModelError, match="'gradients' has 10 columns"):
        model.init(wrong, torch.Generator())


@pytest.mark.parametrize("columns", [-DIM, -1, 3])
def test_gradients_of_another_width_than_in_training_are_refused(columns):
    """Too many would be cut, and too few would be taken for part of the row."""
    model = make("gsae", encode_by="gradient")
    raw = data(model)
    params = moved(model, raw)
    other = raw[:, :columns] if columns < 0 else torch.cat([raw, raw[:, :columns]], dim=1)
    with pytest.raises(ModelError, match=f"rows have {2 * DIM + columns} columns, but data, gradients .* have 24"):
        model.encode(params, Batch(other))
    with pytest.raises(ModelError, match="side by side have 24"):
        model.statistics(params, Batch(other), STAGE)
    by_activation = make("gsae").encode(params, Batch(raw[:, :DIM]))
    assert torch.equal(by_activation.indices, make("topk").encode(params, Batch(raw[:, :DIM])).indices)


@each
def test_given_atoms_are_normalised_and_that_is_said(name, caplog):
    model = make(name)
    raw = data(model)
    params = model.init(probe(model, raw), torch.Generator())
    given = params["W_dec"].clone()
    given[3] *= 7
    given[4] = 0
    found = model.adopt("W_dec", given, params["W_dec"])
    assert "2 of 64 given atoms did not have norm 1 and were normalised" in caplog.text
    torch.testing.assert_close(found.norm(dim=1), torch.ones(ATOMS).double().index_fill(0, torch.tensor(4), 0))
    torch.testing.assert_close(found[3], params["W_dec"][3])
    assert torch.equal(model.adopt("b_enc", given[:, 0], params["b_enc"]), given[:, 0])


@each
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_ends_the_run(name, value):
    model = make(name, learning_rate=0.5)
    raw = data(model, 40)
    params = moved(model, raw)
    stage = surveyed(model, params, [Batch(raw)], STAGE)
    stats = model.statistics(params, Batch(raw), stage)
    stats.encoder[5, 2] = value
    with pytest.raises(ModelError, match=r"the gradient is not finite at update 1: lower learning_rate=0\.5"):
        model.update(params, stats, stage)
