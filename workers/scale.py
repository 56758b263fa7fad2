"""How long an all-reduce takes among many workers, and what it leaves of their speed: a model on paper.

A message of b bytes between two workers takes α + b/β; a worker sends one and receives one at a time. With P workers
and B bytes of statistics (Thakur, Rabenseifner, Gropp: Optimization of collective communication operations in MPICH,
2005; Patarasuk, Yuan: Bandwidth optimal all-reduce algorithms for clusters of workstations, 2009):

    ring      2 (P-1) (α + B / (P β))              least bytes, but P steps: gloo and NCCL for large messages
    halving   2 ⌈log2 P⌉ α + 2 (P-1)/P · B/β        recursive halving and doubling: MPI for large messages
    tree      2 ⌈log2 P⌉ (α + B/β)                  reduce and broadcast along a binomial tree
    gather    2 (P-1) (α + B/β)                     everybody to one and back

Workers wait for the slowest of them at every update: with a spread s of their times (standard deviation over mean,
normal) the slowest of P takes about 1 + s √(2 ln P) of the mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, log, log2, sqrt


@dataclass(frozen=True)
class Network:
    """What a message costs, and how unequal workers are."""

    latency: float = 50e-6
    """α, seconds."""
    bytes_per_second: float = 1.25e9
    """β."""
    spread: float = 0.05
    """s."""
    name: str = "10 Gbit/s Ethernet"


CLUSTER = Network()
# Two processes on one machine: 1 MB in 1.5 ms through gloo.
MACHINE = Network(100e-6, 1.0e9, 0.05, "one machine")


def ring(workers: int, size: int, net: Network) -> float:
    """Seconds of a ring all-reduce of `size` bytes."""
    return 2 * (workers - 1) * (net.latency + size / workers / net.bytes_per_second)


def halving(workers: int, size: int, net: Network) -> float:
    """Seconds of recursive halving and doubling."""
    share = (workers - 1) / workers
    return 2 * ceil(log2(workers)) * net.latency + 2 * share * size / net.bytes_per_second if workers > 1 else 0.0


def tree(workers: int, size: int, net: Network) -> float:
    """Seconds of a reduction along a binomial tree and the broadcast back."""
    return 2 * ceil(log2(workers)) * (net.latency + size / net.bytes_per_second) if workers > 1 else 0.0


def gather(workers: int, size: int, net: Network) -> float:
    """Seconds of everybody sending to one, who sends the sum to all."""
    return 2 * (workers - 1) * (net.latency + size / net.bytes_per_second)


WAYS = {"ring": ring, "halving": halving, "tree": tree, "gather": gather}


def slowest(workers: int, net: Network) -> float:
    """Time of the slowest of so many workers over their mean."""
    return 1 + net.spread * sqrt(2 * log(workers)) if workers > 1 else 1.0


@dataclass(frozen=True)
class Work:
    """What one pass (or update) is made of."""

    rows: int
    block_rows: int
    """Rows that one worker handles at least; there are no more busy workers than blocks."""
    seconds_per_row: float
    serial_seconds: float
    """What every worker does whatever their number: the update of the parameters."""
    statistics_bytes: int
    reductions: int = 1
    """All-reduces of about this size."""


def most_rows(work: Work, workers: int) -> int:
    """Rows of the worker that has most."""
    blocks = ceil(work.rows / work.block_rows)
    return min(work.rows, ceil(blocks / workers) * work.block_rows)


def seconds(work: Work, workers: int, net: Network, way: str = "ring") -> float:
    """Seconds of one pass (or update) on so many workers."""
    alone = most_rows(work, workers) * work.seconds_per_row
    reduced = work.reductions * WAYS[way](workers, work.statistics_bytes, net)
    return alone * slowest(workers, net) + work.serial_seconds + reduced


def weak_efficiency(work: Work, rows_per_worker: int, workers: int, net: Network, way: str = "ring") -> float:
    """Speed per worker over that of a worker alone, where the data grow with the workers."""
    one = replace(work, rows=rows_per_worker, block_rows=rows_per_worker)
    many = replace(one, rows=rows_per_worker * workers)
    return seconds(one, 1, net, way) / seconds(many, workers, net, way)
