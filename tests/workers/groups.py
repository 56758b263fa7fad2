"""A group of workers as threads of one process, with the messages of a real one."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TypeVar

import torch
from sparsefleet.workers.communicator import Communicator
from torch import Tensor

from .. import threads
from ..threads import Meeting

T = TypeVar("T")


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
        assert meeting is not None
        return Thread(mine.index(self.rank), meeting)


def together(size: int, work: Callable[[Communicator], T]) -> list[T]:
    """What `work` gives for each member of a group of so many."""
    return threads.together(size, lambda rank, meeting: work(Thread(rank, meeting)))
