"""The password of the local Prefect server: made once, kept in a file that only its owner reads.

It travels in environments alone (never as an argument, a job variable or a line of a log), since environments of
processes are their owner's to read.
"""

from __future__ import annotations

import os
import secrets
from base64 import b64encode
from pathlib import Path

from .errors import PipelineError

USER = "sparsefleet"
SERVER, CLIENT = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"


def ensure(folder: Path) -> None:
    """Make a folder its owner's alone, with a password in it where there is none."""
    folder.chmod(0o700)
    file = _file(folder)
    if file.exists():
        file.chmod(0o600)
        return
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
        opened.write(f"{USER}:{secrets.token_urlsafe(24)}\n")
    new.replace(file)


def read(folder: Path) -> str:
    """`user:password`, as Prefect takes it and as its login page asks for it.

    Raises:
        PipelineError: there is none, or it cannot be read.
    """
    try:
        found = _file(folder).read_text(encoding="utf-8").strip()
    except OSError as err:
        raise PipelineError(
            f"the local server's password {_file(folder)} cannot be read ({err.strerror}); "
            "`sparsefleet down` and `up` make a new one"
        ) from err
    if not found.isprintable() or ":" not in found:
        raise PipelineError(f"{_file(folder)} holds no password; remove it, then `sparsefleet down` and `up`")
    return found


def header(auth: str) -> dict[str, str]:
    """The HTTP header that says `auth`."""
    return {"Authorization": f"Basic {b64encode(auth.encode()).decode()}"}


def _file(folder: Path) -> Path:
    return folder / "password"
