"""One MPI rank: `python -m mpi4py -m sparsefleet.workers.mpi_main PROGRAM KIND JOB.json`, after MPI has begun.

It says one JSON object per line (see `messages`): rank 0's progress, the error of whichever rank failed, and all ranks'
log lines where those are JSON.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from . import logs
from .communicator import MPI
from .engines.failures import describe
from .kinds import JOBS
from .messages import Messages
from .program import run_program


def main(program: str, kind: str, path: str) -> None:
    """Run the program as one rank of MPI's world; an error on one rank aborts all."""
    comm, out = MPI(), Messages(path)
    logs.start(out, "log")
    try:
        job = JOBS[kind].parse(json.loads(Path(path).read_text(encoding="utf-8")))
        for message in run_program(program, job, comm):
            if comm.rank == 0:
                out.write(json.dumps({"progress": message.model_dump(mode="json")}) + "\n")
        comm.barrier()
    except Exception as err:
        logging.getLogger(__name__).exception("rank %d of %d failed", comm.rank, comm.size)
        out.write(json.dumps({"error": describe(err)}) + "\n")
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
