"""Rows for the model, read ahead of the compute, in an order that does not depend on how many workers there are.

Models updated once per pass see the data set as fixed blocks of `batch_rows` rows in order; a worker owns a contiguous
run of blocks and keeps them in memory where its budget allows.

Models updated once per batch see random batches: an epoch shuffles the data set's chunks, takes them in groups, and
every batch draws an equal part of every chunk of its group; a worker reads the part of each batch that is its own.
Whole chunks are read, never single rows, because a row drags its chunk along (a hundred times slower).
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..models import Batch, Model, Probe, Schedule, Stage
from ..storage import Dataset
from .columns import read_columns, widths
from .communicator import Communicator
from .errors import JobError
from .memories import Memo, Memories, keep

T = TypeVar("T")

GROUP_CHUNKS = 16
PROBE_BLOCKS = 64
PROBE_BLOCK_ROWS = 1024
PROBE_SAMPLE = 8192
JOIN_SECONDS = 2.0


@dataclass(frozen=True)
class Update:
    """One update's share of the work of this worker."""

    stage: Stage
    batches: Callable[[], Iterable[Batch]]
    """Yields the same batches, with the same memo, at every call; one empty batch where this worker has none."""


class Feed:
    """The updates of a run, each with this worker's batches."""

    def __init__(
        self,
        data: Dataset,
        model: Model,
        schedule: Schedule,
        comm: Communicator,
        *,
        rows: int,
        seed: int,
        budget: int,
        device: torch.device,
    ) -> None:
        """`rows`: use the first so many; `budget`: bytes of rows that this worker may keep in memory."""
        self._data, self._model, self._schedule, self._comm = data, model, schedule, comm
        self.rows, self.block_rows = rows, schedule.batch_rows
        self._seed, self._device = seed, device
        self._widths = widths(data, model.arrays)
        self._cache = _BlockCache(self._read, budget)
        self._chunk = min(data.chunk_rows, rows)
        self._group_chunks = group_chunks(schedule, self._chunk)
        self._mine = self._my_blocks() if schedule.update_every == "pass" else []
        self.kept: list[Memo] = keep(self._mine)
        """What the model remembers of each of this worker's blocks from update to update."""
        if schedule.update_every == "pass":
            self.updates = schedule.passes
        elif model.kept_rows():
            raise JobError(
                f"model {type(model).__name__} keeps {', '.join(model.kept_rows())} of every row from pass "
                "to pass, but is updated once per batch; that cannot be"
            )
        else:
            self.updates = sum(self._epoch_updates(e) for e in range(schedule.passes))

    @property
    def held_bytes(self) -> int:
        """Bytes of rows that are kept in memory now."""
        return self._cache.held

    def run(self, start: int) -> Iterator[Update]:
        """The updates from number `start` to the last."""
        per_pass = self._schedule.update_every == "pass"
        yield from self._passes(start) if per_pass else self._steps(start)

    def probe(self) -> Probe:
        """Moments and a sample of the rows, from blocks spread evenly over the data set."""
        starts = np.unique(np.linspace(0, max(self.rows - PROBE_BLOCK_ROWS, 0), PROBE_BLOCKS).astype(int))
        seen = np.zeros(self.rows, dtype=bool) if self.rows < PROBE_BLOCKS * PROBE_BLOCK_ROWS else None
        blocks: list[NDArray[np.float64]] = []
        for start in starts:
            stop = min(start + PROBE_BLOCK_ROWS, self.rows)
            block = self._read(int(start), int(stop)).double().numpy()
            if seen is not None:
                block = block[~seen[start:stop]]
                seen[start:stop] = True
            blocks.append(block)
        sample = torch.from_numpy(np.concatenate(blocks))
        mean, variance = moments(sample)
        thin = torch.linspace(0, len(sample) - 1, min(PROBE_SAMPLE, len(sample))).long()
        sample = torch.where(torch.isnan(sample[thin]), mean, sample[thin])
        return Probe(self.rows, mean, variance, sample, self._widths)

    # -- one update per pass ---------------------------------------------------------------------------------------

    def _my_blocks(self) -> list[tuple[int, int]]:
        size = self._schedule.batch_rows
        blocks = [(a, min(a + size, self.rows)) for a in range(0, self.rows, size)]
        rank, world = self._comm.rank, self._comm.size
        return blocks[len(blocks) * rank // world : len(blocks) * (rank + 1) // world]

    def _passes(self, start: int) -> Iterator[Update]:
        mine = self._mine
        memories = Memories(mine[0][0], mine[-1][1]) if mine else None
        for step in range(start, self.updates):
            memos = [memories.of(a, b) for a, b in mine] if memories else []

            def batches(memos: list[Memo] = memos) -> Iterator[Batch]:
                if not mine:
                    yield self._empty()
                blocks = read_ahead(self._cache.get(a, b) for a, b in mine)
                for (a, _), memo, kept, x in zip(mine, memos, self.kept, blocks):
                    yield Batch(x.to(self._device, non_blocking=True), a, memo, kept)

            yield Update(self._stage(step), batches)

    # -- one update per batch --------------------------------------------------------------------------------------

    def _steps(self, start: int) -> Iterator[Update]:
        rows = read_ahead(self._my_rows(start))
        for step, (first, x) in zip(range(start, self.updates), rows):
            batch = Batch(x.to(self._device, non_blocking=True), first)
            yield Update(self._stage(step), lambda batch=batch: [batch])

    def _my_rows(self, start: int) -> Iterator[tuple[int, torch.Tensor]]:
        step = 0
        for epoch in range(self._schedule.passes):
            for chunks in self._groups(epoch):
                count = self._group_updates(chunks)
                # All batches of a group take rows of the same chunks: read once, held until the next group.
                held: dict[int, torch.Tensor] = {}
                for i in range(count):
                    if step + i >= start:
                        yield self._part(epoch, chunks, i, count, held)
                step += count

    def _part(
        self, epoch: int, chunks: NDArray[np.int64], i: int, count: int, held: dict[int, torch.Tensor]
    ) -> tuple[int, torch.Tensor]:
        """This worker's rows of batch `i` of `count` of a group, and where in the batch they begin."""
        sizes = self._sizes(chunks)
        begin, end = sizes * i // count, sizes * (i + 1) // count
        edges = np.concatenate([[0], np.cumsum(end - begin)])
        rank, world = self._comm.rank, self._comm.size
        low, high = edges[-1] * rank // world, edges[-1] * (rank + 1) // world
        parts: list[torch.Tensor] = []
        for j, chunk in enumerate(chunks):
            a, b = max(low, edges[j]) - edges[j], min(high, edges[j + 1]) - edges[j]
            if a < b:
                if j not in held:
                    order = np.random.default_rng([self._seed, epoch, int(chunk)]).permutation(int(sizes[j]))
                    first = int(chunk) * self._chunk
                    held[j] = self._cache.get(first, first + int(sizes[j]))[torch.from_numpy(order)]
                parts.append(held[j][begin[j] + a : begin[j] + b])
        return int(low), torch.cat(parts) if parts else self._empty().x

    def _groups(self, epoch: int) -> list[NDArray[np.int64]]:
        n_chunks = math.ceil(self.rows / self._chunk)
        order = np.random.default_rng([self._seed, epoch]).permutation(n_chunks)
        groups = max(1, round(n_chunks / self._group_chunks))
        return np.array_split(order, groups)

    def _sizes(self, chunks: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.minimum((chunks + 1) * self._chunk, self.rows) - chunks * self._chunk

    def _group_updates(self, chunks: NDArray[np.int64]) -> int:
        return max(1, round(int(self._sizes(chunks).sum()) / self._schedule.batch_rows))

    def _epoch_updates(self, epoch: int) -> int:
        return sum(self._group_updates(g) for g in self._groups(epoch))

    # -- both ------------------------------------------------------------------------------------------------------

    def _stage(self, step: int) -> Stage:
        return self._schedule.at(step, self.updates, seed=self._seed, rows=self.rows)

    def _empty(self) -> Batch:
        return Batch(torch.empty(0, sum(self._widths), dtype=self._model.torch_dtype, device=self._device))

    def _read(self, start: int, stop: int) -> torch.Tensor:
        block = torch.from_numpy(read_columns(self._data, self._model.arrays, start, stop)).to(self._model.torch_dtype)
        finite = torch.isfinite(block).all(1)
        if self._model.accepts_missing and not bool(finite.all()):
            finite = ~torch.isinf(block).any(1)
        if not bool(finite.all()):
            bad = (start + torch.nonzero(~finite).flatten()[:3]).tolist()
            raise JobError(
                f"data set {self._data.uri!r} has NaN or infinite values, first in rows {bad}; ingest it without them"
            )
        return block.pin_memory() if self._device.type == "cuda" else block


def moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance [D] of what was observed in rows [n, D]; 0 where nothing was."""
    seen = ~torch.isnan(rows)
    if bool(seen.all()):
        return rows.mean(0), rows.var(0, correction=0)
    count = seen.sum(0).clamp(min=1)
    mean = rows.nansum(0) / count
    return mean, torch.where(seen, rows - mean, 0.0).square().sum(0) / count


def group_chunks(schedule: Schedule, chunk_rows: int) -> int:
    """Chunks that batches are mixed from, where parameters are updated per batch."""
    return max(GROUP_CHUNKS, math.ceil(4 * schedule.batch_rows / chunk_rows))


class _BlockCache:
    """Blocks of rows by their range, kept while they fit the budget; what was kept first stays.

    (Dropping the oldest would, in a scan larger than the budget, always drop what is needed next.)
    """

    def __init__(self, read: Callable[[int, int], torch.Tensor], budget: int) -> None:
        self._read, self._left = read, budget
        self.held = 0
        self._kept: dict[tuple[int, int], torch.Tensor] = {}

    def get(self, start: int, stop: int) -> torch.Tensor:
        block = self._kept.get((start, stop))
        if block is None:
            block = self._read(start, stop)
            if block.nbytes <= self._left:
                self._left -= block.nbytes
                self.held += block.nbytes
                self._kept[start, stop] = block
        return block


def read_ahead(source: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The items of `source`, computed in a thread up to `depth` ahead; its exception is raised here."""
    box: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(entry: tuple[bool, T | BaseException | None]) -> bool:
        while not stop.is_set():
            try:
                box.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in source:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as err:
            put((False, err))

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item = box.get()
            if not more:
                if isinstance(item, BaseException):
                    raise item
                return
            yield item  # pyright: ignore[reportReturnType]
    finally:
        stop.set()
        # A Ctrl-C inside of the queue can leave its lock taken; the thread would wait for that for ever.
        thread.join(JOIN_SECONDS)
