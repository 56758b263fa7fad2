"""The bars test with evolutionary states: does the best of five starts find all bars, and how far is its free energy
from that of EM with all states, started at the truth?

Images of 4 × 4 pixels, 8 bars, each with probability 0.25, 500 images; amplitude 10 and σ = 1 (noisy-OR: probabilities
0.9 and 0.02). Sets of 20 states, 8 parents, 4 children, 60 passes, temperature from 2 (gsc: 4) to 1. Every seed
draws new data. Spike-and-slab starts with at most 3 active atoms (with all states it finds other optima, exact EM too),
then come 20 passes without that limit.

    python benchmarks/evolution.py [--seeds 3] [--only bsc,gsc] [--exact] [--passes 60] [--temperature 2]

With --exact the same starts learn with all states instead of sets (bsc, tsc, mca, mmca): it tells what the sets cost
from what the starts do.
"""

import argparse
import time

import numpy as np
import torch
from sparsefleet.models import Batch, Probe, Schedule, make_model
from sparsefleet.models.recovery import recover

SIZE, ROWS, STARTS, PASSES = 4, 500, 5, 60
MODELS = ("bsc", "tsc", "gsc", "mca", "mmca", "noisyor")
HOT = {"gsc": 4.0}


def draw(name: str, seed: int):
    """Data and the parameters that made them."""
    rng = np.random.default_rng(seed)
    atoms = np.zeros((SIZE, SIZE, 2 * SIZE))
    for i in range(SIZE):
        atoms[i, :, i] = atoms[:, i, SIZE + i] = 10.0
    atoms = atoms.reshape(SIZE**2, -1)
    s = (rng.random((ROWS, 2 * SIZE)) < 0.25).astype(float)
    truth = {"W": atoms, "pi": 0.25, "sigma": 1.0}
    if name == "noisyor":
        truth = {"W": atoms * 0.088 + 0.02, "pi": np.full(2 * SIZE, 0.25)}
        off = np.prod(1 - s[:, None] * truth["W"], axis=2)
        return torch.from_numpy((rng.random(off.shape) > off).astype(float)), truth
    if name == "tsc":
        s *= rng.choice([-1, 1], size=s.shape)
    if name == "gsc":
        s *= rng.normal(1, 1, size=s.shape)
        truth |= {key: np.full(2 * SIZE, value) for key, value in (("pi", 0.25), ("mu", 1.0), ("psi", 1.0))}
    clean = (s[:, None] * atoms).max(2) if name in ("mca", "mmca") else s @ atoms.T
    return torch.from_numpy(clean + rng.normal(size=clean.shape)), truth


def learn(model, y, ramps, seed, start=None, passes=PASSES):
    """Parameters and the free energy per datapoint of the last pass."""
    y = y.to(model.torch_dtype)
    schedule = Schedule(passes=passes, update_every="pass", batch_rows=len(y), ramps=ramps)
    probe = Probe(len(y), y.double().mean(0), y.double().var(0), y.double())
    params = model.init(probe, torch.Generator().manual_seed(seed))
    for name, value in (start or {}).items():
        params[name] = torch.as_tensor(value, dtype=torch.float64)
    kept, value = {}, float("nan")
    for step in range(passes):
        stage = schedule.at(step, passes, seed=seed, rows=len(y))
        stats = model.statistics(params, Batch(y, 0, {}, kept), stage)
        value = model.metrics(params, stats)["free_energy"]
        params = model.update(params, stats, stage)
    return params, value


def one_seed(name: str, seed: int, options: argparse.Namespace):
    """Bars found by the best start and by each, and the gap in free energy per datapoint."""
    y, truth = draw(name, seed)
    whole = {"atoms": 2 * SIZE, "dtype": "float64"}
    everything = {"states": "all"} if name == "noisyor" else {"h_prime": 2 * SIZE, "gamma": 2 * SIZE}
    reference = learn(make_model(name, {**whole, **everything}), y, {}, seed, truth, passes=25)[1]
    runs = [
        evolve(name, {**whole, **everything} if options.exact else whole, y, 100 * seed + start, options)
        for start in range(STARTS)
    ]
    signs = name in ("tsc", "gsc", "mmca")
    found = [recover(p["W"].numpy(), np.asarray(truth["W"]), signs=signs).found for p, _ in runs]
    best = int(np.argmax([value for _, value in runs]))
    return found[best], found, runs[best][1] - reference


def evolve(name: str, whole: dict, y, seed: int, options: argparse.Namespace):
    """As `learn`, with evolutionary states, or with all."""
    hot = options.temperature or HOT.get(name, 2.0)
    if options.exact:
        return learn(make_model(name, whole), y, {"T": ((0.0, hot), (0.5, 1.0))}, seed, passes=options.passes)
    made = lambda **evolution: make_model(  # noqa: E731
        name, {**whole, "states": "evolutionary", "evolution": {"size": 20, **evolution}}
    )
    ramps = {"T": ((0.0, hot), (0.8 if name == "gsc" else 0.5, 1.0))}
    if name != "gsc":
        return learn(made(), y, ramps, seed, passes=options.passes)
    params, _ = learn(made(most_active=3), y, ramps, seed, passes=options.passes)
    return learn(made(), y, {}, seed, params, passes=20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default=",".join(MODELS))
    parser.add_argument("--exact", action="store_true", help="all states instead of sets")
    parser.add_argument("--passes", type=int, default=PASSES)
    parser.add_argument("--temperature", type=float, help="at the start; 2, for gsc 4")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | bars of the best start | starts with all 8 | F - F of EM from the truth (nats per image) | s |")
    print("| --- | --- | --- | --- | --- |")
    for name in options.only.split(","):
        begun = time.process_time()
        runs = [one_seed(name, seed, options) for seed in range(options.seeds)]
        whole = sum(n == 2 * SIZE for _, found, _ in runs for n in found)
        print(
            f"| {name} | {', '.join(str(n) for n, _, _ in runs)} | {whole}/{STARTS * options.seeds} "
            f"| {', '.join(f'{gap:+.3f}' for _, _, gap in runs)} | {time.process_time() - begun:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
