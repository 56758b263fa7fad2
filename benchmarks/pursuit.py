"""Sparse coding with a given dictionary beside its peers and the product that it needs at least.

    python benchmarks/pursuit.py [--threads 1] [--seconds 8] [--only omp|lasso|memory] [--sizes 3]

OMP: Gaussian unit atoms; signals of k atoms with N(0, 1) weights and noise 0.05. Lasso: patches of the two photographs
in scikit-learn (mean removed, length one), atoms are patches too, lambda = 1.2/sqrt(D). Every method is timed in turn,
round after round, and its best round counts; with one thread that is processor time, which other load disturbs least,
with more it is wall time. SPAMS (`pip install spams-bin`) and scikit-learn are peers where they are installed. SPAMS'
`omp` takes no Gram matrix and selects by the remaining error (our `ols`). scikit-learn runs on a part of the signals.
For each method the ratio of our rate to its own is printed: OMP with the Gram matrix given and formed in the call,
lasso in the precision of the method.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from sparsefleet.models.pursuit import batch_omp, lasso
from sparsefleet.models.pursuit.problem import BUDGET

SIZES = ((64, 256, 5, 40_000), (256, 1024, 10, 16_000), (768, 8192, 32, 2_000))
PATCHES = ((8, 256, 4_000), (16, 512, 2_000))
Method = tuple[Callable[[], object], int]


def timed(methods: dict[str, Method], seconds: float, clock: Callable[[], float]) -> dict[str, float]:
    """The best rows per second of each method, over at least two rounds of all of them."""
    best = dict.fromkeys(methods, float("inf"))
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 2 or time.perf_counter() < end:
        for name, (call, _) in methods.items():
            begun = clock()
            call()
            best[name] = min(best[name], clock() - begun)
        rounds += 1
    return {name: rows / best[name] for name, (_, rows) in methods.items()}


def omp_methods(dim: int, atoms: int, k: int, rows: int, threads: int) -> dict[str, Method]:
    """What to time at one size, by name."""
    generator = torch.Generator().manual_seed(0)
    d = torch.nn.functional.normalize(torch.randn(dim, atoms, generator=generator), dim=0)
    chosen = torch.stack([torch.randperm(atoms, generator=generator)[:k] for _ in range(rows)])
    weights = torch.randn(rows, k, generator=generator)
    x = torch.nn.functional.embedding_bag(chosen, d.T.contiguous(), per_sample_weights=weights, mode="sum")
    x += 0.05 * torch.randn(rows, dim, generator=generator)
    gram, block = d.T @ d, min(rows, 4096)
    out = torch.empty(block, atoms)
    found = {
        "product alone": (lambda: torch.mm(x[:block], d, out=out), block),
        "ours": (lambda: batch_omp(x, d, nonzeros=k, gram=gram), rows),
        "ours, Gram included": (lambda: batch_omp(x, d, nonzeros=k), rows),
        "ours, ols": (lambda: batch_omp(x, d, nonzeros=k, gram=gram, select="ols"), rows),
    }
    try:
        import spams
    except ImportError:
        pass
    else:
        columns, fortran = np.asfortranarray(x.numpy().T), np.asfortranarray(d.numpy())
        few = rows if atoms < 8192 else rows // 2
        part = np.asfortranarray(columns[:, :few])

        def peer(data: np.ndarray) -> object:
            codes = spams.omp(data, fortran, L=k, eps=1e-10, lambda1=0, numThreads=threads)
            # This release returns empty codes in some processes; such a time would say nothing.
            assert codes.nnz > 0
            return codes

        found["SPAMS"] = (lambda: peer(part), few)
    try:
        from sklearn.linear_model import orthogonal_mp_gram
    except ImportError:
        return found
    some = max(20, 200_000 // (atoms * k))
    gram64, b64 = gram.double().numpy(), (x[:some] @ d).double().numpy().T
    found["scikit-learn"] = (lambda: orthogonal_mp_gram(gram64, b64, n_nonzero_coefs=k, copy_Gram=False), some)
    return found


def lasso_methods(side: int, atoms: int, rows: int, threads: int) -> dict[str, Method]:
    """What to time on patches of `side` x `side` pixels, by name."""
    from sklearn.datasets import load_sample_images
    from sklearn.decomposition import sparse_encode
    from sklearn.feature_extraction.image import extract_patches_2d

    rng = np.random.RandomState(0)
    grey = [image.mean(2) for image in load_sample_images().images]
    x = np.concatenate([extract_patches_2d(g, (side, side), max_patches=rows, random_state=rng) for g in grey])
    x = x.reshape(-1, side * side)
    x = x - x.mean(1, keepdims=True)
    norms = np.linalg.norm(x, axis=1)
    x = rng.permutation(x[norms > 0.1 * norms.mean()] / norms[norms > 0.1 * norms.mean(), None])
    d, x = x[:atoms].T.copy(), x[atoms : atoms + rows]
    penalty = 1.2 / side
    found: dict[str, Method] = {}
    for dtype in (np.float64, np.float32):
        ours, ours_d = torch.from_numpy(x.astype(dtype)), torch.from_numpy(d.astype(dtype))
        gram = ours_d.T @ ours_d
        name = "float64" if dtype == np.float64 else "float32"
        found[f"ours {name}"] = (lambda a=ours, b=ours_d, g=gram: lasso(a, b, penalty, gram=g), len(x))
        found[f"ours descent {name}"] = (
            lambda a=ours, b=ours_d, g=gram: lasso(a, b, penalty, gram=g, solver="descent"),
            len(x),
        )
        try:
            import spams
        except ImportError:
            continue
        columns, fortran = np.asfortranarray(x.T.astype(dtype)), np.asfortranarray(d.astype(dtype))

        def peer(a: np.ndarray = columns, b: np.ndarray = fortran) -> object:
            codes = spams.lasso(a, b, lambda1=penalty, mode=2, numThreads=threads)
            assert codes.nnz > 0
            return codes

        found[f"SPAMS {name}"] = (peer, len(x))
    few = 200
    for algorithm in ("lasso_cd", "lasso_lars"):
        found[f"scikit-learn {algorithm}"] = (
            lambda how=algorithm: sparse_encode(x[:few], d.T, algorithm=how, alpha=penalty),
            few,
        )
    return found


def show(title: str, rates: dict[str, float], beside: Callable[[str], tuple[str, ...]]) -> None:
    """Print rows per second, and how many times as fast are the methods that `beside` names for each."""
    print(title)
    for name, rate in rates.items():
        ratios = "   ".join(f"{ours}: {rates[ours] / rate:8.2f} x" for ours in beside(name))
        print(f"  {name:28s} {rate:12,.0f} rows/s   {ratios}", flush=True)


def equally_precise(name: str) -> tuple[str, ...]:
    """Our lasso in the precision of the method called `name`; scikit-learn's is float64."""
    return ("ours float32" if name.endswith("float32") else "ours float64",)


def memory(rows: int = 1_000_000) -> None:
    """How much memory coding a million signals in blocks takes beyond what it is given and gives back."""
    generator = torch.Generator().manual_seed(0)
    d = torch.nn.functional.normalize(torch.randn(64, 1024, generator=generator), dim=0)
    x = torch.randn(rows, 64, generator=generator)
    batch_omp(x[:4096], d, nonzeros=8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = batch_omp(x, d, nonzeros=8)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    codes = found.codes.indices.nbytes + found.codes.values.nbytes
    print(f"{rows:,} signals, D=64 H=1024 k=8: peak grew by {grown / 2**20:.0f} MiB,", end=" ")
    print(f"of which codes {codes / 2**20:.0f} MiB; budget {BUDGET / 2**20:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0, help="how long to measure each size")
    parser.add_argument("--only", choices=("omp", "lasso", "memory"))
    parser.add_argument("--sizes", type=int, default=3, help="how many of the sizes of omp, smallest first")
    options = parser.parse_args()
    # scikit-learn says of many signals that 1,000 iterations were not enough for them.
    warnings.filterwarnings("ignore", module="sklearn")
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    unit = "processor time" if options.threads == 1 else "wall time"
    if options.only in (None, "memory"):
        memory()
    if options.only in (None, "omp"):
        for dim, atoms, k, rows in SIZES[: options.sizes]:
            rates = timed(omp_methods(dim, atoms, k, rows, options.threads), options.seconds, clock)
            title = f"omp D={dim} H={atoms} k={k}, float32, {options.threads} thread(s), {unit}"
            show(title, rates, lambda _: ("ours", "ours, Gram included"))
    if options.only in (None, "lasso"):
        for side, atoms, rows in PATCHES:
            rates = timed(lasso_methods(side, atoms, rows, options.threads), options.seconds, clock)
            title = f"lasso D={side**2} H={atoms}, {options.threads} thread(s), {unit}"
            show(title, rates, equally_precise)


if __name__ == "__main__":
    main()
