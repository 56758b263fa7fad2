"""What an S3 server does: whether it keeps conditional writes, on which several writers rely, and its clock."""

from __future__ import annotations

import os
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import uuid4

import obstore
from obstore import exceptions as s3

from ..locations import Location, reaching

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import ObjectStore

SINGLE_WRITER = "SPARSEFLEET_SINGLE_WRITER"
"""Environment variable: '1' says that only one process writes to stores on servers without conditional writes."""


def single_writer() -> bool:
    """Whether the user promised that only one process writes."""
    return os.environ.get(SINGLE_WRITER, "") == "1"


def conditional_writes(place: Location) -> dict[str, bool]:
    """Tries below `place` whether the server refuses a second `create` and the `update` of an outdated object.

    Some S3-compatible servers ignore the conditions and answer 200: commits are then lost without an error.
    """
    with reaching(place):
        store = place.object_store()
        key = f"probe/{uuid4().hex}"
        old = obstore.put(store, key, b"first", mode="create")
        try:
            obstore.put(store, key, b"changed")
            update: PutMode = {"e_tag": old["e_tag"]}
            return {"create": _refused(store, key, "create"), "update": _refused(store, key, update)}
        finally:
            obstore.delete(store, key)


def clock(place: Location) -> datetime:
    """The server's time, as it dates a small object that is written now; this machine's clock may be wrong."""
    with reaching(place):
        store = place.object_store()
        key = f"probe/{uuid4().hex}"
        obstore.put(store, key, b"now")
        try:
            return obstore.head(store, key)["last_modified"]
        finally:
            obstore.delete(store, key)


def _refused(store: ObjectStore, key: str, mode: PutMode) -> bool:
    try:
        obstore.put(store, key, b"lost", mode=mode)
    except (s3.AlreadyExistsError, s3.PreconditionError):
        return True
    return False
