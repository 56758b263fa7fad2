"""One training step of the TopK autoencoder beside what bounds it, measured in the same run.

    python benchmarks/topk_step.py [--dim 512] [--atoms 4096] [--k 32] [--rows 4096] [--seconds 40] [--threads N]

Every part is timed in turn, round after round, and its best round counts, so that other load on the machine hits all
parts alike; the processor time of all threads stands beside the wall time, since it feels other load less (with more
than one thread it contains their waiting).

`bound` is one encoder product, written into a buffer, and torch's top-k: whatever a step does besides is overhead.
`dense autograd` is the same loss, while no latent is dead, and torch.optim.Adam on dense codes.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from sparsefleet.models import Batch, Params, Probe, Stage
from sparsefleet.models.autoencoders.autoencoder import WEIGHTS
from sparsefleet.models.autoencoders.names import DEAD, RESIDUAL, SILENT
from sparsefleet.models.autoencoders.topk import TopK
from torch import Tensor

STAGE = Stage(step=500, steps=10_000)


def make_rows(rows: int, dim: int) -> Tensor:
    """Sparse mixtures of 2048 random axes with a mean and noise, float32."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.nn.functional.normalize(torch.randn(2048, dim, generator=generator), dim=1)
    chosen = torch.randint(0, 2048, (rows, 20), generator=generator)
    weights = torch.rand(rows, 20, generator=generator) + 0.3
    mixed = torch.nn.functional.embedding_bag(chosen, axes, per_sample_weights=weights, mode="sum")
    return mixed + 0.1 * axes[0] + 0.02 * torch.randn(rows, dim, generator=generator)


def product(params: Params, x: Tensor) -> Callable[[], object]:
    """The encoder's product alone."""
    out = torch.empty(x.shape[0], params["W_enc"].shape[0])
    return lambda: torch.addmm(params["b_enc"], x, params["W_enc"].T, out=out)


def select(params: Params, x: Tensor, k: int) -> Callable[[], object]:
    """Torch's top-k of given pre-activations."""
    u = torch.addmm(params["b_enc"], x, params["W_enc"].T)
    return lambda: u.topk(k, dim=1, sorted=False)


def step(model: TopK, params: Params, x: Tensor) -> Callable[[], object]:
    """Statistics and update, as the training loop calls them."""
    return lambda: model.update(params, model.statistics(params, Batch(x), STAGE), STAGE)


def dense_step(model: TopK, params: Params, x: Tensor) -> Callable[[], object]:
    """The plain way: dense codes, autograd, torch's Adam; the same loss while no latent is dead."""
    weights = {name: params[name].clone().requires_grad_(True) for name in WEIGHTS}
    adam = torch.optim.Adam(weights.values(), lr=model.rate(STAGE), betas=model.betas, eps=model.eps)

    def run() -> None:
        u = (x - weights["b_dec"]) @ weights["W_enc"].T + weights["b_enc"]
        kept = u.topk(model.k, dim=1, sorted=False)
        z = torch.zeros_like(u).scatter(1, kept.indices, kept.values.relu())
        loss = (x - z @ weights["W_dec"] - weights["b_dec"]).square().sum() / x.shape[0]
        adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            atoms, gradient = weights["W_dec"], weights["W_dec"].grad
            assert gradient is not None
            gradient -= (gradient * atoms).sum(1, keepdim=True) * atoms
            torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
            adam.step()
            atoms /= atoms.norm(dim=1, keepdim=True)

    return run


def best_times(parts: dict[str, Callable[[], object]], seconds: float) -> dict[str, tuple[float, float]]:
    """The shortest wall and processor time of each part over as many rounds as fit; at least two."""
    best = dict.fromkeys(parts, (float("inf"), float("inf")))
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 2 or time.perf_counter() < end:
        for name, part in parts.items():
            wall, cpu = time.perf_counter(), time.process_time()
            part()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = min(best[name][0], wall), min(best[name][1], cpu)
        rounds += 1
    return best


def main() -> None:
    """Prints a table of times, rows per second and ratios to the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("dim", 512), ("atoms", 4096), ("k", 32), ("rows", 4096), ("threads", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=40.0, help="how long to measure")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    x = make_rows(args.rows, args.dim)
    model = TopK(atoms=args.atoms, k=args.k, normalize="none")
    wide = x.double()
    params = model.init(Probe(args.rows, wide.mean(0), wide.var(0), wide[:2048]), torch.Generator().manual_seed(0))
    # A fifth of the latents dead, to see what the auxiliary loss costs.
    dying = {**params, SILENT: params[SILENT].clone(), DEAD: params[DEAD] + 4, RESIDUAL: params[RESIDUAL] + 1}
    dying[SILENT][: args.atoms // 5] = 9
    times = best_times(
        {
            "encoder product": product(params, x),
            "torch top-k": select(params, x, args.k),
            "statistics": lambda: model.statistics(params, Batch(x), STAGE),
            "step": step(model, params, x),
            "step, 20 % dead": step(model, dying, x),
            "step without auxiliary loss, 20 % dead": step(replace(model, aux_coefficient=0.0), dying, x),
            "dense autograd step": dense_step(model, params, x),
        },
        args.seconds,
    )
    bound = tuple(map(sum, zip(times["encoder product"], times["torch top-k"], strict=True)))
    times = {"bound (product + top-k)": bound, **times}
    print(f"D={args.dim} H={args.atoms} k={args.k} rows={args.rows} float32; torch {torch.__version__},", end=" ")
    print(f"{torch.get_num_threads()} threads, {platform.machine()}")
    print(f"{'':40s} {'wall ms':>8s} {'rows/s':>9s} {'/ bound':>8s} {'CPU ms':>8s} {'/ bound':>8s}")
    for name, (wall, cpu) in times.items():
        columns = f"{wall * 1e3:8.1f} {args.rows / wall:9.0f} {wall / bound[0]:8.2f} {cpu * 1e3:8.1f}"
        print(f"{name:40s} {columns} {cpu / bound[1]:8.2f}")


if __name__ == "__main__":
    main()
