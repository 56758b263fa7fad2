"""An encoder's product in fewer bits: which codes stay the same, and which are rounded by how much."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsefleet.models import Batch, ModelError, Stage
from sparsefleet.models.autoencoders import selection
from sparsefleet.models.autoencoders.autoencoder import Autoencoder
from sparsefleet.models.autoencoders.selection import candidate_count, exact, largest, pre_activations, product

from .test_family import VARIANTS, data, make, probe, step, surveyed, train

each = pytest.mark.parametrize("name", VARIANTS)
either = pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
NEAR = ("groupmax", "batchtopk", "batchabstopk", "matryoshka")
ROUNDED = 2**-7
"""Both factors of a product and the sum are off by up to 2^-9 and 2^-8, relative to |x| |e| and to u."""


def random(rows: int, dim: int, atoms: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    mixed = draw(rows, dim) @ draw(dim, dim) / dim**0.5
    return mixed, torch.nn.functional.normalize(draw(atoms, dim)), 0.1 * draw(atoms)


@either
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("k", "atoms"), [(1, 2048), (8, 2048), (32, 2048), (32, 8192), (30, 30)])
def test_candidates_hold_the_largest_and_values_are_exact(precision, signed, k, atoms):
    x, encoder, bias = random(1500, 64, atoms)
    wanted_at, wanted = largest(product(x, encoder, bias, None), k, signed=signed)
    found_at, found = [], []
    for at, u in pre_activations(x, encoder, bias, precision):
        chosen, _ = largest(u, candidate_count(k, atoms, precision), signed=signed)
        indices, values = exact(chosen, x[at], encoder, bias, k, signed=signed)
        found_at.append(indices)
        found.append(values)
    values = torch.cat(found)
    assert bool((values.abs()[:, :-1] >= values.abs()[:, 1:]).all()), "the largest first"
    torch.testing.assert_close(values, wanted, rtol=1e-4, atol=1e-5)
    active = (wanted_at.sort(1).values == torch.cat(found_at).sort(1).values) | (wanted.sort(1).values == 0)
    assert float(active.all(1).float().mean()) > 0.998, "ties aside the same entries"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4), st.integers(1, 30), st.integers(1, 40), st.booleans(), st.integers(0, 99))
def test_what_was_empty_stays_empty(rows, atoms, width, signed, seed):
    width = min(width, atoms)
    x, encoder, bias = random(rows, 6, atoms, seed)
    indices, values = largest(product(x, encoder, bias, None), width, signed=signed)
    values = values.masked_fill(torch.rand(values.shape, generator=torch.Generator().manual_seed(seed)) < 0.3, 0)
    at, again = exact(indices, x, encoder, bias, width, signed=signed, empty=values == 0)
    dense = lambda i, v: torch.zeros(rows, atoms).scatter_add_(1, i, v)  # noqa: E731
    torch.testing.assert_close(dense(at, again), dense(indices, values), rtol=1e-4, atol=1e-5)


@each
@either
def test_codes_are_those_of_full_precision_or_near(name, precision):
    rounds = name in ("relu", "gated", "jumprelu")
    full, other = (make(name, dtype="float32", encoder_precision=p) for p in (None, precision))
    raw = data(full).float()
    params, _ = train(full, full.init(probe(full, raw.double()), torch.Generator()), raw, range(60), 60)
    x = raw[:, : full.input_dim(params)]
    wanted, found = (m.encode(params, Batch(x)).dense(m.atoms) for m in (full, other))
    assert (wanted != 0).any()
    if rounds and precision == "bfloat16":
        largest_term = (x * params["scale"] - params["b_dec"]).norm(dim=1).max() * params["W_enc"].norm(dim=1).max()
        assert float((found - wanted).abs().max()) > 1e-4
        both = (found != 0) & (wanted != 0)  # beside a jump an entry is there or not
        assert float((found - wanted)[both].abs().max() * params["scale"]) < 2 * ROUNDED * float(largest_term)
        assert float(both.sum()) > 0.95 * float((wanted != 0).sum())
    elif name in NEAR:  # near their limits other entries are taken
        both = (found != 0) & (wanted != 0)
        torch.testing.assert_close(found[both], wanted[both], rtol=1e-4, atol=1e-5)
        assert float(both.sum()) > 0.98 * float((wanted != 0).sum())
    else:
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@each
def test_learning_goes_the_same_way(name):
    losses = {}
    for precision in (None, "bfloat16"):
        model = make(name, dtype="float32", encoder_precision=precision, learning_rate=3e-3, dead_tokens=150)
        raw = data(model).float()
        start = model.init(probe(model, raw.double()), torch.Generator().manual_seed(1))
        params, losses[precision] = train(model, start, raw, range(80), 80)
        assert all(v.dtype == torch.float32 for k, v in params.items() if k.endswith(("W_enc", "W_dec", "b_enc")))
    # Selections that differ by chance part two runs slowly.
    same = name in ("topk", "abstopk")
    assert losses["bfloat16"] == pytest.approx(losses[None], rel=1e-4 if same else 0.05)


@each
def test_resuming_gives_the_same_bits(name):
    model = make(name, dtype="float32", encoder_precision="bfloat16")
    raw = data(model).float()
    start = model.init(probe(model, raw.double()), torch.Generator().manual_seed(1))
    straight, _ = train(model, start, raw, range(10), 10)
    half, _ = train(model, start, raw, range(5), 10)
    resumed, _ = train(model, {k: v.clone() for k, v in half.items()}, raw, range(5, 10), 10)
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_a_batch_whose_entries_are_all_counted_has_the_same_threshold():
    """Where a row may have more above the threshold than it offers, all entries are counted."""
    model = make("batchtopk", dtype="float32", encoder_precision="bfloat16", k=30)
    assert isinstance(model, Autoencoder)
    raw = data(model).float()
    raw[:20] *= 30
    params = model.init(probe(model, raw.double()), torch.Generator())
    batch = Batch(raw)
    stage = surveyed(model, params, [batch], Stage(step=3, steps=10))
    stats = model.statistics(params, batch, stage)
    assert float(stats.fired.sum()) / len(raw) == pytest.approx(30, rel=0.02)


def test_the_product_has_fewer_bits():
    """Or nothing here would be a test."""
    x, encoder, bias = random(100, 64, 500)
    full = product(x, encoder, bias, None)
    for u in (product(x, encoder, bias, "bfloat16"), *(u for _, u in pre_activations(x, encoder, bias, "bfloat16"))):
        off = float((u - full).abs().max())
        assert 1e-3 < off < ROUNDED * float(x.norm(dim=1).max())


def test_tf32_is_asked_for_while_the_product_lasts(monkeypatch):
    seen = []
    real = torch.addmm
    monkeypatch.setattr(
        torch, "addmm", lambda *a, **k: (seen.append(torch.get_float32_matmul_precision()), real(*a, **k))[1]
    )
    x, encoder, bias = random(5, 6, 7)
    product(x, encoder, bias, "tf32")
    next(pre_activations(x, encoder, bias, "tf32"))
    product(x, encoder, bias, None)
    assert seen == ["high", "high", "highest"]


@each
def test_learning_takes_the_rounded_product(name, monkeypatch):
    asked = []
    real = selection._product
    monkeypatch.setattr(selection, "_product", lambda *a: (asked.append(a[3]), real(*a))[1])
    model = make(name, dtype="float32", encoder_precision="bfloat16", aux_coefficient=0.0)
    raw = data(model).float()
    step(model, model.init(probe(model, raw.double()), torch.Generator()), [raw], Stage(step=3, steps=10))
    assert asked and {*asked} == {"bfloat16"}


def test_float64_is_not_rounded():
    model = make("relu", encoder_precision="bfloat16")
    raw = data(model)
    params = model.init(probe(model, raw), torch.Generator())
    wanted = make("relu").encode(params, Batch(raw))
    assert torch.equal(model.encode(params, Batch(raw)).values, wanted.values)


def test_the_process_keeps_its_own_precision():
    x, encoder, bias = random(5, 6, 7)
    before = torch.get_float32_matmul_precision()
    product(x, encoder, bias, "tf32")
    with pytest.raises(RuntimeError):
        product(x, encoder[:, :-1], bias, "tf32")
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"encoder_precision": "float16", "dtype": "float32"},
            "encoder_precision='float16': Input should be 'tf32' or 'bfloat16'",
        ),
        ({"encoder_precision": "tf32", "target": "outputs"}, "encoder_precision='tf32' with target='outputs'"),
    ],
)
def test_other_precisions_are_refused(options, message):
    with pytest.raises(ModelError, match=message):
        make("topk", **options)
