"""What crosses from a worker to its launcher when something goes wrong, and which failures are worth another try."""

from __future__ import annotations

from ...models import ModelError
from ...storage import BadData, NotFound, StorageError, StoreConflict, Unreachable
from ..errors import EngineError, JobError

# Errors that the user can act on keep their type and message; a restart would only meet them again.
KINDS = (JobError, EngineError, ModelError, StorageError, NotFound, BadData, StoreConflict, Unreachable)
FINAL: dict[str, type[Exception]] = {cls.__name__: cls for cls in KINDS}


class GroupLost(Exception):
    """A member of the group died; another group may continue from the last commit."""


def describe(err: BaseException) -> dict[str, str]:
    """The error as plain text: the name of its class and its message in one line."""
    for cls in type(err).__mro__:
        if cls.__name__ in FINAL:
            return {"type": cls.__name__, "message": _message(err)}
    return {"type": type(err).__name__, "message": _message(err)}


def revive(described: dict[str, str]) -> Exception:
    """The error that a worker described, as an exception to raise here."""
    cls = FINAL.get(described["type"])
    if cls is not None:
        return cls(described["message"])
    return EngineError(f"a worker failed: {described['type']}: {described['message']}")


def _message(err: BaseException) -> str:
    text = str(err.args[0]) if isinstance(err, KeyError) and err.args else str(err)
    return " ".join(text.split()) or type(err).__name__
