"""Reads everything that a store holds and says what is damaged."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from ..errors import NotFound, StorageError
from . import names
from .arrays import checksum, read_arrays
from .card import read_card
from .repository import LOST, MAIN, Commit, Repository
from .versions import Version, number_of


def verify_version(repo: Repository, version: Version) -> list[str]:
    """Problems of one version: its files against their seal, its arrays against crc32c and the card's sha256."""
    is_newest = names.LATEST in version.aliases
    return _caught(lambda: _version_problems(repo, version.name, repo.commit(version.snapshot), is_newest=is_newest))


def verify_store(repo: Repository) -> list[str]:
    """Problems of the whole store: references, seals, every version of every name, and the newest checkpoints."""
    problems = repo.broken_refs()
    if problems:
        return problems  # what a damaged reference leads to says nothing
    before, noted = repo.sealed(), repo.shortcuts()
    branches = [MAIN, *repo.branches("", whole=True)]
    for branch in branches:
        problems += _caught(lambda branch=branch: _branch_problems(repo, branch))
    return problems or [*_orphans(repo, before, set(branches)), *_wrong_shortcuts(repo, noted)]


def _caught(find: Callable[[], list[str]]) -> list[str]:
    try:
        return find()
    except StorageError as error:
        return [str(error)]


def _branch_problems(repo: Repository, branch: str) -> list[str]:
    kind, _, name = branch.partition(".")
    if kind == "run":
        return _run_problems(repo, name)
    if kind == "artifact":
        return _name_problems(repo, name)
    commits = enumerate(repo.commits(branch))
    return [f"{branch}: {text}" for at, commit in commits for text in _seal_problems(repo, commit, is_newest=at == 0)]


def _orphans(repo: Repository, sealed: set[str], branches: set[str]) -> list[str]:
    """Seals of commits that nothing leads to any more: the file of a branch is gone."""
    runs = {branch for branch in branches if branch.startswith(names.run_branch(""))}
    reached = {commit.id for branch in branches - runs for commit in repo.commits(branch)}
    lost = (sealed & repo.sealed()) - reached - runs  # a run may have been dropped meanwhile
    return [f"seals/{name}: no branch leads to this commit" for name in sorted(lost)]


def _wrong_shortcuts(repo: Repository, noted: list[tuple[str, int, str]]) -> list[str]:
    """Shortcuts that do not lead to their version."""
    versions = {
        (name, number_of(commit)): commit.id
        for name in {name for name, _, _ in noted}
        for commit in repo.commits(names.versions_branch(name))
    }
    whole = {name for name, _ in versions}
    wrong = [(n, number) for n, number, snapshot in noted if n in whole and versions.get((n, number)) != snapshot]
    lost = sorted({name for name, _, _ in noted} - whole)
    return [
        *(f"shortcuts/{name}/{number} is damaged: remove this file, it is made again" for name, number in wrong),
        *(f"{name}: {LOST}" for name in lost),
    ]


def _name_problems(repo: Repository, name: str) -> list[str]:
    """Walks the versions from the newest to the first; a commit that cannot be read ends the walk."""
    problems: list[str] = []
    expected: int | None = None
    try:
        for at, commit in enumerate(repo.commits(names.versions_branch(name))):
            problems += _version_problems(repo, name, commit, is_newest=at == 0)
            if expected not in (None, number_of(commit)):
                problems.append(f"{name}@{expected} is missing")
            expected = number_of(commit) - 1
    except StorageError as error:
        return [*problems, f"{name}: {error}"]
    return [*problems, f"{name}@{expected} is missing"] if expected else problems


def _version_problems(repo: Repository, name: str, commit: Commit, *, is_newest: bool) -> list[str]:
    if damaged := _seal_problems(repo, commit, is_newest=is_newest):
        # Reading on would only repeat the same damage in stranger words; not even the number is certain.
        return [f"{name} (commit {commit.id}): {text}" for text in damaged]
    ref = f"{name}@{number_of(commit)}"
    try:
        with repo.reading(commit.id, ref) as group:
            card = read_card(group.attrs.get("card"), ref)
            stored = read_arrays(group)
    except StorageError as error:
        return [str(error)]
    paths = sorted(stored.keys() | card.checksums.keys())
    changed = [path for path in paths if path not in stored or checksum(stored[path]) != card.checksums.get(path)]
    return [f"{ref}: array {path} is not the one that was published" for path in changed]


def _seal_problems(repo: Repository, commit: Commit, *, is_newest: bool) -> list[str]:
    try:
        return repo.damage(commit.id)
    except NotFound:
        # The newest commit may lack its seal because its writer was interrupted; the next writer adds it.
        return [] if is_newest else [f"seal of commit {commit.id} is missing"]


def _run_problems(repo: Repository, run_id: str) -> list[str]:
    branch = names.run_branch(run_id)
    tip = repo.tip(branch)
    if tip is None:
        return []
    what = f"the checkpoint of run {run_id}"
    with suppress(NotFound):  # its writer may be at work, or was interrupted
        if damaged := repo.damage(branch, only=tip.id):
            return [f"{what}: {text}" for text in damaged]
    try:
        with repo.reading(tip.id, what) as group:
            read_arrays(group)
    except StorageError as error:
        return [str(error)]
    return []
