"""ODL-FW (reconstructed) on streams: recovery of an orthogonal dictionary, schedules, a dictionary that changes.

    python benchmarks/orthogonal_online.py [--seeds 5] [--only recovery|small|drift]

Rows are y = D°x with an orthogonal D° and Bernoulli–Gaussian x (an entry is active with probability θ). The error is
e = 1 - ‖D D°‖₄⁴ / m, 0 for a signed permutation of the truth; `rec` is the share of atoms with |cos| > 0.99. Peers on
the same rows: batch matching-stretching-projection (Zhai et al. 2020, 50 iterations) and scikit-learn's FastICA.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import torch
from sparsefleet.models import Batch, Params, Probe, Stage
from sparsefleet.models.factorization.odlfw import ODLFW
from sparsefleet.models.factorization.steps import polar
from torch import Tensor


def orthogonal(dim: int, seed: int) -> Tensor:
    """A random orthogonal matrix, one atom per row."""
    drawn = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return polar(drawn)


def make_rows(truth: Tensor, rows: int, theta: float, seed: int, noise: float = 0.0) -> Tensor:
    """`rows` Bernoulli–Gaussian mixtures of the rows of `truth`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, len(truth), generator=generator, dtype=torch.float64)
    x *= torch.rand(rows, len(truth), generator=generator, dtype=torch.float64) < theta
    return x @ truth + noise * torch.randn(rows, truth.shape[1], generator=generator, dtype=torch.float64)


def error_and_recovery(atoms: Tensor, truth: Tensor) -> tuple[float, float]:
    """(e, rec) of orthonormal `atoms`."""
    cosines = (atoms @ truth.T).abs()
    return 1 - float(cosines.pow(4).sum()) / len(truth), float((cosines.amax(0) > 0.99).double().mean())


def learn(
    model: ODLFW, params: Params, y: Tensor, rows: int, first: int = 0, values: dict[str, float] | None = None
) -> Params:
    """Updates with batches of `rows` rows of `y`, as the training loop makes them."""
    for step, batch in enumerate(y.split(rows)):
        stage = Stage(step=first + step, steps=1 << 30, values=values or {})
        params = model.update(params, model.statistics(params, Batch(batch), stage), stage)
    return params


def begin(model: ODLFW, y: Tensor, seed: int) -> Params:
    """Start values for the stream `y`."""
    probe = Probe(len(y), y.mean(0), y.var(0), y[:4096])
    return model.init(probe, torch.Generator().manual_seed(seed))


def matched_stretched(y: Tensor, power: int, seed: int, iterations: int = 50) -> Tensor:
    """The batch peer: D <- polar of the slope over all rows."""
    atoms = orthogonal(y.shape[1], 1000 + seed)
    for _ in range(iterations):
        z = y @ atoms.T
        atoms = polar((z * z.abs().pow(power - 2)).T @ y)
    return atoms


def fast_ica(y: Tensor, seed: int) -> Tensor:
    """scikit-learn's FastICA, its unmixing made orthonormal."""
    from sklearn.decomposition import FastICA

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ica = FastICA(whiten=False, random_state=seed, max_iter=100).fit(y.numpy() / y.std().item())
    return polar(torch.from_numpy(ica.components_))


def recovery(seeds: int) -> None:
    """e after 200 and 2,000 batches, for p = 3 and 4, beside the batch peers."""
    dim, theta, rows, steps = 50, 0.1, 50, 2000
    print(f"m={dim} theta={theta} batches of {rows}, {steps} updates; CPU seconds per run")
    print(f"{'':34s} {'e(200)':>9s} {'e(2000)':>9s} {'rec':>5s} {'s':>6s}")
    settings = {f"p={p} {s}": ODLFW(atoms=dim, p=p, steps=s, dtype="float64") for p, s in
                ((3, "early"), (4, "early"), (3, "late"), (3, "convex"))}  # fmt: skip
    for name, model in settings.items():
        found: list[tuple[float, ...]] = []
        for seed in range(seeds):
            truth = orthogonal(dim, seed)
            y = make_rows(truth, rows * steps, theta, 100 + seed)
            begun = time.process_time()
            early = learn(model, begin(model, y, seed), y[: 200 * rows], rows)
            late = learn(model, early, y[200 * rows :], rows, first=200)
            spent = time.process_time() - begun
            first, _ = error_and_recovery(model.dictionary(early).T, truth)
            found.append((first, *error_and_recovery(model.dictionary(late).T, truth), spent))
        show(name, found)
    peers = {"batch l3": lambda y, s: matched_stretched(y, 3, s), "batch l4": lambda y, s: matched_stretched(y, 4, s),
             "FastICA": fast_ica}  # fmt: skip
    for name, peer in peers.items():
        found = []
        for seed in range(seeds):
            truth = orthogonal(dim, seed)
            y = make_rows(truth, rows * steps, theta, 100 + seed)
            begun = time.process_time()
            atoms = peer(y, seed)
            found.append((np.nan, *error_and_recovery(atoms, truth), time.process_time() - begun))
        show(f"{name}, all rows at once", found)


def small(seeds: int) -> None:
    """e after 2,000 batches of one and of five rows."""
    dim, theta, steps = 20, 0.2, 2000
    print(f"\nsmall batches: m={dim} theta={theta}, {steps} updates, mean of e (worst)")
    for name in ("early", "late", "convex"):
        model = ODLFW(atoms=dim, steps=name, dtype="float64")
        told: list[str] = []
        for rows in (1, 5):
            errors: list[float] = []
            for seed in range(seeds):
                truth = orthogonal(dim, seed)
                y = make_rows(truth, rows * steps, theta, 100 + seed)
                params = learn(model, begin(model, y, seed), y, rows)
                errors.append(error_and_recovery(model.dictionary(params).T, truth)[0])
            told.append(f"{rows} rows: {np.mean(errors):.4f} ({max(errors):.4f})")
        print(f"  {name:8s} {', '.join(told)}", flush=True)


def drift(seeds: int) -> None:
    """A dictionary that changes after 1,000 updates, followed with constant steps."""
    dim, theta, rows = 32, 0.1, 32
    model = ODLFW(atoms=dim, dtype="float64")
    constant = {"gamma": 0.05, "rho": 0.1}
    print(f"\ndrift: m={dim} theta={theta} batches of {rows}, noise 0.05, rho=0.1, gamma=0.05; e before and after")
    for seed in range(seeds):
        errors: list[float] = []
        params: Params | None = None
        for part, steps in enumerate((1000, 500)):
            truth = orthogonal(dim, 10 * seed + part)
            y = make_rows(truth, rows * steps, theta, 7 * seed + part, noise=0.05)
            params = learn(model, params or begin(model, y, seed), y, rows, values=constant)
            errors.append(error_and_recovery(model.dictionary(params).T, truth)[0])
        print(f"  seed {seed}: before the change {errors[0]:.4f}, 500 updates after it {errors[1]:.4f}")


def show(name: str, found: list[tuple[float, ...]]) -> None:
    """One line: means, and the worst of e(2000) and rec."""
    columns = np.array(found)
    means = columns.mean(0)
    print(f"{name:34s} {means[0]:9.5f} {means[1]:9.5f} {means[2]:5.2f} {means[3]:6.2f}  "
          f"worst e {columns[:, 1].max():.5f}, rec {columns[:, 2].min():.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=("recovery", "small", "drift"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only in (None, "recovery"):
        recovery(options.seeds)
    if options.only in (None, "small"):
        small(options.seeds)
    if options.only in (None, "drift"):
        drift(min(options.seeds, 3))


if __name__ == "__main__":
    main()
