"""What a run measures of itself for a monitoring system: counters and gauges, from its messages.

The names follow Prometheus' habits (base units, counters that only grow); who exports them gives a `Sink`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from .progress import Progress

PREFIX = "sparsefleet_"
LABELS = ("run", "engine", "rank")
COUNTERS = {
    "points": "datapoints that all workers together have worked on (reported by rank 0)",
    "updates": "updates of the parameters, or shards encoded (reported by rank 0)",
    "commits": "commits of the run's state to the artifact store (reported by rank 0)",
    "restarts": "groups of workers that were started again after a loss",
    "seconds": "wall seconds of a worker by what they went into (label work): compute, feed (waiting for rows), "
    "communication (all-reduces and waiting for the other workers), commit",
}
GAUGES = {
    "points_per_second": "datapoints per second of all workers together (reported by rank 0)",
    "progress_ratio": "share of the run that is done, 0 to 1 (reported by rank 0)",
}
WORK = "work"


class Sink(Protocol):
    """Takes values under the names above (without the prefix)."""

    def add(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Let a counter grow by `value` > 0."""

    def set(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Give a gauge this value."""


class Meters:
    """Turns the messages of one worker into counters and gauges."""

    def __init__(self, sink: Sink, *, engine: str, rank: int = 0, run: str = "") -> None:
        """`run`: the label where messages carry no run id."""
        self._sink, self._engine, self._rank, self._run = sink, engine, rank, run
        self._begin(0)

    def _begin(self, step: int) -> None:
        """What messages say counts from the start of a group of workers."""
        self._rows, self._step, self._spent = 0, step, dict[str, float]()

    def __call__(self, progress: Progress) -> None:
        """Take one message, in their order."""
        self._run = progress.run_id or self._run
        labels = {"run": self._run, "engine": self._engine, "rank": str(self._rank)}
        if progress.kind == "restart":
            self._sink.add("restarts", 1, labels)
            return
        if progress.kind == "start":
            self._begin(progress.step)
        self._time(progress, labels)
        if self._rank == 0:
            self._work(progress, labels)

    def _time(self, progress: Progress, labels: Mapping[str, str]) -> None:
        for work, seconds in progress.spent.items():
            self._grow("seconds", seconds - self._spent.get(work, 0.0), {**labels, WORK: work})
            self._spent[work] = max(seconds, self._spent.get(work, 0.0))

    def _work(self, progress: Progress, labels: Mapping[str, str]) -> None:
        self._grow("points", progress.rows - self._rows, labels)
        self._grow("updates", progress.step - self._step, labels)
        self._rows, self._step = max(progress.rows, self._rows), max(progress.step, self._step)
        self._grow("commits", float(progress.kind == "commit"), labels)
        self._sink.set("progress_ratio", progress.fraction, labels)
        if progress.rows_per_second:
            self._sink.set("points_per_second", progress.rows_per_second, labels)

    def _grow(self, name: str, by: float, labels: Mapping[str, str]) -> None:
        # Compute is what the other parts leave: between two messages it may fall by a rounding.
        if by > 0:
            self._sink.add(name, by, labels)
