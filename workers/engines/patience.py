"""Wait for a store or data set that cannot be used for now: a run of days must not end because a server was started
again, or because of a clock that is set right again."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import TypeVar

from ...storage import Unreachable
from ..errors import EngineError
from ..job import Job
from ..progress import Progress

PATIENCE_SECONDS = 300.0
PAUSE_SECONDS = 2.0

T = TypeVar("T")


def with_patience(
    job: Job, attempt: Callable[[Job], Generator[Progress, None, None]]
) -> Generator[Progress, None, None]:
    """Messages of `attempt(job)`, tried again on Unreachable, until five minutes have gone without a commit.

    What is away from the start is said at once: its address may be wrong.

    Raises:
        Unreachable: before the first message.
        EngineError: it was away for too long.
    """
    last: Progress | None = None
    since: float | None = None
    while True:
        try:
            with closing(attempt(job)) as messages:
                for message in messages:
                    last = message
                    since = None if message.kind == "commit" else since
                    yield message
            return
        except Unreachable as err:
            if last is None:
                raise
            now = time.monotonic()
            if since is None:
                facts = last.model_dump(include={"run_id", "step", "steps", "seconds"})
                yield Progress(kind="restart", message=f"{err}; waiting for it to go on from the last commit", **facts)
            since = since or now
            if now - since > PATIENCE_SECONDS:
                raise EngineError(
                    f"{err}; gave up after {PATIENCE_SECONDS:.0f} s. The state of the last commit is kept: "
                    "run the same job again"
                ) from err
            if "overwrite" in type(job).model_fields:
                job = job.model_copy(update={"overwrite": False})
            time.sleep(PAUSE_SECONDS)


def patiently(call: Callable[[], T]) -> T:
    """What `call()` returns, called again while a server is away. It must do no harm twice.

    Raises:
        Unreachable: it was away for five minutes.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return call()
        except Unreachable:
            if time.monotonic() > end:
                raise
            time.sleep(PAUSE_SECONDS)
