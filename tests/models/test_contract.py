"""One battery for every model: add a row to CASES and it runs through all of it."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from sparsefleet.models import MODELS, TRAINING, Batch, ModelError, Probe, Schedule, Stage, load_model_class, make_model

ROWS, DIM, ATOMS = 60, 8, 12


@dataclass(frozen=True)
class Case:
    """A model and the settings to try it with."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    binary: bool = False
    """Whether it explains zeros and ones only."""

    def rows(self, **more):
        return (rows(**more) > 0.5).double() if self.binary else rows(**more)

    def model(self, dtype="float64", **more):
        return make_model(self.name, {"atoms": ATOMS, "dtype": dtype, **self.settings, **more})


CASES = [
    Case("bsc", {"h_prime": 5, "gamma": 3}),
    Case("tsc", {"h_prime": 4, "gamma": 3, "offset": True, "select": "cosine"}),
    Case("dsc", {"h_prime": 4, "gamma": 3, "values": [-1, 0, 1.5], "individual_priors": True}),
    Case("gsc", {"h_prime": 5, "gamma": 3, "slab": "full", "noise": "diagonal"}),
    Case("mca", {"h_prime": 5, "gamma": 3}),
    Case("mmca", {"h_prime": 4, "gamma": 4, "superposition": "smooth"}),
    Case("mod", {"nonzeros": 3}),
    Case("ksvd", {"nonzeros": 3}),
    Case("online", {"penalty": 0.3, "tolerance": 1e-12}),
    Case("procrustes", {"atoms": DIM, "nonzeros": 3}),
    Case("odlfw", {"atoms": DIM, "nonzeros": 3}),
    Case("snmf", {"share": 0.5, "levels": (4, 2), "replace": True}),
    Case("nmf"),
    Case("noisyor", {"h_prime": 4, "gamma": 2, "evolution": {"size": 12}}, binary=True),
    Case("topk", {"k": 3}),
    Case("abstopk", {"k": 3}),
    Case("groupmax", {"k": 4}),
    Case("gsae", {"k": 3}),
    Case("batchtopk", {"k": 3}),
    Case("batchabstopk", {"k": 3}),
    Case("matryoshka", {"k": 3}),
    Case("relu"),
    Case("gated"),
    Case("jumprelu"),
]
STAGE = Stage(step=3, steps=10, rows=ROWS)
each = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def rows(seed=0, n=ROWS):
    rng = np.random.default_rng(seed)
    return torch.from_numpy((rng.random((n, 5)) < 0.4) @ rng.normal(size=(5, DIM)) + 0.1 * rng.normal(size=(n, DIM)))


def start(model, seed=0):
    y = rows()
    return model.init(Probe(len(y), y.mean(0), y.var(0), y), torch.Generator().manual_seed(seed))


def test_every_model_has_a_row():
    assert {c.name for c in CASES} == set(MODELS)


@each
def test_statistics_add(case):
    model, y = case.model(), case.rows()
    params = start(model)
    whole = model.statistics(params, Batch(y), STAGE).flatten()
    for cut in (1, 17, ROWS - 1):
        parts = model.statistics(params, Batch(y[:cut]), STAGE) + model.statistics(params, Batch(y[cut:], cut), STAGE)
        assert torch.allclose(parts.flatten(), whole, rtol=1e-9, atol=1e-9)


@each
def test_no_rows_give_zero_of_the_same_layout(case):
    model = case.model()
    params = start(model)
    nothing = model.statistics(params, Batch(case.rows()[:0]), STAGE)
    some = model.statistics(params, Batch(case.rows()), STAGE)
    assert nothing.flatten().shape == some.flatten().shape
    assert nothing.flatten().dtype == some.flatten().dtype
    assert not nothing.flatten().any()


@each
def test_statistics_survive_flattening(case):
    model = case.model()
    stats = model.statistics(start(model), Batch(case.rows()), STAGE)
    again = stats.unflatten(stats.flatten())
    assert type(again) is type(stats)
    assert torch.equal(again.flatten(), stats.flatten())


@each
def test_a_schedule_out_of_range_is_refused(case):
    model = case.model()
    for name, (low, high) in model.ramp_limits.items():
        for value in (low - 1e-3, high + 1e-3, -1e300):
            if value == float("inf"):
                continue
            schedule = Schedule(passes=2, update_every="pass", batch_rows=9, ramps={name: ((0.0, low), (1.0, value))})
            with pytest.raises(ModelError, match=rf"schedule.{name}: .* is out of range, choose "):
                model.check_schedule(schedule)
    model.check_schedule(model.schedule())


@each
def test_codes_have_as_many_columns_whatever_the_rows(case):
    """Or they would not fit into one array."""
    model, y = case.model(), case.rows()
    params = model.prepare(start(model))
    shapes = [model.encode(params, Batch(x)).indices.shape for x in (y, y[:1], y[:1] * 0)]
    assert [tuple(shape) for shape in shapes] == [(n, shapes[0][1]) for n in (ROWS, 1, 1)]
    assert shapes[0][1] > 0


@each
@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("float64", "float32")])
def test_a_dictionary_encodes_in_another_dtype_than_it_was_learned_in(case, dtypes):
    learned, other = (case.model(dtype=dtype) for dtype in dtypes)
    y = case.rows()
    params = start(learned)
    params = learned.update(params, learned.statistics(params, Batch(y.to(learned.torch_dtype)), STAGE), STAGE)
    own, found = (
        model.encode(model.prepare(params), Batch(y.to(model.torch_dtype))).dense(model.atoms).double()
        for model in (learned, other)
    )
    assert float((own - found).norm()) <= 1e-2 * float(own.norm()) + 1e-6


@each
def test_init_and_update_are_deterministic_and_pure(case):
    model = case.model()
    params, other = start(model), start(model)
    before = {n: p.clone() for n, p in params.items()}
    stats = model.statistics(params, Batch(case.rows()), STAGE)
    one, two = model.update(params, stats, STAGE), model.update(other, stats, STAGE)
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert all(torch.equal(params[n], before[n]) for n in params), "update changed its input"
    assert one.keys() == params.keys()
    assert all(one[n].shape == params[n].shape and one[n].dtype == params[n].dtype for n in one)


@each
def test_update_from_nothing_keeps_finite_parameters(case):
    model = case.model()
    params = start(model)
    stats = model.statistics(params, Batch(case.rows()[:0]), STAGE)
    assert all(bool(torch.isfinite(p).all()) for p in model.update(params, stats, STAGE).values())


@each
@pytest.mark.parametrize("values", ["zero", "one point", "duplicates", "huge"])
def test_odd_data_gives_finite_numbers(case, values):
    y = case.rows()
    y = {"zero": y * 0, "one point": y[:1], "duplicates": y[:1].expand(9, -1), "huge": y if case.binary else y * 1e6}[
        values
    ]
    for dtype in ("float32", "float64"):
        model = case.model(dtype)
        params = start(model)
        for step in range(3):
            stage = Stage(step=step, steps=3, rows=len(y))
            stats = model.statistics(params, Batch(y.to(model.torch_dtype)), stage)
            assert all(np.isfinite(v) for v in model.metrics(params, stats).values())
            params = model.update(params, stats, stage)
            assert all(bool(torch.isfinite(p).all()) for p in params.values())


@each
def test_float32_is_close_to_float64(case):
    single, double = case.model("float32"), case.model("float64")
    y = case.rows().float()
    one = single.statistics(start(single), Batch(y), STAGE).flatten().double()
    two = double.statistics(start(double), Batch(y.double()), STAGE).flatten()
    assert float((one - two).norm() / two.norm()) < 1e-3


@each
def test_codes_have_the_promised_form(case):
    model = case.model("float32")
    codes = model.encode(start(model), Batch(case.rows().float()))
    assert codes.indices.dtype == torch.int32 and codes.values.dtype == torch.float32
    assert codes.indices.shape == codes.values.shape and len(codes.indices) == ROWS
    assert int(codes.indices.max()) < ATOMS and int(codes.indices.min()) >= -1
    assert not codes.values[codes.indices < 0].any()
    for line in codes.indices.tolist():
        present = [i for i in line if i >= 0]
        assert len(present) == len(set(present))


@each
def test_dictionary_is_dim_by_atoms(case):
    model = case.model()
    assert model.dictionary(start(model)).shape == (DIM // len(model.arrays), model.atoms)


@each
def test_there_are_parameters_to_publish(case):
    params = start(case.model())
    assert any(not n.startswith(TRAINING) for n in params)


@each
def test_the_description_is_plain_and_makes_the_model_again(case):
    model = case.model()
    assert make_model(case.name, json.loads(json.dumps(model.describe()))) == model


@each
def test_the_default_schedule_names_only_known_values(case):
    model = case.model()
    assert set(model.schedule().ramps) <= set(model.ramp_names)


@each
def test_predicted_memory_grows_with_rows_and_atoms(case):
    model = case.model()
    assert model.memory(10_000, DIM) > model.memory(100, DIM) > 0
    assert case.model(atoms=1000).memory(100, DIM) > model.memory(100, DIM)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bcs", "did you mean 'bsc'"),
        ("nothing", "unknown model 'nothing'"),
        ("no_such_module:Model", "cannot import 'no_such_module' .* --module-path names the folder that holds it"),
        ("json.no_such_module:Model", "cannot import 'json.no_such_module' .* --module-path names"),
        ("json:Model", "has no class 'Model'"),
        ("json:JSONDecoder", "derived from"),
    ],
)
def test_unknown_models_are_refused(name, words):
    with pytest.raises(ModelError, match=words):
        load_model_class(name)
