"""The reporter on a terminal: what it says of the time that is left."""

import pytest
from sparsefleet.pipelines import reporter
from sparsefleet.pipelines.reporter import Console
from sparsefleet.workers.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(reporter.time, "monotonic", lambda: now[0])

    def at(seconds: float) -> None:
        now[0] = 100.0 + seconds

    return at


def test_what_is_left_is_judged_by_the_work_and_not_by_what_was_loaded_before(clock, capsys):
    with Console("harvest") as console:
        console(Progress(kind="start", message="loads the network"))
        for seconds, step in ((20, 5), (26, 35), (32, 65)):
            clock(seconds)
            console(Progress(kind="step", step=step, steps=95))
    said = capsys.readouterr().err.splitlines()
    assert "left" not in said[1], "one message tells no speed"
    assert said[2].endswith(" 12 s left") and said[3].endswith(" 6.0 s left")


def test_what_is_left_of_a_run_that_goes_on(clock, capsys):
    with Console("learn") as console:
        console(Progress(kind="start", step=50, steps=100))
        clock(10)
        console(Progress(kind="step", step=75, steps=100))
        console(Progress(kind="restart", step=60, steps=100, message="killed"))
        clock(20)
        console(Progress(kind="step", step=80, steps=100))
    said = capsys.readouterr().err.splitlines()
    assert said[1].endswith("10 s left") and said[3].endswith("10.0 s left")
