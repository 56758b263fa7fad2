"""Names of artifacts, versions, aliases, runs and arrays: what is allowed and how they are written down in a store."""

import re

from ..errors import StorageError

LATEST = "latest"
TRAINING = "training/"
"""Arrays whose key starts so belong to a run (optimiser moments, counters) and are left out of versions."""

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?")
ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
VERSION = re.compile(r"v?([1-9][0-9]{0,8})")
KEY_PART = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,127}")
FIGURE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\.png")


def check_name(name: str) -> str:
    """The name itself; StorageError when no artifact can be called so."""
    if not NAME.fullmatch(name):
        raise StorageError(
            f"{name!r} cannot be a name: use 1 to 128 letters, digits, '.', '_' or '-', "
            "a letter or digit first and no dot last"
        )
    return name


def check_alias(alias: str) -> str:
    """The alias itself; StorageError when it is reserved, looks like a version or has other characters."""
    if alias == LATEST:
        raise StorageError("the alias 'latest' moves by itself: it is always the newest version")
    if VERSION.fullmatch(alias):
        raise StorageError(f"{alias!r} looks like a version: an alias is a word, e.g. 'best'")
    if not ALIAS.fullmatch(alias):
        raise StorageError(f"{alias!r} cannot be an alias: use a letter, then letters, digits, '_' or '-' (at most 64)")
    return alias


def check_run(run_id: str) -> str:
    """The run's identifier itself; StorageError when it has characters that a store cannot keep."""
    if not NAME.fullmatch(run_id):
        raise StorageError(f"{run_id!r} cannot be a run: use 1 to 128 letters, digits, '.', '_' or '-'")
    return run_id


def check_keys(keys: list[str], what: str) -> None:
    """StorageError when a key of arrays has odd characters, or is also the folder of another one (`a` and `a/b`)."""
    for key in keys:
        if not all(KEY_PART.fullmatch(part) and not part.startswith("__") for part in key.split("/")):
            raise StorageError(f"{key!r} cannot be the name of {what}: use letters, digits, '.', '_', '-', '+' and '/'")
    folders = {key[:at] for key in keys for at, letter in enumerate(key) if letter == "/"}
    for key in folders.intersection(keys):
        raise StorageError(f"{key!r} is the name of {what} and also the folder of another one: rename one of them")


def check_figure(name: str) -> str:
    """The file name itself; StorageError unless it is a plain `….png`."""
    if not FIGURE.fullmatch(name):
        raise StorageError(f"{name!r} cannot be a figure: use a plain file name that ends in .png")
    return name


def parse_ref(ref: str) -> tuple[str, int | str]:
    """Takes a reference apart: the name, and a version number or an alias.

    >>> parse_ref("natural-images@3"), parse_ref("natural-images@best"), parse_ref("natural-images")
    (('natural-images', 3), ('natural-images', 'best'), ('natural-images', 'latest'))

    StorageError when it can be neither.
    """
    name, at, which = ref.partition("@")
    check_name(name)
    if not at or which == LATEST:
        return name, LATEST
    if match := VERSION.fullmatch(which):
        return name, int(match.group(1))
    if not ALIAS.fullmatch(which):
        raise StorageError(f"{ref!r} names no version: write {name}@3, {name}@best or {name}")
    return name, which


def versions_branch(name: str) -> str:
    """The branch whose commits are the versions of `name`."""
    return f"artifact.{name}"


def version_tag(name: str, number: int) -> str:
    """The tag that finds one version without walking the branch, on S3 and in local stores of earlier programs."""
    return f"artifact.{name}.v{number}"


def aliases_branch(name: str) -> str:
    """The branch whose newest commit says where the aliases of `name` point; its older commits say where they did."""
    return f"alias.{name}"


def run_branch(run_id: str) -> str:
    """The branch of one run's checkpoints."""
    return f"run.{run_id}"
