"""Peers as threads of one process: the real calls in the real order, with barriers for messages."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier, BrokenBarrierError
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
SECONDS = 60


@dataclass
class Group:
    """What some peers share; `sent` lists the (call, numbers) of each message of the first one."""

    size: int
    barrier: Barrier = field(init=False)
    places: list[Any] = field(init=False)
    sent: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.barrier = Barrier(self.size, timeout=SECONDS)
        self.places = [None] * self.size


@dataclass
class Peer:
    rank: int
    group: Group

    @property
    def size(self) -> int:
        return self.group.size

    def allgather(self, vector: Tensor) -> Tensor:
        return torch.stack(self._exchange("gather", vector))

    def allreduce(self, vector: Tensor) -> Tensor:
        return torch.stack(self._exchange("sum", vector)).sum(0)

    def _exchange(self, call: str, vector: Tensor) -> list[Tensor]:
        assert vector.ndim == 1 and vector.is_contiguous()
        if self.rank == 0:
            self.group.sent.append((call, vector.numel()))
        self.group.places[self.rank] = vector.clone()
        self.group.barrier.wait()
        found = list(self.group.places)
        self.group.barrier.wait()
        return found


def together(size: int, work: Callable[[Peer], T]) -> tuple[list[T], Group]:
    """What `work` gives for each of so many peers at once, and what they shared."""
    group = Group(size)

    def one(rank: int) -> T:
        torch.set_num_threads(1)
        try:
            return work(Peer(rank, group))
        except BaseException:
            group.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        going = [pool.submit(one, rank) for rank in range(size)]
    failed = [error for error in (each.exception() for each in going) if error is not None]
    if failed:
        # The first cause, not the others' complaint that somebody is gone.
        raise next((error for error in failed if not isinstance(error, BrokenBarrierError)), failed[0])
    return [each.result() for each in going], group
