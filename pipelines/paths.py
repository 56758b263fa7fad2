"""Addresses in a job made absolute, so that it means the same in another folder: on a worker, or when it is resumed."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, TypeVar

from pydantic import BaseModel

B = TypeVar("B", bound=BaseModel)
ADDRESSES = ("data", "store", "out", "mask", "truth")
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:(?!:)")
"""s3://…, file://…, sklearn:…, package:…; but not `file.npz::key`."""


def absolute(job: B) -> B:
    """`job` with every relative path in it made absolute; addresses with a scheme (s3://…) stay as they are."""
    values: dict[str, Any] = {n: getattr(job, n) for n in type(job).model_fields}
    changes: dict[str, Any] = {n: _absolute(values[n]) for n in ADDRESSES if values.get(n)}
    for name in ("init", "dictionary"):
        if str(values.get(name) or "").endswith((".npz", ".npy")):
            changes[name] = _absolute(values[name])
    # A model of one's own is looked for beside the command; only a job that may need one says where that was.
    if "module_path" in values and ("dictionary" in values or values["module_path"] or ":" in values["model"]):
        changes["module_path"] = os.path.abspath(values["module_path"] or os.getcwd())
    if str(values.get("atoms") or "").partition("::")[0].endswith((".npy", ".npz")):
        changes["atoms"] = _absolute(values["atoms"])
    if str(values.get("labels") or "").endswith(".csv"):
        changes["labels"] = _absolute(values["labels"])
    for name in ("sources", "texts"):
        if name in values:
            changes[name] = [_absolute(s) for s in values[name]]
    if "texts" in values:
        # A folder or a file; models of dictionaries have names.
        changes["model"] = values["model"] and _absolute(values["model"])
    return job.model_copy(update=changes)


def make_importable(folder: str | None) -> None:
    """Let this process find a model of the user's own as the workers will: in `folder`, by default the current one."""
    place = os.path.abspath(folder or os.getcwd())
    if place not in sys.path:
        # Last, so that a file of the user's cannot stand in for a library.
        sys.path.append(place)


def _absolute(address: str) -> str:
    return address if SCHEME.match(address) else os.path.abspath(address)
