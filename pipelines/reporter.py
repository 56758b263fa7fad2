"""Reporters: they receive a run's `Progress` messages and show them. This one writes to a terminal; the one for the
Prefect UI is in prefect_reporter.py. A reporter is called between two updates, so it must be quick."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..workers import logs
from .console import duration, say
from .metrics import ordered

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from ..workers.progress import Progress

Reporter = Callable[["Progress"], None]
LINE_SECONDS = 5.0
"""Where there is no terminal, a line at most this often."""


def silent(progress: Progress) -> None:
    """A reporter that shows nothing."""
    del progress


def several(*reporters: Reporter) -> Reporter:
    """One reporter that hands each message to all of these."""

    def report(progress: Progress) -> None:
        for reporter in reporters:
            reporter(progress)

    return report


def metrics_line(metrics: Mapping[str, float], limit: int = 5) -> str:
    """`free_energy -12.3  sigma 0.12 …`"""
    return "  ".join(f"{name} {metrics[name]:.4g}" for name in ordered(metrics)[:limit])


def describe(progress: Progress) -> str:
    """One line about a message."""
    if progress.kind == "start":
        return progress.message or f"run {progress.run_id}: {progress.steps} steps"
    if progress.kind == "restart":
        return f"workers started again from step {progress.step}: {progress.message}"
    if progress.kind == "commit":
        return f"state of step {progress.step} committed"
    speed = f"  {progress.rows_per_second:,.0f} rows/s" if progress.rows_per_second else ""
    what = metrics_line(progress.metrics) or progress.message
    return f"{progress.fraction:4.0%}  step {progress.step}/{progress.steps}  {what}{speed}"


class Console:
    """A progress bar on a terminal, a line now and then elsewhere; both on stderr. A context manager."""

    def __init__(self, title: str, note: str = "") -> None:
        """`note` is said when the work begins."""
        self._title, self._note = title, note
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._last = time.monotonic()
        self._begun: tuple[float, float] | None = None
        self._steps = 0
        self.run_id = ""
        """Of the run that has reported last; "-" where it has none."""

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and not logs.wanted():
            self._bar = _bar()
            self._task = self._bar.add_task(self._title, total=None, metrics="", left="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave the terminal to others."""
        if self._bar:
            self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        self.run_id = progress.run_id or "-"
        if self._note and progress.kind in ("start", "done"):
            say(self._note)
            self._note = ""
        if self._bar and self._task is not None:
            self._draw(self._bar, self._task, progress)
        elif logs.wanted():
            return
        elif progress.kind in ("start", "restart", "done") or (
            progress.kind == "step" and time.monotonic() - self._last >= LINE_SECONDS
        ):
            self._last = time.monotonic()
            say(f"{self._title}: {describe(progress)}  {self._left_text(progress)}".rstrip())

    def _left_text(self, progress: Progress) -> str:
        left = self._left(progress) if progress.fraction < 1 else ""
        return f"{left} left" if left else ""

    def _left(self, progress: Progress) -> str:
        """How long the rest will take, judged by what this process has seen of the run."""
        now = time.monotonic()
        # What has another number of steps is other work: a network was loaded before there were any.
        if self._begun is None or progress.kind in ("start", "restart") or progress.steps != self._steps:
            self._begun, self._steps = (now, progress.fraction), progress.steps
        begun, fraction = self._begun
        done = progress.fraction - fraction
        return duration((now - begun) / done * (1 - progress.fraction)) if done > 0 and now - begun > 1 else ""

    def _draw(self, bar: Bar, task: TaskID, progress: Progress) -> None:
        if progress.kind in ("start", "restart"):
            bar.console.print(f"[dim]{describe(progress)}[/]")
        fields: dict[str, Any] = {
            "total": progress.steps or None,
            "completed": progress.step,
            "left": self._left_text(progress),
        }
        if progress.metrics:
            speed = f"  {progress.rows_per_second:,.0f} rows/s" if progress.rows_per_second else ""
            fields["metrics"] = metrics_line(progress.metrics) + speed
        elif progress.message:
            fields["metrics"] = progress.message
        bar.update(task, **fields)


def _bar() -> Bar:
    from rich.console import Console as Terminal
    from rich.console import RenderableType
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.text import Text

    class TwoLines(Progress):
        """The bar, and the metrics below it."""

        def get_renderables(self) -> Iterable[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            for task in self.tasks:
                yield Text(f"  {task.fields['metrics']}", no_wrap=True, overflow="ellipsis", style="dim")

    return TwoLines(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.completed:.0f}/{task.total}"),
        TextColumn("[cyan]{task.fields[left]}"),
        console=Terminal(stderr=True, highlight=False),
    )
