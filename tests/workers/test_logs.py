"""Log lines as JSON: whose they are, what they say, and that nothing happens where nobody asks."""

import io
import json
import logging

import pytest
from sparsefleet.workers import JobError, LearnJob, logs, run
from sparsefleet.workers.progress import Progress

LOG = logging.getLogger("sparsefleet.test")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch):
    """Starts the JSON log into a buffer; returns what reads it."""
    monkeypatch.setenv(logs.SETTING, "json")
    root, stream = logging.getLogger(logs.ROOT), io.StringIO()
    before = list(root.handlers), root.level, root.propagate
    root.handlers = []
    logs.start(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers, root.level, root.propagate = before
    logs.about(run=None, engine=None, rank=None)


def test_a_line_says_whose_it_is(lines) -> None:
    logs.about(run="abc", engine="mpi", rank=1)
    LOG.warning("disk %s\nis full", "sda")
    logs.about(rank=None)
    LOG.info("next")
    first, second = lines()
    assert (first["run"], first["engine"], first["rank"]) == ("abc", "mpi", 1)
    assert (first["level"], first["message"], first["logger"]) == ("warning", "disk sda\nis full", "sparsefleet.test")
    assert first["time"].endswith("+00:00") and first["process"] > 0
    assert second["run"] == "abc" and "rank" not in second


def test_an_event_has_its_numbers_and_nan_is_still_json(lines) -> None:
    metrics = {"sigma": float("nan"), "pi": 0.5}
    logs.event(LOG, Progress(kind="commit", step=3, steps=9, metrics=metrics, spent={"feed": 1.0}))
    (line,) = lines()
    assert (line["event"], line["step"], line["steps"], line["spent"]) == ("commit", 3, 9, {"feed": 1.0})
    assert line["metrics"] == {"sigma": "NaN", "pi": 0.5}


def test_an_exception_is_one_line(lines) -> None:
    try:
        raise KeyError("W")
    except KeyError:
        LOG.exception("rank 1 failed")
    (line,) = lines()
    assert "Traceback" in line["error"] and "KeyError: 'W'" in line["error"]


def test_a_run_logs_its_events_with_its_id(lines, make_data, tmp_path) -> None:
    job = LearnJob(data=make_data(200), atoms=4, passes=3, store=str(tmp_path / "store"), report_seconds=0)
    *_, last = run("learn", job)
    found = lines()
    assert [line["event"] for line in found] == ["start", "commit", "done"]
    assert {line["run"] for line in found} == {last.run_id}
    assert {line["rank"] for line in found} == {0}
    assert last.rows == 3 * 200


def test_nothing_is_set_up_where_nobody_asks(monkeypatch) -> None:
    monkeypatch.delenv(logs.SETTING, raising=False)
    before = list(logging.getLogger(logs.ROOT).handlers)
    logs.start()
    assert logging.getLogger(logs.ROOT).handlers == before
    monkeypatch.setenv(logs.SETTING, "xml")
    with pytest.raises(JobError, match="SPARSEFLEET_LOG='xml': write json or text"):
        logs.start()
