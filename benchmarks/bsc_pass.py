"""One EM pass of binary sparse coding against what a matrix product of the same shape allows.

D=256, H=300, H'=8, γ=5 on one core: datapoints per second, as a share of the datapoints per second at which the
machine's own float32 product of that shape, measured in the same run, could do the pass's multiplications
(scores, Σ y<s>ᵀ and the two products with the state table: about 0.34 Mflop per datapoint).

    python benchmarks/bsc_pass.py [--rows 16384] [--repeats 7]
"""

import argparse
import time

import numpy as np
import torch
from sparsefleet.models import Batch, Stage, make_model

DIM, ATOMS, BLOCK = 256, 300, 4096


def seconds(call, repeats: int) -> float:
    """Shortest of `repeats` calls: other users of the machine only ever make it slower."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4 * BLOCK)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(DIM, ATOMS))
    y = (rng.random((options.rows, ATOMS)) < 4 / ATOMS) @ weights.T + 2.0 * rng.normal(size=(options.rows, DIM))
    params = {
        "W": torch.from_numpy(weights + 0.3 * rng.normal(size=weights.shape)),
        "pi": torch.tensor(4 / ATOMS, dtype=torch.float64),
        "sigma": torch.tensor(2.0, dtype=torch.float64),
    }
    stage = Stage(step=0, steps=1, rows=options.rows)
    print(f"D={DIM} H={ATOMS} H'=8 γ=5, blocks of {BLOCK} rows, 1 thread, torch {torch.__version__}")
    for dtype in ("float32", "float64"):
        model = make_model("bsc", {"atoms": ATOMS, "dtype": dtype})
        x = torch.from_numpy(y).to(model.torch_dtype)
        w = torch.from_numpy(weights).to(model.torch_dtype)
        product = seconds(lambda x=x, w=w: x[:BLOCK] @ w, 5 * options.repeats)
        gflops = 2 * BLOCK * DIM * ATOMS / product / 1e9

        def one_pass(model=model, x=x):
            for start in range(0, len(x), BLOCK):
                model.statistics(params, Batch(x[start : start + BLOCK], start), stage)

        one_pass()
        rate = options.rows / seconds(one_pass, options.repeats)
        bound = gflops * 1e9 / model.flops(DIM)
        print(
            f"{dtype}: product {gflops:6.1f} GFLOP/s -> bound {bound:9,.0f} points/s; "
            f"pass {rate:9,.0f} points/s = {rate / bound:.1%}"
        )


if __name__ == "__main__":
    main()
