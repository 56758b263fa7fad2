"""Runs as the Prefect server and the artifact store know them: find, show, follow, cancel, continue."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from .errors import PipelineError
from .running import PROGRAMS

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, Log

RECENT = 200
POLL_SECONDS = 1.0
CORRECTION_SECONDS = 20.0
CRASH_SECONDS = 15.0
"""A crash is reported twice, by the runner at once and by the worker some seconds later. The second report would undo a
retry that came between them."""
LATE_SECONDS = 30.0
"""How long a retry that follows a crash is watched: a busy worker's second report came 16 s after the first."""


def recent(prefect: SyncPrefectClient, limit: int = 20) -> list[FlowRun]:
    """The newest flow runs of our flows."""
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName
    from prefect.client.schemas.sorting import FlowRunSort

    ours = FlowFilter(name=FlowFilterName(any_=list(PROGRAMS)))
    return prefect.read_flow_runs(flow_filter=ours, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=limit)


def find(prefect: SyncPrefectClient, run: str) -> FlowRun:
    """The flow run of this name (the newest), id or beginning of an id.

    Raises:
        PipelineError: there is none, or several ids begin so.
    """
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterName
    from prefect.client.schemas.sorting import FlowRunSort

    newest = FlowRunSort.EXPECTED_START_TIME_DESC
    try:
        by_id = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(run)]))
        found = prefect.read_flow_runs(flow_run_filter=by_id)
    except ValueError:
        by_name = FlowRunFilter(name=FlowRunFilterName(any_=[run]))
        found = prefect.read_flow_runs(flow_run_filter=by_name, sort=newest, limit=1)
    if not found:
        found = [r for r in recent(prefect, RECENT) if str(r.id).startswith(run.lower())]
    if len(found) > 1:
        raise PipelineError(
            f"several runs begin with {run!r}: {', '.join(str(r.id)[:12] for r in found)}; write more of it"
        )
    if not found:
        raise PipelineError(f"no flow run {run!r} (name, id or beginning of an id); see `sparsefleet status`")
    return found[0]


def summary(prefect: SyncPrefectClient, run: FlowRun) -> dict[str, Any]:
    """A flow run as plain values."""
    state = run.state
    seconds = run.estimated_run_time.total_seconds()
    return {
        "id": str(run.id),
        "name": run.name,
        "state": state.name if state else "Pending",
        "message": (state.message or "") if state else "",
        "progress": _progress(prefect, run),
        "seconds": round(seconds, 1),
        "started": run.start_time.isoformat(timespec="seconds") if run.start_time else None,
    }


def log(prefect: SyncPrefectClient, run: FlowRun, *, follow: bool) -> Iterator[Log]:
    """The run's log, oldest first; with `follow` also what comes, until the run has ended."""
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    ours = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
    seen: set[UUID] = set()
    offset = 0
    while True:
        ended = not follow or is_final(prefect.read_flow_run(run.id))
        # The server writes in batches: entries may still arrive before ones already read, so re-read a little.
        while batch := prefect.read_logs(ours, limit=RECENT, offset=offset):
            fresh = [entry for entry in batch if entry.id not in seen]
            seen.update(entry.id for entry in fresh)
            yield from fresh
            if len(batch) < RECENT:
                break
            offset += RECENT
        if ended:
            return
        time.sleep(POLL_SECONDS)


def cancel(prefect: SyncPrefectClient, run: FlowRun, wait_seconds: float) -> FlowRun:
    """Ask for the end of a run and wait until it has ended, or the seconds are over.

    Raises:
        PipelineError: it has ended already.
    """
    from prefect.client.schemas.objects import State, StateType

    if is_final(run):
        raise PipelineError(f"run {run.name!r} has ended already: {run.state.name if run.state else ''}")
    kind = StateType.CANCELLED if run.state is None or run.state.is_scheduled() else StateType.CANCELLING
    prefect.set_flow_run_state(run.id, State(type=kind), force=False)
    end = time.monotonic() + wait_seconds
    while not is_final(run := prefect.read_flow_run(run.id)) and time.monotonic() < end:
        time.sleep(0.5)
    # A flow that is told to end calls itself crashed; the worker that told it corrects that once the process is gone.
    end = time.monotonic() + CORRECTION_SECONDS
    while run.state is not None and run.state.is_crashed() and time.monotonic() < end:
        time.sleep(0.5)
        run = prefect.read_flow_run(run.id)
    return run


def retry(prefect: SyncPrefectClient, run: FlowRun) -> None:
    """Let a worker run it again under the same id; it goes on from its last commit.

    One that has crashed within the last seconds is handed over once its worker has said all that it has to say. A run
    that was cancelled and has not ended is taken up as well: whoever should have ended it may have died with it.

    Raises:
        PipelineError: it runs still, or has completed.
    """
    from prefect.states import AwaitingRetry

    if not is_final(run) and not (run.state and run.state.is_cancelling()):
        raise PipelineError(
            f"run {run.name!r} has not ended ({run.state.name if run.state else 'pending'}); it needs no resume "
            f"(if its worker is gone: sparsefleet cancel {str(run.id)[:8]}, then resume)"
        )
    if run.state is not None and run.state.is_completed():
        raise PipelineError(f"run {run.name!r} has completed; there is nothing to resume")
    wait = unsettled_seconds(run, datetime.now(UTC))
    time.sleep(wait)
    prefect.set_flow_run_state(run.id, AwaitingRetry(), force=True)
    if wait and _undone(prefect, run.id):
        prefect.set_flow_run_state(run.id, AwaitingRetry(), force=True)


def _undone(prefect: SyncPrefectClient, run: UUID) -> bool:
    """Whether a crash is reported before the run has begun again, or before `LATE_SECONDS` are over."""
    end = time.monotonic() + LATE_SECONDS
    while time.monotonic() < end:
        state = prefect.read_flow_run(run).state
        if state is not None and (state.is_crashed() or state.is_running() or state.is_final()):
            return state.is_crashed()
        time.sleep(0.5)
    return False


def unsettled_seconds(run: FlowRun, now: datetime) -> float:
    """How long the run's worker may still report a crash that has been reported before; 0 for other states."""
    if run.state is None or not run.state.is_crashed():
        return 0.0
    # The server's clock may be another one.
    return min(CRASH_SECONDS, max(0.0, CRASH_SECONDS - (now - run.state.timestamp).total_seconds()))


def is_final(run: FlowRun) -> bool:
    """Whether the run has ended, well or not."""
    return run.state is not None and run.state.is_final()


def time_spent(prefect: SyncPrefectClient, run: FlowRun) -> list[dict[str, Any]]:
    """The table of what the run's time goes into, as its page shows it; empty if it has none (yet)."""
    found = _artifact(prefect, run, "time")
    return json.loads(found) if isinstance(found, str) else []


def _progress(prefect: SyncPrefectClient, run: FlowRun) -> float | None:
    found = _artifact(prefect, run, "progress")
    return float(found) if isinstance(found, (int, float)) else None


def _artifact(prefect: SyncPrefectClient, run: FlowRun, key: str) -> Any:
    """What the artifact `key` of the run's page holds, or None."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey

    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]), key=ArtifactFilterKey(any_=[key]))
    found = prefect.read_artifacts(artifact_filter=of_run, limit=1)
    return found[0].data if found else None
