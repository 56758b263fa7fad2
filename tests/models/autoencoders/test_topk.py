"""The TopK autoencoder against its dense definition, torch's Adam, and the contract of a model."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, replace
from functools import reduce
from itertools import pairwise
from operator import add
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsefleet.models import Batch, Codes, ModelError, Params, Probe, Schedule, Stage, make_model
from sparsefleet.models.autoencoders.autoencoder import WEIGHTS
from sparsefleet.models.autoencoders.names import DEAD, RESIDUAL, SILENT, TOKENS, VARIANCE
from sparsefleet.models.autoencoders.rates import warm_and_decay
from sparsefleet.models.autoencoders.sums import GradientSums
from sparsefleet.models.autoencoders.topk import TopK

from .reference import leaves, loss_sums, make_probe, sparse_rows, unit_atoms

STAGE = Stage(step=3, steps=100, rows=200)


def make(model: TopK, *, dead: int = 0, rows: int = 60, dim: int = 12, seed: int = 0) -> tuple[Params, torch.Tensor]:
    """Parameters off their start, the first `dead` latents dead, and rows of data."""
    generator = torch.Generator().manual_seed(seed)
    x = sparse_rows(rows, unit_atoms(20, dim, seed), 3, 0.1, seed) + 0.3
    params = model.init(make_probe(x), generator)
    for name in WEIGHTS:
        params[name] = params[name] + 0.1 * torch.randn(params[name].shape, generator=generator).to(params[name].dtype)
    params[SILENT][:dead] = 5
    params[DEAD].fill_(5)
    params[RESIDUAL].fill_(0.7)
    return params, x.to(model.torch_dtype)


def total(model: TopK, params: Params, parts: list[torch.Tensor], stage: Stage = STAGE) -> GradientSums:
    return reduce(add, (model.statistics(params, Batch(x), stage) for x in parts))


def assert_close(a: GradientSums, b: GradientSums, *, rtol: float = 1e-10) -> None:
    torch.testing.assert_close(a.flatten(), b.flatten(), rtol=rtol, atol=rtol)


CASES = [
    pytest.param({"atoms": 40, "k": 2}, 0, id="sparse"),
    pytest.param({"atoms": 12, "k": 4}, 0, id="dense"),
    pytest.param({"atoms": 40, "k": 2, "aux_k": 2}, 25, id="sparse, many dead"),
    pytest.param({"atoms": 40, "k": 2, "aux_k": 3}, 10, id="sparse, dead dense"),
    pytest.param({"atoms": 40, "k": 2}, 3, id="fewer dead than aux_k"),
    pytest.param({"atoms": 9, "k": 9}, 0, id="all active"),
    pytest.param({"atoms": 9, "k": 9, "aux_k": 1}, 9, id="all active, all dead"),
    pytest.param({"atoms": 1, "k": 1}, 0, id="one atom"),
]


@pytest.mark.parametrize(("settings", "dead"), CASES)
@pytest.mark.parametrize("normalize", ["none", "scalar"])
def test_gradient_equals_dense_autograd(settings, dead, normalize):
    model = TopK(**settings, dtype="float64", normalize=normalize)
    params, x = make(model, dead=dead)
    stats = model.statistics(params, Batch(x), STAGE)
    weights = leaves(params)
    loss, squared, z = loss_sums(model, weights, params, x * params["scale"])
    loss.backward()
    pairs = zip(WEIGHTS, (stats.encoder, stats.decoder, stats.encoder_bias, stats.decoder_bias), strict=True)
    for name, gradient in pairs:
        torch.testing.assert_close(gradient, weights[name].grad, rtol=1e-10, atol=1e-10, msg=name)
    torch.testing.assert_close(stats.squared, squared.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(stats.fired, (z > 0).double().sum(0))
    assert stats.rows == x.shape[0]


def test_dead_latents_get_gradients_for_encoder_and_decoder_only_through_the_auxiliary_loss():
    model = TopK(atoms=40, k=2, aux_k=4, dtype="float64")
    params, x = make(model, dead=6)
    params["b_enc"][:6] = -50.0
    params["b_enc"][:3] = -0.5
    # Three dead latents are kept nowhere but would have positive pre-activations; three have none at all.
    params["b_enc"][6:] += 20.0
    stats = model.statistics(params, Batch(x), STAGE)
    assert torch.all(stats.fired[:6] == 0)
    assert torch.all(stats.encoder[:3].abs().sum(1) > 0)
    assert torch.all(stats.decoder[:3].abs().sum(1) > 0)
    assert torch.all(stats.encoder_bias[:3] != 0)
    assert not stats.encoder[3:6].any()
    assert not stats.decoder[3:6].any()
    off = replace(model, aux_coefficient=0.0).statistics(params, Batch(x), STAGE)
    assert not off.encoder[:6].any()
    assert not off.decoder[:6].any()
    assert model.metrics(params, stats)["aux_loss"] > 0


@pytest.mark.parametrize("atoms", [12, 60])
def test_slots_of_value_zero_have_not_fired(atoms):
    model = TopK(atoms=atoms, k=6, dtype="float64", aux_coefficient=0.0)
    params, x = make(model)
    params["b_enc"] -= 1.0
    stats = model.statistics(params, Batch(x), STAGE)
    _, _, z = loss_sums(model, params, params, x * params["scale"])
    assert (z > 0).sum(1).min() < 6
    torch.testing.assert_close(stats.fired, (z > 0).double().sum(0))
    assert model.metrics(params, stats)["l0"] == pytest.approx(float((z > 0).sum()) / len(x))
    codes = model.encode(params, Batch(x))
    assert torch.equal(codes.indices == -1, codes.values == 0)
    torch.testing.assert_close(codes.dense(atoms) * params["scale"], z)
    params["b_enc"] -= 100.0
    silent = model.statistics(params, Batch(x), STAGE)
    assert not silent.fired.any()
    assert not silent.encoder.any()
    assert not silent.encoder_bias.any()
    assert not silent.decoder.any()


def test_rows_of_zeros():
    model = TopK(atoms=8, k=2)
    x = torch.zeros(5, 4)
    params = model.init(make_probe(x), torch.Generator().manual_seed(0))
    assert params["scale"] == 1
    stats = model.statistics(params, Batch(x), STAGE)
    assert torch.isfinite(stats.flatten()).all()
    new = model.update(params, stats, STAGE)
    assert all(torch.isfinite(v).all() for v in new.values())
    assert model.metrics(params, stats)["fvu"] == 0
    assert torch.equal(model.encode(params, Batch(x)).indices, torch.full((5, 2), -1, dtype=torch.int32))


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, 60), max_size=4), dead=st.sampled_from([0, 3, 20]), k=st.sampled_from([2, 8]))
def test_statistics_add_over_any_split(cuts, dead, k):
    model = TopK(atoms=40, k=k, aux_k=3, dtype="float64")
    params, x = make(model, dead=dead)
    edges = [0, *sorted(cuts), len(x)]
    parts = [x[a:b] for a, b in pairwise(edges)]
    assert_close(total(model, params, parts), model.statistics(params, Batch(x), STAGE))


def test_empty_batch_is_zero_and_changes_nothing():
    model = TopK(atoms=10, k=2)
    params, x = make(model, dead=4)
    empty = model.statistics(params, Batch(x[:0]), STAGE)
    full = model.statistics(params, Batch(x), STAGE)
    assert not empty.flatten().any()
    assert [getattr(empty, f.name).shape for f in fields(empty)] == [getattr(full, f.name).shape for f in fields(full)]
    assert torch.equal((full + empty).flatten(), full.flatten())
    new = model.update(params, empty, STAGE)
    assert all(torch.equal(new[name], params[name]) for name in params)
    assert model.encode(params, Batch(x[:0])).indices.shape == (0, 2)


def test_statistics_are_one_vector_of_the_models_dtype():
    for dtype in ("float32", "float64"):
        model = TopK(atoms=10, k=2, dtype=dtype)
        params, x = make(model, dead=4)
        stats = model.statistics(params, Batch(x), STAGE)
        assert {getattr(stats, f.name).dtype for f in fields(stats)} == {model.torch_dtype}
        again = stats.unflatten(stats.flatten())
        assert all(torch.equal(getattr(again, f.name), getattr(stats, f.name)) for f in fields(stats))


def run(model: TopK, x: torch.Tensor, steps: int, *, workers: int = 1, batch: int = 50) -> tuple[Params, list[float]]:
    """`steps` updates on consecutive batches, each dealt to `workers`; the squared errors on the way."""
    params = model.init(make_probe(x), torch.Generator().manual_seed(1))
    return go_on(model, params, x, range(steps), steps, workers=workers, batch=batch)


def go_on(
    model: TopK, params: Params, x: torch.Tensor, which: range, steps: int, *, workers: int = 1, batch: int = 50
) -> tuple[Params, list[float]]:
    schedule = Schedule(passes=1, update_every="batch", batch_rows=batch)
    losses = []
    for step in which:
        stage = schedule.at(step, steps, seed=0, rows=len(x))
        at = step * batch % (len(x) - batch + 1)
        stats = total(model, params, list(x[at : at + batch].tensor_split(workers)), stage)
        losses.append(model.metrics(params, stats)["loss"])
        params = model.update(params, stats, stage)
    return params, losses


@pytest.mark.parametrize("workers", [2, 3])
def test_updates_do_not_depend_on_the_number_of_workers(workers):
    x = sparse_rows(300, unit_atoms(20, 12, 0), 3, 0.1, 0)
    model = TopK(atoms=40, k=3, dtype="float64", dead_tokens=100, learning_rate=1e-2)
    alone, losses = run(model, x, 30)
    together, losses_together = run(model, x, 30, workers=workers)
    assert alone.keys() == together.keys()
    for name in alone:
        torch.testing.assert_close(together[name], alone[name], rtol=1e-8, atol=1e-10, msg=name)
    assert losses_together == pytest.approx(losses, rel=1e-9)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_training_equals_dense_autograd_with_torchs_adam(clip):
    x = sparse_rows(300, unit_atoms(20, 12, 3), 3, 0.05, 3) + 0.2
    steps, batch = 50, 40
    model = TopK(atoms=60, k=2, aux_k=4, dtype="float64", dead_tokens=150, learning_rate=5e-3, clip=clip)
    _, losses = run(model, x, steps, batch=batch)

    state = model.init(make_probe(x), torch.Generator().manual_seed(1))
    weights = leaves(state)
    adam = torch.optim.Adam(weights.values(), lr=5e-3, betas=model.betas, eps=model.eps)
    expected, had_dead = [], 0
    for step in range(steps):
        at = step * batch % (len(x) - batch + 1)
        rows = x[at : at + batch] * state["scale"]
        had_dead += bool((state[SILENT] >= state[DEAD]).any())
        loss, squared, z = loss_sums(model, weights, state, rows)
        expected.append(float(squared.detach()) / batch / float(state["scale"]) ** 2)
        adam.zero_grad()
        (loss / batch).backward()
        with torch.no_grad():
            error = rows - z @ weights["W_dec"] - weights["b_dec"]
            state[RESIDUAL] = error.var(0, unbiased=False).sum()
            state[SILENT] = torch.where((z > 0).any(0), 0, state[SILENT] + batch)
            state[DEAD].fill_(150)
            atoms, gradient = weights["W_dec"], weights["W_dec"].grad
            gradient -= (gradient * atoms).sum(1, keepdim=True) * atoms
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(weights.values(), clip)
            adam.param_groups[0]["lr"] = 5e-3 * warm_and_decay(step, steps)
            adam.step()
            atoms /= atoms.norm(dim=1, keepdim=True)
    assert had_dead > 10
    assert losses == pytest.approx(expected, rel=1e-9)


def test_atoms_have_norm_one_after_every_update():
    x = sparse_rows(300, unit_atoms(20, 12, 0), 3, 0.1, 0).float()
    for steps in (1, 7):
        params, _ = run(TopK(atoms=30, k=3, learning_rate=0.05), x, steps)
        torch.testing.assert_close(params["W_dec"].norm(dim=1), torch.ones(30))
        assert TopK(atoms=30, k=3).dictionary(params).shape == (12, 30)


def test_parameters_are_the_whole_state():
    x = sparse_rows(300, unit_atoms(20, 12, 0), 3, 0.1, 0).float()
    model = TopK(atoms=40, k=3, dead_tokens=100)
    straight, _ = run(model, x, 20)
    half = model.init(make_probe(x), torch.Generator().manual_seed(1))
    half, _ = go_on(model, half, x, range(10), 20)
    copied = {name: torch.from_numpy(value.numpy().copy()) for name, value in half.items()}
    resumed, _ = go_on(TopK(atoms=40, k=3, dead_tokens=100), copied, x, range(10, 20), 20)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_update_leaves_its_arguments_alone():
    model = TopK(atoms=40, k=3, aux_k=3)
    params, x = make(model, dead=10)
    before = {name: value.clone() for name, value in params.items()}
    stats = model.statistics(params, Batch(x), STAGE)
    kept, data = stats.flatten().clone(), x.clone()
    model.update(params, stats, STAGE)
    model.encode(params, Batch(x))
    assert all(torch.equal(params[name], before[name]) for name in params)
    assert torch.equal(stats.flatten(), kept)
    assert torch.equal(x, data)


def test_float32_follows_float64():
    x = sparse_rows(400, unit_atoms(20, 12, 0), 3, 0.1, 0)
    single, losses32 = run(TopK(atoms=30, k=3), x.float(), 20)
    double, losses64 = run(TopK(atoms=30, k=3, dtype="float64"), x, 20)
    assert losses32 == pytest.approx(losses64, rel=1e-3)
    torch.testing.assert_close(single["W_dec"].double(), double["W_dec"], rtol=0, atol=2e-2)
    assert {v.dtype for n, v in single.items() if not n.startswith("training/")} == {torch.float32}


def test_dead_counters_count_rows():
    model = TopK(atoms=4, k=1, dead_tokens=25, dtype="float64")
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(10, 1)
    params = model.init(make_probe(x), torch.Generator().manual_seed(0))
    params["W_enc"] = torch.tensor([[1.0, 0], [0.1, 0], [0, 1], [-1, 0]], dtype=torch.float64)
    params["b_dec"] = torch.zeros(2, dtype=torch.float64)
    seen = []
    for step in range(4):
        stats = model.statistics(params, Batch(x), STAGE)
        seen.append(model.metrics(params, stats)["dead_fraction"])
        kept = {name: params[name] for name in WEIGHTS}
        params = {**model.update(params, stats, STAGE), **kept}
        assert params[SILENT].tolist() == [0] + [10 * (step + 1)] * 3
    assert seen == [0.0, 0.0, 0.0, 0.75]
    assert int(params[TOKENS]) == 40


def test_dead_tokens_default_to_a_tenth_of_the_run():
    model = TopK(atoms=4, k=1)
    params, x = make(model, rows=30)
    for rows in (30, 10):
        stats = model.statistics(params, Batch(x[:rows]), STAGE)
        params = model.update(params, stats, replace(STAGE, steps=200))
    assert int(params[DEAD]) == 400  # 200 updates of 20 rows on average
    huge = model.update(params, stats, replace(STAGE, steps=10**8))
    assert int(huge[DEAD]) == 10**7


def test_codes_reconstruct_the_rows_that_the_loss_measures():
    for normalize, atoms in (("none", 40), ("scalar", 40), ("scalar", 5)):
        model = TopK(atoms=atoms, k=3, dtype="float64", normalize=normalize)
        params, x = make(model)
        codes = model.encode(params, Batch(x))
        assert codes.indices.dtype == torch.int32
        assert torch.all(codes.values.diff(dim=1) <= 0)
        again = model.reconstruct(params, codes)
        plain = codes.dense(atoms) @ model.dictionary(params).T + params["b_dec"] / params["scale"]
        torch.testing.assert_close(again, plain)
        metrics = model.metrics(params, model.statistics(params, Batch(x), STAGE))
        assert metrics["loss"] == pytest.approx(float((x - again).square().sum(1).mean()))
        assert metrics["fvu"] == pytest.approx(metrics["loss"] / float(params[VARIANCE]))
        assert metrics["explained_variance"] == pytest.approx(1 - metrics["fvu"])


def test_reconstruct_ignores_padding():
    model = TopK(atoms=4, k=2, dtype="float64")
    params, _ = make(model)
    codes = Codes(torch.tensor([[0, -1]], dtype=torch.int32), torch.tensor([[2.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(
        model.reconstruct(params, codes)[0], 2 * params["W_dec"][0] + params["b_dec"] / params["scale"]
    )


def test_codes_do_not_depend_on_how_the_rows_are_cut():
    model = TopK(atoms=2000, k=5, dtype="float64")
    params, x = make(model, rows=700)
    whole = model.encode(params, Batch(x))
    parts = [model.encode(params, Batch(part)) for part in x.split(123)]
    assert torch.equal(whole.indices, torch.cat([p.indices for p in parts]))
    torch.testing.assert_close(whole.values, torch.cat([p.values for p in parts]))


def test_learns_the_atoms_that_made_the_data():
    atoms = unit_atoms(48, 24, 5)
    x = sparse_rows(16384, atoms, 3, 0.02, 5).float()
    model = TopK(atoms=64, k=3, learning_rate=1e-2)
    params, losses = run(model, x, 500, batch=256)
    cosines = atoms.float() @ model.dictionary(params)
    assert cosines.amax(1).mean() > 0.95
    assert losses[-1] < 0.2 * losses[0]


def test_learning_rate_warms_up_decays_and_follows_the_schedule():
    model = TopK(atoms=2**12, learning_rate=None)
    rates = [model.rate(Stage(step=s, steps=1000)) for s in range(1000)]
    assert rates[0] == pytest.approx(4e-4 / 50)
    assert rates[49] == pytest.approx(4e-4)
    assert rates[800] == pytest.approx(4e-4)
    assert rates[900] == pytest.approx(2e-4)
    assert rates[999] == pytest.approx(4e-4 / 200)
    assert model.rate(Stage(step=0, steps=1)) == pytest.approx(4e-4)
    ramped = Schedule(passes=1, update_every="batch", batch_rows=1, ramps={"learning_rate": ((0.0, 0.5),)})
    assert model.rate(ramped.at(500, 1000, seed=0, rows=1)) == pytest.approx(2e-4)
    assert model.ramp_names == ("learning_rate",)


def test_start_depends_on_the_generator_alone():
    x = sparse_rows(500, unit_atoms(20, 12, 0), 3, 0.1, 0) * 7
    model = TopK(atoms=30, k=3)
    one, same, other = (model.init(make_probe(x), torch.Generator().manual_seed(s)) for s in (4, 4, 5))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["W_enc"], other["W_enc"])
    scaled = x * float(one["scale"])
    assert scaled.norm(dim=1).mean() == pytest.approx(12**0.5, rel=1e-5)
    assert float(TopK(atoms=30, k=3, normalize="none").init(make_probe(x), torch.Generator())["scale"]) == 1


def test_weights_in_column_order_give_the_same():
    model = TopK(atoms=40, k=3, aux_k=3)
    params, x = make(model, dead=10)
    turned = {name: value.T.contiguous().T if value.ndim == 2 else value for name, value in params.items()}
    stats, other = (model.statistics(p, Batch(x), STAGE) for p in (params, turned))
    assert_close(other, stats, rtol=1e-4)
    new, again = model.update(params, stats, STAGE), model.update(turned, stats, STAGE)
    assert all(torch.equal(new[name], again[name]) for name in new)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"atoms": 16}, r"k=32 active latents of atoms=16: choose k from 1 to 16"),
        ({"atoms": 16, "k": 0}, r"k=0 .* from 1 to 16"),
        ({"atoms": 16, "k": 2, "aux_k": 0}, r"aux_k=0 must be above 0"),
        ({"atoms": 16, "k": 2, "dead_tokens": -1}, r"dead_tokens=-1"),
        ({"atoms": 16, "k": 2, "learning_rate": 0.0}, r"learning_rate=0.0"),
        ({"atoms": 16, "k": 2, "learning_rate": float("nan")}, r"learning_rate=nan"),
        ({"atoms": 16, "k": 2, "clip": 0.0}, r"clip=0.0"),
        ({"atoms": 16, "k": 2, "aux_coefficient": -1.0}, r"aux_coefficient=-1.0"),
        ({"atoms": 16, "k": 2, "betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\)"),
        ({"atoms": 16, "k": 2, "eps": 0.0}, r"eps=0.0"),
        ({"atoms": 16, "k": 2, "normalize": "rows"}, r"normalize"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ModelError, match=message):
        make_model("topk", settings)


MEASURE = """
import re, torch
from pathlib import Path
from sparsefleet.models import Batch, Probe, Stage
from sparsefleet.models.registry import make_model
from sparsefleet.models.autoencoders.names import DEAD, SILENT, RESIDUAL
torch.set_num_threads(1)
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
def twice(model, rows, dim):
    sample = torch.ones(4, dim, dtype=torch.float64)
    params = model.init(Probe(rows=rows, mean=sample[0], variance=sample[0], sample=sample), torch.Generator())
    params[SILENT][: model.atoms // 2] = 9
    params[DEAD].fill_(5)
    params[RESIDUAL].fill_(1.0)
    for step in range(2):
        stage = Stage(step=step, steps=2)
        batches = [Batch(torch.randn(rows, dim)) for _ in range(2)]
        for _ in range(model.surveys_at(stage)):
            found = [model.survey(params, batch, stage) for batch in batches]
            stage = model.refine(params, found[0] + found[1], stage)
        stats = model.statistics(params, batches[0], stage)
        stats = stats + model.statistics(params, batches[1], stage)
        stats = stats.unflatten(stats.flatten())
        new = model.update(params, stats, stage)
        model.metrics(params, stats)
        params = new
    model.encode(params, Batch(torch.randn(rows, dim)))
options = {options!r}
twice(make_model({name!r}, {{"atoms": 300, **options}}), 64, 8)  # libraries loaded
before = peak()
model = make_model({name!r}, {{"atoms": {atoms}, **options}})
twice(model, {rows}, {dim})
print(peak() - before, model.memory({rows}, {dim}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize(("atoms", "rows", "dim"), [(8192, 512, 128), (1024, 8192, 128)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("topk", {"k": 16}),
        ("topk", {"k": 16, "encoder_precision": "bfloat16"}),
        ("gated", {}),
        ("gated", {"encoder_precision": "bfloat16"}),
        ("relu", {"resample": (0.3,), "aux_coefficient": 0.0}),
        ("matryoshka", {"k": 16}),
    ],
)
def test_memory_is_predicted(name, options, atoms, rows, dim):
    script = MEASURE.format(name=name, options=options, atoms=atoms, rows=rows, dim=dim)
    # Otherwise glibc decides as it goes along how much of the freed memory the process keeps.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=100, env=env
    )
    used, predicted = map(int, done.stdout.split())
    partly_filled_pages = 4 << 20  # of 2 MiB each, where the system offers huge ones
    assert used <= predicted + partly_filled_pages
    assert predicted <= 4 * used


def test_is_registered_and_describes_itself():
    model = make_model("topk", {"atoms": 64, "k": 4})
    assert isinstance(model, TopK)
    assert make_model("topk", model.describe()) == model
    assert model.schedule().update_every == "batch"
    assert model.flops(16) == 2 * 16 * 64 + 8 * 16 * 4


def test_extreme_probe_values_stay_finite():
    x = torch.full((50, 3), 1e-30, dtype=torch.float64)
    probe = Probe(rows=50, mean=x.mean(0), variance=torch.zeros(3, dtype=torch.float64), sample=x)
    params = TopK(atoms=4, k=1, dtype="float64").init(probe, torch.Generator())
    assert all(torch.isfinite(value).all() for value in params.values())
