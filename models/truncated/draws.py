"""Random numbers by place: the same for a row of the data set, whichever worker, block or device asks for them.

Counter based (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, SC 2011), with the finaliser of
SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014) as the function of
(seed, step, row, count).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..schedule import Stage

GOLDEN = -0x61C8864680B583EB
FIRST, SECOND = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


class Draws:
    """The random numbers of n rows at one update: every call goes on where the last one ended."""

    def __init__(self, stage: Stage | None, start: int, rows: int, device: torch.device) -> None:
        """`start`: index of the first of `rows` rows in the data set."""
        seed, step = (stage.seed, stage.step) if stage else (0, 0)
        place = torch.arange(start, start + rows, dtype=torch.int64, device=device)
        key = _mixed(_mixed(torch.full_like(place[:1], seed)) + step) if rows else place
        self._rows = _mixed(_mixed(place * GOLDEN) + key)[:, None]
        self._count = 0

    @classmethod
    def alike(cls, rows: int, device: torch.device) -> Draws:
        """The same numbers for every row: what is drawn for a row does not depend on where it lies."""
        out = cls(None, 0, 1, device)
        out._rows = out._rows.expand(rows, 1)
        return out

    def uniform(self, *shape: int) -> Tensor:
        """[n, *shape] float64 in [0, 1)."""
        count = 1
        for size in shape:
            count *= size
        numbers = torch.arange(self._count + 1, self._count + 1 + count, dtype=torch.int64, device=self._rows.device)
        self._count += count
        bits = _mixed(self._rows + numbers * GOLDEN)
        return (_shifted(bits, 11).double() * 2.0**-53).reshape(-1, *shape)

    def integer(self, below: Tensor | int, *shape: int) -> Tensor:
        """[n, *shape] int64 in [0, below)."""
        return (self.uniform(*shape) * below).long()


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's finaliser; int64 arithmetic wraps as it should."""
    z = (z ^ _shifted(z, 30)) * FIRST
    z = (z ^ _shifted(z, 27)) * SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """A logical shift to the right."""
    return (z >> by) & ((1 << (64 - by)) - 1)
