"""Branches of a repository by the beginning of their name, read from the files that hold them.

Icechunk lists all branches and tags at once, and reads them: on S3, with a tag for every version, ten thousand of them
take seconds. Each branch is the object `refs/branch.NAME/ref.json`, so that those of one kind lie side by side.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import obstore

from ..locations import Location, reaching

if TYPE_CHECKING:
    from obstore.store import ObjectStore

REFS = "refs"
BRANCH = "branch."
FILE = "ref.json"
TOGETHER = 16


def branch_names(repository: Location, prefix: str) -> list[str]:
    """Names of the branches that begin with `prefix`, sorted. On S3 only the objects of those are listed."""
    with reaching(repository):
        begin = f"{BRANCH}{prefix}"
        found = _folders(repository, begin) if repository.is_local else _objects(repository.object_store(), begin)
        return sorted(folder.removeprefix(BRANCH) for folder in found)


def snapshots(repository: Location, branches: Iterable[str]) -> dict[str, str]:
    """The snapshot that each of these branches names ("": its file is damaged); a branch that is gone is left out."""
    with reaching(repository), ThreadPoolExecutor(TOGETHER) as threads:
        store, names = repository.object_store(), list(branches)
        found = threads.map(lambda name: _snapshot(store, name), names)
        return {name: snapshot for name, snapshot in zip(names, found) if snapshot is not None}


def _folders(repository: Location, begin: str) -> list[str]:
    refs = repository.child(REFS).path
    with os.scandir(refs) as entries:
        found = [entry.name for entry in entries if entry.name.startswith(begin)]
    # The folder of a deleted branch may have stayed.
    return [name for name in found if (refs / name / FILE).is_file()]


def _objects(store: ObjectStore, begin: str) -> list[str]:
    """Listed in the order of their keys from `begin` on, as far as they begin so."""
    found: list[str] = []
    for page in obstore.list(store, REFS, offset=f"{REFS}/{begin}"):
        names = [str(item["path"]).split("/")[-2] for item in page if str(item["path"]).endswith(f"/{FILE}")]
        mine = [name for name in names if name.startswith(begin)]
        found += mine
        if len(mine) < len(names):
            break
    return found


def _snapshot(store: ObjectStore, branch: str) -> str | None:
    try:
        text = bytes(obstore.get(store, f"{REFS}/{BRANCH}{branch}/{FILE}").bytes())
    except FileNotFoundError:
        return None
    try:
        return str(json.loads(text)["snapshot"])
    except (ValueError, KeyError, TypeError):
        return ""
