"""Counters grow by what messages add, gauges follow them, and a group that starts again counts on."""

from collections import Counter

from sparsefleet.workers.meters import Meters
from sparsefleet.workers.progress import Progress


class Book:
    """Keeps what it is told, by name and the label `work`."""

    def __init__(self) -> None:
        self.counters: Counter[tuple[str, str]] = Counter()
        self.gauges: dict[str, float] = {}
        self.labels: set[tuple[str, str, str]] = set()

    def add(self, name, value, labels) -> None:
        assert value > 0
        self.counters[name, labels.get("work", "")] += value
        self.labels.add((labels["run"], labels["engine"], labels["rank"]))

    def set(self, name, value, labels) -> None:
        self.gauges[name] = value


def message(kind: str, step: int, rows: int, compute: float, feed: float = 0.0, **more) -> Progress:
    spent = {"compute": compute, "feed": feed}
    return Progress(kind=kind, run_id="r", step=step, steps=10, rows=rows, spent=spent, **more)


FIRST = [message("start", 2, 0, 0.5), message("step", 4, 200, 2.0, rows_per_second=50), message("commit", 5, 300, 3.0)]


def test_messages_become_counters() -> None:
    book = Book()
    meters = Meters(book, engine="mpi")
    for one in FIRST:
        meters(one)
    assert book.counters == {("points", ""): 300, ("updates", ""): 3, ("commits", ""): 1, ("seconds", "compute"): 3}
    assert book.gauges == {"progress_ratio": 0.5, "points_per_second": 50}
    assert book.labels == {("r", "mpi", "0")}


def test_a_group_that_starts_again_counts_on() -> None:
    book = Book()
    meters = Meters(book, engine="ray")
    again = [Progress(kind="restart", run_id="r", step=5), message("start", 5, 0, 0.5), message("done", 10, 500, 4.0)]
    for one in [*FIRST, *again]:
        meters(one)
    assert book.counters["points", ""] == 800
    assert book.counters["updates", ""] == 8
    assert book.counters["seconds", "compute"] == 7
    assert book.counters["restarts", ""] == 1


def test_other_ranks_tell_their_time_only() -> None:
    book = Book()
    meters = Meters(book, engine="ray", rank=3)
    for one in FIRST:
        meters(one)
    assert book.counters == {("seconds", "compute"): 3}
    assert not book.gauges


def test_a_part_that_falls_by_a_rounding_adds_nothing() -> None:
    book = Book()
    meters = Meters(book, engine="local")
    for compute in (1.0, 0.9, 1.1):
        meters(message("step", 1, 1, compute))
    assert abs(book.counters["seconds", "compute"] - 1.1) < 1e-12
