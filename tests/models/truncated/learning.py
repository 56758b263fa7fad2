"""Bars, a learning loop without workers, and how well a dictionary was found."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sparsefleet.models import Batch, Probe, Schedule


def bar_atoms(size=5, amplitude=10.0):
    """[D, 2R] rows and columns of an R × R image."""
    weights = np.zeros((size, size, 2 * size))
    for i in range(size):
        weights[i, :, i] = weights[:, i, size + i] = amplitude
    return weights.reshape(size * size, 2 * size)


def probe_of(y):
    return Probe(len(y), y.double().mean(0), y.double().var(0), y.double())


def run(model, y, passes, ramps=None, seed=0, params=None, memo=None):
    """Learn from `y` as one batch; the parameters and every update's metrics."""
    y = y.to(model.torch_dtype)
    schedule = Schedule(passes=passes, update_every="pass", batch_rows=len(y), ramps=ramps or {})
    params = params or model.init(probe_of(y), torch.Generator().manual_seed(seed))
    trace = []
    for step in range(passes):
        stage, batch = schedule.at(step, passes, seed=seed, rows=len(y)), Batch(y, 0, dict(memo or {}))
        for _ in range(model.surveys_at(stage)):
            stage = model.refine(params, model.survey(params, batch, stage), stage)
        stats = model.statistics(params, batch, stage)
        trace.append(model.metrics(params, stats))
        params = model.update(params, stats, stage)
    return params, trace


def match(found, truth, *, signs=False):
    """(cosines of matched pairs, matched atoms with their sign set to the truth's [D, H*])."""
    found, truth = np.asarray(found), np.asarray(truth)
    unit = lambda w: w / np.maximum(np.linalg.norm(w, axis=0), 1e-12)  # noqa: E731
    cosine = unit(truth).T @ unit(found)
    rows, columns = linear_sum_assignment(-np.abs(cosine) if signs else -cosine)
    best = cosine[rows, columns]
    return (np.abs(best), found[:, columns] * np.sign(best)) if signs else (best, found[:, columns])
