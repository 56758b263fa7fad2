"""One EM pass of every truncated model against what the machine's own primitives allow.

Linear models and spike-and-slab coding are held against a matrix product of the pass's shape, measured in the same
run: datapoints per second at which that product alone could do the pass's multiplications (`flops` of the model).
Maximum superpositions have no such form; they are held against an elementwise maximum over arrays that fit the cache,
at eight of them per state and dimension (three to evaluate a state, five to share out its posterior).

    python benchmarks/truncated_models.py [--rows 8192] [--repeats 5] [--dtype float32]
"""

import argparse
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sparsefleet.models import Batch, Probe, Stage, make_model

BLOCK = 4096
OPERATIONS = 8


@dataclass(frozen=True)
class Case:
    """A model at one size, with `active` active atoms per point on average."""

    model: str
    dim: int
    atoms: int
    settings: dict[str, Any] = field(default_factory=dict)
    active: float = 4.0


CASES = [
    Case("bsc", 256, 300, {"h_prime": 8, "gamma": 5}),
    Case("tsc", 256, 300, {"h_prime": 6, "gamma": 4}),
    Case("dsc", 256, 300, {"h_prime": 5, "gamma": 4, "values": [0, 1, 2]}),
    Case("dsc", 256, 300, {"h_prime": 6, "gamma": 3, "values": [-2, -1, 0, 1, 2]}),
    Case("bsc", 144, 200, {"h_prime": 6, "gamma": 4}),
    Case("gsc", 144, 200, {"h_prime": 6, "gamma": 4}),
    Case("gsc", 144, 200, {"h_prime": 6, "gamma": 4, "slab": "full"}),
    Case("mca", 100, 20, {"h_prime": 6, "gamma": 4}, 2.0),
    Case("mmca", 100, 20, {"h_prime": 6, "gamma": 4}, 2.0),
]


def seconds(call, repeats: int) -> float:
    """Shortest of `repeats` calls: other users of the machine only ever make it slower."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)


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


def bound(case: Case, model, x: torch.Tensor, repeats: int) -> tuple[float, str]:
    """Datapoints per second that the primitive allows, and what was measured."""
    if case.model in ("mca", "mmca"):
        a, b = torch.rand(2, 1 << 16, dtype=x.dtype)
        out = torch.empty_like(a)
        rate = a.numel() / seconds(lambda: torch.maximum(a, b, out=out), 200)
        return rate / (OPERATIONS * case.dim * model.multi_states), f"maximum {rate / 1e9:5.2f} G/s"
    w = torch.rand(case.dim, case.atoms, dtype=x.dtype)
    rate = 2.0 * BLOCK * w.numel() / seconds(lambda: x[:BLOCK] @ w, 5 * repeats)
    return rate / model.flops(case.dim), f"product {rate / 1e9:5.1f} GFLOP/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2 * BLOCK)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.dtype}, blocks of {BLOCK} rows, 1 thread, torch {torch.__version__}")
    for case in CASES:
        model = make_model(case.model, {"atoms": case.atoms, "dtype": options.dtype, **case.settings})
        x, params = problem(case, model, options.rows)
        stage = Stage(step=0, steps=1, rows=options.rows)

        def one_pass(model=model, params=params, x=x, stage=stage):
            for start in range(0, len(x), BLOCK):
                model.statistics(params, Batch(x[start : start + BLOCK], start), stage)

        one_pass()
        limit, measured = bound(case, model, x, options.repeats)
        rate = len(x) / seconds(one_pass, options.repeats)
        extra = " ".join(f"{k}={v}" for k, v in case.settings.items())
        print(
            f"{case.model:5s} D={case.dim} H={case.atoms} {extra:45s} M={model.multi_states:5d} {measured} -> "
            f"bound {limit:9,.0f} points/s; pass {rate:9,.0f} points/s = {rate / limit:.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
