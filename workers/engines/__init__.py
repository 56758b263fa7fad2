"""Engines: each launches a program on a group of processes and yields its progress. One file, one line here."""

from __future__ import annotations

import difflib
from collections.abc import Generator
from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import JobError
from ..progress import Progress
from .patience import with_patience

if TYPE_CHECKING:
    from ..job import Job

ENGINES = {
    "local": "sparsefleet.workers.engines.local",
    "ray": "sparsefleet.workers.engines.ray",
    "mpi": "sparsefleet.workers.engines.mpi",
}


def check_engine(name: str) -> str:
    """`name` if an engine is called so.

    Raises:
        JobError: there is none; the nearest name is suggested.
    """
    if name not in ENGINES:
        near = difflib.get_close_matches(name, ENGINES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise JobError(f"unknown engine {name!r}; {hint}choose one of {', '.join(ENGINES)}")
    return name


def run(program: str, job: Job) -> Generator[Progress, None, None]:
    """Run `program` ("learn" or "encode") for `job` on the job's engine; yields its messages, the last one "done".

    Closing the generator (also by Ctrl-C) ends all processes that it started.

    Raises:
        JobError: the job cannot run as it is.
        EngineError: the engine cannot start, or the workers failed; names the first cause.
        Unreachable: the data set or the store is away from the start; later it is waited for.
    """
    engine = import_module(ENGINES[check_engine(job.engine)])
    yield from with_patience(job, lambda again: engine.run(program, again))
