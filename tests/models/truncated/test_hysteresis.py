"""Candidates that stay where they explain a point better make Expectation Truncation monotone."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sparsefleet.models import Batch, Stage, make_model

from . import learning

ATOMS, DIM = 10, 6
CASES = [
    ("bsc", {}),
    ("tsc", {}),
    ("dsc", {"values": [0, 1, 2], "offset": True}),
    ("gsc", {}),
    ("gsc", {"slab": "full", "noise": "diagonal"}),
    ("mca", {}),
    ("mmca", {}),
]
each = pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(v))


def data(rows=150):
    rng = np.random.default_rng(2)
    return torch.from_numpy((rng.random((rows, 8)) < 0.4) @ rng.normal(size=(8, DIM)) + rng.normal(size=(rows, DIM)))


def model_of(name, settings, **more):
    return make_model(name, {"atoms": ATOMS, "h_prime": 3, "gamma": 2, "dtype": "float64", **settings, **more})


def learned(model, y, passes):
    params, kept, trace = model.init(learning.probe_of(y), torch.Generator().manual_seed(1)), {}, []
    for step in range(passes):
        stage = Stage(step=step, steps=passes, rows=len(y))
        stats = model.statistics(params, Batch(y, 0, {}, kept), stage)
        trace.append(model.metrics(params, stats))
        params = model.update(params, stats, stage)
    return params, trace, kept


@each
def test_free_energy_never_falls(name, settings):
    y = data()
    _, trace, _ = learned(model_of(name, settings, hysteresis=True), y, 30)
    free = np.array([m["free_energy"] for m in trace])
    if name in ("mca", "mmca"):
        # What was taken back does not count.
        free = np.array([m["free_energy"] for m, then in pairwise(trace) if then["taken_back"] == 0])
    assert len(free) > 5
    assert (np.diff(free) >= -1e-9 * np.abs(free[1:])).all()


def test_without_it_free_energy_may_fall():
    falls = 0
    for settings in ({}, {"select": "singleton"}):
        _, trace, _ = learned(model_of("bsc", settings), data(), 30)
        falls += int((np.diff([m["free_energy"] for m in trace]) < -1e-6).sum())
    assert falls > 0


@each
def test_the_better_list_of_every_point_is_kept(name, settings):
    y = data()
    model = model_of(name, settings, hysteresis=True)
    params = learned(model, y, 3)[0]
    draw = torch.Generator().manual_seed(0)
    old = torch.stack([torch.randperm(ATOMS, generator=draw)[:3] for _ in range(len(y))])
    kept = {"candidates": old.int()}
    stage = Stage(step=0, steps=9)
    stats = model.statistics(params, Batch(y, 0, {}, kept), stage)
    one, two = model.posterior(params, y), model.posterior(params, y, candidates=old)
    better = two.log_z >= one.log_z
    assert 0 < int(better.sum()) < len(y)
    assert torch.equal(kept["candidates"].long(), torch.where(better[:, None], old, one.candidates))
    expected = torch.maximum(one.log_evidence, two.log_evidence).sum()
    assert torch.isclose(stats.log_evidence, expected, rtol=1e-12)
    settled = model.posterior(params, y, candidates=kept["candidates"].long())
    fixed = model_of(name, settings).statistics(params, Batch(y, 0, {"candidates": settled.candidates}), stage)
    assert torch.allclose(stats.flatten(), fixed.flatten(), rtol=1e-9, atol=1e-9)


@each
def test_the_cut_still_keeps_the_points_it_should(name, settings):
    y = data()
    model = model_of(name, settings, hysteresis=True)
    params, _, kept = learned(model, y, 4)
    params["pi"] = params["pi"] * 0 + (torch.tensor([0.4, 0.3, 0.3]).double() if name == "dsc" else 0.3)
    stage = Stage(step=1, steps=9, rows=len(y), values={"ncut": 1.0})
    blocks = [
        Batch(y[a:b], a, {}, {n: v[a:b].clone() for n, v in kept.items()}) for a, b in ((0, 50), (50, 50), (50, 150))
    ]
    wanted = int(len(y) * model.mass(params))
    for _ in range(model.surveys_at(stage)):
        found = model.survey(params, blocks[0], stage)
        for block in blocks[1:]:
            found = found + model.survey(params, block, stage)
        stage = model.refine(params, found, stage)
    assert sum(int(model.statistics(params, b, stage).used) for b in blocks) == wanted < len(y)
