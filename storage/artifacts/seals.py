"""Seals: the sha256 of the files that make up a commit, kept beside the repository as `seals/<snapshot>`.

Icechunk's own files carry no checksums, and many a flipped bit in them would go unnoticed. Chunks are not listed: each
ends with its own crc32c, and the card of a version holds the sha256 of its arrays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import obstore

from ..errors import NotFound
from ..locations import Location, reaching

if TYPE_CHECKING:
    from obstore.store import ObjectStore

FOLDER = "seals"


def write_seal(place: Location, name: str, snapshot: str, files: Iterable[str]) -> None:
    """Seals a commit of the repository at `place`, made up of these files (keys below it), under a name."""
    with reaching(place):
        store = place.object_store()
        text = json.dumps({"snapshot": snapshot, "files": {file: _digest(store, file) for file in files}})
        content = f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode()
        obstore.put(store, f"{FOLDER}/{name}", content)


def remove_seal(place: Location, name: str) -> None:
    """Removes a seal; nothing happens when there is none."""
    with reaching(place), suppress(FileNotFoundError):
        obstore.delete(place.object_store(), f"{FOLDER}/{name}")


def sealed(place: Location) -> set[str]:
    """Names of all seals."""
    with reaching(place):
        found = obstore.list(place.object_store(), FOLDER).collect()
    return {item["path"].removeprefix(f"{FOLDER}/") for item in found}


def damage(place: Location, name: str, snapshot: str) -> list[str]:
    """What is wrong with the files of a sealed commit; empty when nothing is.

    NotFound when there is no such seal, or it is that of another commit.
    """
    with reaching(place.child(FOLDER).child(name)):
        store = place.object_store()
        content = bytes(obstore.get(store, f"{FOLDER}/{name}").bytes())
        digest, _, text = content.partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != digest:
            return [f"{FOLDER}/{name} is damaged"]
        seal = json.loads(text)
        if seal["snapshot"] != snapshot:
            raise NotFound(f"{FOLDER}/{name} is that of another commit")
        return [f"{file} is damaged or missing" for file, want in seal["files"].items() if _digest(store, file) != want]


def _digest(store: ObjectStore, name: str) -> str:
    try:
        return hashlib.sha256(obstore.get(store, name).bytes()).hexdigest()
    except FileNotFoundError:
        return "missing"
