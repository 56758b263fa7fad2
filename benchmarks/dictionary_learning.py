"""Online dictionary learning on photographs: time to the same held-out objective as SPAMS and scikit-learn.

    python benchmarks/dictionary_learning.py [--patch 8 16] [--threads 1] [--rows 100000] [--passes 4] [--rounds 2]
                                             [--dtype float64] [--forgetting power]

Patches of scikit-learn's two photographs: grey, mean removed, nearly constant ones dropped, unit norm. All methods
start from the same patches as atoms, take batches of 512 of the same shuffled rows and λ = 1.2/√m. The objective is
the mean of ½‖x - Da‖² + λ‖a‖₁ over 5,000 held-out patches with exact codes, atoms clipped to the unit ball.

SPAMS (`trainDL`) cannot be stopped and continued at no cost: each of its points is a run of its own. Methods take turns
and the better of the rounds counts. Seconds are processor seconds for one thread, else wall seconds. A method's time
for an objective is interpolated between its points on a logarithmic scale, and so is its number of batches; the table
compares at the objectives that SPAMS has after its last and its middle point, and with scikit-learn at the best that it
reaches. Where SPAMS (`pip install spams-bin`) is missing, that is said, and the rest goes on.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images
from sparsefleet.models import Batch, Probe, Stage
from sparsefleet.models.factorization.coding import ATOMS
from sparsefleet.models.factorization.online import Online
from sparsefleet.models.pursuit import lasso

BATCH, HELD_OUT = 512, 5000
Rows = NDArray[np.floating[Any]]
Points = list[tuple[float, Rows]]
"""(seconds, atoms [H, D] by then), in the order of time."""
Curve = list[tuple[float, float]]
"""(seconds or batches, held-out objective by then), in the order of time."""


def patches(size: int, rows: int, seed: int = 0) -> Rows:
    """`rows` unit patches [rows, size²] of the two photographs."""
    rng = np.random.default_rng(seed)
    found = []
    for image in load_sample_images().images:
        grey = image.mean(2)
        corners = [rng.integers(0, n - size + 1, rows * 3 // 4) for n in grey.shape]
        windows = np.lib.stride_tricks.sliding_window_view(grey, (size, size))
        found.append(windows[corners[0], corners[1]].reshape(-1, size * size))
    x = np.concatenate(found)
    x -= x.mean(1, keepdims=True)
    norm = np.linalg.norm(x, axis=1)
    keep = norm > 0.1 * np.median(norm)
    x = x[keep] / norm[keep, None]
    return x[rng.permutation(len(x))[:rows]]


def objective(atoms: Rows, held_out: Rows, penalty: float) -> float:
    """Mean objective with exact codes."""
    clipped = torch.from_numpy(atoms / np.maximum(1, np.linalg.norm(atoms, axis=1, keepdims=True))).double()
    x = torch.from_numpy(held_out).double()
    found = lasso(x, clipped.T.contiguous(), penalty, tolerance=1e-8)
    return float((0.5 * found.error.double() + penalty * found.codes.values.abs().double().sum(1)).mean())


def ours(
    x: Rows, atoms: Rows, penalty: float, steps: int, points: set[int], clock: Callable[[], float], forgetting: str
) -> Points:
    """(seconds, atoms) after the given numbers of batches, as the training loop makes them."""
    dtype = "float32" if x.dtype == np.float32 else "float64"
    model = Online(atoms=len(atoms), penalty=penalty, dtype=dtype, constraint="ball", forgetting=forgetting)
    rows = torch.from_numpy(x)
    wide = rows[:4096].double()
    params = model.init(Probe(len(x), wide.mean(0), wide.var(0), wide), torch.Generator().manual_seed(0))
    params[ATOMS] = torch.from_numpy(atoms).to(params[ATOMS].dtype)
    out, spent = [], 0.0
    per_pass = len(x) // BATCH
    for step in range(steps):
        first = step % per_pass * BATCH
        stage = Stage(step=step, steps=10**9, rows=per_pass * BATCH)
        begun = clock()
        batch = Batch(rows[first : first + BATCH])
        params = model.update(params, model.statistics(params, batch, stage), stage)
        spent += clock() - begun
        if step + 1 in points:
            out.append((spent, params[ATOMS].numpy().copy()))
    return out


def spams(x: Rows, atoms: Rows, penalty: float, points: set[int], clock: Callable[[], float], threads: int) -> Points:
    """(seconds, atoms) of one run for each number of batches."""
    import spams as peer

    columns, start = np.asfortranarray(x.T), np.asfortranarray(atoms.T)
    out = []
    for steps in sorted(points):
        begun = clock()
        found = peer.trainDL(
            columns, D=start, lambda1=penalty, mode=2, modeD=0, iter=steps, batchsize=BATCH, numThreads=threads,
            verbose=False,
        )  # fmt: skip
        out.append((clock() - begun, np.ascontiguousarray(found.T)))
    return out


def scikit_learn(
    x: Rows, atoms: Rows, penalty: float, points: set[int], clock: Callable[[], float], threads: int
) -> Points:
    """(seconds, atoms) after the given numbers of batches."""
    from sklearn.decomposition import MiniBatchDictionaryLearning

    peer = MiniBatchDictionaryLearning(
        n_components=len(atoms), alpha=penalty, batch_size=BATCH, dict_init=atoms, fit_algorithm="cd", random_state=0,
        n_jobs=threads if threads > 1 else None,
    )  # fmt: skip
    out, spent, per_pass = [], 0.0, len(x) // BATCH
    for step in range(max(points)):
        first = step % per_pass * BATCH
        begun = clock()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer.partial_fit(x[first : first + BATCH])
        spent += clock() - begun
        if step + 1 in points:
            out.append((spent, peer.components_.copy()))
    return out


def time_to(curve: Curve, goal: float) -> float:
    """Seconds (or batches) until the objective is `goal`, interpolated; NaN where the curve does not reach it."""
    best = np.minimum.accumulate([value for _, value in curve])
    if goal < best[-1] - 1e-12:
        return float("nan")
    if goal >= best[0]:
        return curve[0][0]
    at = int(np.argmax(best <= goal))
    (t0, _), (t1, _) = curve[at - 1], curve[at]
    share = (best[at - 1] - goal) / (best[at - 1] - best[at])
    return float(np.exp(np.log(t0) + share * (np.log(t1) - np.log(t0))))


def compare(size: int, atoms: int, options: argparse.Namespace) -> None:
    """All methods on one size."""
    dtype = np.dtype(options.dtype)
    everything = patches(size, options.rows + HELD_OUT).astype(dtype)
    x, held_out = everything[:-HELD_OUT], everything[-HELD_OUT:]
    start, penalty = x[:atoms].copy(), 1.2 / size
    clock = time.process_time if options.threads == 1 else time.perf_counter
    steps = options.passes * (len(x) // BATCH)
    points = {max(1, steps * i // 32) for i in (1, 2, 4, 8, 16, 32)}
    few = {p for p in points if p <= steps // 4}
    early = points | {max(1, steps // 64), max(1, steps // 128)}
    methods: dict[str, tuple[set[int], Callable[[], Points]]] = {
        "ours": (early, lambda: ours(x, start, penalty, steps, early, clock, options.forgetting)),
        "SPAMS": (points, lambda: spams(x, start, penalty, points, clock, options.threads)),
        "scikit-learn": (few, lambda: scikit_learn(x, start, penalty, few, clock, options.threads)),
    }
    if find_spec("spams") is None:
        print("spams is not installed (pip install spams-bin): it is left out")
        del methods["SPAMS"]
    best: dict[str, Points] = {}
    print(f"\n{size}×{size} patches, H={atoms}, {len(x):,} rows, {options.threads} thread(s), {dtype}; ", end="")
    print(f"objective of the start {objective(start, held_out, penalty):.4f}")
    for round_ in range(options.rounds):
        for name, (_, run) in methods.items():
            if name == "scikit-learn" and round_ > 0:
                continue
            curve = run()
            before = best.get(name)
            best[name] = [(min(t, b[0]), d) for (t, d), b in zip(curve, before or curve, strict=True)]
    curves = {n: [(t, objective(d, held_out, penalty)) for t, d in c] for n, c in best.items()}
    for name, curve in curves.items():
        print(f"  {name:13s}" + "  ".join(f"{t:.2f} s → {value:.4f}" for t, value in curve))
    goals = [("scikit-learn", min(value for _, value in curves["scikit-learn"]))]
    if "SPAMS" in curves:
        goals = [("SPAMS", curves["SPAMS"][-3][1]), ("SPAMS", curves["SPAMS"][-1][1]), *goals]
    for peer, goal in goals:
        told: list[str] = []
        mine, its = time_to(curves["ours"], goal), time_to(curves[peer], goal)
        told.append(f"ours {mine:.2f} s, {peer} {its:.2f} s: {mine / its:.3f} × {peer}")
        mine, its = (time_to(by_batches(curves[n], methods[n][0]), goal) for n in ("ours", peer))
        told.append(f"ours {mine:.0f} batches, {peer} {its:.0f}: {mine / its:.2f} ×")
        print(f"  to {goal:.4f}: " + "; ".join(told))


def by_batches(curve: Curve, points: set[int]) -> Curve:
    """The same curve over the numbers of batches at which it was taken."""
    return [(float(count), value) for count, (_, value) in zip(sorted(points), curve, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"])
    parser.add_argument("--forgetting", default="power", choices=["power", "batch"], help="how our sums age")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for size in options.patch:
        compare(size, {8: 256, 16: 512}.get(size, 4 * size * size), options)


if __name__ == "__main__":
    main()
