"""What `sparsefleet plan` says of a job, and what the job then takes: wall seconds and peak memory of a worker.

Each job is planned (with its short trial) and then run, in a process of its own, in turns so that what else the machine
does meets both. The ratios are predicted over measured: time may be wrong by 25 % either way, memory shall be an upper
bound by at most 25 %.

    python benchmarks/plan.py [--engine local] [--workers 1] [--only bsc topk] [--turns 2]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

import numpy as np
from sparsefleet.pipelines.planning import predict
from sparsefleet.storage import choose_layout, create_dataset
from sparsefleet.workers import LearnJob

ROWS, SIDE = 60_000, 12
DIM = SIDE * SIDE
JOBS = {
    "bsc": {"model": "bsc", "atoms": 200, "passes": 60},
    "gsc": {"model": "gsc", "atoms": 150, "passes": 40, "settings": {"h_prime": 6, "gamma": 4}},
    "mca": {"model": "mca", "atoms": 100, "passes": 12, "rows": 30_000, "settings": {"h_prime": 6, "gamma": 4}},
    "topk": {"model": "topk", "atoms": 1024, "passes": 12, "settings": {"k": 16}},
    "online": {"model": "online", "atoms": 200, "passes": 6, "settings": {"penalty": 4}},
    "bsc evolutionary": {
        "model": "bsc", "atoms": 100, "passes": 8, "rows": 12_000,
        "settings": {"states": "evolutionary", "evolution": {"size": 40}},
    },
    "gsc evolutionary": {
        "model": "gsc", "atoms": 60, "passes": 5, "rows": 4_000, "batch_rows": 1_000,
        "settings": {"states": "evolutionary", "evolution": {"size": 20}},
    },
}  # fmt: skip
CHILD = """
import json, resource, sys
from sparsefleet.workers import LearnJob, run
*_, last = run("learn", LearnJob.parse(json.loads(sys.argv[1])))
peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(json.dumps([last.seconds, peak * 1024]))
"""


def make_data(folder: str) -> str:
    """Patches made of a few of 300 smooth blobs each, and noise; positive, so that every model can learn them."""
    uri = f"{folder}/rows.zarr"
    rng = np.random.default_rng(0)
    centre, grid = rng.random((300, 2, 1, 1)) * SIDE, np.mgrid[:SIDE, :SIDE]
    atoms = 5 * np.exp(-((grid - centre) ** 2).sum(1) / 3).reshape(300, DIM)
    shard_rows, chunk_rows = choose_layout(ROWS, 4 * DIM)
    writer = create_dataset(
        uri, rows=ROWS, arrays={"data": ((DIM,), "float32")}, shard_rows=shard_rows, chunk_rows=chunk_rows,
        attributes={"kind": "dense"},
    )  # fmt: skip
    for shard in writer.shards():
        draw = np.random.default_rng(shard.index)
        codes = draw.random((shard.stop - shard.start, 300)) < 4 / 300
        writer.write(shard, data=(codes @ atoms + draw.normal(size=(len(codes), DIM))).astype(np.float32))
    writer.finish()
    return uri


def measured(job: LearnJob) -> tuple[float, int]:
    command = [sys.executable, "-c", CHILD, json.dumps(job.to_dict())]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return tuple(json.loads(said.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="local", choices=["local", "mpi"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()
    print(f"{options.engine}, {options.workers} workers of 1 thread, D={DIM}; load {os.getloadavg()[0]:.1f}")
    print("| job | predicted s | measured s | ratio | predicted MiB | measured MiB | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(folder)
        for name in options.only:
            turns = []
            for turn in range(options.turns):
                job = LearnJob.parse({
                    "data": data, "store": f"{folder}/store-{name}-{turn}", "threads": 1, "engine": options.engine,
                    "workers": options.workers, **JOBS[name],
                })  # fmt: skip
                plan = predict(job)
                turns.append((plan["seconds"], plan["memory_bytes_per_worker"] / 2**20, *measured(job)))
            said, memory, took, peak = (statistics.median(column) for column in zip(*turns, strict=True))
            peak /= 2**20
            print(
                f"| {name} | {said:.1f} | {took:.1f} | {said / took:.2f} | {memory:,.0f} | {peak:,.0f} | "
                f"{memory / peak:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
