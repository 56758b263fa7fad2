"""The only module that knows Icechunk: one repository, its branches, tags and commits, with errors in our words.

Two things are added to Icechunk. On a local file system its commits can silently overwrite each other, so writers hold
an inter-process lock from opening a session to its commit. And its files carry no checksums, so commits that must last
are sealed (see `seals`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Any, TypeVar
from uuid import uuid4

# Before the import: its logger writes to standard output, where other programs expect our words only.
os.environ.setdefault("ICECHUNK_LOG", "off")

import icechunk
import obstore
import zarr
from filelock import FileLock, Timeout
from zarr.errors import BaseZarrError

from ..errors import NotFound, StorageError, StoreConflict, Unreachable
from ..locations import Location, reaching, refused, s3_settings
from . import names, refs, seals, shortcuts
from .probe import SINGLE_WRITER, conditional_writes, single_writer

FORMAT = 1
INSIDE = "repository"
LOCK = ".lock"
DRAFT = ".new-"
LOCK_SECONDS = 120.0
MAIN = "main"
SCRATCH = "scratch."
"""Branches on which a commit without history is prepared; one that stays behind belongs to a writer that was killed."""

CLOCKS = re.compile(
    r"local clock: `([\d: -]{19}).*object store clock: `([\d: -]{19})|parent: `([\d: -]{19}).*child: `([\d: -]{19})"
)
"""The times in what Icechunk says when it refuses a commit because of the clock."""

LOST = "no branch leads to its versions any more; keep its shortcuts, they are the last that does"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Commit:
    """One snapshot on a branch."""

    id: str
    parent: str | None
    """Snapshot before this one; None for the first commit of a branch."""
    message: str
    written_at: datetime
    metadata: dict[str, Any]

    def fact(self, key: str, kind: type[T]) -> T:
        """One entry of the metadata; StorageError when it is missing or of another type: the file is damaged."""
        value = self.metadata.get(key)
        if not isinstance(value, kind):
            raise StorageError(f"commit {self.id} is damaged (no {key}): `artifacts verify` says more")
        return value


@dataclass(slots=True)
class Session:
    """An open change to one branch: fill `group`, then `commit` once."""

    base: Commit | None
    """Newest commit of the branch when the session was opened; None when there was none."""
    group: zarr.Group
    """What the new commit will hold; starts as what `base` holds."""
    commit: Callable[[str, dict[str, Any]], Commit]
    """Ends the session: commit(message, metadata). StoreConflict when the branch has moved meanwhile."""


class Repository:
    """An opened store. Every method raises StorageError (StoreConflict, NotFound) when the place cannot do it."""

    def __init__(self, place: Location, *, create: bool) -> None:
        self.place = place
        empty = _is_empty(place)
        if empty and not create:
            raise NotFound(f"{place.uri}: no artifact store is here")
        if empty and place.is_local:
            try:
                place.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(f"{place.uri}: cannot be created: {error.strerror or error}") from error
        self._lock = FileLock(place.path / LOCK, timeout=LOCK_SECONDS, poll_interval=0.01) if place.is_local else None
        self._repo = self._create() if empty else self._open()
        with self._words():
            self._root = [snapshot.id for snapshot in self._repo.ancestry(branch=MAIN)][-1]
        self._single_writer_only = self._identity(create).metadata.get("conditional_writes") is False

    def _open(self) -> icechunk.Repository:
        inside = self.place.child(INSIDE)
        if inside.is_empty():  # asked first, because Icechunk would make the folder
            raise StorageError(f"{self.place.uri} holds other things and is not an artifact store")
        try:
            return icechunk.Repository.open(_storage(inside))
        except icechunk.IcechunkError as error:
            raise _kind(error)(f"{self.place.uri} cannot be opened: {_words(error)}") from error

    def _create(self) -> icechunk.Repository:
        with self.locked():
            if not _is_empty(self.place):  # somebody else was a little faster
                return self._open()
            try:
                if not self.place.is_local:
                    return icechunk.Repository.create(_storage(self.place.child(INSIDE)))
                # Made aside and moved: whoever finds the folder finds all of it, even if this process is killed.
                draft = self.place.child(f"{DRAFT}{uuid4().hex}")
                made = icechunk.Repository.create(_storage(draft))
                _write_identity(made.writable_session(MAIN), conditional=True)
                draft.path.rename(self.place.path / INSIDE)
                return self._open()
            except icechunk.IcechunkError as error:
                if not _is_empty(self.place):
                    return self._open()
                raise StorageError(f"{self.place.uri}: cannot be created: {_words(error)}") from error

    def _identity(self, create: bool) -> Commit:
        """The first commit on `main` says that this is a store of ours, and which format it has."""
        identity = self.tip(MAIN)
        if identity is None and create:
            identity = self._sign()
        found = identity.metadata.get("format") if identity and identity.metadata.get("kind") == "store" else None
        if identity is None or not isinstance(found, int):
            raise StorageError(f"{self.place.uri} is an Icechunk repository, but not an artifact store")
        if found > FORMAT:
            raise StorageError(f"{self.place.uri} has format {found}, newer than {FORMAT}: update sparsefleet")
        if create and self.place.is_local and not self.place.exists(f"{seals.FOLDER}/{identity.id}"):
            # A seal names files where they lie for good, so that a new store gets its first one only now.
            with suppress(StorageError), self.locked():
                self._seal(identity.id, identity.id)
        return identity

    def _sign(self) -> Commit | None:
        conditional = self.place.is_local or all(conditional_writes(self.place).values())
        if not conditional and not single_writer():
            raise StorageError(
                f"{self.place.uri}: this S3 server ignores conditional writes, so writers would lose each other's "
                f"versions; use another server, or set {SINGLE_WRITER}=1 if only one process ever writes"
            )
        # When somebody else signs at the same time, what they wrote is as good.
        with suppress(StoreConflict), self.locked(), self._words():
            session = self._repo.writable_session(MAIN)
            if session.snapshot_id == self._root and not self.branches(""):
                done = _write_identity(session, conditional=conditional)
                self._seal(done, done)
        return self.tip(MAIN)

    @contextmanager
    def locked(self) -> Generator[None]:
        """Keeps other local processes from writing; does nothing on S3, where commits are safe by themselves."""
        try:
            with self._lock or nullcontext():
                yield
        except Timeout as error:
            raise StorageError(
                f"{self.place.uri} is locked by another process for more than {LOCK_SECONDS:.0f} s: wait or end it"
            ) from error
        except (OSError, NotImplementedError) as error:
            raise StorageError(f"{self.place.uri}: cannot be written: {error}") from error

    def branches(self, prefix: str, *, whole: bool = False) -> list[str]:
        """What follows `prefix` in the names of branches (or the `whole` names), sorted."""
        found = [name for name in refs.branch_names(self.place.child(INSIDE), prefix) if name != MAIN]
        return found if whole else [name.removeprefix(prefix) for name in found]

    def begun(self, prefix: str) -> list[str]:
        """As `branches`, without those that nothing has been committed on."""
        at = refs.snapshots(self.place.child(INSIDE), self.branches(prefix, whole=True))
        return [name.removeprefix(prefix) for name, snapshot in at.items() if snapshot != self._root]

    def tip(self, branch: str) -> Commit | None:
        """Newest commit of a branch; None when there is no such branch or nothing on it."""
        snapshot = self._lookup(lambda: self._repo.lookup_branch(branch))
        return None if snapshot in (None, self._root) else self.commit(snapshot)

    def commit(self, snapshot: str) -> Commit:
        """The commit with this identifier; NotFound when there is none."""
        with self._words():
            return self._commit(snapshot)

    def _commit(self, snapshot: str) -> Commit:
        info = self._repo.lookup_snapshot(snapshot)
        parent = None if info.parent_id == self._root else info.parent_id
        return Commit(info.id, parent, info.message, info.written_at, dict(info.metadata))

    def commits(self, branch: str) -> Iterator[Commit]:
        """Commits of a branch, newest first; none when there is no such branch."""
        newest = self.tip(branch)
        while newest is not None:
            yield newest
            newest = None if newest.parent is None else self.commit(newest.parent)

    def read(self, snapshot: str) -> zarr.Group:
        """What a commit holds, read-only."""
        with self._words():
            return zarr.open_group(self._repo.readonly_session(snapshot_id=snapshot).store, mode="r")

    @contextmanager
    def reading(self, snapshot: str, what: str) -> Generator[zarr.Group]:
        """What a commit holds, to be read inside: what the decoders raise on damaged files becomes a StorageError."""
        try:
            yield self.read(snapshot)
        except (icechunk.IcechunkError, BaseZarrError, ValueError, LookupError, TypeError, RuntimeError) as error:
            if isinstance(error, StorageError):
                raise
            if isinstance(error, icechunk.IcechunkError) and _kind(error) is Unreachable:
                raise Unreachable(f"{self.place.uri}: {_words(error)}") from error
            reason = _words(error) if isinstance(error, icechunk.IcechunkError) else str(error).partition("\n")[0][:200]
            raise StorageError(
                f"{what} is damaged and cannot be read ({reason}): `artifacts verify` says more"
            ) from error

    @contextmanager
    def session(self, branch: str, *, lasting: bool, clear: bool = False) -> Generator[Session]:
        """Opens a change to a branch, which is made when missing, and holds the local lock until the end.

        `lasting`: the new commit goes on top of the older ones, and each keeps a seal of its own; otherwise it takes
        their place when `clear` is set, and only the newest one is sealed. `clear` starts with an empty group.
        """
        if self._single_writer_only and not single_writer():
            raise StorageError(
                f"{self.place.uri}: its S3 server ignores conditional writes; reading is safe, but to write "
                f"set {SINGLE_WRITER}=1 and make sure that only one process writes"
            )
        with self.locked(), self._words():
            self._adopt_tags(again=False)
            base = self.tip(branch)
            fresh = clear and not lasting
            target = f"{SCRATCH}{uuid4().hex}" if fresh else branch
            if base is None or fresh:
                self._make_branch(target)
            opened = self._repo.writable_session(target)
            if not fresh:
                base = None if opened.snapshot_id == self._root else self._commit(opened.snapshot_id)
            if base and lasting and not self.place.exists(f"{seals.FOLDER}/{base.id}"):
                self._seal(base.id, base.id)  # its writer was interrupted before it could
            group = zarr.open_group(opened.store, mode="w" if clear or base is None else "r+")

            def commit(message: str, metadata: dict[str, Any]) -> Commit:
                done = self._commit_once(opened, target, message, metadata)
                if fresh:
                    self._move_branch(branch, done, base)
                self._seal(done, done if lasting else branch)
                return self._commit(done)

            try:
                yield Session(base, group, commit)
            finally:
                if fresh:
                    self._delete_branch(target)

    def _commit_once(self, session: icechunk.Session, branch: str, message: str, metadata: dict[str, Any]) -> str:
        """Commits; a conflict with this very commit (its first answer got lost and it was sent again) is a success."""
        token, base = uuid4().hex, session.snapshot_id
        try:
            return session.commit(message, metadata={**metadata, "token": token})
        except icechunk.ConflictError:
            for commit in takewhile(lambda commit: commit.id != base, self.commits(branch)):
                if commit.metadata.get("token") == token:
                    return commit.id
            raise

    def _move_branch(self, branch: str, snapshot: str, base: Commit | None) -> None:
        if base is None:
            self._make_branch(branch)
        try:
            self._repo.reset_branch(branch, snapshot, from_snapshot_id=base.id if base else self._root)
        except icechunk.IcechunkError as error:
            if "branch update conflict" not in str(error):
                raise
            if self._repo.lookup_branch(branch) != snapshot:  # else the first answer got lost
                raise StoreConflict(f"{self.place.uri}: somebody else moved {branch}") from error

    def _make_branch(self, branch: str) -> None:
        try:
            self._repo.create_branch(branch, self._root)
        except icechunk.IcechunkError as error:
            if "branch update conflict" not in str(error):  # it is there already: as good as made
                raise

    def delete_branch(self, branch: str) -> None:
        """Forgets a branch; nothing happens when there is none."""
        with self.locked():
            seals.remove_seal(self.place, branch)
            self._lookup(lambda: self._delete_branch(branch))

    def _delete_branch(self, branch: str) -> None:
        self._repo.delete_branch(branch)
        if self.place.is_local:
            with suppress(OSError):  # Icechunk leaves its folder, which then counts as a branch in listings
                self.place.child(f"{INSIDE}/refs/branch.{branch}").path.rmdir()

    def shortcut(self, name: str, number: int) -> str | None:
        """The snapshot that is said to be a version, without walking its branch; None when nothing says so.

        It may say something else than the branch: the caller checks what it leads to.
        """
        said = shortcuts.read_shortcut(self.place, name, number) if self.place.is_local else None
        return said or self._lookup(lambda: self._repo.lookup_tag(names.version_tag(name, number)))

    def set_shortcut(self, name: str, number: int, snapshot: str) -> None:
        """Notes the snapshot of a version: a file beside the repository, or on S3 a tag, which once made is kept."""
        with self.locked(), self._words():
            if self.place.is_local:
                self._adopt_tags(again=False)
                return shortcuts.write_shortcut(self.place, name, number, snapshot)
            try:
                self._repo.create_tag(names.version_tag(name, number), snapshot)
            except icechunk.IcechunkError as error:
                if "already exists" not in str(error):
                    raise

    def shortcuts(self) -> list[tuple[str, int, str]]:
        """Name, number and snapshot ("": damaged) of all shortcuts that are files beside the repository."""
        return list(shortcuts.all_shortcuts(self.place)) if self.place.is_local else []

    def _adopt_tags(self, *, again: bool) -> None:
        """Makes shortcuts of the tags that a local store of an earlier program has; `again`: also if that was done."""
        if self.place.is_local and (again or not shortcuts.has_shortcuts(self.place)):
            shortcuts.adopt_tags(self.place, self.place.child(f"{INSIDE}/{refs.REFS}").path)

    def collect(self, older_than: datetime, *, dry_run: bool) -> dict[str, int]:
        """Removes files that no branch or tag needs and that were written before `older_than`; counts them.

        StorageError when versions are known that no branch leads to: the file of a branch is lost, their files are not.
        """
        with self.locked(), self._words():
            branches = set(self.branches(names.versions_branch("")))
            if lost := sorted({name for name, _, _ in self.shortcuts()} - branches):
                raise StorageError(f"{self.place.uri}: {', '.join(lost)}: {LOST}; nothing was removed")
            if not dry_run:
                self._sweep(older_than)
                self._adopt_tags(again=True)  # an earlier program that writes to this store makes tags
            done = self._repo.garbage_collect(older_than, dry_run=dry_run)
        return {
            "bytes": done.bytes_deleted,
            "chunks": done.chunks_deleted,
            "manifests": done.manifests_deleted,
            "snapshots": done.snapshots_deleted,
        }

    def _sweep(self, older_than: datetime) -> None:
        """Removes scratch branches that killed writers left (one without a commit yet tells no age: on S3 it stays)."""
        for branch in self.branches(SCRATCH, whole=True):
            tip = self.tip(branch)
            if tip.written_at < older_than if tip else self.place.is_local:
                self._delete_branch(branch)

    def damage(self, seal: str, *, only: str | None = None) -> list[str]:
        """What is wrong with the files of a sealed commit: of the one with this identifier, or the newest of a branch.

        A branch's newest commit is named by `only`. NotFound when it has no seal.
        """
        return seals.damage(self.place, seal, only or seal)

    def sealed(self) -> set[str]:
        """Commits that have a seal, and branches whose newest commit has one."""
        return seals.sealed(self.place)

    def _seal(self, snapshot: str, name: str) -> None:
        info = self._repo.lookup_snapshot(snapshot)
        manifests = [f"manifests/{manifest.id}" for manifest in info.manifests]
        files = [f"snapshots/{snapshot}", f"transactions/{snapshot}", *manifests]
        if info.parent_id == self._root and info.metadata.get("kind") == "store":
            files += ["config.yaml", f"snapshots/{self._root}"]
        seals.write_seal(self.place, name, snapshot, [f"{INSIDE}/{file}" for file in files])

    def broken_refs(self) -> list[str]:
        """Branches and tags whose file is not exactly what Icechunk writes, or that point nowhere."""
        with reaching(self.place):
            store = self.place.object_store()
            texts: dict[str, bytes] = {}
            for item in obstore.list(store, f"{INSIDE}/refs").collect():
                with suppress(FileNotFoundError):  # a tag that has become a shortcut, a run that was dropped
                    texts[item["path"]] = bytes(obstore.get(store, item["path"]).bytes())
        return [f"{name} is damaged" for name, text in texts.items() if not self._is_ref(text)]

    def _is_ref(self, text: bytes) -> bool:
        try:
            snapshot = json.loads(text)["snapshot"]
            # Identifiers are read leniently (case, look-alike letters): only the exact spelling is undamaged.
            return self._repo.lookup_snapshot(snapshot).id == snapshot and len(json.loads(text)) == 1
        except (ValueError, KeyError, TypeError, icechunk.IcechunkError):
            return False

    def _lookup(self, look: Callable[[], T]) -> T | None:
        with self._words():
            try:
                return look()
            except icechunk.IcechunkError as error:
                if "ref not found" in str(error):
                    return None
                raise

    @contextmanager
    def _words(self) -> Generator[None]:
        """Turns Icechunk's errors into ours."""
        try:
            yield
        except icechunk.ConflictError as error:
            raise StoreConflict(f"{self.place.uri}: somebody else wrote at the same moment") from error
        except icechunk.IcechunkError as error:
            raise _kind(error)(f"{self.place.uri}: {_words(error)}") from error


def _kind(error: icechunk.IcechunkError) -> type[StorageError]:
    """Unreachable for what the S3 client says after its own retries, when the server is away or answers with 5xx, and
    for a commit that is refused because of this machine's clock; not where it refuses the credentials."""
    if refused(error.message):
        return StorageError
    away = any(words in error.message for words in ("dispatch failure", "service error", "timeout"))
    return Unreachable if away or CLOCKS.search(error.message) else StorageError


def _words(error: icechunk.IcechunkError) -> str:
    """The first sentence of Icechunk's report, without its call stack."""
    lines = [line.strip(" x×|") for line in error.message.splitlines()]
    text = next((line for line in lines if line), "unknown error")[:300]
    if words := refused(error.message):
        return words
    if clocks := CLOCKS.search(error.message):
        mine, store, newest, now = clocks.groups()
        if mine:
            return f"this machine's clock says {mine} UTC, the store's {store} UTC; set it right"
        return f"this machine's clock says {now} UTC, before the last commit's {newest} UTC; set it right"
    return "the S3 server does not answer any more" if "dispatch failure" in text else text


def _write_identity(session: icechunk.Session, *, conditional: bool) -> str:
    """Commits that this is a store of ours; returns the commit's identifier."""
    identity = {"kind": "store", "format": FORMAT, "conditional_writes": conditional}
    zarr.open_group(session.store, mode="w").attrs.update(identity)
    return session.commit("artifact store", metadata=identity)


def _is_empty(place: Location) -> bool:
    with reaching(place):
        if place.is_local and place.path.is_dir():
            return all(item.name == LOCK or item.name.startswith(DRAFT) for item in place.path.iterdir())
        return place.is_empty()


def _storage(place: Location) -> icechunk.Storage:
    if place.is_local:
        return icechunk.local_filesystem_storage(str(place.path))
    s3 = s3_settings()
    return icechunk.s3_storage(
        bucket=place.bucket,
        prefix=place.prefix or None,
        region=s3.region,
        endpoint_url=s3.endpoint,
        allow_http=s3.allow_http,
        force_path_style=s3.endpoint is not None,
        from_env=True,
        network_stream_timeout_seconds=10,
    )
