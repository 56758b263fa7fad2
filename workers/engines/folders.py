"""Temporary folders of engines. One that a killed process left behind is removed by the next process that makes one."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

OWNER = "owner"
# A folder is older than this before it may be judged by its lock: its owner needs a moment to take it.
GRACE_SECONDS = 60.0


@contextmanager
def temporary_folder(kind: str, *, short: bool = False) -> Generator[Path]:
    """A new folder `sf-KIND-…`, removed at the end; where there is a /tmp, `short` puts it there, so that its path is
    short enough for sockets."""
    place = Path("/tmp" if short and os.path.isdir("/tmp") else tempfile.gettempdir())
    sweep(place)
    folder = Path(tempfile.mkdtemp(prefix=f"sf-{kind}-", dir=place))
    try:
        # The lock ends with the process, however that ends; a process id could have another owner by then.
        with FileLock(folder / OWNER, timeout=0):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def end_users(folder: Path, patience: float) -> None:
    """End the other processes that have files open below `folder`, after `patience` seconds with SIGKILL."""
    left = users(folder)
    for process in left:
        with suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(left, timeout=patience)[1]:
        with suppress(psutil.Error):
            process.kill()


def users(folder: Path) -> list[psutil.Process]:
    """The other processes that have files open below `folder`, as far as this user may know."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            files = process.open_files() if process.pid != os.getpid() else []
            if any(Path(f.path).is_relative_to(folder) for f in files):
                found.append(process)
    return found


def sweep(place: Path) -> None:
    """Remove the folders below `place` that such a context made, whose process is gone, and that are our user's."""
    for folder in place.glob("sf-*-*"):
        with suppress(OSError, Timeout):
            about, owner = folder.stat(), folder / OWNER
            ours = about.st_uid == os.getuid() and time.time() - about.st_mtime > GRACE_SECONDS
            if ours and owner.is_file():
                with FileLock(owner, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
