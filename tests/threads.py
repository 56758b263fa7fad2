"""Members of a group as threads of one process: the real calls in the real order, with barriers for messages."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError
from typing import Any, TypeVar

import torch

T = TypeVar("T")
SECONDS = 60


class Meeting:
    """Where the members of a group exchange values."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = Barrier(size, timeout=SECONDS)
        self._values: list[Any] = [None] * size

    def exchange(self, rank: int, value: T) -> list[T]:
        """Every member's value, in the order of their rank."""
        self._values[rank] = value
        self.barrier.wait()
        found = list(self._values)
        self.barrier.wait()
        return found


def together(size: int, work: Callable[[int, Meeting], T]) -> list[T]:
    """What `work` gives for each rank of a group of so many."""
    meeting = Meeting(size)

    def one(rank: int) -> T:
        torch.set_num_threads(1)
        try:
            return work(rank, meeting)
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
