"""How the members of a group speak to each other: three small implementations of one interface."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from copy import copy
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from .interruptions import Check

T = TypeVar("T")


class PeerLost(RuntimeError):
    """Another member of the group is gone; the group has to be started again."""


class Communicator(ABC):
    """A member's view of its group."""

    rank: int = 0
    size: int = 1

    @abstractmethod
    def allreduce(self, vector: Tensor) -> Tensor:
        """The sum of every member's `vector` (1-D, contiguous, equal length), the same bits on every member.

        May overwrite `vector`.

        Raises:
            PeerLost: a member is gone.
        """

    @abstractmethod
    def allgather(self, vector: Tensor) -> Tensor:
        """[size, …] every member's `vector` (1-D, contiguous, equal length), in the order of their ranks.

        Raises:
            PeerLost: a member is gone.
        """

    @abstractmethod
    def broadcast(self, value: T) -> T:
        """Rank 0's `value`, on every member."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait until every member is here."""

    @abstractmethod
    def split(self, color: int) -> Communicator:
        """The group of those members that give the same `color`, in the order of their ranks here; all have to call."""

    def check(self) -> None:
        """Called between batches, where an interruption does no harm; may raise KeyboardInterrupt."""
        return


class Solo(Communicator):
    """A group of one, which the user may interrupt."""

    def __init__(self, check: Check = lambda: None) -> None:
        """`check`: lets an interruption happen."""
        self.check = check

    def allreduce(self, vector: Tensor) -> Tensor:
        return vector

    def allgather(self, vector: Tensor) -> Tensor:
        return vector[None]

    def broadcast(self, value: T) -> T:
        return value

    def barrier(self) -> None:
        return

    def split(self, color: int) -> Solo:
        return self


class TorchDistributed(Communicator):
    """A `torch.distributed` process group: gloo on CPUs, NCCL on GPUs."""

    def __init__(self, rank: int, size: int, init_method: str, device: torch.device) -> None:
        import torch.distributed as dist

        self._dist = dist
        self.rank, self.size = rank, size
        # All processes; a part of them counts its own ranks, but names a sender by its rank among all.
        self._group, self._ranks = None, list(range(size))
        # Statistics lie on the device; checksums and counts are small and stay on the host.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        self._run(dist.init_process_group, backend, init_method=init_method, rank=rank, world_size=size)

    def allreduce(self, vector: Tensor) -> Tensor:
        self._run(self._dist.all_reduce, vector, group=self._group)
        return vector

    def allgather(self, vector: Tensor) -> Tensor:
        found = list(vector.new_empty(self.size, vector.numel()))
        self._run(self._dist.all_gather, found, vector, group=self._group)
        return torch.stack(found)

    def broadcast(self, value: T) -> T:
        box = [value]
        self._run(self._dist.broadcast_object_list, box, src=self._ranks[0], group=self._group)
        return box[0]

    def barrier(self) -> None:
        self._run(self._dist.barrier, group=self._group)

    def split(self, color: int) -> Self:
        colors: list[int] = [0] * self.size
        self._run(self._dist.all_gather_object, colors, color, group=self._group)
        part = copy(self)
        # Every process has to make all groups, also those that it is not in.
        for each in sorted(set(colors)):
            ranks = [rank for rank, found in zip(self._ranks, colors, strict=True) if found == each]
            group = self._dist.new_group(ranks)
            if each == color:
                part._group, part._ranks = group, ranks
                part.rank, part.size = ranks.index(self._ranks[self.rank]), len(ranks)
        return part

    def close(self) -> None:
        """Leave the group."""
        self._dist.destroy_process_group()

    def _run(self, call: Any, *args: Any, **kwargs: Any) -> None:
        try:
            call(*args, **kwargs)
        except RuntimeError as err:
            # Without the place in gloo's source before, and its advice after.
            reason = re.sub(r"^\[\S+\] ", "", str(err).splitlines()[0]).partition(". ")[0]
            raise PeerLost(f"rank {self.rank} of {self.size} lost the group: {reason}") from err


class MPI(Communicator):
    """MPI's world. A member that fails takes all of them down, so there is nothing to detect here."""

    def __init__(self) -> None:
        from mpi4py import MPI as mpi

        self._mpi = mpi
        self._world = mpi.COMM_WORLD
        self.rank, self.size = self._world.Get_rank(), self._world.Get_size()
        self._world.Barrier()
        _forget_names_of_shared_memory()

    def allreduce(self, vector: Tensor) -> Tensor:
        buffer = vector.cpu().contiguous()
        self._world.Allreduce(self._mpi.IN_PLACE, buffer.numpy(), op=self._mpi.SUM)
        return buffer.to(vector.device)

    def allgather(self, vector: Tensor) -> Tensor:
        buffer = vector.cpu().contiguous()
        found = buffer.new_empty(self.size, buffer.numel())
        self._world.Allgather(buffer.numpy(), found.numpy())
        return found.to(vector.device)

    def broadcast(self, value: T) -> T:
        return self._world.bcast(value, root=0)

    def barrier(self) -> None:
        self._world.Barrier()

    def split(self, color: int) -> Self:
        part = copy(self)
        part._world = self._world.Split(color, self.rank)
        part.rank, part.size = part._world.Get_rank(), part._world.Get_size()
        return part


def _forget_names_of_shared_memory() -> None:
    """Unlink MPICH's shared memory, which every rank has open by now: a group that is killed would leave it behind."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    for line in maps.read_text().splitlines():
        _, found, name = line.partition("/dev/shm/mpich_shm_")
        if found:
            Path(found + name).unlink(missing_ok=True)
