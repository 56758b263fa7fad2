"""One MPI rank: `python -m mpi4py -m sparsefleet.workers.mpi_main PROGRAM KIND JOB.json`, after MPI has begun.

Standard output carries one JSON object per line: rank 0's progress, the error of whichever rank failed, and
all ranks' log lines where those are JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

from . import logs
from .communicator import MPI
from .engines.failures import describe
from .engines.mpi import ENDS_WITH_LAUNCHER, die_with_parent
from .kinds import JOBS
from .program import run_program


def main(program: str, kind: str, path: str) -> None:
    """Run the program as one rank of MPI's world; an error on one rank aborts all."""
    if os.environ.get(ENDS_WITH_LAUNCHER):
        die_with_parent()
    comm = MPI()
    logs.start(sys.stdout, "log")
    try:
        job = JOBS[kind].parse(json.loads(Path(path).read_text(encoding="utf-8")))
        for message in run_program(program, job, comm):
            if comm.rank == 0:
                print(json.dumps({"progress": message.model_dump(mode="json")}), flush=True)
        comm.barrier()
    except Exception as err:
        logging.getLogger(__name__).exception("rank %d of %d failed", comm.rank, comm.size)
        print(json.dumps({"error": describe(err)}), flush=True)
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
