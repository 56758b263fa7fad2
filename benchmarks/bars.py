"""The bars test for every truncated model: are all bars found, and are prior and noise those of the data?

Images of 5 × 5 pixels superpose horizontal and vertical bars of amplitude 10, each with probability 0.2, plus noise.
Every seed draws new data and new start values. "found" counts the runs in which every bar has an atom of cosine above
0.95; where a row says "of 3 starts", the start with the highest free energy counts. The numbers behind it are over
those successful runs: the largest error of π and σ, the mean relative error of the atoms, the smallest gain in free
energy per datapoint over the parameters that made the data (nats).

    python benchmarks/bars.py [--seeds 10] [--only mca,gsc]
"""

import argparse
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sparsefleet.models import Batch, Probe, Schedule, make_model

SIZE, ROWS = 5, 1000
COOL = {"T": ((0.0, 4.0), (0.8, 1.0)), "ncut": ((0.0, 0.0), (2 / 3, 1.0))}


@dataclass(frozen=True)
class Experiment:
    """A model, its data and how it is learned."""

    label: str
    model: str
    settings: dict[str, Any]
    passes: int
    ramps: dict[str, Any]
    values: tuple[float, ...] = (0.0, 1.0)
    p: tuple[float, ...] = (0.8, 0.2)
    sigma: float = 2.0
    starts: int = 1
    columns: float = 1.0
    """Factor of the vertical bars."""
    then: tuple[int, dict[str, Any]] = (0, {})
    """Passes at temperature 1 with other settings afterwards."""
    signs: bool = field(default=False)
    """Whether an atom may be found with the other sign."""


EXPERIMENTS = [
    Experiment("bsc", "bsc", {"h_prime": 8, "gamma": 5}, 150, {**COOL, "T": ((0, 5), (0.8, 1))}),
    Experiment(
        "tsc", "tsc", {"h_prime": 6, "gamma": 4}, 100, {**COOL, "T": ((0, 3), (0.7, 1))}, (-1, 0, 1), (0.1, 0.8, 0.1),
        starts=3, signs=True,
    ),
    Experiment(
        "dsc", "dsc", {"h_prime": 5, "gamma": 4, "values": [0, 1, 2]}, 60, {**COOL, "T": ((0, 2), (0.7, 1))},
        (0, 1, 2), (0.8, 0.15, 0.05), starts=3,
    ),
    Experiment(
        "gsc", "gsc", {"h_prime": 6, "gamma": 3}, 60, {"T": COOL["T"]}, sigma=1.0, starts=3, signs=True,
        then=(20, {"h_prime": 10, "gamma": 6}),
    ),
    Experiment("mmca", "mmca", {"h_prime": 7, "gamma": 5}, 200, COOL),
    Experiment("mmca, -7 and 10", "mmca", {"h_prime": 7, "gamma": 5}, 200, COOL, columns=-0.7),
    Experiment("mca", "mca", {"h_prime": 8, "gamma": 5}, 300, COOL),
]  # fmt: skip


def bars(columns: float) -> np.ndarray:
    """[D, 10] atoms."""
    weights = np.zeros((SIZE, SIZE, 2 * SIZE))
    for i in range(SIZE):
        weights[i, :, i], weights[:, i, SIZE + i] = 10.0, 10.0 * columns
    return weights.reshape(SIZE * SIZE, 2 * SIZE)


def draw(e: Experiment, seed: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Data, latents and atoms."""
    rng = np.random.default_rng(seed)
    atoms = bars(e.columns)
    s = rng.choice(e.values, p=e.p, size=(ROWS, 2 * SIZE))
    held = s * rng.normal(1, 1, size=s.shape) if e.model == "gsc" else s
    clean = held @ atoms.T
    if e.model in ("mca", "mmca"):
        on = s[:, None, :] * atoms
        clean = np.take_along_axis(on, np.abs(on).argmax(2)[:, :, None], 2)[:, :, 0]
    return torch.from_numpy(clean + e.sigma * rng.normal(size=clean.shape)), s, atoms


def learn(model, y, passes, ramps, seed, params=None):
    """Parameters and the last free energy per datapoint."""
    y = y.to(model.torch_dtype)
    schedule = Schedule(passes=passes, update_every="pass", batch_rows=len(y), ramps=ramps)
    probe = Probe(len(y), y.double().mean(0), y.double().var(0), y.double())
    params = params or model.init(probe, torch.Generator().manual_seed(seed))
    value = 0.0
    for step in range(passes):
        stage, batch = schedule.at(step, passes, seed=seed, rows=len(y)), Batch(y)
        for _ in range(model.surveys_at(stage)):
            stage = model.refine(params, model.survey(params, batch, stage), stage)
        stats = model.statistics(params, batch, stage)
        value = model.metrics(params, stats)["free_energy"]
        params = model.update(params, stats, stage)
    return params, value


def one_run(e: Experiment, seed: int) -> dict[str, Any]:
    """What came out of the best start."""
    y, s, atoms = draw(e, seed)
    model = make_model(e.model, {"atoms": 2 * SIZE, **e.settings})
    tries = [learn(model, y, e.passes, e.ramps, 1000 * start + seed) for start in range(e.starts)]
    params, value = max(tries, key=lambda t: t[1])
    if e.then[0]:
        model = make_model(e.model, {"atoms": 2 * SIZE, **e.then[1]})
        params, value = learn(model, y, e.then[0], {}, seed, params)
    learned = params["W"].numpy()
    cosine, found = match(learned, atoms, signs=e.signs)
    truth = truth_params(e, s, atoms, params)
    free = float(model.posterior(truth, y).log_evidence.mean())
    unit = (lambda w: w / np.linalg.norm(w, axis=0)) if e.model == "gsc" else (lambda w: w)
    pi = params["pi"].numpy()
    wanted = np.array([(s == v).mean() for v in e.values]) if e.model == "dsc" else (s != 0).mean()
    first = match(tries[0][0]["W"].numpy(), atoms, signs=e.signs)[0]
    power = 0.0
    if e.model == "gsc":
        moved = (params["W"].square().sum(0) * (params["mu"] ** 2 + params["psi"])).numpy()
        power = float(np.abs(moved / (2.0 * (atoms**2).sum(0)) - 1).mean())
    return {
        "found": bool((cosine > 0.95).all()),
        "first": bool((first > 0.95).all()),
        "pi": float(np.abs(pi.mean() - wanted if e.model == "gsc" else pi - wanted).max()),
        "sigma": float(abs(params["sigma"] / e.sigma - 1)),
        "rel": float(np.linalg.norm(unit(found) - unit(atoms)) / np.linalg.norm(unit(atoms))),
        "gain": value - free,
        "power": power,
    }


def truth_params(e, s, atoms, params):
    """The parameters that made the data."""
    double = lambda v: torch.tensor(v, dtype=torch.float64)  # noqa: E731
    out = {**params, "W": torch.from_numpy(atoms), "sigma": double(e.sigma)}
    if e.model == "dsc":
        return {**out, "pi": double(e.p)}
    if e.model == "gsc":
        ones = torch.ones(s.shape[1], dtype=torch.float64)
        return {**out, "pi": 0.2 * ones, "mu": ones, "psi": ones}
    return {**out, "pi": double(0.2)}


def match(found, truth, *, signs):
    """Cosines of matched pairs, and the matched atoms."""
    unit = lambda w: w / np.maximum(np.linalg.norm(w, axis=0), 1e-12)  # noqa: E731
    cosine = unit(truth).T @ unit(found)
    rows, columns = linear_sum_assignment(-np.abs(cosine) if signs else -cosine)
    best = cosine[rows, columns]
    return (np.abs(best), found[:, columns] * np.sign(best)) if signs else (best, found[:, columns])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", default="", help="labels, separated by semicolons")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = options.only.split(";") if options.only else [e.label for e in EXPERIMENTS]
    print(
        "| model | found | first start alone | max abs err pi | max err sigma | mean rel err W | min gain F | s/run |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for e in EXPERIMENTS:
        if e.label not in chosen:
            continue
        begun = time.process_time()
        runs = [one_run(e, seed) for seed in range(options.seeds)]
        spent = (time.process_time() - begun) / options.seeds
        good = [r for r in runs if r["found"]]
        many = f" (best of {e.starts} starts)" if e.starts > 1 else ""
        worst = lambda key, good=good: max((r[key] for r in good), default=float("nan"))  # noqa: E731
        extra = f", slab power {np.mean([r['power'] for r in good]):.1%}" if e.model == "gsc" and good else ""
        print(
            f"| {e.label} | {len(good)}/{len(runs)}{many} | {sum(r['first'] for r in runs)}/{len(runs)} "
            f"| {worst('pi'):.4f} | {worst('sigma'):.1%} "
            f"| {np.mean([r['rel'] for r in good]) if good else float('nan'):.3f}{extra} "
            f"| {min((r['gain'] for r in good), default=float('nan')):+.2f} | {spent:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
