"""Work of one process in phases: each says what it does when it begins, and then how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..workers.progress import Progress
from .reporter import Reporter

Count = Callable[[int], None]
"""Takes how many steps of a phase are done."""


def begin(reporter: Reporter, message: str, steps: int = 1, *, rows: bool = False) -> Count:
    """Report that a phase of so many steps begins; what is returned reports its progress.

    Args:
        reporter: receives the messages.
        message: what the phase does.
        steps: of the phase; 1 where it is not told how far it is.
        rows: the steps are rows, so that their speed is told.
    """
    begun = time.monotonic()
    reporter(Progress(kind="start", steps=steps, message=message))

    def count(step: int) -> None:
        seconds = time.monotonic() - begun
        speed = step / max(seconds, 1e-9) if rows else 0.0
        reporter(Progress(kind="step", step=step, steps=steps, seconds=seconds, rows_per_second=speed, message=message))

    return count
