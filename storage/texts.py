"""Documents of text in files: plain ones, one document each, and lines of JSON, one document a line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BadData
from .ingest.sources import file_fingerprint, find_files

SUFFIXES = (".txt", ".md", ".rst", ".jsonl")
LINES = ".jsonl"
FIELD = "text"


@dataclass(frozen=True, slots=True)
class Document:
    """A text, and where it stands."""

    text: str
    file: int
    """Number of its file among the files."""
    line: int
    """Of the file, counted from 0; 0 in files that are one document."""


def find_texts(sources: Sequence[str]) -> list[Path]:
    """The files that `sources` name: files, folders (searched for .txt, .md, .rst and .jsonl with all below) and
    patterns. Any file may be named itself; only .jsonl is not read as plain text.

    Raises:
        NotFound, BadData: a source gives none.
    """
    return find_files(sources, SUFFIXES, "texts")


def read_documents(paths: Sequence[Path]) -> Iterator[Document]:
    """The documents of all files in order, empty ones left out.

    Raises:
        BadData: a file cannot be read, is not UTF-8, or a line of .jsonl has no string `text`.
    """
    for number, path in enumerate(paths):
        try:
            if path.suffix.lower() == LINES:
                yield from _lines(path, number)
                continue
            text = path.read_text(encoding="utf-8")
        except OSError as err:
            raise BadData(f"{path} cannot be read: {err.strerror}") from err
        except UnicodeDecodeError as err:
            raise BadData(f"{path} is not UTF-8 (at byte {err.start}): convert it, for example with iconv") from err
        if text.strip():
            yield Document(text, number, 0)


def _lines(path: Path, number: int) -> Iterator[Document]:
    with path.open(encoding="utf-8") as file:
        for at, line in enumerate(file):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except ValueError as err:
                raise BadData(f"{path}, line {at + 1}: not JSON ({err})") from err
            text = found.get(FIELD) if isinstance(found, dict) else None
            if not isinstance(text, str):
                raise BadData(f"{path}, line {at + 1}: an object with a string {FIELD!r} is needed")
            if text.strip():
                yield Document(text, number, at)


def texts_fingerprint(paths: Sequence[Path]) -> dict[str, Any]:
    """Number, names and bytes of the files, the names of their folders, and one hash of the contents of all."""
    prints = [file_fingerprint(path) for path in paths]
    digest = hashlib.sha256("".join(p["sha256"] for p in prints).encode()).hexdigest()
    return {
        "files": len(paths),
        "bytes": sum(p["bytes"] for p in prints),
        "sha256": digest,
        "names": [p["name"] for p in prints],
        "folders": [path.resolve().parent.name for path in paths],
    }
