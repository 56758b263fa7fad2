"""Start a group again when it lost a member: every attempt continues from the last commit."""

from __future__ import annotations

from collections.abc import Callable, Generator

from ..errors import EngineError
from ..job import Job
from ..progress import Progress
from .failures import GroupLost


def with_restarts(
    job: Job, attempt: Callable[[Job], Generator[Progress, None, None]]
) -> Generator[Progress, None, None]:
    """Messages of `attempt(job)`, tried again up to `job.restarts` times after each loss of a member.

    Raises:
        EngineError: the group was lost more often than that.
    """
    committed = Progress(kind="start")
    for number in range(job.restarts + 1):
        try:
            for message in attempt(job):
                if message.kind in ("start", "commit"):
                    committed = message
                yield message
            return
        except GroupLost as err:
            if number == job.restarts:
                tail = f" after {number} restarts" if number else ""
                raise EngineError(
                    f"{err}; gave up{tail}. The state of the last commit is kept: run the same job again"
                ) from err
            if "overwrite" in type(job).model_fields:
                job = job.model_copy(update={"overwrite": False})
            again = f"{err}; starting again from the last commit ({number + 1} of {job.restarts})"
            facts = committed.model_dump(include={"run_id", "step", "steps", "seconds"})
            yield Progress(kind="restart", message=again, **facts)
