"""What every model learned with Expectation Truncation must do, one row per model."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sparsefleet.models import Batch, ModelError, Schedule, Stage, make_model
from sparsefleet.models.kernels import native
from sparsefleet.storage import create_dataset
from sparsefleet.workers import LearnJob, run
from sparsefleet.workers.plan import plan

from . import learning

DIM, ATOMS, ROWS = 6, 8, 200


@dataclass(frozen=True)
class Case:
    """A model and settings."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def model(self, **more):
        return make_model(
            self.name, {"atoms": ATOMS, "h_prime": 4, "gamma": 2, "dtype": "float64", **self.settings, **more}
        )


CASES = [
    Case("bsc"),
    Case("bsc", {"individual_priors": True, "offset": True}),
    Case("tsc"),
    Case("dsc", {"values": [-1, 0, 1, 2]}),
    Case("gsc"),
    Case("gsc", {"slab": "full", "noise": "full"}),
    Case("mca"),
    Case("mmca"),
]
NOISY = Case("noisyor", {"evolution": {"size": 10, "warm_up": 0}})
each = pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join([c.name, *c.settings]))


def data(seed=0, rows=ROWS):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(
        (rng.random((rows, ATOMS)) < 0.3) @ rng.random((ATOMS, DIM)) + 0.1 * rng.normal(size=(rows, DIM))
    )


def start(model, y):
    return model.init(learning.probe_of(y), torch.Generator().manual_seed(0))


def cut(model, params, y, edges, **values):
    """The stage after the surveys over blocks of `y`, and the blocks."""
    stage = Stage(step=1, steps=9, rows=len(y), values=values)
    blocks = [Batch(y[a:b], a) for a, b in pairwise(edges)]
    for _ in range(model.surveys_at(stage)):
        found = model.survey(params, blocks[0], stage)
        for block in blocks[1:]:
            found = found + model.survey(params, block, stage)
        stage = model.refine(params, found, stage)
    return stage, blocks


@each
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_the_cut_keeps_the_points_it_should(case, scale):
    # At 1000 times the noise every density underflows; their logarithms still rank the points.
    y = data()
    model = case.model()
    params = start(model, y)
    params["pi"] = params["pi"] * 0 + 0.3 if case.name != "dsc" else torch.tensor([0.1, 0.7, 0.1, 0.1]).double()
    y = y * scale
    wanted = int(ROWS * (1 - (1 - model.mass(params)) * 0.9))
    for edges in ((0, ROWS), (0, 0, 7, 120, ROWS)):
        stage, blocks = cut(model, params, y, edges, ncut=0.9)
        assert sum(int(model.statistics(params, b, stage).used) for b in blocks) == wanted < ROWS


@each
def test_without_a_schedule_all_points_count(case):
    y = data()
    model = case.model()
    stage = Stage(step=0, steps=9, rows=ROWS)
    assert model.surveys_at(stage) == 0
    assert int(model.statistics(start(model, y), Batch(y), stage).used) == ROWS


@each
def test_partial_points_are_drawn_by_place_and_step(case):
    y = data()
    model = case.model()
    params = start(model, y)
    draw = lambda step, at: model.statistics(  # noqa: E731
        params, Batch(y, at), Stage(step=step, steps=9, values={"partial": 0.3})
    )
    one = draw(2, 64)
    assert 0.1 < float(one.used) / ROWS < 0.5
    assert torch.equal(one.flatten(), draw(2, 64).flatten())
    assert not torch.equal(one.flatten(), draw(3, 64).flatten())
    assert not torch.equal(one.flatten(), draw(2, 0).flatten())


@each
def test_every_ramp_of_the_schedule_runs(case):
    y = data()
    model = case.model()
    ramps = {
        "T": ((0, 3), (0.5, 1)),
        "ncut": ((0, 0), (1, 1)),
        "partial": ((0, 0.5), (1, 1)),
        **dict.fromkeys(("W_noise", "pi_noise", "sigma_noise"), ((0, 0.05), (1, 0))),
    }
    assert set(ramps) == set(model.ramp_names)
    params, trace = learning.run(model, y, 12, ramps)
    assert all(bool(torch.isfinite(p).all()) for p in params.values())
    assert all(np.isfinite(v) for m in trace for v in m.values())
    again, _ = learning.run(model, y, 12, ramps)
    assert all(torch.equal(params[n], again[n]) for n in params)


@each
def test_a_single_candidate_and_a_single_atom_suffice(case):
    y = data()
    for settings in ({"h_prime": 1, "gamma": 1}, {"atoms": 1, "h_prime": 9, "gamma": 9}):
        model = case.model(**settings)
        params, trace = learning.run(model, y, 5)
        assert all(bool(torch.isfinite(p).all()) for p in params.values())
        assert np.isfinite(trace[-1]["free_energy"])


@each
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_refused(case, dtype, bad):
    y = data()
    model = case.model(dtype=dtype)
    params = start(model, y)
    y[17, 3] = bad
    with pytest.raises(ModelError, match="NaN or infinite"):
        model.statistics(params, Batch(y.to(model.torch_dtype)), Stage(step=0, steps=1))


@each
def test_float32_is_close_to_float64(case):
    y = data().float()
    model = case.model()
    params = start(model, y.double())
    for values in ({}, {"T": 2.5}):
        stage = Stage(step=0, steps=9, values=values)
        one = case.model(dtype="float32").statistics(params, Batch(y), stage).flatten().double()
        two = model.statistics(params, Batch(y.double()), stage).flatten()
        assert float((one - two).norm() / two.norm()) < 1e-5


@each
def test_the_predicted_memory_covers_the_states(case):
    few, many = case.model(h_prime=4, gamma=2), case.model(h_prime=8, gamma=4)
    assert many.memory(4096, DIM) > few.memory(4096, DIM)


@each
def test_resuming_equals_going_on(case):
    y = data()
    model = case.model()
    ramps = {"T": ((0, 2), (0.6, 1)), "W_noise": ((0, 0.02), (0.5, 0))}
    whole, _ = learning.run(model, y, 10, ramps)
    schedule = Schedule(passes=10, update_every="pass", batch_rows=ROWS, ramps=ramps)
    stages = [schedule.at(i, 10, seed=0, rows=ROWS) for i in range(10)]
    params = start(model, y)
    for i in range(10):
        if i == 4:
            params = {n: torch.from_numpy(p.numpy().copy()) for n, p in params.items()}
        params = model.update(params, model.statistics(params, Batch(y), stages[i]), stages[i])
    assert all(torch.equal(params[n], whole[n]) for n in whole)


@pytest.mark.parametrize("case", [*CASES, NOISY], ids=lambda c: "-".join([c.name, *c.settings]))
def test_fixed_parameters_keep_their_start_values(case):
    y = (data() > 0.4).double() if case is NOISY else data()
    names = [n for n in start(case.model(), y) if not n.startswith("training/")]
    for name in names:
        model = case.model(fixed=[name])
        params = start(model, y)
        learned, trace = learning.run(model, y, 4, {"W_noise": ((0, 0.1), (1, 0))}, params=params)
        assert torch.equal(learned[name], params[name])
        assert any(not torch.equal(learned[n], params[n]) for n in names if n != name)
        assert np.isfinite(trace[-1]["free_energy"])
    with pytest.raises(ModelError, match="fixed='nothing'"):
        learning.run(case.model(fixed=["nothing"]), y, 1)
    with pytest.raises(ModelError, match="fixed='training/W' is no parameter"):
        case.model(fixed=["training/W"]).check_start(start(case.model(), y))


def test_a_job_that_fixes_what_is_no_parameter_ends_before_it_reads_data(tmp_path):
    form = {
        "arrays": {"data": ((DIM,), "float32")},
        "shard_rows": 30,
        "chunk_rows": 30,
        "attributes": {"kind": "dense"},
    }
    writer = create_dataset(str(tmp_path / "data.zarr"), rows=30, **form)
    writer.write(*writer.shards(), data=data(rows=30).float().numpy())
    writer.finish()
    own = {"data": str(tmp_path / "data.zarr"), "store": str(tmp_path / "store"), "atoms": 5}
    job = LearnJob.parse({**own, "settings": {"fixed": ["nothing"]}})
    with pytest.raises(ModelError, match="fixed='nothing'"):
        plan(job)
    with pytest.raises(ModelError, match="fixed='nothing'"):
        next(run("learn", job))


@each
@pytest.mark.parametrize("sigma", [0.0, 1e-200, -1.0])
def test_noise_that_no_update_gives_is_refused(case, sigma):
    if case.settings.get("noise") == "full":
        return
    y, model = data(), case.model()
    own = start(model, y)["sigma"]
    with pytest.raises(ModelError, match="at least 1e-15"):
        model.adopt("sigma", torch.full_like(own, sigma), own)
    assert torch.equal(model.adopt("sigma", torch.full_like(own, 1e-15), own), torch.full_like(own, 1e-15))


@each
def test_drawing_points_needs_no_scores(case, monkeypatch):
    y, model = data(), case.model()
    monkeypatch.setattr(type(model), "log_z", lambda *_: pytest.fail("the E-step ran twice"))
    stats = model.statistics(start(model, y), Batch(y), Stage(step=0, steps=9, values={"partial": 0.5}))
    assert 0 < float(stats.used) < ROWS


@pytest.mark.skipif(native.library() is None, reason="the kernels were not compiled (no C++ compiler at set-up)")
@each
@pytest.mark.parametrize("more", [{"hysteresis": True}, {"states": "evolutionary"}], ids=str)
def test_codes_come_from_the_kernel_however_states_were_learned(case, more, monkeypatch):
    y = data()
    params = start(case.model(), y)
    expected = case.model().means(params, y)
    ran, real = list[str](), native.call
    monkeypatch.setattr(native, "call", lambda name, *given: (ran.append(name), real(name, *given))[1])
    assert torch.equal(case.model(**more).means(params, y), expected)
    assert bool(ran) == (case.settings.get("slab") != "full")
