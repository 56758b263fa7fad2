"""Strong and weak scaling from one core to two, for every engine: binary sparse coding as in `scaling.py`.

The engine local works with 1 and 2 threads, ray with 1 and 2 workers, mpi with 1 and 2 ranks (one thread each).
Strong: the same rows; the figure is the time on one core over the time on two. Weak: as many rows a core, so twice the
rows on two; the figure is rows per second on two over those on one. 2 would be perfect for both.

The limit is what the machine gives to two processes that have nothing to do with each other: twice the rows in the time
of the slower one, over one process alone (bare statistics and updates, rows in memory). Each figure is also given as a
part of that limit. All is measured in turns, so that what else the machine does meets all of it, and the shortest
pass of all turns counts: it is what the machine can do.

    python benchmarks/engine_scaling.py [--rows 131072] [--passes 6] [--turns 3] [--engines local ray mpi]
"""

import argparse
import os
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from scaling import ATOMS, DIM, bare_seconds, make_data, pass_seconds

CORES = {
    "local": lambda cores: {"threads": cores},
    "ray": lambda cores: {"engine": "ray", "workers": cores, "threads": 1},
    "mpi": lambda cores: {"engine": "mpi", "workers": cores, "threads": 1},
}
ALONE, STRONG, WEAK = "one core", "two cores, the same rows", "two cores, twice the rows"
RUNS = {ALONE: (1, 1), STRONG: (2, 1), WEAK: (2, 2)}
"""Cores, and rows as a multiple of those that one core has."""


def limit_seconds(uri: str, rows: int, passes: int) -> tuple[float, float]:
    """A pass of one process alone, and of the slower one of two that work at the same time, each on all of its rows."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        alone = pool.submit(bare_seconds, uri, passes, rows).result()
        return alone, max(pool.map(bare_seconds, [uri] * 2, [passes] * 2, [rows] * 2))


def turn(number: int, uri: str, folder: str, options: argparse.Namespace) -> dict[tuple[str, str], float]:
    """Seconds of a pass of each run of each engine, once; of the limit under "apart"."""
    found: dict[tuple[str, str], float] = {}
    for engine in options.engines:
        for what, (cores, times) in RUNS.items():
            name, rows = f"{engine}-{cores}-{times}-{number}", times * options.rows
            found[engine, what] = pass_seconds(uri, folder, name, options.passes, rows=rows, **CORES[engine](cores))
    alone, both = limit_seconds(uri, options.rows, options.passes)
    return {**found, ("apart", ALONE): alone, ("apart", WEAK): both}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=131072, help="rows of one core")
    parser.add_argument("--passes", type=int, default=6)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--engines", nargs="+", choices=list(CORES), default=list(CORES))
    options = parser.parse_args()
    times = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        uri = make_data(folder, 2 * options.rows)
        for number in range(options.turns):
            for key, seconds in turn(number, uri, folder, options).items():
                times[key].append(seconds)
            print(f"turn {number + 1} of {options.turns}, load {os.getloadavg()[0]:.1f}", flush=True)
    best = {key: min(seconds) for key, seconds in times.items()}
    limit = 2 * best["apart", ALONE] / best["apart", WEAK]
    print(f"N={options.rows} a core, D={DIM} H={ATOMS}; two processes apart do {limit:.2f} x the work of one")
    print("| engine | one core, points/s | strong | of the limit | weak | of the limit |")
    print("| --- | --- | --- | --- | --- | --- |")
    for engine in options.engines:
        alone = best[engine, ALONE]
        strong, weak = alone / best[engine, STRONG], 2 * alone / best[engine, WEAK]
        shown = f"{strong:.2f} x | {strong / limit:.0%} | {weak:.2f} x | {weak / limit:.0%}"
        print(f"| {engine} | {options.rows / alone:,.0f} | {shown} |")
    print("each turn:", {" ".join(key): [round(s, 3) for s in seconds] for key, seconds in times.items()})


if __name__ == "__main__":
    main()
