"""How long a user waits: `sparsefleet --help`, and a dry run from the shell to its end, beside bare interpreter starts.

python benchmarks/startup.py
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sparsefleet.storage import create_dataset

SPARSEFLEET = str(Path(sys.executable).with_name("sparsefleet"))


def seconds(*command: str) -> float:
    """Shortest of five runs."""
    found = []
    for _ in range(5):
        begun = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        found.append(time.perf_counter() - begun)
    return min(found)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        uri, rows, dim = f"{folder}/rows.zarr", 50_000, 256
        writer = create_dataset(
            uri, rows=rows, arrays={"data": ((dim,), "float32")}, shard_rows=5000, chunk_rows=5000, attributes={}
        )
        for shard in writer.shards():
            writer.write(shard, data=np.random.default_rng(shard.index).normal(size=(5000, dim)).astype(np.float32))
        writer.finish()
        python, torch = seconds(sys.executable, "-c", ""), seconds(sys.executable, "-c", "import torch")
        told = seconds(SPARSEFLEET, "--help")
        dry = seconds(SPARSEFLEET, "learn", "--data", uri, "--atoms", "200", "--dry-run")
        print(f"python -c ''             {python:5.2f} s")
        print(f"python -c 'import torch' {torch:5.2f} s")
        print(f"sparsefleet --help       {told:5.2f} s = {told / python:.1f} x the interpreter")
        print(f"learn --dry-run          {dry:5.2f} s = {dry / torch:.1f} x importing torch (50,000 x 256, 200 atoms)")


if __name__ == "__main__":
    main()
