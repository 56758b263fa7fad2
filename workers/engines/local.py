"""The local engine: this process, all its cores or one GPU. What it returns is what the other engines must return."""

from __future__ import annotations

from collections.abc import Generator

import torch

from .. import logs
from ..communicator import Solo
from ..interruptions import held
from ..job import Job
from ..program import run_program
from ..progress import Progress


def run(program: str, job: Job) -> Generator[Progress, None, None]:
    """Run `program` here."""
    threads = torch.get_num_threads()
    try:
        with held() as check:
            yield from run_program(program, job, Solo(check))
    finally:
        torch.set_num_threads(threads)
        logs.about(rank=None, workers=None)
