"""Versioned dictionaries: names, numbered versions, aliases, cards, and the checkpoints of runs that make them."""

from .card import Card
from .names import check_name, parse_ref
from .runs import Checkpoint, RunBranch, RunInfo
from .store import Artifact, ArtifactStore, Version

__all__ = [
    "Artifact",
    "ArtifactStore",
    "Card",
    "Checkpoint",
    "RunBranch",
    "RunInfo",
    "Version",
    "check_name",
    "parse_ref",
]
