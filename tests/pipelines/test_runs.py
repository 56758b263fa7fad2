"""What is asked of the Prefect server about runs."""

from datetime import UTC, datetime, timedelta

import pytest
from sparsefleet.pipelines import runs

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "age", "wait"),
    [
        ("CRASHED", 0, runs.CRASH_SECONDS),
        ("CRASHED", 5, runs.CRASH_SECONDS - 5),
        ("CRASHED", 3600, 0),
        ("CRASHED", -3600, runs.CRASH_SECONDS),
        ("FAILED", 0, 0),
        ("CANCELLED", 0, 0),
    ],
)
def test_only_a_fresh_crash_is_left_to_settle(kind: str, age: float, wait: float) -> None:
    objects = pytest.importorskip("prefect.client.schemas.objects")
    state = objects.State(type=kind, timestamp=NOW - timedelta(seconds=age))
    run = objects.FlowRun(flow_id="00000000-0000-0000-0000-000000000000", state=state)
    assert runs.unsettled_seconds(run, NOW) == wait


class Server:
    """Answers with the states in turn, the last one over and over."""

    def __init__(self, *kinds: str) -> None:
        self.kinds, self.handed_over = list(kinds), 0

    def read_flow_run(self, run: object) -> object:
        return as_run(self.kinds.pop(0) if len(self.kinds) > 1 else self.kinds[0])

    def set_flow_run_state(self, run: object, state: object, *, force: bool) -> None:
        assert force
        self.handed_over += 1


def as_run(kind: str, age: float = 0) -> object:
    objects = pytest.importorskip("prefect.client.schemas.objects")
    state = objects.State(type=kind, timestamp=datetime.now(UTC) - timedelta(seconds=age))
    return objects.FlowRun(flow_id="00000000-0000-0000-0000-000000000000", state=state)


@pytest.mark.parametrize(
    ("age", "then", "times"),
    [
        (0, ["SCHEDULED", "SCHEDULED", "CRASHED"], 2),
        (0, ["SCHEDULED", "PENDING", "RUNNING", "CRASHED"], 1),
        (0, ["SCHEDULED"], 1),
        (3600, ["CRASHED"], 1),
    ],
    ids=["late report", "begun", "no worker", "old crash"],
)
def test_a_late_report_of_the_crash_does_not_undo_the_retry(monkeypatch, age, then, times):
    clock = [0.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(runs.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    server = Server(*then)
    runs.retry(server, as_run("CRASHED", age))  # pyright: ignore[reportArgumentType]
    assert server.handed_over == times
    assert clock[0] <= runs.CRASH_SECONDS + runs.LATE_SECONDS + 1
