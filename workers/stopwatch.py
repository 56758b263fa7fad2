"""Where a worker's time goes: computing, waiting for rows, for the other members, for the store."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Literal, TypeVar, get_args

from torch import Tensor

from .communicator import Communicator

T = TypeVar("T")
Waiting = Literal["feed", "communication", "commit"]
FEED: Waiting = "feed"
COMMUNICATION: Waiting = "communication"
COMMIT: Waiting = "commit"


class Stopwatch:
    """Wall seconds since it was made, by what they were spent on."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._spent = dict.fromkeys(get_args(Waiting), 0.0)
        self._counted = 0.0

    @contextmanager
    def on(self, what: Waiting) -> Generator[None, None, None]:
        """What happens inside counts as `what`, except for what counts as something else there already."""
        begun, counted = time.monotonic(), self._counted
        try:
            yield
        finally:
            elapsed = time.monotonic() - begun
            self._spent[what] += elapsed - (self._counted - counted)
            self._counted = counted + elapsed

    def waiting(self, items: Iterable[T]) -> Generator[T, None, None]:
        """The same items; the time until each of them is there counts as waiting for rows."""
        source = iter(items)
        while True:
            with self.on(FEED):
                item = next(source, self)
            if item is self:
                return
            yield item  # pyright: ignore[reportReturnType]

    def seconds(self) -> dict[str, float]:
        """Seconds by what they were spent on; `compute` is what no other part has taken."""
        rest = time.monotonic() - self._begun - sum(self._spent.values())
        return {"compute": max(rest, 0.0), **self._spent}


class Timed(Communicator):
    """A communicator whose waiting is measured."""

    def __init__(self, comm: Communicator, watch: Stopwatch) -> None:
        self._comm, self._watch = comm, watch
        self.rank, self.size = comm.rank, comm.size

    def allreduce(self, vector: Tensor) -> Tensor:
        with self._watch.on(COMMUNICATION):
            return self._comm.allreduce(vector)

    def allgather(self, vector: Tensor) -> Tensor:
        with self._watch.on(COMMUNICATION):
            return self._comm.allgather(vector)

    def broadcast(self, value: T) -> T:
        with self._watch.on(COMMUNICATION):
            return self._comm.broadcast(value)

    def barrier(self) -> None:
        with self._watch.on(COMMUNICATION):
            self._comm.barrier()

    def split(self, color: int) -> Timed:
        return Timed(self._comm.split(color), self._watch)

    def check(self) -> None:
        self._comm.check()
