"""The workers among which the atoms of one dictionary are dealt: what a model may ask of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Peers(Protocol):
    """Workers that see the same rows and hold a slice of the atoms each, in the order of their rank.

    All of them make the same calls in the same order, with tensors of the same length.
    """

    @property
    def rank(self) -> int:
        """Which slice is this worker's."""
        ...

    @property
    def size(self) -> int:
        """A, how many there are."""
        ...

    def allreduce(self, vector: Tensor) -> Tensor:
        """The sum of every peer's `vector` (1-D, contiguous), the same bits on each. May overwrite `vector`."""
        ...

    def allgather(self, vector: Tensor) -> Tensor:
        """[A, …] every peer's `vector` (1-D, contiguous), in the order of their rank."""
        ...


@dataclass(frozen=True, slots=True)
class Share:
    """One of so many peers, the others imagined: they send what this one does and add nothing.

    Its sizes and its work are those of a real peer; what it learns is of use only where it is the only one.
    """

    rank: int = 0
    size: int = 1

    def allreduce(self, vector: Tensor) -> Tensor:
        """`vector`."""
        return vector

    def allgather(self, vector: Tensor) -> Tensor:
        """[A, …] `vector` in every place."""
        return vector.expand(self.size, -1)


ALONE = Share()


def total(peers: Peers, part: Tensor) -> Tensor:
    """The sum of every peer's `part`, whatever its shape; may overwrite it. Nothing is sent where there is one peer."""
    if peers.size == 1 or part.numel() == 0:
        return part
    return peers.allreduce(part.reshape(-1)).view(part.shape)
