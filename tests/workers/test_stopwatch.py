"""What time is spent on: parts that do not overlap and make up the whole."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
from sparsefleet.workers import stopwatch
from sparsefleet.workers.stopwatch import COMMIT, COMMUNICATION, FEED, Stopwatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    # The module's own name for it only: `time` is everybody's.
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_parts_make_up_the_whole(clock: list[float]) -> None:
    watch = Stopwatch()
    clock[0] += 1
    with watch.on(COMMIT):
        clock[0] += 2
        with watch.on(COMMUNICATION):
            clock[0] += 4
        with watch.on(COMMUNICATION):
            clock[0] += 8
        clock[0] += 16
    clock[0] += 32
    assert watch.seconds() == {"compute": 33, "feed": 0, "communication": 12, "commit": 18}


def test_waiting_for_items_is_not_their_use(clock: list[float]) -> None:
    def slow():
        for i in range(3):
            clock[0] += 1
            yield i

    watch = Stopwatch()
    for _ in watch.waiting(slow()):
        clock[0] += 10
    assert watch.seconds()[FEED] == 3
    assert watch.seconds()["compute"] == 30


def test_an_error_inside_is_counted_too(clock: list[float]) -> None:
    watch = Stopwatch()
    with suppress(KeyError), watch.on(FEED):
        clock[0] += 5
        raise KeyError
    assert watch.seconds() == {"compute": 0, "feed": 5, "communication": 0, "commit": 0}
