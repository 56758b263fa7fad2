"""Which dictionaries find the atoms that made the data (the synthetic test of the K-SVD paper, Aharon et al. 2006).

    python benchmarks/dictionary_recovery.py [--seeds 5] [--models mod ksvd ...] [--forgetting power]

50 random unit atoms of 20 dimensions; 1,500 rows, each of 3 atoms with N(0, 1) coefficients, noise at 20 dB; 80 passes,
OMP with 3 entries, starts at rows, atoms replaced where dead or coherent until three passes before the end. An atom
counts as found where a learned one has |cos| > 0.99 with it. `exact` and `approximate` visit the atoms one after the
other (`ksvd_sweep`, for rows in one place); the others are the models, in float64. It ends with 1 where a model finds
fewer than required on average.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import torch
from sparsefleet.models import Batch, Model, Probe, Stage, make_model
from sparsefleet.models.factorization.ksvd import KSVD
from sparsefleet.models.factorization.rank_one import ksvd_sweep
from sparsefleet.models.factorization.sums import power_of
from torch import Tensor

ROWS, DIM, ATOMS, ENTRIES, PASSES = 1500, 20, 50, 3, 80
LEAST = {"exact": 46, "approximate": 44, "mod": 45, "ksvd": 44, "online": 36}
"""Atoms to find, mean over seeds: 1 to 3 less than what a separate prototype of the same methods found on such data:
48.2, 46.2, 47.4, 47.0 and 39.2, means of five seeds."""


def make_data(seed: int) -> tuple[Tensor, Tensor]:
    """Rows [N, D] and the atoms [H, D] that made them."""
    rng = np.random.default_rng(seed)
    atoms = rng.normal(size=(ATOMS, DIM))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    clean = np.stack([
        rng.normal(size=ENTRIES) @ atoms[rng.choice(ATOMS, ENTRIES, replace=False)] for _ in range(ROWS)
    ])  # fmt: skip
    noise = rng.normal(size=clean.shape)
    noise *= np.linalg.norm(clean) / np.linalg.norm(noise) / 10
    return torch.from_numpy(clean + noise), torch.from_numpy(atoms)


def recovered(atoms: Tensor, truth: Tensor) -> int:
    """True atoms with |cos| > 0.99."""
    return int(((truth @ atoms.T).abs().amax(1) > 0.99).sum())


def start(model: Model, x: Tensor, seed: int) -> dict[str, Tensor]:
    """Start values."""
    return model.init(Probe(len(x), x.mean(0), x.var(0), x), torch.Generator().manual_seed(seed))


def learn(name: str, x: Tensor, seed: int, passes: int = PASSES, forgetting: str = "power") -> tuple[Tensor, float]:
    """Atoms [H, D] of a model, and its relative error in the last pass."""
    online = name == "online"
    settings = {"coder": "omp", "nonzeros": ENTRIES, "dtype": "float64", "atoms": ATOMS}
    model = make_model(name, {**settings, "forgetting": forgetting} if online else settings)
    params, error = start(model, x, seed), 0.0
    size = 64 if online else len(x)
    order = torch.Generator().manual_seed(seed)
    steps = passes * -(-len(x) // size)
    for step in range(steps):
        stage = Stage(step=step, steps=steps, rows=len(x))
        if step % -(-len(x) // size) == 0:
            batches = x[torch.randperm(len(x), generator=order)].split(size) if online else [x]
        batch = batches[step % len(batches)]
        stats = model.statistics(params, Batch(batch), stage)
        error = model.metrics(params, stats)["relative_error"]
        params = model.update(params, stats, stage)
    return model.dictionary(params).T, error


def visit(power: int | None, x: Tensor, seed: int, passes: int = PASSES) -> tuple[Tensor, float]:
    """Atoms of K-SVD that visits the atoms one after the other, and the relative error before the last sweep."""
    model = KSVD(atoms=ATOMS, nonzeros=ENTRIES, dtype="float64")
    params, error = start(model, x, seed), 0.0
    for step in range(passes):
        stage = Stage(step=step, steps=passes, rows=len(x))
        stats = model.statistics(params, Batch(x), stage)
        error = model.metrics(params, stats)["relative_error"]
        atoms, codes = ksvd_sweep(x, params["atoms"], model.codes(params["atoms"], x), power=power)
        atoms, replaced = model.renewed(atoms, stats.counts, power_of(codes, ATOMS), stats, stage)
        params = {**params, "atoms": atoms, **model.search_state(stats, replaced)}
    return params["atoms"], error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(LEAST), choices=list(LEAST))
    parser.add_argument("--forgetting", default="power", choices=["power", "batch"], help="how online's sums age")
    options = parser.parse_args()
    torch.set_num_threads(1)
    short: list[str] = []
    print(f"{'':12s} {'found, mean of':>14s} {'per seed':>22s} {'relative error':>15s} {'required':>9s} {'CPU s':>6s}")
    for name in options.models:
        found, errors, begun = [], [], time.process_time()
        for seed in range(options.seeds):
            x, truth = make_data(seed)
            passes = 10 if name == "online" else PASSES
            if name in ("exact", "approximate"):
                atoms, error = visit(None if name == "exact" else 1, x, seed)
            else:
                atoms, error = learn(name, x, seed, passes, options.forgetting)
            found.append(recovered(atoms, truth))
            errors.append(error)
        spent = (time.process_time() - begun) / options.seeds
        print(f"{name:12s} {np.mean(found):14.1f} {found!s:>22s} {np.mean(errors):15.3f} {LEAST[name]:9d} {spent:6.1f}")
        if np.mean(found) < LEAST[name]:
            short.append(name)
    if short:
        sys.exit(f"fewer atoms than required: {', '.join(short)}")


if __name__ == "__main__":
    main()
