"""Result files of ProSper: HDF5 with one table per logged name, one row appended per EM step.

Only arrays of numbers that lie in the file itself are read: the last row of each, and the whole course of what is one
number a step. Nothing is unpickled, and no other file is followed to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BadData, NotFound, StorageError
from .layout import first_problem

LARGEST_ROW = 1 << 31
"""Bytes of one row of a table, or of one of its chunks: more is no parameter but a damaged or malicious file."""
LONGEST = 10_000_000
MOST_TABLES = 10_000


@dataclass(frozen=True, slots=True)
class ProsperResults:
    """What a result file holds."""

    path: Path
    sha256: str
    last: dict[str, np.ndarray]
    """The last row of every table of numbers, float64."""
    course: dict[str, np.ndarray]
    """Tables of one number a step, [T] float64."""
    skipped: list[str] = field(default_factory=list[str])
    """Tables that are no numbers: texts, references, objects."""


def read_prosper(path: str | Path) -> ProsperResults:
    """All tables of numbers of a result file.

    Raises:
        NotFound: there is no such file.
        BadData: it is damaged or not HDF5, has tables of absurd sizes, or its tables lie in other files.
        StorageError: h5py is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFound(f"{path}: no such file")
    try:
        import h5py
    except ImportError as error:
        raise StorageError(f"{path} needs h5py: pip install 'sparsefleet[formats]'") from error
    last: dict[str, np.ndarray] = {}
    course: dict[str, np.ndarray] = {}
    skipped: list[str] = []
    try:
        with h5py.File(path, "r") as file:
            if len(file) > MOST_TABLES:
                raise BadData(f"{path} holds {len(file)} tables: that is no result file of ProSper")
            for name in map(str, file):
                table = _table(file, name, path)
                if table is None:
                    skipped.append(name)
                    continue
                last[name] = np.asarray(table[table.shape[0] - 1], np.float64)
                if table.ndim == 1 or table.shape[1:] == (1,):
                    course[name] = np.asarray(table[...], np.float64).reshape(-1)
    except (StorageError, MemoryError):
        raise
    except Exception as error:  # h5py reports damage as OSError, RuntimeError, KeyError, ValueError, …
        raise BadData(f"{path} cannot be read as HDF5: {first_problem(error)}") from error
    return ProsperResults(path, _sha256(path), last, course, sorted(skipped))


def _table(file: Any, name: str, path: Path) -> Any:
    """The table `name` if it is rows of numbers, None if it is something else. BadData for what must not be read."""
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise BadData(f"{path}: {name!r} is a link to something else, which is not followed")
    table = file[name]
    if not isinstance(table, h5py.Dataset) or table.dtype.kind not in "fiub" or not table.ndim or not table.shape[0]:
        return None
    if table.is_virtual or table.external:
        raise BadData(f"{path}: {name!r} lies in other files, which are not read")
    size = table.dtype.itemsize
    row = size * int(np.prod([int(n) for n in table.shape[1:]], dtype=object))
    chunk = size * int(np.prod([int(n) for n in table.chunks or ()], dtype=object))
    if max(row, chunk) > LARGEST_ROW or table.shape[0] > LONGEST:
        raise BadData(f"{path}: {name!r} has shape {list(table.shape)}, which no result of ProSper has")
    return table


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parameters_of(results: ProsperResults) -> Mapping[str, np.ndarray]:
    """The last row of the tables that hold parameters of a model.

    Raises:
        BadData: there is no dictionary W, or a parameter has values that are not finite.
    """
    found = {name: results.last[name] for name in PARAMETERS if name in results.last}
    if "W" not in found:
        held = ", ".join(sorted(results.last)[:20]) or "no table of numbers"
        raise BadData(f"{results.path} has no table W [steps, D, H]: it has {held}")
    for name, value in found.items():
        if not np.isfinite(value).all():
            raise BadData(f"{results.path}: the last row of {name!r} has NaN or Inf")
    return found


PARAMETERS = ("W", "pi", "sigma", "sigma_sq", "mu", "psi_sq", "psi")
