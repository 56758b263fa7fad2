"""A run's page in the Prefect UI: its progress in %, a table of metrics, one of what the time goes into, and a report
with pictures, updated in place.

Four artifacts are created once and then changed: a new one per update would bury the page. Everything goes through
a thread with a short memory that drops the oldest, so that learning never waits for the UI, nor for a server that is
away.
"""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .console import duration
from .errors import Cancelled
from .metrics import ordered
from .reporter import LINE_SECONDS, describe
from .timing import time_table

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient

    from ..workers.progress import Progress

Figures = Mapping[str, bytes]
TABLE_ROWS = 50
UPDATE_SECONDS = 1.0
REPORT_SECONDS = 10.0
CANCEL_SECONDS = 2.0
CLOSE_SECONDS = 20.0
TITLES = {
    "atoms.png": "Atoms",
    "convergence.png": "Convergence",
    "codes.png": "Rows (above) and atoms times codes (below)",
    "before_after.png": "Before, after (and as it was)",
}


class Page:
    """The page of one flow run, as a reporter and context manager.

    Args:
        title: what the run is, in a few words.
        draw: makes the pictures of the state that was committed last; called in the page's thread.
        client, flow_run_id: where to.
        logger: gets a line now and then.
        watch_cancel: ask for cancellation; a run that a worker started is ended by that worker.
    """

    def __init__(
        self,
        title: str,
        draw: Callable[[str], Figures],
        client: SyncPrefectClient,
        flow_run_id: UUID,
        logger: logging.Logger | logging.LoggerAdapter[Any],
        *,
        watch_cancel: bool,
    ) -> None:
        self._title, self._draw, self._client, self._run = title, draw, client, flow_run_id
        self._logger, self._watch = logger, watch_cancel
        self._messages: deque[Progress] = deque(maxlen=200)
        self._rows: deque[dict[str, Any]] = deque(maxlen=TABLE_ROWS)
        self._ids: dict[str, UUID] = {}
        self._wake, self._stop, self._cancelled = threading.Event(), threading.Event(), threading.Event()
        self._last: dict[str, float] = dict.fromkeys(("update", "report", "cancel", "line"), 0.0)
        self._thread = threading.Thread(target=self._work, name="prefect-page", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._wake.set()
        self._thread.join(CLOSE_SECONDS)

    def __call__(self, progress: Progress) -> None:
        """Take a message; raises Cancelled if somebody cancelled the run meanwhile."""
        if self._cancelled.is_set():
            raise Cancelled(f"{self._title} was cancelled; its last commit is kept")
        if progress.kind in ("start", "restart", "done") or time.monotonic() - self._last["line"] > LINE_SECONDS:
            self._last["line"] = time.monotonic()
            self._logger.info(describe(progress))
        self._messages.append(progress)
        self._wake.set()

    def finish(self, rows: Sequence[dict[str, Any]] | None, markdown: str) -> None:
        """Show the final table and report; called when the run has ended well, after the thread has."""
        self.__exit__(None, None, None)
        if rows:
            self._rows = deque(rows, maxlen=TABLE_ROWS)
            self._put(
                "table", "metrics", json.dumps(list(self._rows)), f"{self._title}: last {len(self._rows)} updates"
            )
        self._put("progress", "progress", 100.0, self._title)
        self._put("markdown", "report", markdown, self._title)

    def _work(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(UPDATE_SECONDS)
            self._wake.clear()
            try:
                self._look_for_cancel()
                if self._due("update", UPDATE_SECONDS) and self._messages:
                    self._update()
            except Exception:
                # The page is a courtesy: a server that is away must not end a run of days.
                self._logger.debug("the page of this run was not updated", exc_info=True)
        try:
            self._update()
        except Exception:
            self._logger.debug("the page of this run was not updated", exc_info=True)

    def _update(self) -> None:
        committed = ""
        latest: Progress | None = None
        while self._messages:
            latest = self._messages.popleft()
            if latest.metrics and latest.kind in ("step", "commit"):
                self._rows.append(_row(latest))
            committed = latest.run_id if latest.kind == "commit" else committed
        if latest is None:
            return
        self._put("progress", "progress", round(100 * latest.fraction, 1), self._title)
        if latest.spent:
            self._put("table", "time", json.dumps(time_table(latest.spent)), f"{self._title}: what the time goes into")
        if self._rows:
            self._put("table", "metrics", json.dumps(list(reversed(self._rows))), f"{self._title}: newest first")
        # The last commit is drawn once, by whoever publishes it.
        if committed and latest.fraction < 1 and self._due("report", REPORT_SECONDS):
            self._put("markdown", "report", self._running(latest, self._draw(committed)), self._title)

    def _running(self, progress: Progress, figures: Figures) -> str:
        head = (
            f"# {self._title}\n\nUpdate {progress.step} of {progress.steps}, {duration(progress.seconds)} so far.\n\n"
        )
        return head + metrics_markdown(progress.metrics) + pictures_markdown(figures)

    def _look_for_cancel(self) -> None:
        if self._watch and self._due("cancel", CANCEL_SECONDS):
            state = self._client.read_flow_run(self._run).state
            if state is not None and state.is_cancelling():
                self._cancelled.set()

    def _put(self, kind: str, key: str, data: Any, description: str) -> None:
        from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

        known = self._ids.get(key)
        if known is None:
            made = ArtifactCreate(type=kind, key=key, data=data, description=description, flow_run_id=self._run)
            self._ids[key] = self._client.create_artifact(made).id
        else:
            self._client.update_artifact(known, ArtifactUpdate(data=data, description=description))

    def _due(self, what: str, seconds: float) -> bool:
        now = time.monotonic()
        if now - self._last[what] < seconds:
            return False
        self._last[what] = now
        return True


def pictures_markdown(figures: Figures) -> str:
    """The pictures inside of the text, so that the page needs no file server."""
    out = ""
    for name, png in figures.items():
        title = TITLES.get(name, name)
        out += f"\n## {title}\n\n![{title}](data:image/png;base64,{base64.b64encode(png).decode()})\n"
    return out


def metrics_markdown(metrics: Mapping[str, float]) -> str:
    """Metrics as a table of two lines."""
    names = [n for n in ordered(metrics) if n != "seconds"]
    if not names:
        return ""
    values = (f"{metrics[n]:.5g}" for n in names)
    return f"| {' | '.join(names)} |\n|{' --- |' * len(names)}\n| {' | '.join(values)} |\n"


def history_rows(history: Mapping[str, Any], last: int = TABLE_ROWS) -> list[dict[str, Any]]:
    """The last updates of a run, newest first, as rows of a table."""
    count = max((len(v) for v in history.values()), default=0)
    names = ordered(history)
    steps = range(count, max(count - last, 0), -1)
    return [
        {"update": step} | {n: _short(float(history[n][step - 1])) for n in names if len(history[n]) == count}
        for step in steps
    ]


def _row(progress: Progress) -> dict[str, Any]:
    shown = {n: _short(progress.metrics[n]) for n in ordered(progress.metrics)}
    return {
        "update": progress.step,
        **shown,
        "rows/s": round(progress.rows_per_second),
        "seconds": round(progress.seconds, 1),
    }


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if value - value == 0 else None
