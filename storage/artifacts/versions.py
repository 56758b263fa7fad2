"""A version and its content, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .arrays import Arrays
from .names import LATEST
from .repository import Commit


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an artifact: it never changes, only its aliases do."""

    name: str
    number: int
    snapshot: str
    written_at: datetime
    message: str
    parent: str | None
    """Snapshot of the version before; None for the first."""
    aliases: tuple[str, ...] = ()
    """Aliases that point here now, `latest` included."""
    summary: dict[str, Any] = field(default_factory=dict[str, Any], compare=False)
    """A few facts of the card for lists: model, atoms, final metrics."""

    @property
    def ref(self) -> str:
        """`name@number`."""
        return f"{self.name}@{self.number}"


@dataclass(frozen=True, slots=True)
class Artifact:
    """The content of a version, in memory."""

    version: Version
    arrays: Arrays
    """Parameters by their standard name, e.g. `W` [D, H]."""
    card: dict[str, Any]
    """JSON values, laid out as `Card`."""
    history: Arrays
    """Metrics over steps, 1-D float64."""
    figures: dict[str, bytes]
    """PNG files by their name."""


def number_of(commit: Commit) -> int:
    """The version number that a commit on an artifact's branch carries."""
    return commit.fact("version", int)


def version_of(name: str, commit: Commit, aliases: Mapping[str, int], newest: int) -> Version:
    """The version that a commit holds, with the aliases (alias -> number) that point to it."""
    number = number_of(commit)
    mine = sorted(alias for alias, target in aliases.items() if target == number)
    pointing = (*((LATEST,) if number == newest else ()), *mine)
    summary = commit.fact("summary", dict)
    return Version(name, number, commit.id, commit.written_at, commit.message, commit.parent, pointing, summary)
