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
