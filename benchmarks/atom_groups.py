"""Peak memory of a worker whose atoms are dealt to two, over that of one that holds them all.

    python benchmarks/atom_groups.py [--atoms 65536] [--dim 256] [--updates 8]

Two MPI ranks learn the same `topk` in both layouts: `--atom-groups 1` (rows are dealt) and 2 (atoms are dealt).
Reported are the highest resident bytes of each rank (VmHWM), what a rank has with next to no dictionary, and the
relation of the rest.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from threading import Event, Thread

import numpy as np
import psutil
from sparsefleet.storage import create_dataset
from sparsefleet.workers import LearnJob, run

ROWS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--atoms", type=int, default=65536)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--updates", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _make_rows(f"{folder}/rows.zarr", given.dim)
        small = _peaks(_job(folder, 64, given.updates, 1, given.dim))
        found = {groups: _peaks(_job(folder, given.atoms, given.updates, groups, given.dim)) for groups in (1, 2)}
    base = max(small)
    print(f"{given.atoms:,} atoms of {given.dim}, float32; a rank without a dictionary: {base / 1e6:,.0f} MB")
    for groups, peaks in found.items():
        print(f"atom groups {groups}: peak of the ranks {', '.join(f'{p / 1e6:,.0f} MB' for p in peaks)}")
    whole, half = (max(found[groups]) for groups in (1, 2))
    print(f"two over one: {half / whole:.2f} of all memory, {(half - base) / (whole - base):.2f} beyond the libraries")


def _make_rows(uri: str, dim: int) -> None:
    writer = create_dataset(
        uri,
        rows=ROWS,
        arrays={"data": ((dim,), "float32")},
        shard_rows=512,
        chunk_rows=128,
        attributes={"made": "drawn"},
    )
    rng = np.random.default_rng(0)
    for shard in writer.shards():
        writer.write(shard, data=rng.normal(size=(len(shard), dim)).astype(np.float32))
    writer.finish()


def _job(folder: str, atoms: int, updates: int, groups: int, dim: int) -> LearnJob:
    batch = 256
    return LearnJob(
        data=f"{folder}/rows.zarr", store=f"{folder}/store-{atoms}-{groups}", model="topk", atoms=atoms,
        settings={"k": 32, "aux_k": min(64, dim // 2)}, passes=max(1, updates * batch // ROWS), batch_rows=batch,
        engine="mpi", workers=2, threads=1, atom_groups=groups, memory_gib=64,
    )  # fmt: skip


def _peaks(job: LearnJob) -> list[int]:
    """Highest resident bytes of each rank."""
    found: dict[int, int] = {}
    ended = Event()
    watcher = Thread(target=_watch, args=(found, ended))
    watcher.start()
    begun = time.monotonic()
    try:
        *_, last = run("learn", job)
    finally:
        ended.set()
        watcher.join()
    print(f"# {job.atoms:,} atoms, {job.atom_groups} groups: {last.step} updates, {time.monotonic() - begun:.0f} s")
    return sorted(found.values())


def _watch(found: dict[int, int], ended: Event) -> None:
    while not ended.wait(0.02):
        for process in psutil.Process().children(recursive=True):
            try:
                words = process.cmdline()
                if "python" in Path(words[0]).name and any("sparsefleet.workers.mpi_main" in word for word in words):
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    found[process.pid] = int(status.partition("VmHWM:")[2].split()[0]) * 1024
            except (psutil.Error, OSError, IndexError):
                continue


if __name__ == "__main__":
    main()
