"""Peers as threads of one process, who keep a list of their messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ... import threads

T = TypeVar("T")
Sent = list[tuple[str, int]]
"""(call, numbers) of each message of the first peer."""


@dataclass
class Peer:
    rank: int
    meeting: threads.Meeting
    sent: Sent

    @property
    def size(self) -> int:
        return self.meeting.size

    def allgather(self, vector: Tensor) -> Tensor:
        return torch.stack(self._exchange("gather", vector))

    def allreduce(self, vector: Tensor) -> Tensor:
        return torch.stack(self._exchange("sum", vector)).sum(0)

    def _exchange(self, call: str, vector: Tensor) -> list[Tensor]:
        assert vector.ndim == 1 and vector.is_contiguous()
        if self.rank == 0:
            self.sent.append((call, vector.numel()))
        return self.meeting.exchange(self.rank, vector.clone())


def together(size: int, work: Callable[[Peer], T]) -> tuple[list[T], Sent]:
    """What `work` gives for each of so many peers at once, and what they sent."""
    sent: Sent = []
    return threads.together(size, lambda rank, meeting: work(Peer(rank, meeting, sent))), sent
