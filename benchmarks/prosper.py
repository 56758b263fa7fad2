"""One EM pass of every probabilistic model in the configurations in which ProSper was measured, and in larger ones.

The limit of a pass is what its multiplications (`flops` of the model: scores, Σ y<s>ᵀ and, for discrete models, two
products with the table of states) would take at the rate of the machine's own matrix products of the pass's shapes,
measured in the same run, in turns with the pass. For maximum superpositions and spike-and-slab coding `flops` counts
the work on states too, though no product does it. The column "at 150" is the rate on a core whose float32 products of
4096 × 256 × 300 reach 150 GFLOP/s. All times are CPU time of one thread.

The rates of ProSper (public code of arXiv 1908.06843, NumPy with OpenBLAS, float64, one thread, full EM iterations)
were measured on a 2-core machine whose float32 products of that shape ran at 142 GFLOP/s per core.

    python benchmarks/prosper.py [--rows 8192] [--repeats 7] [--dtype float32] [--only bsc]
"""

import argparse
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sparsefleet.models import Batch, Probe, Stage, make_model

BATCH = 4096
BLOCKS = (512, BATCH)
SMALL = {"h_prime": 6, "gamma": 4}


@dataclass(frozen=True)
class Case:
    """A model at one size, with `active` active atoms per point on average."""

    model: str
    dim: int
    atoms: int
    settings: dict[str, Any] = field(default_factory=dict)
    prosper: float | None = None
    """Points per second and core of the public code."""
    active: float = 2.0


CASES = [
    Case("bsc", 25, 10, {"h_prime": 5, "gamma": 3}, 15_500),
    Case("bsc", 256, 300, {"h_prime": 8, "gamma": 5}, 630, 4.0),
    Case("bsc", 144, 200, SMALL, None, 4.0),
    Case("gsc", 144, 200, SMALL, 27, 4.0),
    Case("gsc", 144, 200, {**SMALL, "slab": "full"}, None, 4.0),
    Case("gsc", 25, 10, {"h_prime": 7, "gamma": 4}, 1_270),
    Case("mca", 100, 20, SMALL, 4_080),
    Case("mca", 100, 20, {**SMALL, "superposition": "smooth"}),
    Case("mmca", 100, 20, SMALL, 3_800),
    Case("mmca", 100, 20, {**SMALL, "superposition": "smooth"}),
    Case("tsc", 100, 20, SMALL, 3_420),
    Case("dsc", 100, 20, {**SMALL, "values": [-2, -1, 0, 1, 2]}, 243),
    Case("tsc", 256, 300, SMALL, None, 4.0),
    Case("dsc", 256, 300, {"h_prime": 5, "gamma": 4, "values": [0, 1, 2]}, None, 4.0),
    Case("dsc", 256, 300, {"h_prime": 6, "gamma": 3, "values": [-2, -1, 0, 1, 2]}, None, 4.0),
    Case("bsc", 400, 1000, {"h_prime": 12, "gamma": 10}, None, 6.0),
]


def cpu_seconds(call) -> float:
    """CPU time of one call."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def problem(case: Case, model, rows: int):
    """Data from a model of binary causes, and parameters near those that made it."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(case.dim, case.atoms))
    weights = 3 * np.abs(weights) if case.model == "mca" else weights
    s = rng.random((rows, case.atoms)) < case.active / case.atoms
    y = torch.from_numpy(s @ weights.T + 2.0 * rng.normal(size=(rows, case.dim)))
    params = model.init(Probe(rows, y.mean(0), y.var(0), y), torch.Generator().manual_seed(0))
    params["W"] = torch.from_numpy(weights + 0.1 * np.abs(rng.normal(size=weights.shape)))
    params["sigma"] = torch.tensor(2.0, dtype=torch.float64)
    if case.model == "gsc":
        params["pi"] = torch.full((case.atoms,), case.active / case.atoms, dtype=torch.float64)
    return y.to(model.torch_dtype), params


def products(x: torch.Tensor, atoms: int):
    """Calls that multiply a batch as a pass does, by the rows that go through at once; and their operations."""
    weights, means = torch.rand(x.shape[1], atoms, dtype=x.dtype), torch.rand(BATCH, atoms, dtype=x.dtype)
    scores, sums = torch.empty_like(means), torch.empty_like(weights)

    def call(block):
        for a in range(0, BATCH, block):
            torch.mm(x[a : a + block], weights, out=scores[a : a + block])
            torch.mm(x[a : a + block].T, means[a : a + block], out=sums)

    return [lambda block=block: call(block) for block in BLOCKS], 4.0 * BATCH * weights.numel()


def measure(case: Case, options: argparse.Namespace) -> str:
    """One line of the table."""
    model = make_model(case.model, {"atoms": case.atoms, "dtype": options.dtype, **case.settings})
    x, params = problem(case, model, options.rows)
    values = {"T": 2.0} if case.settings.get("superposition") == "smooth" else {}
    stage = Stage(step=0, steps=1, rows=options.rows, values=values)

    def one_pass():
        for start in range(0, len(x), BATCH):
            model.statistics(params, Batch(x[start : start + BATCH], start), stage)

    multiplied, operations = products(x, case.atoms)
    common, common_operations = products(torch.rand(BATCH, 256), 300)
    calls = [one_pass, *multiplied, *common]
    for call in calls:
        call()
    # Other users of the machine only ever make it slower: the best of several turns.
    best = [min(times) for times in zip(*([cpu_seconds(c) for c in calls] for _ in range(options.repeats)))]
    gflops = operations / min(best[1 : 1 + len(BLOCKS)]) / 1e9
    machine = common_operations / min(best[1 + len(BLOCKS) :]) / 1e9
    rate, limit = len(x) / best[0], gflops * 1e9 / model.flops(case.dim)
    extra = " ".join(f"{k}={v}" for k, v in case.settings.items())
    public = f"{case.prosper:7,.0f} {rate / case.prosper:6,.0f} x" if case.prosper else " " * 16
    return (
        f"{case.model:5s} D={case.dim:<3d} H={case.atoms:<4d} {extra:48s} {gflops:6.1f} {limit:11,.0f} {rate:9,.0f} "
        f"{rate / limit:6.1%} {rate * 150 / machine:9,.0f} {public}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2 * BATCH)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--only", help="one model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.dtype}, batches of {BATCH} rows, 1 thread, CPU time, torch {torch.__version__}")
    head = f"{'product':>6s} {'limit':>10s} {'points/s':>9s} {'share':>6s} {'at 150':>9s} {'ProSper':>7s} {'ratio':>8s}"
    print(" " * 68 + head)
    for case in CASES:
        if options.only in (None, case.model):
            print(measure(case, options), flush=True)


if __name__ == "__main__":
    main()
