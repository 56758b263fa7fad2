"""Dictionaries whose atoms are dealt to groups of workers: who holds which, and where commits keep them.

P workers are R row groups of A peers. Peers see the same rows and hold H / A atoms each; workers of the same atoms, one
of each row group, share the rows of a batch and add up their statistics. The slices are written by the workers of the
first row group, as a data set with a row for every atom, before the commit that names it: it is the same on any number
of groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..models import Model, Params
from ..storage import Dataset, create_dataset, open_dataset, open_writer
from ..storage.artifacts import Checkpoint, RunBranch
from .communicator import Communicator, Solo

SHARD_BYTES = 64 << 20
CHUNK_BYTES = 2 << 20


@dataclass(frozen=True)
class Layout:
    """A worker's place among the others."""

    rows: Communicator
    """Those that hold the same atoms."""
    atoms: Communicator
    """Those that see the same rows."""

    @property
    def dealt(self) -> bool:
        """Whether a worker holds a part of the atoms only."""
        return self.atoms.size > 1

    def held(self, atoms: int) -> slice:
        """Which of so many are this worker's."""
        share = atoms // self.atoms.size
        return slice(share * self.atoms.rank, share * (self.atoms.rank + 1))


def arrange(comm: Communicator, atom_groups: int) -> Layout:
    """The layout of a group of workers; peers have neighbouring ranks, since they speak most."""
    if atom_groups == 1:
        return Layout(comm, Solo())
    atoms = comm.split(comm.rank // atom_groups)
    rows = comm.split(comm.rank % atom_groups)
    return Layout(rows if rows.size > 1 else Solo(), atoms)


def shared(model: Model, params: Params) -> Params:
    """The parameters that every worker holds."""
    return {name: value for name, value in params.items() if name not in model.per_atom}


def write(uri: str, model: Model, params: Params, comm: Communicator, layout: Layout) -> None:
    """Write the slices of all atoms to a data set at `uri`.

    Raises:
        StorageError: it could not be written, or not by all.
    """
    arrays = {key: params[name].detach().cpu().numpy() for name, key in _keys(model).items()}
    share = model.atoms // layout.atoms.size
    if comm.rank == 0:
        row_bytes = max(array.nbytes // share for array in arrays.values())
        shard_rows = _part(share, SHARD_BYTES // row_bytes)
        create_dataset(
            uri,
            rows=model.atoms,
            arrays={key: (array.shape[1:], str(array.dtype)) for key, array in arrays.items()},
            shard_rows=shard_rows,
            chunk_rows=_part(shard_rows, CHUNK_BYTES // row_bytes),
            attributes={"kind": "atoms of a run"},
            overwrite=True,
        )
    comm.barrier()
    if layout.rows.rank == 0:
        writer, first = open_writer(uri), layout.held(model.atoms).start
        for shard in writer.shards():
            if first <= shard.start < first + share:
                own = slice(shard.start - first, shard.stop - first)
                writer.write(shard, **{key: array[own] for key, array in arrays.items()})
    comm.barrier()
    if comm.rank == 0:
        open_writer(uri).finish()


def read(uri: str, model: Model, params: Params, held: slice) -> Params:
    """`params` of a commit with this worker's slice of all that have a row for every atom: from the commit itself,
    where one worker held all, or else from `uri`.

    Raises:
        StorageError: it is gone or damaged.
    """
    own = lambda value: value if len(value) == held.stop - held.start else value[held].clone()  # noqa: E731
    out = {name: own(value) if name in model.per_atom else value for name, value in params.items()}
    missing = {name: key for name, key in _keys(model).items() if name not in params}
    if missing:
        found = open_dataset(uri)
        for name, key in missing.items():
            out[name] = torch.from_numpy(found.read(held.start, held.stop, key))
    return out


@dataclass(frozen=True)
class Column:
    """One parameter with a row for every atom, read piece by piece from where the workers left their slices."""

    data: Dataset
    key: str
    shape: tuple[int, ...]
    """[H, …]"""
    dtype: np.dtype[Any]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start…stop-1."""
        return self.data.read(start, stop, self.key)


def columns(run: RunBranch, found: Checkpoint, model: Model) -> dict[str, Column]:
    """The parameters of a commit that lie beside it, because no worker holds all of them.

    Raises:
        StorageError: they are gone or damaged.
    """
    missing = {name: key for name, key in _keys(model).items() if name not in found.arrays}
    if not missing:
        return {}
    data = open_dataset(run.memory.at(found.memory).uri)
    one = {name: data.read(0, 1, key) for name, key in missing.items()}
    return {n: Column(data, key, (data.rows, *one[n].shape[1:]), one[n].dtype) for n, key in missing.items()}


def _keys(model: Model) -> dict[str, str]:
    """What an array of the data set is called, by the parameter's name."""
    return {name: name.replace("/", "__") if i else "data" for i, name in enumerate(model.per_atom)}


def _part(rows: int, most: int) -> int:
    """The most rows, at most about `most` of them, that divide `rows` evenly in not too many parts."""
    wanted = max(1, -(-rows // max(most, 1)))
    return rows // max(parts for parts in range(1, wanted + 1) if rows % parts == 0)
