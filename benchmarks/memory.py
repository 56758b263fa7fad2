"""Peak memory of learning as the data set grows: it must stay flat, and below what `plan` predicts.

Each size is learned in a process of its own with the same memory limit; the peak resident size is compared with the
plan's figure.

    python benchmarks/memory.py [--rows 100000 1000000 10000000] [--model bsc] [--limit 1.5] [--passes 2]
    python benchmarks/memory.py --model online --set '{"penalty": 2}' --limit 0.7 --passes 1 --rows 300000 30000000
"""

import argparse
import json
import subprocess
import sys
import tempfile

import numpy as np
from sparsefleet.storage import choose_layout, create_dataset

DIM = 64

CHILD = """
import json, resource, sys
import sparsefleet
from sparsefleet.workers import LearnJob, run
from sparsefleet.workers.plan import plan
job = LearnJob(data=sys.argv[1], model=sys.argv[3], atoms=100, passes=int(sys.argv[5]),
               store=sys.argv[2], memory_gib=float(sys.argv[4]), threads=1, settings=json.loads(sys.argv[6]))
predicted = plan(job).memory_bytes_per_worker
*_, last = run("learn", job)
print(json.dumps([predicted, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, last.rows_per_second]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--model", default="bsc")
    parser.add_argument("--limit", type=float, default=1.5, help="GiB per worker")
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--set", default="{}", dest="settings", help="the model's settings, as JSON")
    options = parser.parse_args()
    print(f"{options.model} D={DIM} H=100, {options.passes} passes, limit {options.limit} GiB per worker")
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            shard_rows, chunk_rows = choose_layout(rows, 4 * DIM)
            writer = create_dataset(
                f"{folder}/rows.zarr", rows=rows, arrays={"data": ((DIM,), "float32")}, shard_rows=shard_rows,
                chunk_rows=chunk_rows, attributes={"kind": "dense"},
            )  # fmt: skip
            for shard in writer.shards():
                block = np.random.default_rng(shard.index).normal(size=(shard.stop - shard.start, DIM))
                writer.write(shard, data=block.astype(np.float32))
            writer.finish()
            command = [sys.executable, "-c", CHILD, f"{folder}/rows.zarr", f"{folder}/store", options.model]
            command += [str(options.limit), str(options.passes), options.settings]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            predicted, peak, rate = json.loads(said.splitlines()[-1])
            print(
                f"N={rows:>10,} ({rows * DIM * 4 / 2**20:7,.0f} MiB): peak {peak / 2**20:6,.0f} MiB, "
                f"predicted {predicted / 2**20:6,.0f} MiB, {rate:9,.0f} rows/s"
            )


if __name__ == "__main__":
    main()
