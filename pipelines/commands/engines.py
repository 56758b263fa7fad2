"""`sparsefleet engines`."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from ..console import JSON, emit, table

ABOUT = {
    "local": "this process, all cores or one GPU",
    "ray": "a group of Ray actors, on this machine or a cluster (--address)",
    "mpi": "MPI ranks started by mpirun or srun (--launcher)",
}


@click.command()
@JSON
def command(as_json: bool) -> None:
    """List the engines and whether they can run here."""
    from ...workers.engines import ENGINES

    found = {name: {"about": ABOUT.get(name, ""), "ready": _missing(name) or "yes"} for name in ENGINES}
    rows = [(name, entry["ready"], entry["about"]) for name, entry in found.items()]
    emit(found, as_json, lambda: table(("engine", "ready", "where it runs"), rows))


def _missing(name: str) -> str:
    if name == "ray" and find_spec("ray") is None:
        return "no: pip install 'sparsefleet[ray]'"
    if name == "mpi":
        beside = Path(sys.executable).parent
        launcher = any(shutil.which(c, path=p) for c in ("mpirun", "srun") for p in (None, str(beside)))
        if find_spec("mpi4py") is None or not launcher:
            return "no: pip install 'sparsefleet[mpich]', or mpi4py and the site's MPI"
    return ""
