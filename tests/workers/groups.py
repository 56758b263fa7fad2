"""A group of workers as threads of one process, with the messages of a real one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from threading import Barrier, BrokenBarrierError
from typing import Any, TypeVar

import torch
from sparsefleet.workers.communicator import Communicator
from torch import Tensor

T = TypeVar("T")
SECONDS = 60


class Meeting:
    """Where the members of a group exchange values."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = Barrier(size, timeout=SECONDS)
        self.values: list[Any] = [None] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        found = list(self.values)
        self.barrier.wait()
        return found


class Thread(Communicator):
    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.size, self._meeting = rank, meeting.size, meeting

    def allreduce(self, vector: Tensor) -> Tensor:
        return torch.stack(self._meeting.exchange(self.rank, vector.clone())).sum(0)

    def allgather(self, vector: Tensor) -> Tensor:
        return torch.stack(self._meeting.exchange(self.rank, vector.clone()))

    def broadcast(self, value: T) -> T:
        return deepcopy(self._meeting.exchange(self.rank, value)[0])

    def barrier(self) -> None:
        self._meeting.exchange(self.rank, None)

    def split(self, color: int) -> Thread:
        colors = self._meeting.exchange(self.rank, color)
        mine = [rank for rank, found in enumerate(colors) if found == color]
        made = Meeting(len(mine)) if self.rank == mine[0] else None
        meeting = self._meeting.exchange(self.rank, made)[mine[0]]
        return Thread(mine.index(self.rank), meeting)


def together(size: int, work: Callable[[Communicator], T]) -> list[T]:
    """What `work` gives for each member of a group of so many."""
    meeting = Meeting(size)

    def one(rank: int) -> T:
        torch.set_num_threads(1)
        try:
            return work(Thread(rank, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        going = [pool.submit(one, rank) for rank in range(size)]
    failed = [error for error in (each.exception() for each in going) if error is not None]
    if failed:
        # The first cause, not the others' complaint that somebody is gone.
        raise next((error for error in failed if not isinstance(error, BrokenBarrierError)), failed[0])
    return [each.result() for each in going]
