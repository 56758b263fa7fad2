"""The card of a version: everything that is needed to know what it is, where it comes from and how to make it again."""

from __future__ import annotations

import math
import shutil
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from ..errors import BadData, StorageError

FORMAT = 1
PACKAGES = ("numpy", "torch", "zarr", "icechunk", "dask", "pydantic", "ray", "mpi4py", "prefect", "scipy")


class Parent(BaseModel):
    """A version that this one was made from."""

    model_config = ConfigDict(extra="allow")

    ref: str
    """`name@number`."""
    snapshot: str = ""
    """Its commit, so that the reference stays true even if the store is copied or renamed."""


class DataSource(BaseModel):
    """The data set that was learned from."""

    model_config = ConfigDict(extra="allow")

    uri: str
    fingerprint: str = ""
    rows: int | None = None
    """N."""
    dim: int | None = None
    """D."""


class Code(BaseModel):
    """The program that made a version."""

    version: str = ""
    commit: str | None = None
    """Git commit of the working tree; None for an installed package."""
    dirty: bool | None = None
    """Whether tracked files differed from that commit."""


class Card(BaseModel):
    """What a store keeps about a version. Keys that are not listed here are kept as they are."""

    model_config = ConfigDict(extra="allow")

    format: int = FORMAT
    name: str
    version: int
    created: datetime
    job: dict[str, JsonValue] = Field(default_factory=dict)
    """Every setting of the run, enough to start it again."""
    data: DataSource | None = None
    parents: list[Parent] = Field(default_factory=list[Parent])
    code: Code = Field(default_factory=Code)
    packages: dict[str, str] = Field(default_factory=dict)
    engine: dict[str, JsonValue] = Field(default_factory=dict)
    """Where it ran: engine, workers, threads, device."""
    seed: int | None = None
    wall_seconds: float | None = None
    energy_joules: float | None = None
    """An estimate; None when unknown."""
    licence: dict[str, str] = Field(default_factory=dict)
    """Terms of use, e.g. {"dictionary": "CC-BY-4.0", "data": "…"}."""
    metrics: dict[str, float | None] = Field(default_factory=dict)
    """Final values; the courses are in the version's history."""
    notes: str = ""
    rolled_back_to: int | None = None
    """The version whose content this one repeats."""
    checksums: dict[str, str] = Field(default_factory=dict)
    """sha256 of each array, by its path in the version."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; numbers that JSON does not know are the strings "NaN", "Infinity", "-Infinity"."""
        return plain(self.model_dump())

    def summary(self) -> dict[str, Any]:
        """The few facts that lists show without opening the version."""
        job = {key: self.job[key] for key in ("model", "atoms") if key in self.job}
        facts = {"metrics": dict(list(self.metrics.items())[:20]), "rolled_back_to": self.rolled_back_to}
        return plain(job | {key: value for key, value in facts.items() if value})


def make_card(given: dict[str, Any], *, name: str, number: int, checksums: dict[str, str]) -> Card:
    """The caller's card with what the store knows itself; BadData when a field has a wrong type."""
    filled = {
        "format": FORMAT,
        "name": name,
        "version": number,
        "created": datetime.now(UTC),
        "code": code(),
        "packages": packages(),
        "checksums": checksums,
    }
    return _validated(plain(given) | filled, BadData, "the card cannot be kept")


def read_card(stored: object, ref: str) -> Card:
    """The card as it was kept; StorageError when it is damaged or of a newer format."""
    found = cast("dict[str, Any]", stored) if isinstance(stored, dict) else {}
    if isinstance(found.get("format"), int) and found["format"] > FORMAT:
        raise StorageError(f"{ref} has a card of format {found['format']}, newer than {FORMAT}: update sparsefleet")
    return _validated(found, StorageError, f"the card of {ref} is damaged")


def _validated(values: dict[str, Any], error: type[StorageError], what: str) -> Card:
    try:
        return Card.model_validate(values)
    except ValidationError as invalid:
        first = invalid.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise error(f"{what}: {where}: {first['msg']}") from invalid


def plain(value: Any) -> dict[str, Any]:
    """JSON values of a mapping: paths and numbers of NumPy become their plain kind. BadData for other objects."""
    try:
        return _finite(to_jsonable_python(value, fallback=_scalar))
    except (PydanticSerializationError, TypeError) as error:
        raise BadData(f"the card cannot be kept: {str(error).partition(chr(10))[0]}") from error


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become the words that pydantic reads back as numbers."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _scalar(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} is not a JSON value")


@cache
def packages() -> dict[str, str]:
    """Versions of the installed packages that can change a result."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def code() -> dict[str, Any]:
    """Version of this package, and its commit when it runs from a git working tree (looked up once per process)."""
    try:
        ours = version("sparsefleet")
    except PackageNotFoundError:
        ours = ""
    tree = Path(__file__).resolve().parents[2]
    if not (tree / ".git").exists() or shutil.which("git") is None:
        return {"version": ours, "commit": None, "dirty": None}
    commit = _git(tree, "rev-parse", "HEAD")
    dirty = None if commit is None else bool(_git(tree, "status", "--porcelain", "--untracked-files=no"))
    return {"version": ours, "commit": commit, "dirty": dirty}


def _git(tree: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(tree), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # a version is still worth keeping when git is slow or broken
    return done.stdout.strip() if done.returncode == 0 else None
