"""The MPI engine: `mpirun` (or `srun`) starts the ranks, rank 0 reports as JSON lines, an error on one rank ends all.

MPI cannot mend a group that lost a rank, so the whole group is launched again from the last commit. Ranks of MPICH that
can only be on this machine listen on loopback (see `mpich`).
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .. import logs
from ..errors import JobError
from ..job import Job
from ..messages import CHANNEL
from ..plan import threads_of
from ..progress import Progress
from . import mpich
from .failures import GroupLost, revive
from .folders import temporary_folder
from .restarts import with_restarts

TERMINATE_SECONDS = 10.0
PR_SET_PDEATHSIG = 1
ENDS_WITH_LAUNCHER = "SPARSEFLEET_ENDS_WITH_LAUNCHER"
"""Set for ranks that must see to it themselves that they do not outlive their launcher."""

MODULE = "sparsefleet.workers.mpi_main"
DIES = f"ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, {int(signal.SIGTERM)}), os.getppid() == 1 and os._exit(1)"
MAIN = (
    f"import ctypes, os, runpy; os.environ.get({ENDS_WITH_LAUNCHER!r}) and ({DIES}); from mpi4py import MPI; "
    f"runpy.run_module({MODULE!r}, run_name='__main__', alter_sys=True)"
)
"""What a rank runs. A launcher that is gone already takes it along. MPI comes before all else: a rank that fails before
it cannot tell the others, and they may wait for it."""


@dataclass(frozen=True)
class Launcher:
    """What starts ranks."""

    words: tuple[str, ...]
    """The command, without its `-n`."""
    env: dict[str, str]
    """What is added to the environment."""

    @property
    def is_gforker(self) -> bool:
        """Whether the engine has to mind the habits of that launcher."""
        return mpich.is_gforker(self.words[0])


def run(program: str, job: Job) -> Generator[Progress, None, None]:
    """Run `program` on `job.workers` MPI ranks.

    Raises:
        JobError: there is no launcher or no mpi4py.
        EngineError: the ranks failed for good.
    """
    launcher = find_launcher(job.launcher)
    try:
        import mpi4py  # noqa: F401 # pyright: ignore[reportUnusedImport]
    except ImportError as err:
        raise JobError("engine mpi needs mpi4py: pip install 'sparsefleet[mpi]'") from err
    yield from with_restarts(job, lambda again: _attempt(program, again, launcher))


def find_launcher(given: str | None) -> Launcher:
    """The command that starts ranks: the one that is given, or the one of the MPI beside Python or on the path.

    Raises:
        JobError: there is none.
    """
    try:
        words = shlex.split(given or "") or ["mpirun"]
    except ValueError as err:
        raise JobError(f"launcher={given!r} is not a command: {err}") from err
    beside = Path(sys.executable).parent / words[0]
    found = str(beside) if beside.exists() else shutil.which(words[0])
    if found is None:
        raise JobError(
            f"engine mpi finds no {words[0]!r}; install an MPI, pip install 'sparsefleet[mpich]', or name a --launcher"
        )
    if not (given or "").strip() and "HYDRA" in _version(found) and mpich.stays_here(os.environ):
        return Launcher((mpich.beside(found) or found,), mpich.loopback(os.environ))
    return Launcher((found, *words[1:], *_open_mpi_flags(found)), {})


def _open_mpi_flags(launcher: str) -> tuple[str, ...]:
    """Open MPI refuses more ranks than cores, and root, unless told otherwise."""
    if "Open MPI" not in _version(launcher) and "OpenRTE" not in _version(launcher):
        return ()
    return ("--oversubscribe", *(("--allow-run-as-root",) if os.geteuid() == 0 else ()))


@cache
def _version(launcher: str) -> str:
    """What an mpirun or mpiexec says of itself; "" for other commands."""
    if not launcher.endswith(("mpirun", "mpiexec")):
        return ""
    return subprocess.run([launcher, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout


def _attempt(program: str, job: Job, launcher: Launcher) -> Generator[Progress, None, None]:
    """One launch of the ranks."""
    with temporary_folder("mpi") as folder, open(folder / "stderr", "w+b") as errors:
        path = folder / "job.json"
        path.write_text(json.dumps(job.to_dict()), encoding="utf-8")
        rank = [sys.executable, "-u", "-m", "mpi4py", "-c", MAIN, program, type(job).__name__, str(path)]
        env = {**os.environ, **launcher.env, "OMP_NUM_THREADS": str(threads_of(job)), "ICECHUNK_LOG": "off"}
        # gforker hands on what ranks print in pieces of a thousand bytes: they write to a pipe of their own instead.
        reader, writer = os.pipe()
        own = {ENDS_WITH_LAUNCHER: "1", CHANNEL: str(writer)} if launcher.is_gforker else {}
        messages = os.fdopen(reader, encoding="utf-8", errors="replace")
        try:
            process = subprocess.Popen(
                [*launcher.words, "-n", str(job.workers), *rank],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if own else writer,
                stderr=errors,
                pass_fds=(writer,) if own else (),
                env=env | own,
                preexec_fn=_leave_no_cores if launcher.is_gforker else die_with_parent,
            )
        except OSError as err:
            messages.close()
            raise JobError(f"{launcher.words[0]} cannot be started: {err.strerror or err}") from err
        finally:
            os.close(writer)
        try:
            failed: Exception | None = None
            done = False
            for line in messages:
                message = _parse(line)
                if "progress" in message:
                    progress = Progress.model_validate(message["progress"])
                    done |= progress.kind == "done"
                    yield progress
                elif "log" in message:
                    logs.pass_on(json.dumps(message["log"]))
                elif "error" in message and failed is None:
                    failed = revive(message["error"])
            code = process.wait()
            if failed is not None:
                raise failed
            if code != 0:
                raise GroupLost(f"MPI ended with code {code}{_tail(errors)}")
            if not done:
                raise GroupLost(f"MPI ended before the work was done{_tail(errors)}")
        finally:
            messages.close()
            _end(process)


def _parse(line: str) -> dict[str, dict[str, str]]:
    """A rank's message; libraries may print other lines, which are none."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _tail(errors: object) -> str:
    assert hasattr(errors, "seek")
    errors.seek(0)  # pyright: ignore[reportAttributeAccessIssue]
    lines = errors.read().decode(errors="replace").strip().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    return f": {lines[-1].strip()}" if lines else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the launcher and with it the ranks."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(TERMINATE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """In a process that was just started: be told when its parent dies, so that no rank outlives the command."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _leave_no_cores() -> None:
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
