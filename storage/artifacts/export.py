"""Versions as ordinary files, for programs that know nothing of stores."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..errors import StorageError
from .arrays import Arrays
from .card import plain
from .versions import Artifact

MADE = ".exported"
"""Lists what an export put into a folder: only that is ever replaced."""
SERIES = "free_energy"
"""The column of the history that an .npz holds beside the parameters."""
Contents = dict[str, bytes]
"""Files to write: what follows the stem of the path asked for, or a name inside a folder, and the content."""


def export(
    artifact: Artifact, path: Path, format: str | None = None, *, aliases: Mapping[str, int], overwrite: bool = False
) -> list[Path]:
    """Writes a version and returns the files; each appears whole or not at all.

    `npz`: one array per parameter, and `free_energy` after every update where the model has one (the value that the
    parameters before that update gave). `safetensors`: the parameters, and `<stem>.card.json` beside it. `json`:
    card, history and aliases. `folder`: `parameters.npz`, `card.json`, `history.csv` and the figures. Without `format`
    the ending decides.

    Raises:
        StorageError: another format, an existing target (unless `overwrite`), or one that cannot be written.
    """
    kind = format or path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise StorageError(f"cannot export as {kind!r}: choose one of {', '.join(FORMATS)}")
    contents = FORMATS[kind](artifact, aliases)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "folder":
            return _write_folder(path, contents, overwrite=overwrite)
        return write_files({_beside(path, ending): text for ending, text in contents.items()}, overwrite=overwrite)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error


def _beside(path: Path, ending: str) -> Path:
    return path if not ending else path.with_name((path.stem if path.suffix else path.name) + ending)


def write_files(files: Mapping[Path, bytes], *, overwrite: bool) -> list[Path]:
    """Writes each file whole or not at all, its folder being there, and returns the paths.

    Raises:
        StorageError: a folder is in the way, or a file and `overwrite` is False; then nothing is written.
        OSError: one cannot be written.
    """
    for path in files:
        if path.is_dir():
            raise StorageError(f"{path} exists and is a folder: give another path")
        if path.exists() and not overwrite:
            raise StorageError(f"{path} exists: give another path or pass --overwrite")
    for path, content in files.items():
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            draft.write_bytes(content)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    return list(files)


def _write_folder(path: Path, contents: Contents, *, overwrite: bool) -> list[Path]:
    there = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()} if path.is_dir() else set[str]()
    made = set((path / MADE).read_text().splitlines()) | {MADE} if MADE in there else set[str]()
    if path.is_file() or (there and not (overwrite and made)):
        raise StorageError(f"{path} exists: give another path" + (" or pass --overwrite" if made else ""))
    if there - made:
        raise StorageError(f"{path} also holds {min(there - made)!r}, which no export made: move it or go elsewhere")
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        draft = Path(scratch, "new")
        for name, content in (contents | {MADE: "\n".join(contents).encode()}).items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).write_bytes(content)
        if path.exists():
            shutil.move(path, Path(scratch, "old"))
        draft.replace(path)
    return [path / name for name in contents]


def _npz(arrays: Arrays) -> bytes:
    """As `np.savez`, but the same arrays always give the same bytes, and any name is allowed."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for key, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return out.getvalue()


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n").encode()


def _csv(history: Arrays) -> bytes:
    out = io.StringIO()
    rows = csv.writer(out)
    rows.writerow(["step", *history])
    rows.writerows([step, *row] for step, row in enumerate(zip_longest(*map(_floats, history.values()), fillvalue="")))
    return out.getvalue().encode()


def _floats(values: Any) -> list[float]:
    return [float(value) for value in values]


def _as_npz(artifact: Artifact, _: Mapping[str, int]) -> Contents:
    series = {SERIES: np.asarray(artifact.history[SERIES])} if SERIES in artifact.history else {}
    return {"": _npz(series | dict(artifact.arrays))}


def _as_safetensors(artifact: Artifact, _: Mapping[str, int]) -> Contents:
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise StorageError("needs safetensors: pip install 'sparsefleet[safetensors]'") from error
    for key, array in artifact.arrays.items():
        if array.dtype.kind == "c":
            raise StorageError(f"array {key!r} is complex, which safetensors cannot keep: export as npz")
    arrays = {key: np.ascontiguousarray(array) if array.ndim else array for key, array in artifact.arrays.items()}
    return {"": save(arrays, {"artifact": artifact.version.ref}), ".card.json": _json(artifact.card)}


def _as_json(artifact: Artifact, aliases: Mapping[str, int]) -> Contents:
    history = {key: _floats(values) for key, values in artifact.history.items()}
    return {"": _json({"card": artifact.card, "history": history, "aliases": dict(aliases)})}


def _as_folder(artifact: Artifact, _: Mapping[str, int]) -> Contents:
    return {
        "card.json": _json(artifact.card),
        "parameters.npz": _npz(artifact.arrays),
        "history.csv": _csv(artifact.history),
        **artifact.figures,
    }


FORMATS: dict[str, Callable[[Artifact, Mapping[str, int]], Contents]] = {
    "npz": _as_npz,
    "safetensors": _as_safetensors,
    "json": _as_json,
    "folder": _as_folder,
}
