"""The store of dictionaries: artifacts with a name, numbered versions that never change, aliases that move.

Each name has a branch of its own and each version is one commit on it, holding that version's arrays only. So every
operation costs the same whatever the number of versions, and writers of different names never meet.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import zarr
from numpy.typing import ArrayLike, NDArray

from ..errors import NotFound, StorageError, StoreConflict, Unreachable
from ..locations import locate
from . import names
from .arrays import (
    FIGURES,
    HISTORY,
    PARAMS,
    Pieces,
    below,
    checked_content,
    checked_figures,
    checked_history,
    checked_params,
    checksum,
    create_array,
    read_arrays,
)
from .card import Card, make_card, read_card
from .lineage import lineage
from .probe import clock, conditional_writes
from .repository import FORMAT, Commit, Repository
from .runs import RunBranch, RunInfo, left_memories, run_infos
from .versions import Artifact, Version, number_of, version_of

ATTEMPTS = 30

T = TypeVar("T")


class ArtifactStore:
    """Opens the store at `uri`, or makes one there when `create` and nothing is there.

    NotFound when nothing is there, StorageError when it is something else, cannot be reached, or is newer than this
    program. Instances pickle as their address; several processes may use one store.
    """

    def __init__(self, uri: str, *, create: bool = True) -> None:
        self._repo = Repository(locate(uri), create=create)

    def __reduce__(self) -> tuple[Callable[[str], ArtifactStore], tuple[str]]:
        return reopen, (self.uri,)

    def __repr__(self) -> str:
        return f"ArtifactStore({self.uri!r})"

    @property
    def uri(self) -> str:
        """Canonical address."""
        return self._repo.place.uri

    def publish(
        self,
        name: str,
        *,
        arrays: Mapping[str, ArrayLike],
        card: Mapping[str, Any],
        history: Mapping[str, ArrayLike] | None = None,
        figures: Mapping[str, bytes] | None = None,
        message: str = "",
        pieces: Mapping[str, Pieces] | None = None,
    ) -> Version:
        """Adds the next version of `name`: readers see all of it or nothing.

        `arrays` by their standard name (those that start with `training/` are left out), `history` one 1-D array per
        metric, `figures` PNG files, `pieces` further arrays, which are read chunk by chunk. `card` has the fields of
        `Card`; the store fills name, version, created, code, packages and checksums, and turns `parents` (references
        such as "name@best") into exact versions.
        StorageError and BadData for what cannot be kept, NotFound for an unknown parent.
        """
        names.check_name(name)
        kept = {key: value for key, value in arrays.items() if not key.startswith(names.TRAINING)}
        for figure in figures or {}:
            names.check_figure(figure)
        content: dict[str, NDArray[Any] | Pieces] = {
            **below(PARAMS, checked_content(checked_params(kept), pieces or {})),
            **below(HISTORY, checked_history(history or {})),
            **below(FIGURES, checked_figures(figures or {})),
        }
        given = {**card, "parents": [self._parent(item) for item in card.get("parents") or []]}
        return self._add(name, content, given, message)

    def _add(
        self, name: str, content: Mapping[str, NDArray[Any] | Pieces], given: dict[str, Any], message: str
    ) -> Version:
        version = _retry(lambda: self._publish(name, content, given, message))
        with suppress(StorageError):  # it is published; whoever looks for it finds it without the shortcut too
            self._repo.set_shortcut(name, version.number, version.snapshot)
        return version

    def _publish(
        self, name: str, content: Mapping[str, NDArray[Any] | Pieces], given: dict[str, Any], message: str
    ) -> Version:
        checksums = {path: checksum(array) for path, array in content.items()}
        with self._repo.session(names.versions_branch(name), lasting=True, clear=True) as session:
            number = number_of(session.base) + 1 if session.base else 1
            card = make_card(given, name=name, number=number, checksums=checksums)
            for path, array in content.items():
                create_array(session.group, path, array)
            session.group.attrs["card"] = card.to_json()
            metadata = {"kind": "version", "name": name, "version": number, "summary": card.summary()}
            commit = session.commit(message or f"{name} version {number}", metadata)
        return version_of(name, commit, {}, number)

    def _parent(self, item: object) -> dict[str, Any]:
        """A parent by exact version; one that says which store it lies in is kept as given."""
        parent = cast("dict[str, Any]", dict(item)) if isinstance(item, Mapping) else {"ref": item}
        if "store" in parent:
            return parent
        version = self.resolve(str(parent.get("ref", "")))
        return parent | {"ref": version.ref, "snapshot": version.snapshot}

    def resolve(self, ref: str) -> Version:
        """The version that `name`, `name@3` or `name@alias` means now; NotFound, with what there is, otherwise."""
        name, which = names.parse_ref(ref)
        newest = self._repo.tip(names.versions_branch(name))
        if newest is None:
            raise NotFound(f"no artifact is called {name!r} in {self.uri}{_list(self.names())}")
        aliases = self._aliases(name)
        if isinstance(which, str):
            targets = {**aliases, names.LATEST: number_of(newest)}
            if which not in targets:
                raise NotFound(f"{name!r} has no alias {which!r}{_list(sorted(targets))}")
            which = targets[which]
        commit = newest if which == number_of(newest) else self._find(name, which, newest)
        return version_of(name, commit, aliases, number_of(newest))

    def _find(self, name: str, number: int, newest: Commit) -> Commit:
        if not 1 <= number < number_of(newest):
            raise NotFound(f"{name!r} has no version {number}: its newest is {number_of(newest)}")
        if commit := self._by_shortcut(name, number):
            return commit
        # The writer was interrupted between its commit and the shortcut, or that is damaged: the branch knows better.
        commit = next(c for c in self._repo.commits(names.versions_branch(name)) if number_of(c) == number)
        with suppress(StorageError):  # a store that can only be read stays without this shortcut
            self._repo.set_shortcut(name, number, commit.id)
        return commit

    def _by_shortcut(self, name: str, number: int) -> Commit | None:
        snapshot = self._repo.shortcut(name, number)
        if snapshot is None:
            return None
        try:
            commit = self._repo.commit(snapshot)
        except Unreachable:
            raise
        except StorageError:
            return None
        right = commit.metadata.get("name"), commit.metadata.get("version")
        return commit if right == (name, number) else None

    def load(self, ref: str) -> Artifact:
        """All of a version; StorageError when its files are damaged."""
        version = self.resolve(ref)
        with self._repo.reading(version.snapshot, version.ref) as group:
            card = read_card(group.attrs.get("card"), version.ref)
            figures = {names.check_figure(k): a.tobytes() for k, a in read_arrays(group, FIGURES).items()}
            params, history = read_arrays(group, PARAMS), read_arrays(group, HISTORY)
        return Artifact(version, params, card.model_dump(mode="json"), history, figures)

    def card(self, ref: str) -> dict[str, Any]:
        """The card of a version, without its arrays."""
        version = self.resolve(ref)
        return self._card(version).model_dump(mode="json")

    def _card(self, version: Version) -> Card:
        with self._repo.reading(version.snapshot, version.ref) as group:
            return read_card(group.attrs.get("card"), version.ref)

    def open(self, ref: str) -> zarr.Group:
        """A version as a read-only zarr group (`params/…`, `history/…`), for arrays too large to load whole."""
        return self._repo.read(self.resolve(ref).snapshot)

    def names(self) -> list[str]:
        """Names of all artifacts, sorted."""
        # A branch without versions is left when the very first publishing was interrupted.
        return self._repo.begun(names.versions_branch(""))

    def history(self, name: str, limit: int | None = None) -> list[Version]:
        """Versions of a name, newest first: all, or the `limit` newest; NotFound when there is none."""
        newest = self.resolve(name)
        aliases = self._aliases(name)
        commits = islice(self._repo.commits(names.versions_branch(newest.name)), limit)
        return [version_of(newest.name, commit, aliases, newest.number) for commit in commits]

    def aliases(self, name: str) -> dict[str, int]:
        """Which version each alias of a name points to, `latest` included."""
        newest = self.resolve(name)
        return {**self._aliases(newest.name), names.LATEST: newest.number}

    def _aliases(self, name: str) -> dict[str, int]:
        book = self._repo.tip(names.aliases_branch(name))
        return dict(book.fact("aliases", dict)) if book else {}

    def set_alias(self, name: str, alias: str, ref: str | int) -> Version:
        """Points an alias of `name` to one of its versions (number, `name@3`, or another alias)."""
        names.check_alias(names.check_name(name) and alias)
        version = self.resolve(ref if isinstance(ref, str) and "@" in ref else f"{name}@{ref}")
        if version.name != name:
            raise StorageError(f"{version.ref} is another artifact: an alias of {name!r} points to its own versions")
        self._change_aliases(name, alias, version.number)
        return self.resolve(version.ref)

    def remove_alias(self, name: str, alias: str) -> None:
        """Forgets an alias; NotFound when there is none."""
        names.check_alias(names.check_name(name) and alias)
        self._change_aliases(name, alias, None)

    def _change_aliases(self, name: str, alias: str, number: int | None) -> None:
        def change() -> None:
            with self._repo.session(names.aliases_branch(name), lasting=True) as session:
                old = session.base.fact("aliases", dict) if session.base else {}
                if number is None and alias not in old:
                    raise NotFound(f"{name!r} has no alias {alias!r}{_list(sorted(old))}")
                if old.get(alias) == number:
                    return
                new = {key: value for key, value in {**old, alias: number}.items() if value is not None}
                session.group.attrs["aliases"] = new
                message = f"{alias} -> {number}" if number else f"{alias} removed"
                session.commit(message, {"kind": "aliases", "name": name, "aliases": new})

        _retry(change)

    def rollback(self, name: str, to: str | int) -> Version:
        """Publishes the content of an older version again as the newest one; what came between stays.

        `to` is a version number or an alias of `name`.
        """
        old = self.resolve(f"{names.check_name(name)}@{to}")
        with self._repo.reading(old.snapshot, old.ref) as group:
            content = read_arrays(group)
        card = {**self._card(old).model_dump(), "rolled_back_to": old.number}
        return self._add(name, content, card, f"rolled back to version {old.number}")

    def lineage(self, ref: str) -> list[dict[str, Any]]:
        """The version and everything that it was made from, each once, nearest first.

        Entries have `ref`, `snapshot`, `depth` (0 is the version itself), `parents` (references), `data` (address of
        the data set) and `missing` (True for a parent that lies in another store or is gone).
        """
        return lineage(self.resolve(ref), lambda parent: self._card(self.resolve(parent)))

    def diff(self, a: str, b: str) -> dict[str, Any]:
        """What differs between two versions; see `compare`."""
        from .diff import compare

        return compare(self.load(a), self.load(b))

    def export(self, ref: str, path: str | Path, format: str | None = None, *, overwrite: bool = False) -> list[Path]:
        """Writes a version to ordinary files and returns them; see `export.FORMATS`."""
        from .export import export

        artifact = self.load(ref)
        return export(artifact, Path(path), format, aliases=self.aliases(artifact.version.name), overwrite=overwrite)

    def verify(self, ref: str | None = None) -> list[str]:
        """Reads everything of a version, or of the whole store, and says what is wrong; empty when nothing is."""
        from .integrity import verify_store, verify_version

        return verify_store(self._repo) if ref is None else verify_version(self._repo, self.resolve(ref))

    def garbage_collect(self, *, dry_run: bool = True, older_than_days: float = 7) -> dict[str, Any]:
        """Removes what no version, alias or run needs (dropped runs and their memory, interrupted writes), and counts.

        On S3 a writer that is at work cannot be seen, so that its files must be younger than the margin of at least
        one day, by the server's clock; local writers are kept out by the lock.
        """
        if older_than_days < (0 if self._repo.place.is_local else 1):
            raise StorageError(
                f"older_than_days={older_than_days} would remove files of writers at work: use 1 or more"
            )
        place = self._repo.place
        now = datetime.now(UTC) if place.is_local else clock(place)
        before = now - timedelta(days=older_than_days)
        left = left_memories(self._repo)
        if not dry_run:
            for memory in left:
                memory.clear()
        found = {**self._repo.collect(before, dry_run=dry_run), "memories": len(left)}
        return {**found, "dry_run": dry_run, "before": before.isoformat()}

    def doctor(self) -> dict[str, Any]:
        """Facts about the place: kind, format and, on S3, whether conditional writes are kept (tried now)."""
        place = self._repo.place
        kept = {"create": True, "update": True} if place.is_local else conditional_writes(place)
        return {
            "uri": place.uri,
            "kind": "local" if place.is_local else "s3",
            "format": FORMAT,
            "conditional_create": kept["create"],
            "conditional_update": kept["update"],
            "several_writers": "one machine" if place.is_local else all(kept.values()),
        }

    def run(self, run_id: str) -> RunBranch:
        """The checkpoints of a run, whether it has any yet or not."""
        return RunBranch(self._repo, run_id)

    def runs(self) -> list[RunInfo]:
        """Runs that have checkpoints: those that have not been finished yet, newest first."""
        return run_infos(self._repo)


def reopen(uri: str) -> ArtifactStore:
    """An existing store again, in another process."""
    return ArtifactStore(uri, create=False)


def _retry(change: Callable[[], T]) -> T:
    """Tries again when another writer of the same name was faster."""
    for attempt in range(ATTEMPTS):
        try:
            return change()
        except StoreConflict:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(random.uniform(0, min(1.0, 0.02 * 2**attempt)))
    raise AssertionError("unreachable")


def _list(known: list[str]) -> str:
    return f": it has {', '.join(known[:20])}" if known else ""
