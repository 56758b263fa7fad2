"""Classes of the documents of a harvest: by folder, or from a table."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..storage import Dataset
from ..storage.texts import LINES
from ..workers.errors import JobError

FOLDERS = "folders"
TABLE = ".csv"
COLUMNS = ("document", "label")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a document came from."""

    folder: str
    name: str
    line: int | None
    """Counted from 1; None where the whole file is the document."""

    def spellings(self) -> list[str]:
        """How a table may name it, the most particular first."""
        files = [f"{self.folder}/{self.name}", self.name] if self.folder else [self.name]
        return files if self.line is None else [f"{file}:{self.line}" for file in files] + files


def check_form(labels: str) -> None:
    """JobError where `labels` is neither `folders` nor the name of a table."""
    if labels != FOLDERS and not labels.endswith(TABLE):
        raise JobError(f"labels={labels!r}: give folders (a text's class is its folder) or a .csv of document,label")


def labels_of(labels: str, data: Dataset) -> list[str | None]:
    """The class of each document of `data`; None: it has none.

    Args:
        labels: `folders`, or a .csv with the columns `document` and `label`. A document is named by its file, with the
            folder where that is needed (`news/1.txt`); a line of a .jsonl by file and line, counted from 1
            (`mails.jsonl:12`), or all its lines by the file.
        data: what `harvest` wrote.

    Raises:
        JobError: the data set holds no documents, the table cannot be read, or it names no document.
    """
    check_form(labels)
    found = origins(data)
    if labels == FOLDERS:
        if not all(origin.folder for origin in found):
            raise JobError(
                f"labels=folders: {data.uri!r} does not say where its texts lay; give a .csv, or harvest again"
            )
        return [origin.folder for origin in found]
    table = read_table(Path(labels))
    given = [next((s for s in origin.spellings() if s in table), None) for origin in found]
    for spelling in set(given) - {None}:
        named = {(o.folder, o.name) for o, s in zip(found, given) if s == spelling}
        if len(named) > 1:
            folders = " and ".join(sorted(f"{folder}/{name}" for folder, name in named)[:2])
            raise JobError(f"labels={labels!r}: {spelling!r} may be {folders}; write the folder too")
    if not any(given):
        first = next(iter(table), "nothing")
        raise JobError(
            f"labels={labels!r}: no document of {data.uri!r} is named in it; it names {first!r}, …, and the data set "
            f"holds {found[0].spellings()[0]!r}, …"
        )
    return [None if spelling is None else table[spelling] for spelling in given]


def not_held(labels: str, data: Dataset) -> list[str]:
    """What the table `labels` names and `data` does not hold, in its order."""
    if labels == FOLDERS:
        return []
    held = {spelling for origin in origins(data) for spelling in origin.spellings()}
    return [name for name in read_table(Path(labels)) if name not in held]


def origins(data: Dataset) -> list[Origin]:
    """Where the documents of a harvest came from, in order. JobError where `data` is none."""
    places, texts = data.side("documents"), data.attributes.get("texts")
    if places is None or texts is None or not {"document", "position"} <= set(data.arrays):
        raise JobError(f"labels: {data.uri!r} holds no documents; they are for data sets that `harvest` wrote")
    names = texts["names"]
    folders = texts.get("folders", [""] * len(names))
    return [
        Origin(folders[file], names[file], line + 1 if names[file].lower().endswith(LINES) else None)
        for file, line in places.tolist()
    ]


def read_table(path: Path) -> dict[str, str]:
    """Class by name of the document, of which at most the last folder is kept.

    Raises:
        JobError: the table cannot be read, has other columns, or two classes for one document.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                has = ", ".join(reader.fieldnames or ()) or "none"
                raise JobError(
                    f"labels={str(path)!r}: the first line must name the columns document and label; it has {has}"
                )
            table: dict[str, str] = {}
            for row in reader:
                document, label = (row["document"] or "").strip(), (row["label"] or "").strip()
                if not document or not label:
                    raise JobError(f"labels={str(path)!r}, line {reader.line_num}: a document and a label are needed")
                key = "/".join(PurePath(document).parts[-2:])
                if table.setdefault(key, label) != label:
                    raise JobError(f"labels={str(path)!r}: {key!r} is both {table[key]!r} and {label!r}")
    except OSError as err:
        raise JobError(f"labels={str(path)!r} cannot be read: {err.strerror}") from err
    except (UnicodeDecodeError, csv.Error) as err:
        raise JobError(f"labels={str(path)!r} is no table in UTF-8: {err}") from err
    return table
