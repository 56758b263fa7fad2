"""Reading whole shards of a data set against reading the same bytes from a `.npy` file, page cache warm.

python benchmarks/reading.py [--mib 400] [--dim 256]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from sparsefleet.storage import choose_layout, create_dataset


def cpu_and_wall(call, repeats: int = 5) -> tuple[float, float]:
    """Least CPU seconds and least wall seconds of a call; on a shared machine the first is the steadier."""
    found = []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        found.append((time.process_time() - cpu, time.perf_counter() - wall))
    return min(c for c, _ in found), min(w for _, w in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=400)
    parser.add_argument("--dim", type=int, default=256)
    options = parser.parse_args()
    rows = options.mib * 2**20 // (4 * options.dim)
    values = np.random.default_rng(0).normal(size=(rows, options.dim)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "rows.npy", values)
        shard_rows, chunk_rows = choose_layout(rows, 4 * options.dim)
        writer = create_dataset(
            f"{folder}/rows.zarr",
            rows=rows,
            arrays={"data": ((options.dim,), "float32")},
            shard_rows=shard_rows,
            chunk_rows=chunk_rows,
            attributes={"kind": "dense"},
        )
        for shard in writer.shards():
            writer.write(shard, data=values[shard.slice])
        data = writer.finish()
        del values

        def shards() -> None:
            for shard in data.shards():
                data.read(shard.start, shard.stop)

        def plain() -> None:
            np.load(Path(folder) / "rows.npy")

        def mapped() -> None:
            source = np.load(Path(folder) / "rows.npy", mmap_mode="r")
            for shard in data.shards():
                np.array(source[shard.slice])

        print(f"{options.mib} MiB, shards of {shard_rows} rows, chunks of {chunk_rows}")
        results = {
            name: cpu_and_wall(call) for name, call in (("shards", shards), ("npy", plain), ("npy, by shard", mapped))
        }
        for name, (cpu, wall) in results.items():
            print(f"{name:14} {options.mib / cpu:7,.0f} MiB per CPU second, {options.mib / wall:7,.0f} MiB/s")
        for name in ("npy", "npy, by shard"):
            cpu, wall = (results[name][i] / results["shards"][i] for i in (0, 1))
            print(f"shards / {name}: {cpu:.0%} by CPU time, {wall:.0%} by wall time")


if __name__ == "__main__":
    main()
