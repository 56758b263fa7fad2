"""How the members of a group speak to each other: three small implementations of one interface."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, TypeVar

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
    def broadcast(self, value: T) -> T:
        """Rank 0's `value`, on every member."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait until every member is here."""

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

    def broadcast(self, value: T) -> T:
        return value

    def barrier(self) -> None:
        return


class TorchDistributed(Communicator):
    """A `torch.distributed` process group: gloo on CPUs, NCCL on GPUs."""

    def __init__(self, rank: int, size: int, init_method: str, device: torch.device) -> None:
        import torch.distributed as dist

        self._dist = dist
        self.rank, self.size = rank, size
        # Statistics lie on the device; checksums and counts are small and stay on the host.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        self._run(dist.init_process_group, backend, init_method=init_method, rank=rank, world_size=size)

    def allreduce(self, vector: Tensor) -> Tensor:
        self._run(self._dist.all_reduce, vector)
        return vector

    def broadcast(self, value: T) -> T:
        box = [value]
        self._run(self._dist.broadcast_object_list, box, src=0)
        return box[0]

    def barrier(self) -> None:
        self._run(self._dist.barrier)

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

    def broadcast(self, value: T) -> T:
        return self._world.bcast(value, root=0)

    def barrier(self) -> None:
        self._world.Barrier()


def _forget_names_of_shared_memory() -> None:
    """Unlink MPICH's shared memory, which every rank has open by now: a group that is killed would leave it behind."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    for line in maps.read_text().splitlines():
        _, found, name = line.partition("/dev/shm/mpich_shm_")
        if found:
            Path(found + name).unlink(missing_ok=True)
