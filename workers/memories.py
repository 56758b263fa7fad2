"""What models remember of rows: for one update, or from update to update and then in every commit.

Kept rows are written by the workers that own them, as a data set of one shard a block, before the commit that names
it: whoever finds the commit finds them whole, on any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping

import torch

from ..models import Model
from ..storage import Dataset, StorageError, create_dataset, open_dataset, open_writer
from .communicator import Communicator


class Memories:
    """What models remember of rows `start` to `stop`: one array per name, [stop - start, …], made when first used.

    (A small tensor kept per batch, among the large ones that come and go, would scatter the heap: memory grew by twenty
    times what was kept.)
    """

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self.whole: dict[str, torch.Tensor] = {}

    def of(self, start: int, stop: int) -> Memo:
        """An empty memo for some of the rows."""
        return Memo(self, start, stop)


class Memo(MutableMapping[str, torch.Tensor]):
    """The memo of one batch: its rows of the arrays, once they are set."""

    def __init__(self, memories: Memories, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        """The rows in the data set."""
        self._memories, self._rows = memories, slice(start - memories.start, stop - memories.start)
        self._set: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._set:
            raise KeyError(name)
        return self._memories.whole[name][self._rows]

    def __setitem__(self, name: str, value: torch.Tensor) -> None:
        whole = self._memories.whole
        if name not in whole:
            whole[name] = value.new_empty(self._memories.stop - self._memories.start, *value.shape[1:])
        whole[name][self._rows] = value
        self._set.add(name)

    def __delitem__(self, name: str) -> None:
        self._set.remove(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._set)

    def __len__(self) -> int:
        return len(self._set)


def keep(blocks: list[tuple[int, int]]) -> list[Memo]:
    """A memo that lasts for each block of rows."""
    if not blocks:
        return []
    memories = Memories(blocks[0][0], blocks[-1][1])
    return [memories.of(start, stop) for start, stop in blocks]


def write(uri: str, model: Model, kept: list[Memo], comm: Communicator, *, rows: int, block_rows: int) -> None:
    """Write what the group keeps of all rows below `uri`: every member its own blocks, one data set a name.

    Raises:
        StorageError: it could not be written, or not by all members.
    """
    places = {name: f"{uri}/{name}" for name in model.kept_rows()}
    if comm.rank == 0:
        for name, (shape, dtype) in model.kept_rows().items():
            create_dataset(
                places[name],
                rows=rows,
                arrays={"data": (shape, dtype)},
                shard_rows=min(block_rows, rows),
                chunk_rows=min(block_rows, rows),
                attributes={"kind": "kept rows"},
                overwrite=True,
            )
    comm.barrier()
    for name, place in places.items():
        writer = open_writer(place)
        shards = {shard.start: shard for shard in writer.shards()}
        for memo in kept:
            writer.write(shards[memo.start], data=memo[name].cpu().numpy())
    comm.barrier()
    if comm.rank == 0:
        for place in places.values():
            open_writer(place).finish()


def read(uri: str, model: Model, kept: list[Memo], device: torch.device) -> None:
    """Fill `kept` from what `write` left below `uri`.

    Raises:
        StorageError: it is gone, damaged, or of other shapes than the model's.
    """
    for name, (shape, dtype) in model.kept_rows().items():
        found = open_dataset(f"{uri}/{name}")
        if (_row_shape(found), str(found.dtype)) != (shape, dtype):
            raise StorageError(f"{found.uri} is not what this model keeps of a row: {dtype}{list(shape)}")
        for memo in kept:
            memo[name] = torch.from_numpy(found.read(memo.start, memo.stop)).to(device)


def _row_shape(found: Dataset) -> tuple[int, ...]:
    return found.read(0, 1).shape[1:]
