"""Shortcuts to versions: on a local disk `shortcuts/NAME/NUMBER`, beside the repository, names that version's commit.

Icechunk's own means would be a tag for each version. But its tags and branches lie in one folder, which a local disk
can only read whole: every version would make the lists of names and runs a little slower. On S3 a listing begins where
it is told to, and tags are used there.

A shortcut only says where to look: what it leads to is checked by its reader, and without one the version is found by
walking its branch. It has the text of Icechunk's tags, so that those of stores from before are moved, not rewritten.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import obstore

from ..locations import Location, reaching
from . import names

FOLDER = "shortcuts"
DRAFT = ".new-shortcuts"
NUMBER = re.compile(r"[1-9][0-9]{0,8}")
SNAPSHOT = re.compile(r"[0-9A-Z]{20}")
TAG = re.compile(rf"tag\.{re.escape(names.versions_branch(''))}({names.NAME.pattern})\.v({NUMBER.pattern})")


def read_shortcut(place: Location, name: str, number: int) -> str | None:
    """The snapshot that the shortcut of a version names; None when there is none, or it is damaged."""
    with reaching(place), suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return _snapshot((place.path / FOLDER / name / str(number)).read_bytes())
    return None


def write_shortcut(place: Location, name: str, number: int, snapshot: str) -> None:
    """Names the snapshot of a version, in the place of what was named before."""
    with reaching(place):
        obstore.put(place.object_store(), f"{FOLDER}/{name}/{number}", _text(snapshot).encode())


def all_shortcuts(place: Location) -> Iterator[tuple[str, int, str]]:
    """Name, number and snapshot ("": it is damaged) of all shortcuts."""
    with reaching(place):
        for path in sorted((place.path / FOLDER).glob("*/*")):
            if names.NAME.fullmatch(path.parent.name) and NUMBER.fullmatch(path.name):
                text = path.read_bytes()
                snapshot = _snapshot(text) or ""
                yield path.parent.name, int(path.name), snapshot if text == _text(snapshot).encode() else ""


def has_shortcuts(place: Location) -> bool:
    """Whether the store has shortcuts, and not the tags that it was made with."""
    return (place.path / FOLDER).is_dir()


def adopt_tags(place: Location, refs: Path) -> None:
    """Moves the tags of versions out of the folder `refs` of the repository; the caller holds the lock.

    Each is moved by itself. A process that dies meanwhile leaves a version without a shortcut at worst; the folder gets
    its name at the end, so that the next one goes on.
    """
    kept = place.path / FOLDER
    into = kept if kept.is_dir() else place.path / DRAFT
    into.mkdir(exist_ok=True)
    with os.scandir(refs) as entries:
        tags = [(entry.path, found) for entry in entries if (found := TAG.fullmatch(entry.name))]
    for path, found in tags:
        (into / found[1]).mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # moved by a process that died before it removed the folder
            os.replace(f"{path}/ref.json", into / found[1] / found[2])
        with suppress(OSError):
            os.rmdir(path)
    if into != kept:
        into.rename(kept)


def _text(snapshot: str) -> str:
    return json.dumps({"snapshot": snapshot}, separators=(",", ":"))


def _snapshot(text: bytes) -> str | None:
    try:
        found = json.loads(text)["snapshot"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) and SNAPSHOT.fullmatch(found) else None
