"""Evolutionary states: what Drefs, Guiraud, Lücke (2022) prove holds, for every model, on any number of workers."""

from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sparsefleet.models import Batch, ModelError, Schedule, Stage, make_model
from sparsefleet.workers import LearnJob

from . import learning

DIM, ATOMS, ROWS = 6, 6, 40
EMPTY, VOID = -1, -2


@dataclass(frozen=True)
class Case:
    """A model, its settings and how much of exactness to expect."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    levels: int = 1

    @property
    def id(self):
        return "-".join([self.name, *map(str, self.settings.values())])

    def data(self, **more):
        return (data(**more) > 0.4).double() if self.name == "noisyor" else data(**more)

    def model(self, atoms=ATOMS, evolution=None, **more):
        own = {"states": "evolutionary", "evolution": {"size": 10, "parents": 3, "children": 2, **(evolution or {})}}
        whole = {"atoms": atoms, "h_prime": 4, "gamma": 2, "dtype": "float64", **self.settings, **own}
        return make_model(self.name, {**whole, **more})


CASES = [
    Case("bsc"),
    Case("bsc", {"individual_priors": True, "offset": True}),
    Case("tsc", levels=2),
    Case("dsc", {"values": [-1, 0, 1, 2.5]}, levels=3),
    Case("gsc"),
    Case("gsc", {"slab": "full", "noise": "full"}),
    Case("gsc", {"noise": "diagonal"}),
    Case("mca"),
    Case("mmca"),
    Case("mmca", {"superposition": "smooth"}),
    Case("noisyor"),
]
SUMMED = [c for c in CASES if c.name != "noisyor"]
each = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)


def data(seed=0, rows=ROWS, atoms=ATOMS):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(
        (rng.random((rows, atoms)) < 0.3) @ rng.random((atoms, DIM)) + 0.1 * rng.normal(size=(rows, DIM))
    )


def start(model, y, seed=0):
    return model.init(learning.probe_of(y), torch.Generator().manual_seed(seed))


def learned(model, y, passes, *, params=None, kept=None, blocks=1, stages=None):
    """Parameters, metrics of every pass and what is kept, from `blocks` blocks of rows."""
    params = start(model, y) if params is None else params
    edges = np.linspace(0, len(y), blocks + 1).astype(int)
    kept = kept or [{} for _ in range(blocks)]
    trace = []
    for step in stages or range(passes):
        stage = Stage(step=step, steps=passes, seed=3, rows=len(y))
        parts = [model.statistics(params, Batch(y[a:b], a, {}, k), stage) for a, b, k in zip(edges, edges[1:], kept)]
        stats = parts[0]
        for part in parts[1:]:
            stats = stats + part
        trace.append(model.metrics(params, stats))
        params = model.update(params, stats, stage)
    return params, trace, kept


@pytest.mark.parametrize("case", SUMMED, ids=lambda c: c.id)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_sets_of_all_states_give_the_exact_posterior(case, temperature):
    atoms = 4
    count = (case.levels + 1) ** atoms
    y = case.data(atoms=atoms)
    evolved = case.model(atoms, {"size": count + 5, "warm_up": 0}, h_prime=atoms, gamma=atoms)
    exact = make_model(case.name, {"atoms": atoms, "dtype": "float64", **case.settings, "h_prime": 4, "gamma": 4})
    params = learning.run(exact, y, 3)[0]
    stage = Stage(step=1, steps=9, rows=ROWS, values={"T": temperature})
    kept = {}
    one, two = evolved.statistics(params, Batch(y, 0, {}, kept), stage), exact.statistics(params, Batch(y), stage)
    for f in fields(two):
        a, b = getattr(one, f.name), getattr(two, f.name)
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9 * float(b.norm())), f.name
    assert int((kept["states"][:, :, 0] != VOID).sum(1).min()) == count
    whole = case.model(atoms, states="all").statistics(params, Batch(y), stage)
    assert torch.allclose(whole.log_evidence, two.log_evidence, rtol=1e-12)
    # Nothing is left to find.
    again = evolved.statistics(params, Batch(y, 0, {}, kept), stage)
    assert float(again.substituted) == 0


@each
@pytest.mark.parametrize(
    "evolution",
    [
        {},
        {"selection": "uniform", "mutation": "sparseflip"},
        {"crossover": True, "generations": 2},
    ],
    ids=["fitness", "sparseflip", "crossover"],
)
def test_no_point_gets_worse_and_no_state_is_kept_twice(case, evolution):
    rows = 10
    y = case.data(rows=rows)
    model = case.model(evolution=evolution)
    params = learned(model, y, 2)[0]
    kept, before = [{} for _ in range(rows)], np.full(rows, -np.inf)
    substituted = 0.0
    for step in range(4):
        stage = Stage(step=step, steps=10, rows=rows)
        stats = [model.statistics(params, Batch(y[n : n + 1], n, {}, kept[n]), stage) for n in range(rows)]
        now = np.array([float(s.log_evidence) for s in stats])
        assert (now >= before - 1e-12 * np.abs(now)).all()
        before, substituted = now, substituted + sum(float(s.substituted) for s in stats)
    assert substituted > 0
    for row in kept:
        found = states_of(row["states"][0], ATOMS)
        assert len(found) == len(set(found)) > 1


def states_of(stored, atoms):
    """The sets' states as frozen sets of codes; checks their form on the way."""
    out = []
    for state in stored.tolist():
        if state[0] == VOID:
            continue
        active = [code for code in state if code != EMPTY]
        assert state == active + [EMPTY] * (len(state) - len(active)), "actives come first"
        assert len({code % atoms for code in active}) == len(active), "an atom has one value"
        out.append(frozenset(active))
    return out


@each
def test_free_energy_never_falls(case):
    y = case.data()
    _, trace, _ = learned(case.model(), y, 20)
    free = np.array([m["free_energy"] for m in trace])
    if case.name == "noisyor":
        free = np.delete(free, np.flatnonzero(np.diff(free, append=free[-1] + 1) < 0) + 1)
    if case.name in ("mca", "mmca"):
        # What was taken back does not count.
        free = np.array([m["free_energy"] for m, then in pairwise(trace) if then["taken_back"] == 0])
    assert len(free) > 3
    assert (np.diff(free) >= -1e-9 * np.abs(free[1:])).all()
    assert free[-1] > free[0]


@each
def test_blocks_and_workers_do_not_matter(case):
    y = case.data()
    whole, trace, kept = learned(case.model(), y, 4)
    for blocks in (2, 7):
        other, other_trace, other_kept = learned(case.model(), y, 4, blocks=blocks)
        assert torch.equal(torch.cat([k["states"] for k in other_kept]), kept[0]["states"])
        assert all(torch.allclose(whole[n], other[n], rtol=1e-9, atol=1e-11) for n in whole)
        assert other_trace[-1]["substitutions"] == trace[-1]["substitutions"]


@each
def test_resuming_equals_going_on(case):
    y = case.data()
    whole, _, kept = learned(case.model(), y, 8)
    params, _, half = learned(case.model(), y, 8, stages=range(3))
    half = [{n: torch.from_numpy(v.numpy().copy()) for n, v in k.items()} for k in half]
    params = {n: torch.from_numpy(p.numpy().copy()) for n, p in params.items()}
    params, _, half = learned(case.model(), y, 8, params=params, kept=half, stages=range(3, 8))
    assert all(torch.equal(params[n], whole[n]) for n in whole)
    assert torch.equal(half[0]["states"], kept[0]["states"])


@each
def test_float32_is_close_to_float64(case):
    y = case.data().float()
    double = case.model(evolution={"warm_up": 0})
    params = start(double, y.double())
    single = case.model(evolution={"warm_up": 0}, dtype="float32")
    # Which of two nearly equal states is kept may differ; the sums hardly do.
    one = single.statistics(params, Batch(y), Stage(step=0, steps=9)).log_evidence
    two = double.statistics(params, Batch(y.double()), Stage(step=0, steps=9)).log_evidence
    assert float((one - two).abs() / two.abs()) < 1e-5


@each
def test_odd_data_gives_finite_numbers(case):
    y = case.data()
    for values in (y * 0, y[:1], y[:1].expand(9, -1), y if case.name == "noisyor" else y * 1e6, y[:0]):
        model = case.model(dtype="float32", evolution={"size": 200})
        params = start(model, y)
        kept = [{}]
        for _ in range(3):
            params, trace, kept = learned(model, values.float(), 1, params=params, kept=kept)
            assert all(np.isfinite(v) for v in trace[0].values())
            assert all(bool(torch.isfinite(p).all()) for p in params.values())


@each
def test_what_is_kept_has_the_declared_form(case):
    model, y = case.model(), case.data()
    _, _, (kept,) = learned(model, y, 1)
    assert {n: (tuple(v.shape[1:]), str(v.dtype).removeprefix("torch.")) for n, v in kept.items()} == model.kept_rows()
    assert model.row_memory() >= sum(v[0].numel() * v.element_size() for v in kept.values())
    assert case.model(evolution={"size": 600}).memory(1000, DIM) > 0


def test_the_data_cut_is_refused():
    model = CASES[0].model()
    assert "ncut" not in model.schedule().ramps
    with pytest.raises(ModelError, match="no data is cut"):
        model.surveys_at(Stage(step=0, steps=1, values={"ncut": 0.5}))
    asked = Schedule(passes=9, update_every="pass", batch_rows=9, ramps={"ncut": ((0, 0), (1, 0.5))})
    with pytest.raises(ModelError, match="no data is cut"):
        model.check_schedule(asked)
    make_model("bsc", {"atoms": 5}).check_schedule(asked)
    job = LearnJob.parse({"data": "none", "atoms": 5, "schedule": {"ncut": [(0, 1)]}})
    with pytest.raises(ModelError, match="no data is cut"):
        job.build_schedule(model)


@pytest.mark.parametrize("case", SUMMED, ids=lambda c: c.id)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "large"])
def test_rows_that_are_not_finite_are_refused(case, dtype, bad):
    y, model = data(), case.model(dtype=dtype)
    params = start(model, y)
    y[17, 3] = (1e38 if dtype == "float32" else 1e300) if bad == "large" else bad
    if bad == "large":
        params = {n: p * 1e290 if n == "W" else p for n, p in params.items()}
    with pytest.raises(ModelError, match="NaN or infinite"):
        model.statistics(params, Batch(y.to(model.torch_dtype)), Stage(step=0, steps=1))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"states": "evolved"}, "states"),
        ({"evolution": {"size": 1}}, "evolution.size=1"),
        ({"evolution": {"parents": 1}}, "evolution.parents=1"),
        ({"evolution": {"flips": 0}}, "evolution.flips=0"),
        ({"evolution": {"warm_up": -1}}, "warm_up=-1"),
        ({"evolution": {"mutation": "swap"}}, "mutation"),
        ({"evolution": {"siez": 3}}, "did you mean 'evolution.size'"),
        ({"states": "evolutionary", "hysteresis": True}, "belongs to preselected"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ModelError, match=words):
        make_model("bsc", {"atoms": 5, **settings})


def test_bars_are_found():
    rng = np.random.default_rng(1)
    atoms = learning.bar_atoms(4)
    y = torch.from_numpy((rng.random((300, 8)) < 0.25) @ atoms.T + rng.normal(size=(300, 16)))
    model = make_model("bsc", {"atoms": 8, "states": "evolutionary", "evolution": {"size": 20}})
    runs = [learned(model, y.float(), 30, params=start(model, y, seed)) for seed in range(3)]
    params, trace, _ = max(runs, key=lambda r: r[1][-1]["free_energy"])
    found, _ = learning.match(params["W"], atoms)
    assert (found > 0.95).all()
    assert trace[-1]["substitutions"] < trace[1]["substitutions"]
